"""The plan: the one place for a run's privacy numbers."""

import math
import numbers
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from . import accounting, keys, sampling
from .accounting import Accountant, Adjacency, Sampling
from .clipping import Clipping


@dataclass(frozen=True, init=False)
class Plan:
    """Who is sampled, for how many steps, with how much noise: everything that decides ε.

    Give `epsilon` and the noise multiplier is solved (PLD accountant), or give `noise_multiplier`.
    `privatize`, the batches and the privacy statement all read their numbers here.

    Attributes:
      num_examples: N, the number of private records. It is published.
      expected_batch_size: mean number of records in a step; also the divisor of the update.
      steps: number of updates, whole.
      clipping: a jaxdp clipping, as `clip_individual(1.0)`.
      target_epsilon: the ε asked for, or None where the noise multiplier was given.
      noise_multiplier: z = noise standard deviation / sensitivity under `adjacency`.
      delta: δ, N^-1.1 unless given; less than 1/N.
      sampling: "poisson": every record is in every step with probability expected_batch_size / N.
      adjacency: "add_remove" or "zero_out": what is meant by data that differ in one record.

    Raises:
      ValueError, TypeError: for numbers that make no sense, a combination of sampling, adjacency
        and clipping that has no sound accounting, or a target that no noise within reason meets.

    Example:
      >>> plan = Plan(num_examples=1437, expected_batch_size=256, steps=150, epsilon=3.0,
      ...             clipping=clip_individual(1.0))
      >>> plan.epsilon() <= 3.0
      True
    """

    num_examples: int
    expected_batch_size: float
    steps: int
    clipping: Clipping
    target_epsilon: float | None
    noise_multiplier: float
    delta: float
    sampling: Sampling
    adjacency: Adjacency

    def __init__(
        self,
        *,
        num_examples: int,
        expected_batch_size: float,
        steps: int,
        clipping: Clipping,
        epsilon: float | None = None,
        noise_multiplier: float | None = None,
        delta: float | None = None,
        sampling: Sampling = "poisson",
        adjacency: Adjacency = "add_remove",
    ) -> None:
        num_examples = _whole("num_examples", num_examples, "the number of private records")
        steps = _whole("steps", steps, "the number of updates")
        if not 0 < _real("expected_batch_size", expected_batch_size) <= num_examples:
            raise ValueError(
                f"expected_batch_size is {expected_batch_size}, with {num_examples} examples: it "
                "must be above 0 and at most the number of examples"
            )
        if not isinstance(clipping, Clipping):
            raise TypeError(
                f"clipping is {clipping!r}: pass a jaxdp clipping, e.g. jaxdp.clip_individual(1.0)"
            )
        delta = num_examples**-1.1 if delta is None else _real("delta", delta)
        if not 0 < delta < 1 / num_examples:
            raise ValueError(
                f"delta is {delta:.3g}: it must be above 0 and below 1/N = {1 / num_examples:.3g}, "
                "because a mechanism that publishes one random record whole has δ = 1/N. Leave it "
                f"out for N^-1.1 = {num_examples**-1.1:.3g}"
            )
        if (epsilon is None) == (noise_multiplier is None):
            raise ValueError(
                f"epsilon is {epsilon} and noise_multiplier is {noise_multiplier}: give exactly one"
            )
        if epsilon is not None and not _real("epsilon", epsilon) > 0:
            raise ValueError(f"epsilon is {epsilon}: give a number above 0 (1 to 8 are common)")
        if noise_multiplier is not None and not _real("noise_multiplier", noise_multiplier) >= 0:
            raise ValueError(
                f"noise_multiplier is {noise_multiplier}: give 0 (no privacy) or more, or epsilon"
            )
        if math.isinf(clipping.sensitivity(adjacency)) and noise_multiplier != 0:
            raise ValueError(
                f"{clipping!r} bounds nothing, so no noise makes the sum private: give a finite "
                "clipping norm, or noise_multiplier=0 for plain training without privacy"
            )
        if epsilon is not None:
            noise_multiplier = accounting.solve_noise_multiplier(
                target_epsilon=epsilon,
                delta=delta,
                steps=steps,
                sampling_probability=expected_batch_size / num_examples,
                sampling=sampling,
                adjacency=adjacency,
                unit=clipping.unit,
                num_examples=num_examples,
            )
        values = dict(
            num_examples=num_examples,
            expected_batch_size=expected_batch_size,
            steps=steps,
            clipping=clipping,
            target_epsilon=epsilon,
            noise_multiplier=noise_multiplier,
            delta=delta,
            sampling=sampling,
            adjacency=adjacency,
        )
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self.mechanism()  # refuses combinations that have no sound accounting

    @property
    def sampling_probability(self) -> float:
        """q: the probability that a given record is in a given step."""
        return self.expected_batch_size / self.num_examples

    @property
    def capacity(self) -> int:
        """The number of rows of a padded batch: a sample is larger with probability 1e-9 a run."""
        return sampling.poisson_capacity(self.num_examples, self.sampling_probability, self.steps)

    @property
    def rounding_slack(self) -> float:
        """By how much float32 rounding may raise the sensitivity of a clipped sum, as a fraction.

        A sum of B aligned clipped gradients has norm up to B·C; adding one record moves each of
        the few rounding errors made at that size by up to 2^-24·B·C. The noise's standard
        deviation is raised by this fraction; the noise multiplier that is accounted is not.
        """
        return 1e-5 + 4 * self.capacity * 2.0**-24

    def mechanism(self, steps: int | None = None) -> accounting.Mechanism:
        """The run, or its first steps, as plain data for the accountants."""
        return accounting.Mechanism(
            noise_multiplier=self.noise_multiplier,
            steps=self.steps if steps is None else steps,
            sampling_probability=self.sampling_probability,
            sampling=self.sampling,
            adjacency=self.adjacency,
            unit=self.clipping.unit,
            num_examples=self.num_examples,
        )

    def epsilon(self, steps: int | None = None, accountant: Accountant = "pld") -> float:
        """ε at the plan's δ after the given number of steps (all of them where None)."""
        return accounting.epsilon(self.mechanism(steps), self.delta, accountant)

    def epsilon_spent(self, state: Any, accountant: Accountant = "pld") -> float:
        """ε at the plan's δ after the steps that an optimizer state has seen.

        Args:
          state: the state of an Optax chain with one `privatize` in it, also inside wrappers.
          accountant: "pld", or "rdp" for a looser bound.
        """
        found = [
            leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(state)
            if path and getattr(path[-1], "name", None) == "privatize_step"
        ]
        if len(found) != 1:
            raise ValueError(
                f"the state holds {len(found)} step counts of privatize, expected one: pass the "
                "optimizer state of a chain that begins with jaxdp.privatize(plan)"
            )
        return self.epsilon(int(found[0]), accountant)

    def batches(
        self, key: jax.Array | None = None, start: int = 0
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Samples the batch of every step from `start` on.

        Args:
          key: None draws a secret sampling key from the operating system. Give one, kept secret,
            to repeat or resume a run: the batch of a step depends on (key, step) only.
          start: the first step to yield.

        Yields:
          `(indices int32 [capacity], mask bool [capacity])`: rows of the data, padded with row 0
          where the mask is False. No sampled record is ever dropped: a sample larger than the
          capacity comes in a shape twice as large.
        """
        philox = keys.philox_key(key, "sampling")
        capacity = self.capacity
        for step in range(start, self.steps):
            indices = sampling.poisson_sample(
                philox, step, self.num_examples, self.sampling_probability
            )
            yield sampling.pad(indices, capacity)


def _real(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is {value!r}, a {type(value).__name__}: give a Python number")
    if math.isnan(value) or math.isinf(value):
        raise ValueError(f"{name} is {value}: give a finite number")
    return float(value)


def _whole(name: str, value: object, meaning: str) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"{name} is {value!r}: it is {meaning}, a whole number of at least 1")
    return int(value)
