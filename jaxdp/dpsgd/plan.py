"""The plan: the one place for a run's privacy numbers.

`python -m jaxdp.plan` is the noise planner.
"""

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..accounting import calibration, guarantee
from ..accounting.mechanism import Mechanism, accountants, batches_per_epoch, event_factor
from ..accounting.tradeoffs import LEVELS, group_epsilon, tradeoff
from ..gradients.precision import multiplies_narrow
from ..types import Accountant, Adjacency, PyTree, Sampling, Schedule
from . import keys, sampling, sum_rounding
from ._numbers import real, whole
from ._plan_numbers import check_batch_size, delta_of, draws_of, units_of
from ._schedules import first_steps, noise_schedule
from .clipping import Clipping
from .rows import take_rows


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

      num_parameters: how many numbers get noise in a step, the counts of `clip_quantile` included.
        Drawing noise costs a little ε and δ by itself (`accounting.noise_charge`), in proportion to
        them and the steps. None pays for 1e11 draws over the run.
      rounding_bound: a proved bound on the fraction by which float32 rounding raises the
        sensitivity of a clipped sum, from `with_rounding_bound`; None: none is proved.
      rounding_rows, rounding_parts: what it holds for: the most rows that are summed at a time, and
        the most sums that are added.

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
    num_parameters: int | None
    rounding_bound: float | None
    rounding_rows: int | None
    rounding_parts: int

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
        num_parameters: int | None = None,
    ) -> None:
        num_examples = whole("num_examples", num_examples, "the number of private records")
        steps = whole("steps", steps, "the number of updates")
        check_batch_size(expected_batch_size, num_examples, sampling)
        if not isinstance(clipping, Clipping):
            raise TypeError(
                f"clipping is {clipping!r}: pass a jaxdp clipping, e.g. jaxdp.clip_individual(1.0)"
            )
        delta = delta_of(delta, num_examples)
        if (epsilon is None) == (noise_multiplier is None):
            raise ValueError(
                f"epsilon is {epsilon} and noise_multiplier is {noise_multiplier}: give exactly one"
            )
        if epsilon is not None and not real("epsilon", epsilon) > 0:
            raise ValueError(f"epsilon is {epsilon}: give a number above 0 (1 to 8 are common)")
        z = None if noise_multiplier is None else noise_schedule(noise_multiplier, steps)
        num_units = units_of(num_units, clipping)
        if num_parameters is not None:
            meaning = "how many numbers get noise in a step"
            num_parameters = whole("num_parameters", num_parameters, meaning)
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
                sampling_probability=_python_number(expected_batch_size) / num_examples,
                sampling=sampling,
                adjacency=adjacency,
                unit=clipping.unit,
                num_examples=num_examples,
                accountant=accountants(sampling, adjacency)[0],
                noise_draws_per_step=draws_of(num_parameters, steps),
            )
        values = dict(
            num_examples=num_examples,
            expected_batch_size=_python_number(expected_batch_size),
            steps=steps,
            clipping=clipping,
            num_units=num_units,
            target_epsilon=epsilon,
            noise_multiplier=z,
            delta=delta,
            sampling=sampling,
            adjacency=adjacency,
            num_parameters=num_parameters,
            rounding_bound=None,
            rounding_rows=None,
            rounding_parts=1,
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
    def rounding_estimate(self) -> float:
        """An estimate of how far rounding raises the sensitivity of a sum (`sum_rounding`).

        It is larger where factors are in bfloat16, on TPUs and NVIDIA's GPUs: tensor cores cut what
        they add. So it depends on the platform that JAX runs on by default.
        """
        narrow = multiplies_narrow("default")
        return sum_rounding.estimate(self.num_units or self.capacity, narrow)

    @property
    def rounding_slack(self) -> float:
        """The fraction by which every noise is raised, because the float32 sum is rounded.

        It is the larger of `rounding_bound` and `rounding_estimate`. Where there is no bound, or
        one above 1 %, it is the estimate. The noise multiplier that is accounted stays.
        """
        return sum_rounding.slack(self.rounding_estimate, self.rounding_bound)

    @property
    def rounding_is_bounded(self) -> bool:
        """Whether `rounding_slack` is at least `rounding_bound`, so that nothing is estimated."""
        return self.rounding_bound is not None and self.rounding_bound <= self.rounding_slack

    def with_rounding_bound(self, microbatch_size: int | None = None, parts: int = 1) -> "Plan":
        """The same plan with a `rounding_bound`; on TPUs, where none is known, without.

        It holds if every example (unit) adds one term to each number of the sum, as `explain`
        tells, and always with method="vmap"; docs/design.md has the proof.

        Args:
          microbatch_size: as for `per_example_grads`. The smaller, the smaller is the bound.
          parts: the number of devices, or of `Sums` that are added, for each step.
        """
        rows = self.num_units or sampling.most_rows(
            self.sampling, self.num_examples, self.expected_batch_size
        )
        at_once = rows if microbatch_size is None else microbatch_size
        at_once = whole("microbatch_size", at_once, "the number of rows that are summed at a time")
        parts = whole("parts", parts, "the number of sums that are added")
        # How far one record moves the sum in the pair of neighbours that the accountant compares.
        moved = self.clipping.record_factor(self.adjacency) / event_factor(self.mechanism())
        bound = sum_rounding.bound(rows, at_once, parts, moved)
        plan = copy.copy(self)
        if math.isfinite(bound) and jax.default_backend() in ("cpu", "gpu"):
            facts = dict(rounding_bound=bound, rounding_rows=at_once, rounding_parts=parts)
            for name, fact in facts.items():
                object.__setattr__(plan, name, fact)
        return plan

    def noise_multipliers(self) -> np.ndarray:
        """z at every step, `[steps] float64`."""
        pairs = self.mechanism().schedule
        return np.repeat([z for z, _ in pairs], [count for _, count in pairs])

    def mechanism(self, steps: int | None = None) -> Mechanism:
        """The run, or its first `steps` steps, as plain data for the accountants."""
        z = self.noise_multiplier
        if isinstance(z, tuple) and steps is not None:
            z = first_steps(z, steps)
        return Mechanism(
            noise_multiplier=z,
            steps=self.steps if steps is None else steps,
            sampling_probability=self.sampling_probability,
            sampling=self.sampling,
            adjacency=self.adjacency,
            unit=self.clipping.unit,
            num_examples=self.num_examples,
            noise_draws_per_step=draws_of(self.num_parameters, self.steps),
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

        It knows this state only: not other runs on the same records, nor steps from a state that
        was thrown away. So there should be one state, which every step takes from the step before;
        `init` begins a new run at 0.

        Args:
          state: the state of an Optax chain with one `privatize` in it; wrappers are allowed,
            such as Flax's `TrainState` and the `opt_state` of an `nnx.Optimizer`.
          accountant: as in `epsilon`.
        """
        # An attribute, a dictionary's key, or around an nnx variable's value.
        named = lambda entry: getattr(entry, "name", getattr(entry, "key", None))
        found = [
            leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(state)
            if "privatize_step" in map(named, path)
        ]
        if len(found) != 1:
            raise ValueError(
                f"the state holds {len(found)} step counts of privatize, expected one: pass the "
                "optimizer state of a chain that begins with jaxdp.privatize(plan), and has no "
                "second one"
            )
        return self.epsilon(int(found[0]), accountant)

    def take(self, arrays: PyTree, indices: np.ndarray) -> PyTree:
        """Takes the rows of a batch from arrays of all records.

        Args:
          arrays: pytree of NumPy or JAX arrays with N rows.
          indices: from `batches()`, of any shape. Where they are N, for padding, the rows are 0.

        Returns:
          The pytree of arrays `[*indices.shape, ...]`.

        Raises:
          ValueError: for arrays with another number of rows, and for indices that are out of range
            or repeat a record.
        """
        return take_rows(arrays, indices, self.num_examples)

    def batches(
        self, *arrays: ArrayLike, key: jax.Array | None = None, start: int = 0
    ) -> Iterator[tuple[Any, np.ndarray]]:
        """Samples the batch of every step from `start` on, up to the plan's last step.

        One call is one run. A second one warns, since a second run costs ε again: unless it has
        `start`, or the same key, to resume or repeat the first.

        Args:
          arrays: all records, such as x, y: each an array, or a pytree of arrays, with N rows.
            Without any, the batches are indices.
          key: None draws a secret sampling key, 128 bits, from the operating system. To repeat or
            resume a run, give a key (`secret_key()`, or any JAX key) and keep it secret: a step's
            batch depends on (key, step) only. In several processes all call this, and all get
            batches by the same key.
          start: the first step to yield.

        Yields:
          `(batch, mask bool [capacity])`: the tuple of each array's rows; or, without arrays,
          `(indices int32 [capacity], mask)`. Where the mask is False, at the end, there is padding.
          Its index is N, which is no record's: NumPy refuses it, and `take` does not. With
          unit="batch" all have shape `[num_units, capacity]`. The indices are int64 for N ≥ 2^31:
          index with NumPy, since JAX keeps 32 bits only. No sampled record is ever dropped: in one
          of 1e12 runs, some sample exceeds the capacity. It gets a larger shape, a multiple of the
          capacity.
        """
        if isinstance(start, bool) or not isinstance(start, int | np.integer) or start < 0:
            raise ValueError(f"start is {start!r}: it is the number of a step, from 0")
        if any(hasattr(array, "dtype") and np.ndim(array) == 0 for array in arrays):
            raise ValueError("plan.batches takes arrays of records, and a key as key=key")
        if arrays:
            self.take(arrays, np.empty(0, int))  # refuses arrays with another number of rows
        if key is None:
            self._check_new_order(start)
        self._remember_run(key, start)
        about = f"{self} {start}"
        if key is None:
            key = keys.shared_key("plan.batches", about)
        else:
            keys.check_same_key("plan.batches", key, about)
        samples = self._samples(key, start)
        if not arrays:
            return samples
        return ((self.take(arrays, indices), mask) for indices, mask in samples)

    def _check_new_order(self, start: int) -> None:
        """Refuses to go on inside a shuffled epoch without its key."""
        if self.sampling != "shuffled":
            return
        epoch = batches_per_epoch(self.num_examples, int(self.expected_batch_size))
        if start % epoch:
            raise ValueError(
                f"start is {start}, inside a shuffled epoch of {epoch} steps, and key is None: a "
                "new order would show records twice in the epoch. Pass the run's own key"
            )

    def _remember_run(self, key: jax.Array | None, start: int) -> None:
        """Warns of a second run. What is remembered is no part of the plan, nor of its copies."""
        name = None if key is None else keys.philox_key(key, "run").tobytes()
        known: set = self.__dict__.setdefault("_runs", set())
        is_new = start == 0 and (name is None or name not in known)
        if known and is_new and self.noise_multiplier != 0:
            warnings.warn(
                "plan.batches() was called again: that is a second run on the same records, whose "
                f"budget adds up to that of the first. A plan has {self.steps} steps in all: give "
                "it those of all epochs. After them every release of the same state is NaN. To "
                "resume or repeat a run, call plan.batches(key=key, start=step) with its key",
                stacklevel=3,
            )
        known.add(name)

    def __getstate__(self) -> dict[str, Any]:
        """The plan's attributes, for copies and pickles."""
        return {name: value for name, value in self.__dict__.items() if name != "_runs"}

    def _samples(self, key: jax.Array, start: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        sampler = sampling.Sampler(
            self.sampling,
            keys.philox_key(key, "sampling"),
            self.num_examples,
            self.expected_batch_size,
        )
        unit_philox = keys.philox_key(key, "units")
        capacity = self.capacity
        padding = self.num_examples
        for step in range(start, self.steps):
            rows = sampler.rows(step)
            if self.num_units is None:
                yield sampling.pad(rows, capacity, padding)
            else:
                unit_of = sampling.assign_units(unit_philox, step, rows, self.num_units)
                yield sampling.pad_units(rows, unit_of, self.num_units, capacity, padding)


def _python_number(number: float) -> float:
    """The number in full precision: 1 - q of a NumPy float32 would be rounded, and ε too small."""
    return int(number) if isinstance(number, int | np.integer) else float(number)
