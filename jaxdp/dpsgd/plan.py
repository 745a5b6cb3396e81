"""The plan: the one place for a run's privacy numbers.

`python -m jaxdp.plan` is the noise planner.
"""

import itertools
import math
import numbers
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..accounting import calibration, guarantee
from ..accounting.mechanism import Mechanism, accountants, batches_per_epoch
from ..accounting.tradeoffs import LEVELS, group_epsilon, tradeoff
from ..types import Accountant, Adjacency, Sampling, Schedule
from . import keys, sampling
from .clipping import Clipping


@dataclass(frozen=True, init=False)
class Plan:
    """Who is sampled, for how many steps, with how much noise: everything that decides ε.

    Give `epsilon` and the noise multiplier is solved (PLD accountant), or give `noise_multiplier`.
    `privatize`, the batches and the privacy statement all read their numbers here.

    Attributes:
      num_examples: N, the number of private records. It is published.
      expected_batch_size: mean number of records in a step; also the divisor of the update, unless
        there are batch units.
      steps: number of updates, whole.
      clipping: a jaxdp clipping, such as `clip_individual(1.0)`.
      num_units: m, for clippings with unit="batch": the number of units into which a step's records
        are sorted, each record on its own. It is then the divisor of the update.
      target_epsilon: the ε that was given, or None if the noise multiplier was given.
      noise_multiplier: z = noise standard deviation / sensitivity under `adjacency`. A function
        `step -> z` is turned into a schedule `((z, count), ...)`.
      delta: δ, N^-1.1 unless given; less than 1/N.
      sampling: "poisson" (every record is in every step with probability expected_batch_size / N),
        "shuffled" (epochs, without amplification), "fixed_size" (without replacement) or
        "full_batch".
      adjacency: how two data sets differ in one record: one of them lacks it ("add_remove"), has
        another one in its place ("replace_one"), or an empty one ("zero_out").

    Raises:
      ValueError, TypeError: for numbers that make no sense, a combination of sampling, adjacency
        and clipping without sound accounting, or a target ε that no reasonable noise meets.

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
    num_units: int | None
    target_epsilon: float | None
    noise_multiplier: float | Schedule
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
        num_units: int | None = None,
        epsilon: float | None = None,
        noise_multiplier: float | Callable[[int], float] | None = None,
        delta: float | None = None,
        sampling: Sampling = "poisson",
        adjacency: Adjacency = "add_remove",
    ) -> None:
        num_examples = _whole("num_examples", num_examples, "the number of private records")
        steps = _whole("steps", steps, "the number of updates")
        _check_batch_size(expected_batch_size, num_examples, sampling)
        if not isinstance(clipping, Clipping):
            raise TypeError(
                f"clipping is {clipping!r}: pass a jaxdp clipping, e.g. jaxdp.clip_individual(1.0)"
            )
        delta = _delta(delta, num_examples)
        if (epsilon is None) == (noise_multiplier is None):
            raise ValueError(
                f"epsilon is {epsilon} and noise_multiplier is {noise_multiplier}: give exactly one"
            )
        if epsilon is not None and not _real("epsilon", epsilon) > 0:
            raise ValueError(f"epsilon is {epsilon}: give a number above 0 (1 to 8 are common)")
        z = None if noise_multiplier is None else _noise_schedule(noise_multiplier, steps)
        num_units = _units(num_units, clipping)
        if not clipping.bounded and z != 0:
            raise ValueError(
                f"{clipping!r} bounds nothing, so no noise makes the sum private: give a finite "
                "clipping norm, or noise_multiplier=0 for plain training without privacy"
            )
        if epsilon is not None:
            z = calibration.solve_noise_multiplier(
                target_epsilon=epsilon,
                delta=delta,
                steps=steps,
                sampling_probability=expected_batch_size / num_examples,
                sampling=sampling,
                adjacency=adjacency,
                unit=clipping.unit,
                num_examples=num_examples,
                accountant=accountants(sampling, adjacency)[0],
            )
        values = dict(
            num_examples=num_examples,
            expected_batch_size=expected_batch_size,
            steps=steps,
            clipping=clipping,
            num_units=num_units,
            target_epsilon=epsilon,
            noise_multiplier=z,
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
    def divisor(self) -> float:
        """The constant by which the noisy sum is divided: never a sampled number."""
        return self.expected_batch_size if self.num_units is None else self.num_units

    @property
    def capacity(self) -> int:
        """Rows of a padded batch (or unit). In one of 1e12 runs, some batch needs more."""
        return sampling.capacity(
            self.sampling,
            self.num_examples,
            self.expected_batch_size,
            self.num_units or 1,
            self.steps,
        )

    @property
    def rounding_slack(self) -> float:
        """The fraction by which float32 rounding may raise the sensitivity of a clipped sum.

        A sum of B aligned clipped gradients has norm up to B·C. Adding one record moves each of
        the few rounding errors at that size by up to 2^-24·B·C. The noise's standard deviation is
        raised by this fraction. The noise multiplier that is accounted stays.
        """
        summands = self.num_units or self.capacity
        return 1e-5 + 4 * summands * 2.0**-24

    def noise_multipliers(self) -> np.ndarray:
        """z at every step, `[steps] float64`."""
        pairs = self.mechanism().schedule
        return np.repeat([z for z, _ in pairs], [count for _, count in pairs])

    def mechanism(self, steps: int | None = None) -> Mechanism:
        """The run, or its first `steps` steps, as plain data for the accountants."""
        z = self.noise_multiplier
        if isinstance(z, tuple) and steps is not None:
            z = _first_steps(z, steps)
        return Mechanism(
            noise_multiplier=z,
            steps=self.steps if steps is None else steps,
            sampling_probability=self.sampling_probability,
            sampling=self.sampling,
            adjacency=self.adjacency,
            unit=self.clipping.unit,
            num_examples=self.num_examples,
        )

    @property
    def accountant(self) -> Accountant:
        """The tightest sound accountant: PLD, or RDP for batches of fixed size."""
        return accountants(self.sampling, self.adjacency)[0]

    def epsilon(self, steps: int | None = None, accountant: Accountant | None = None) -> float:
        """ε at the plan's δ.

        Args:
          steps: the number of steps; None: all of them.
          accountant: "pld", or "rdp" for a looser bound; None: the plan's own `accountant`.
        """
        return guarantee.epsilon(self.mechanism(steps), self.delta, accountant or self.accountant)

    def tradeoff(
        self, alphas: ArrayLike = LEVELS, steps: int | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The trade-off curve: how well any attacker can tell whether a record was there.

        Args:
          alphas: type I errors (the chances of a false alarm), in [0, 1].
          steps: as in `epsilon`.

        Returns:
          `(alphas, betas)`: for each alpha the least type II error (the chance to miss the
          record). With perfect privacy it is 1 - alpha.
        """
        levels = np.asarray(alphas, np.float64)
        return levels, tradeoff(self.mechanism(steps), levels, self.accountant)

    def group_epsilon(self, size: int, steps: int | None = None) -> float:
        """ε at the plan's δ for data that differ in `size` records, such as all of one person's.

        Args:
          size: number of records, at least 1.
          steps: as in `epsilon`.
        """
        mechanism = self.mechanism(steps)
        return group_epsilon(mechanism, self.delta, size, units_per_batch=self.num_units)

    def epsilon_spent(self, state: Any, accountant: Accountant | None = None) -> float:
        """ε at the plan's δ after the steps that an optimizer state has seen.

        Args:
          state: the state of an Optax chain with one `privatize` in it; wrappers are allowed.
          accountant: as in `epsilon`.
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
          key: None draws a secret sampling key from the operating system. To repeat or resume a
            run, give a key and keep it secret: a step's batch depends on (key, step) only.
          start: the first step to yield.

        Yields:
          `(indices int32 [capacity], mask bool [capacity])`: rows of the data, padded with row 0
          where the mask is False; `[num_units, capacity]` for clippings with unit="batch". The
          indices are int64 for N ≥ 2^31: index with NumPy, since JAX keeps 32 bits only. No
          sampled record is ever dropped: in one of 1e12 runs, some sample exceeds the capacity. It
          gets a larger shape, a multiple of the capacity.
        """
        if self.sampling == "shuffled" and key is None:
            epoch = batches_per_epoch(self.num_examples, int(self.expected_batch_size))
            if start % epoch:
                raise ValueError(
                    f"start is {start}, inside a shuffled epoch of {epoch} steps, and key is None: "
                    "a new order would show records twice in the epoch. Pass the run's own key"
                )
        sampler = sampling.Sampler(
            self.sampling,
            keys.philox_key(key, "sampling"),
            self.num_examples,
            self.expected_batch_size,
        )
        unit_philox = keys.philox_key(key, "units")
        capacity = self.capacity
        for step in range(start, self.steps):
            rows = sampler.rows(step)
            if self.num_units is None:
                yield sampling.pad(rows, capacity)
            else:
                unit_of = sampling.assign_units(unit_philox, step, rows, self.num_units)
                yield sampling.pad_units(rows, unit_of, self.num_units, capacity)


def _check_batch_size(size: object, num_examples: int, sampling: Sampling) -> None:
    number = _real("expected_batch_size", size)
    if not 0 < number <= num_examples:
        raise ValueError(
            f"expected_batch_size is {size}, with {num_examples} examples: it must be above 0 and "
            "at most the number of examples"
        )
    if sampling != "poisson" and number % 1:
        raise ValueError(
            f"expected_batch_size is {size}: with sampling={sampling!r} every batch has the same "
            "size, so give a whole number"
        )


def _delta(delta: float | None, num_examples: int) -> float:
    delta = num_examples**-1.1 if delta is None else _real("delta", delta)
    if not 0 < delta < 1 / num_examples:
        raise ValueError(
            f"delta is {delta:.3g}: it must be above 0 and below 1/N = {1 / num_examples:.3g}, "
            "because a mechanism that publishes one random record whole has δ = 1/N. Leave it "
            f"out for N^-1.1 = {num_examples**-1.1:.3g}"
        )
    return delta


def _units(num_units: int | None, clipping: Clipping) -> int | None:
    if clipping.unit == "batch":
        return (
            1 if num_units is None else _whole("num_units", num_units, "the number of batch units")
        )
    if num_units is not None:
        raise ValueError(
            f"num_units is {num_units}, but {clipping!r} clips every example on its own: leave it "
            "out, or use a clipping with unit='batch'"
        )
    return None


def _noise_schedule(z: float | Callable[[int], float], steps: int) -> float | Schedule:
    values = [z(step) for step in range(steps)] if callable(z) else [z]
    for value in values:
        if not _real("noise_multiplier", value) >= 0:
            raise ValueError(
                f"noise_multiplier is {value}: give 0 (no privacy) or more, or epsilon"
            )
    if not callable(z):
        return float(z)
    return tuple((float(value), len(list(run))) for value, run in itertools.groupby(values))


def _first_steps(schedule: Schedule, steps: int) -> Schedule:
    """The schedule of the first `steps` steps; after its end the last noise multiplier stays."""
    taken: list[tuple[float, int]] = []
    left = steps
    for i, (z, count) in enumerate(schedule):
        count = left if i == len(schedule) - 1 else min(count, left)
        taken.append((z, count))
        left -= count
    return tuple(taken)


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
