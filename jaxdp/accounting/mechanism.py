"""A DP-SGD run as plain data, and the rules that say which runs can be accounted for.

    sampling     adjacency                   accounting
    poisson      add_remove, zero_out        PLD or RDP of the sampled Gaussian
    poisson      replace_one                 PLD of the replace-one pair; no RDP
    shuffled     replace_one, zero_out       one Gaussian per epoch begun, no amplification
    full_batch   all three                   one Gaussian per step
    fixed_size   replace_one                 RDP, and never more than without amplification

Every other pair raises a ValueError that gives the reason and the nearest sound choice.
"""

import math
import operator
from dataclasses import dataclass

import dp_accounting
import numpy as np

from ..types import Accountant, Adjacency, Sampling, Schedule, Unit

_ACCOUNTANTS: dict[tuple[str, str], tuple[Accountant, ...]] = {
    ("poisson", "add_remove"): ("pld", "rdp"),
    ("poisson", "zero_out"): ("pld", "rdp"),
    ("poisson", "replace_one"): ("pld",),
    ("shuffled", "replace_one"): ("pld", "rdp"),
    ("shuffled", "zero_out"): ("pld", "rdp"),
    ("full_batch", "add_remove"): ("pld", "rdp"),
    ("full_batch", "replace_one"): ("pld", "rdp"),
    ("full_batch", "zero_out"): ("pld", "rdp"),
    ("fixed_size", "replace_one"): ("rdp",),
}

_REFUSED = {
    ("shuffled", "add_remove"): (
        "one record more or less shifts every later batch, so that all of them differ: use "
        'adjacency="replace_one" or "zero_out", or sampling="poisson"'
    ),
    ("fixed_size", "add_remove"): (
        "a batch of fixed size cannot have one record more or less: use "
        'adjacency="replace_one", or sampling="poisson"'
    ),
    ("fixed_size", "zero_out"): (
        'no amplification is proven for it: use adjacency="replace_one", which covers it, or '
        'sampling="poisson"'
    ),
}


def accountants(sampling: Sampling, adjacency: Adjacency) -> tuple[Accountant, ...]:
    """The accountants that are sound for a sampling and an adjacency, the tightest first.

    Raises:
      ValueError: if there is none, with the reason and the nearest sound choice; or if a name is
        unknown.

    Example:
      >>> accountants("poisson", "replace_one")
      ('pld',)
    """
    _one_of("sampling", sampling, {s for s, _ in _ACCOUNTANTS})
    _one_of("adjacency", adjacency, {a for _, a in _ACCOUNTANTS})
    if (sampling, adjacency) in _REFUSED:
        raise ValueError(
            f"sampling={sampling!r} with adjacency={adjacency!r} has no sound accounting: "
            + _REFUSED[sampling, adjacency]
        )
    return _ACCOUNTANTS[sampling, adjacency]


@dataclass(frozen=True)
class Mechanism:
    """A DP-SGD run as plain data.

    Attributes:
      noise_multiplier: z = noise standard deviation / sensitivity. The sensitivity depends on
        `adjacency`: it is `sensitivity_factor` times the clipping norm. A schedule
        ((z, count), ...) means z for `count` steps, then the next pair's z; the counts add up to
        `steps`. A schedule may depend on the step only, never on private data. An accountant takes
        as long for each different z as for a whole run with one z.
      steps: how many updates are released, a whole number.
      sampling_probability: q = expected batch size / N. Batch units do not change it.
      sampling: how the batch of a step is chosen.
      adjacency: which data sets are neighbours.
      unit: what is clipped: the gradient of an example, or the mean gradient of a batch unit.
      num_examples: N; "shuffled" and "fixed_size" need it.
      noise_draws_per_step: how many numbers get noise in a step, for the charge of noise that is
        drawn by jaxdp (`noise_charge`); 0 for noise that is exactly Gaussian.

    Raises:
      ValueError: for numbers that make no sense, and for combinations without sound accounting.
    """

    noise_multiplier: float | Schedule
    steps: int
    sampling_probability: float
    sampling: Sampling = "poisson"
    adjacency: Adjacency = "add_remove"
    unit: Unit = "example"
    num_examples: int | None = None
    noise_draws_per_step: float = 0

    def __post_init__(self) -> None:
        if not 0 <= self.noise_draws_per_step < math.inf:
            raise ValueError(
                f"noise_draws_per_step is {self.noise_draws_per_step}: give a number of at least 0"
            )
        accountants(self.sampling, self.adjacency)
        _one_of("unit", self.unit, {"example", "batch"})
        steps = _whole("steps", self.steps, 0)
        given = self.noise_multiplier
        pairs = given if isinstance(given, (tuple, list)) else ((given, steps),)
        schedule = tuple((float(z), _whole("steps of a schedule", n, 0)) for z, n in pairs)
        for z, _ in schedule:
            if z != 0 and not 1e-9 <= z <= 1e9:
                raise ValueError(
                    f"noise_multiplier is {z}: give 0 for no privacy, or a number from 1e-9 to 1e9"
                )
        if sum(n for _, n in schedule) != steps:
            raise ValueError(
                f"the noise schedule is for {sum(n for _, n in schedule)} steps and steps is "
                f"{steps}: make its counts add up to steps"
            )
        object.__setattr__(self, "steps", steps)
        object.__setattr__(
            self, "noise_multiplier", schedule[0][0] if len(schedule) == 1 else schedule
        )
        object.__setattr__(self, "sampling_probability", float(self.sampling_probability))
        q = self.sampling_probability  # a NumPy float32 would be rounded in 1 - q
        if not 0 <= q <= 1:
            raise ValueError(
                f"sampling_probability is {q}: it is expected batch size / number of examples, "
                "from 0 to 1"
            )
        if self.num_examples is not None:
            object.__setattr__(self, "num_examples", _whole("num_examples", self.num_examples, 1))
        if self.sampling == "full_batch" and q != 1:
            raise ValueError(f"sampling_probability is {q}: for sampling='full_batch' it must be 1")
        if self.sampling in ("shuffled", "fixed_size"):
            _ = self.batch_size

    @property
    def schedule(self) -> Schedule:
        """((z, count), ...), also if z is constant."""
        if isinstance(self.noise_multiplier, tuple):
            return self.noise_multiplier
        return ((self.noise_multiplier, self.steps),)

    @property
    def batch_size(self) -> int:
        """How many records a batch has, for sampling "shuffled" and "fixed_size"."""
        n, q = self.num_examples, self.sampling_probability
        if n is None:
            raise ValueError(f"num_examples is None: sampling={self.sampling!r} needs it")
        if abs(q * n - round(q * n)) > 1e-6:
            raise ValueError(
                f"sampling_probability {q} of {n} examples is a batch of {q * n:.6g}: "
                f"sampling={self.sampling!r} needs a whole number"
            )
        return round(q * n)

    @property
    def epochs_begun(self) -> int:
        """How many shuffled epochs the steps have begun: each uses a record at most once."""
        if self.batch_size == 0:
            return 0
        return -(-self.steps // batches_per_epoch(self.num_examples or 0, self.batch_size))

    @property
    def exposures(self) -> Schedule:
        """((z, count), ...): how often one record may take part, and with which noise."""
        if self.sampling_probability == 0:
            return ()
        pairs = tuple((z, count) for z, count in self.schedule if count)
        if self.sampling != "shuffled" or not pairs:
            return pairs
        # A record is in one batch of each epoch: in the worst case the one with the least noise.
        per_epoch = batches_per_epoch(self.num_examples or 0, self.batch_size)
        least = np.full(self.epochs_begun, math.inf)
        start = 0
        for z, count in pairs:
            within = slice(start // per_epoch, (start + count - 1) // per_epoch + 1)
            least[within] = np.minimum(least[within], z)
            start += count
        values, counts = np.unique(least, return_counts=True)
        return tuple((float(z), int(n)) for z, n in zip(values, counts, strict=True))


def batches_per_epoch(num_examples: int, batch_size: float) -> int:
    """How many batches a shuffled epoch has; the last one may be short.

    The sampler of shuffled epochs must use it too, because accounting counts epochs with it.

    Example:
      >>> batches_per_epoch(60_000, 64)
      938
    """
    return math.ceil(num_examples / batch_size)


def sensitivity_factor(unit: Unit, adjacency: Adjacency) -> int:
    """How far one record can move a clipped sum, in clipping norms: 1 or 2.

    To replace a record removes one clipped gradient and adds another. Any change of a record can
    turn the clipped mean of its batch unit into the opposite one (privacy rule 1).

    Args:
      unit: what is clipped.
      adjacency: which data sets are neighbours.

    Raises:
      ValueError: if a name is unknown.

    Example:
      >>> sensitivity_factor("example", "add_remove"), sensitivity_factor("batch", "add_remove")
      (1, 2)
    """
    _one_of("unit", unit, {"example", "batch"})
    _one_of("adjacency", adjacency, {a for _, a in _ACCOUNTANTS})
    return 2 if unit == "batch" or adjacency == "replace_one" else 1


def paper_noise_multiplier(
    sigma: float, unit: Unit, layers: int, adjacency: Adjacency, sampling: Sampling
) -> float:
    """z of the noise that arXiv 2307.11939 calls sigma: standard deviation 2·C·sigma.

    Args:
      sigma: the noise parameter of the paper.
      unit: "batch" is the paper's batch clipping, "example" its individual clipping.
      layers: how many parameter tensors are clipped separately, each with noise 2·C_h·sigma; 1
        if the whole gradient is clipped at once.
      adjacency: which data sets are neighbours; the paper has "replace_one".
      sampling: how a batch is chosen; the paper has "shuffled". It does not change z, but it must
        be sound together with the adjacency.

    Raises:
      ValueError: for numbers that make no sense, or a combination without sound accounting.

    Example:
      Batch clipping of ResNet-18 with sigma 0.01875, 50 epochs: mu = sqrt(50) / 0.01875 = 377.
      >>> paper_noise_multiplier(0.01875, "batch", 1, "replace_one", "shuffled")
      0.01875
    """
    accountants(sampling, adjacency)
    if not 0 <= sigma < math.inf:
        raise ValueError(f"sigma is {sigma}: give a finite number of at least 0")
    return 2 * sigma / sensitivity_factor(unit, adjacency) / math.sqrt(_whole("layers", layers, 1))


def dp_event(
    mechanism: Mechanism,
) -> tuple[dp_accounting.DpEvent, dp_accounting.NeighboringRelation]:
    """The run in the terms of dp-accounting: an event and a neighbouring relation.

    With these two, anybody can check our numbers with an accountant of dp-accounting.

    For Poisson sampling under replace_one, the PLD accountant of dp-accounting doubles the
    sensitivity itself (its RDP accountant does not). For individual clipping, the event therefore
    gets standard deviation / C, while z is standard deviation / 2C. For batch clipping it gets z,
    which is standard deviation / 2C, and the doubling comes on top: this is sound, but loose.
    """
    relations = dp_accounting.NeighboringRelation
    relation = relations.ADD_OR_REMOVE_ONE
    if mechanism.sampling == "fixed_size":
        relation = relations.REPLACE_ONE
    elif mechanism.sampling == "poisson":
        relation = {
            "add_remove": relations.ADD_OR_REMOVE_ONE,
            "zero_out": relations.REPLACE_SPECIAL,
            "replace_one": relations.REPLACE_ONE,
        }[mechanism.adjacency]
    events = []
    for z, count in mechanism.exposures:
        event: dp_accounting.DpEvent = dp_accounting.GaussianDpEvent(z * event_factor(mechanism))
        if z == 0:
            event = dp_accounting.NonPrivateDpEvent()
        elif mechanism.sampling == "poisson":
            event = dp_accounting.PoissonSampledDpEvent(mechanism.sampling_probability, event)
        elif mechanism.sampling == "fixed_size":
            event = dp_accounting.SampledWithoutReplacementDpEvent(
                mechanism.num_examples, mechanism.batch_size, event
            )
        events.append(dp_accounting.SelfComposedDpEvent(event, count))
    if not events:
        return dp_accounting.NoOpDpEvent(), relation
    return events[0] if len(events) == 1 else dp_accounting.ComposedDpEvent(events), relation


def event_factor(mechanism: Mechanism) -> float:
    """What z is multiplied by for dp-accounting: 2 where that doubles the sensitivity itself."""
    doubles = mechanism.sampling == "poisson" and mechanism.adjacency == "replace_one"
    return 2.0 if doubles and mechanism.unit == "example" else 1.0


def _one_of(name: str, value: str, known: set[str]) -> None:
    if value not in known:
        raise ValueError(f"{name} is {value!r}: give one of {', '.join(sorted(known))}")


def _whole(name: str, value: int, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if number < least or isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}: give a whole number of at least {least}")
    return number
