"""The noise table: what a privacy budget costs at every batch size, before anything is trained.

`python -m jaxdp.plan` prints its table.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from ..types import Accountant, Adjacency, Sampling, Unit
from . import calibration, guarantee
from .mechanism import Mechanism, accountants, sensitivity_factor

DWARFED = 0.2  # a smaller signal-to-noise ratio gives a warning


@dataclass(frozen=True)
class NoiseRow:
    """One batch size. Norms and standard deviations are those of the update (noised mean gradient).

    Attributes:
      batch_size: expected number of records in a step.
      steps: number of updates.
      noise_multiplier: z, solved and rounded up.
      noise_std: standard deviation of the noise on every parameter.
      noise_norm: root mean square of the norm of the noise on all parameters.
      largest_gradient: norm of the mean gradient if all clipped gradients are of length C and point
        the same way.
      signal_to_noise: `largest_gradient` / `noise_norm`. Real gradients are shorter.
      epsilon_pld: ε by PLD, or None if that has no sound bound.
      epsilon_rdp: ε by RDP, or None if that has no sound bound.
    """

    batch_size: float
    steps: int
    noise_multiplier: float
    noise_std: float
    noise_norm: float
    largest_gradient: float
    signal_to_noise: float
    epsilon_pld: float | None
    epsilon_rdp: float | None


@dataclass(frozen=True)
class NoiseTable:
    """The answer of `plan_noise`: the question, a row for every batch size, and warnings.

    Attributes:
      num_examples: N, the number of private records.
      num_parameters: d, how many numbers are trained, each of which gets noise.
      epsilon: the target ε.
      delta: δ of the target.
      clipping_norm: C.
      unit: what is clipped.
      num_units: m, the number of batch units; None for unit="example".
      sampling: how the batch of a step is chosen.
      adjacency: which data sets are neighbours.
      accountant: the accountant that the target is met by.
      rows: a row for every batch size, in the order asked for.
      best: the batch size with the largest signal-to-noise ratio.
      warnings: sentences; empty if all is well.
    """

    num_examples: int
    num_parameters: int
    epsilon: float
    delta: float
    clipping_norm: float
    unit: Unit
    num_units: int | None
    sampling: Sampling
    adjacency: Adjacency
    accountant: Accountant
    rows: tuple[NoiseRow, ...]
    best: float
    warnings: tuple[str, ...]

    def mechanism(self, row: NoiseRow) -> Mechanism:
        """The run of a row as plain data, for the accountants and trade-off curves."""
        return Mechanism(
            row.noise_multiplier,
            row.steps,
            row.batch_size / self.num_examples,
            self.sampling,
            self.adjacency,
            self.unit,
            self.num_examples,
            self.num_parameters,
        )


def plan_noise(
    *,
    num_examples: int,
    num_parameters: int,
    batch_sizes: Sequence[float],
    epsilon: float,
    delta: float | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    clipping_norm: float = 1.0,
    unit: Unit = "example",
    num_units: int | None = None,
    sampling: Sampling = "poisson",
    adjacency: Adjacency = "add_remove",
    accountant: Accountant | None = None,
) -> NoiseTable:
    """Says how much noise every batch size needs for one ε, and how the gradient compares to it.

    Args:
      num_examples: N, the number of private records.
      num_parameters: d, how many numbers are trained, each of which gets noise.
      batch_sizes: expected batch sizes to compare.
      epsilon: the target ε.
      delta: δ of the target; None takes N^-1.1. 1/N or more gives a warning in the table.
      epochs: how often a record takes part on average; the number of steps is rounded up.
      steps: number of updates, the same for every batch size; give this or `epochs`.
      clipping_norm: C; for layers that are clipped separately, the root of the sum of the squares
        of their clipping norms.
      unit: what is clipped: the gradient of every example, or the mean gradient of a batch unit.
      num_units: m, the number of batch units, only for unit="batch"; None takes 1.
      sampling: how the batch of a step is chosen.
      adjacency: which data sets are neighbours.
      accountant: which one must meet the target. None takes the tightest sound one.

    Raises:
      ValueError: for numbers that make no sense, a combination without sound accounting, or a
        target that no noise up to a million meets.

    Example:
      >>> table = plan_noise(num_examples=60_000, num_parameters=7840, batch_sizes=[8, 100],
      ...                    epsilon=1.0, epochs=1)
      >>> table.best
      100
    """
    _check_whole("num_examples", num_examples)
    _check_whole("num_parameters", num_parameters)
    _check_duration(epochs, steps)
    _check_positive("epsilon", epsilon)
    _check_positive("clipping_norm", clipping_norm)
    _check_batch_sizes(batch_sizes, num_examples)
    if unit == "batch":
        num_units = 1 if num_units is None else num_units
        _check_whole("num_units", num_units)
    elif num_units is not None:
        raise ValueError(f"num_units is {num_units}, but it is only for unit='batch': leave it out")
    allowed = accountants(sampling, adjacency)
    accountant = accountant or allowed[0]
    delta = num_examples**-1.1 if delta is None else delta
    delta_warnings = _delta_warnings(delta, num_examples)

    def row(size: float) -> NoiseRow:
        taken = steps or math.ceil((epochs or 0) * num_examples / size - 1e-9)
        mechanism = Mechanism(
            calibration.solve_noise_multiplier(
                target_epsilon=epsilon,
                delta=delta,
                steps=taken,
                sampling_probability=size / num_examples,
                sampling=sampling,
                adjacency=adjacency,
                unit=unit,
                num_examples=num_examples,
                accountant=accountant,
                noise_draws_per_step=num_parameters,
            ),
            taken,
            size / num_examples,
            sampling,
            adjacency,
            unit,
            num_examples,
            num_parameters,
        )
        z = mechanism.schedule[0][0]
        std = z * sensitivity_factor(unit, adjacency) * clipping_norm / (num_units or size)
        norm = std * math.sqrt(num_parameters)
        epsilons = {name: guarantee.epsilon(mechanism, delta, name) for name in allowed}
        return NoiseRow(
            batch_size=size,
            steps=taken,
            noise_multiplier=z,
            noise_std=std,
            noise_norm=norm,
            largest_gradient=clipping_norm,
            signal_to_noise=clipping_norm / norm,
            epsilon_pld=epsilons.get("pld"),
            epsilon_rdp=epsilons.get("rdp"),
        )

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="delta is ")  # in delta_warnings
        rows = tuple(row(size) for size in batch_sizes)
    return NoiseTable(
        num_examples=num_examples,
        num_parameters=num_parameters,
        epsilon=epsilon,
        delta=delta,
        clipping_norm=clipping_norm,
        unit=unit,
        num_units=num_units,
        sampling=sampling,
        adjacency=adjacency,
        accountant=accountant,
        rows=rows,
        best=max(rows, key=lambda row: row.signal_to_noise).batch_size,
        warnings=(*delta_warnings, *_noise_warnings(rows, epsilon, unit)),
    )


def _delta_warnings(delta: float, num_examples: int) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        guarantee.check_delta(delta, num_examples)
    return [str(warning.message) for warning in caught]


def _noise_warnings(rows: Sequence[NoiseRow], epsilon: float, unit: Unit) -> list[str]:
    said = []
    dwarfed = [f"{row.batch_size:g}" for row in rows if row.signal_to_noise < DWARFED]
    if dwarfed:
        cure = "more units" if unit == "batch" else "larger batches"
        said.append(
            f"the noise dwarfs the gradient at batch size {', '.join(dwarfed)}: it is more than "
            f"{1 / DWARFED:g} times as long as the longest possible mean gradient. Take "
            f"{cure}, fewer parameters, more records or a larger epsilon"
        )
    if epsilon > guarantee.NO_PRIVACY:
        said.append(
            f"epsilon is {epsilon:g}, above {guarantee.NO_PRIVACY:g}: that is no privacy. An "
            "attacker can tell almost certainly whether a record was there"
        )
    return said


def _check_duration(epochs: float | None, steps: int | None) -> None:
    if (epochs is None) == (steps is None):
        given = "neither is given" if steps is None else f"epochs is {epochs} and steps is {steps}"
        raise ValueError(f"{given}: give either epochs or steps")
    if epochs is not None:
        _check_positive("epochs", epochs)
    if steps is not None:
        _check_whole("steps", steps)


def _check_batch_sizes(batch_sizes: Sequence[float], num_examples: int) -> None:
    if len(batch_sizes) == 0:
        raise ValueError("batch_sizes is empty: give the batch sizes to compare, as 64 256 1024")
    for size in batch_sizes:
        if not 0 < size <= num_examples:
            raise ValueError(
                f"batch size {size} is out of range: give sizes above 0 and at most N = "
                f"{num_examples}"
            )


def _check_whole(name: str, value: float) -> None:
    if value < 1 or value % 1:
        raise ValueError(f"{name} is {value}: give a whole number of at least 1")


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}: give a finite number above 0")
