"""What a run claims: the privacy statement of its mechanisms, and on what it rests."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import NamedTuple

from ... import _distribution
from ...accounting import composition, gdp, guarantee
from ...accounting.mechanism import Mechanism, accountants
from ...accounting.noise_charge import SAMPLING
from ...accounting.rounding import round_up
from ...datasets.dataset import Dataset
from ...datasets.sources import Format
from ...dpsgd.noise import grid_of
from ...dpsgd.plan import Plan
from ...types import PyTree
from .. import public_norms
from ..job import Job
from .statement import (
    FORMAT,
    BatchNormFacts,
    ClippingFacts,
    DataUse,
    EpsilonAtDelta,
    Epsilons,
    GaussianDP,
    Library,
    MechanismFacts,
    NoiseFacts,
    NoiseStretch,
    Preprocessing,
    PrivacyUnit,
    RoundingFacts,
    SamplingFacts,
    Statement,
    TaskFacts,
)

ACCOUNTING = "dp-accounting"

ASSUMPTIONS = (
    "The noise and sampling keys stay secret, with every file in private/ and the live output of "
    "the run, which shows losses, norms and the number of sampled records step by step.",
    "Generators are taken for random, so that privacy is computational: Threefry-4x32 with 20 "
    "rounds for the noise and for deriving keys, NumPy's Philox for sampling, all with keys of 128 "
    "bits (made of 32, if a seed was given); and JAX's Threefry-2x32 for what the loss draws "
    "(augmentation, dropout) and initial parameters, with a derived key of 64 bits for every step.",
    "The number of private records N is public.",
    "No record is in the data twice, also not in part: windows of a text do not overlap.",
)

RECORD_LOSS = "The loss of a record depends on that record and the parameters only."

WATCHED = (
    "Nobody could time the steps of the run: they take longer the more records are sampled. (With "
    "training.constant-time they do not.)"
)

CONSTANT_TIME = (
    "Nobody could time how the host draws a sample, about a millisecond a step. The rest of a step "
    "takes the same time whatever records are in it, since padding is computed, too. (But in one "
    "of 1e12 runs some batch is larger than the padded one.)"
)

UNIT_LOSS = "The loss of a batch unit depends on the records in it and the parameters only."

MEASURED = "What the first step measures of a record depends on that record only."

NOT_COVERED = (
    "Hyperparameters chosen by trying several on the same private records.",
    "Other releases from the same records, such as runs with other seeds: their budgets add up.",
    "Early stopping, or a choice among checkpoints, guided by private numbers.",
    "The best accuracy over epochs or runs: that is a selection on the test records.",
    "Preprocessing constants, vocabularies or architectures taken from private data.",
    "Several records of one person: the guarantee is for one record; k records need group privacy.",
    "Floating point before the noise: the float32 gradient of a record is taken to be the same in "
    "every row of a batch, and how far rounding moves the float32 sum of clipped gradients is an "
    "estimate, unless a bound is named. From the sum on, everything is counted.",
    "Attacks on timing, memory or power, such as on the cache's timing of the noise table.",
)


@dataclass(frozen=True)
class SegmentFacts:
    """What the statement says of one segment; it is known when the segment begins.

    Attributes:
      mechanism: with the number of steps that are planned.
      data: the records.
      task: what is learnt.
      preprocessing: as in `Statement`.
      test_is_public: as in `Statement`.
      seed: the seed of the secrets; None: they come from the operating system.
      ema: the share of itself that the released average keeps at a step; 0: there is none.
      constant_time: whether padding is computed, too.
      optimizer: what it is, in a word or two.
    """

    mechanism: MechanismFacts
    data: DataUse
    task: TaskFacts
    preprocessing: Preprocessing | None
    test_is_public: bool
    seed: int | None
    ema: float
    constant_time: bool
    optimizer: str


class SpentSegment(NamedTuple):
    """A segment, and what it spent."""

    facts: SegmentFacts
    spent: Mechanism


def epsilons(
    plan: Plan, steps: int, delta: float | None = None, earlier: Sequence[Mechanism] = ()
) -> Epsilons:
    """ε after some steps by every accountant that is sound for the plan, the claim first.

    Args:
      plan: the numbers of the run.
      steps: how many were taken.
      delta: None takes the plan's own.
      earlier: what the run did before those steps, in other segments.
    """
    spent, delta = [*earlier, plan.mechanism(steps)], plan.delta if delta is None else delta
    names = accountants(plan.sampling, plan.adjacency)
    return {name: round_up(composition.epsilon(spent, delta, name)) for name in names}


def smaller_deltas(
    plan: Plan, steps: int, earlier: Sequence[Mechanism] = ()
) -> tuple[EpsilonAtDelta, ...]:
    """δ about 10, 100 and 1,000 times smaller than the plan's, and ε at each."""
    deltas = [float(f"{plan.delta / ratio:.0e}") for ratio in (10, 100, 1000)]
    return tuple(EpsilonAtDelta(delta, epsilons(plan, steps, delta, earlier)) for delta in deltas)


def gaussian_dp(plan: Plan, steps: int, earlier: Sequence[Mechanism] = ()) -> GaussianDP:
    """The Gaussian-DP equivalent: μ of the one Gaussian mechanism that says the same.

    Where sampling does not amplify, the run is μ-GDP, at every δ, but for what noise that is not
    exactly Gaussian adds (`NoiseFacts`). Otherwise μ is that of the Gaussian with the same ε at the
    plan's δ; at other δ they differ.
    """
    spent = [*earlier, plan.mechanism(steps)]
    exact = all(m.sampling_probability == 1 or m.sampling == "shuffled" for m in spent)
    mu = math.hypot(*map(guarantee.gaussian_mu, spent))
    if not exact and math.isfinite(mu):
        epsilon = composition.epsilon(spent, plan.delta)
        mu = gdp.mu_from_epsilon(epsilon, plan.delta) if math.isfinite(epsilon) else math.inf
    return GaussianDP(round_up(mu), exact)


def make_facts(job: Job, plan: Plan, params: PyTree) -> SegmentFacts:
    """What is known about a segment before its first step.

    Args:
      job: what the run is made of.
      plan: its numbers.
      params: the trainable parameters, or their shapes.
    """
    return SegmentFacts(
        mechanism=_mechanism_facts(job, plan, params),
        data=_data_use(job.data),
        task=TaskFacts(job.task.name, job.model, job.task.measured is not None),
        preprocessing=job.preprocessing,
        test_is_public=job.data.test_is_public,
        seed=job.options.seed,
        ema=job.options.ema,
        constant_time=job.options.constant_time,
        optimizer=job.optimizer_name,
    )


def make_statement(
    plan: Plan, segments: Sequence[SpentSegment], has_statistics: bool = False
) -> Statement:
    """Makes the statement of a release: the mechanisms, and their ε after the steps spent.

    Args:
      plan: the numbers of the last segment.
      segments: all segments of the run, the last one too.
      has_statistics: whether the release has BatchNorm's statistics.
    """
    *earlier, last = segments
    before, steps = [segment.spent for segment in earlier], last.spent.steps
    counted = [*before, plan.mechanism(steps)]
    mechanisms = tuple(
        _spent_facts(segment, mechanism.noise_draws_per_step)
        for segment, mechanism in zip(segments, counted, strict=True)
        if segment.spent.steps
    )
    facts = last.facts
    return Statement(
        format=FORMAT,
        library=Library(_distribution.DISTRIBUTION, _distribution.__version__),
        private=facts.seed is None,
        reproducible=facts.seed is not None,
        privacy_unit=PrivacyUnit("record"),
        adjacency=plan.adjacency,
        num_examples=plan.num_examples,
        delta=plan.delta,
        accountant=plan.accountant,
        accounting=Library(ACCOUNTING, metadata.version(ACCOUNTING)),
        epsilon=epsilons(plan, steps, None, before),
        epsilon_at_smaller_deltas=smaller_deltas(plan, steps, before),
        gaussian_dp=gaussian_dp(plan, steps, before),
        target_epsilon=plan.target_epsilon,
        steps=sum(mechanism.steps for mechanism in mechanisms),
        steps_planned=plan.steps,
        mechanisms=mechanisms,
        secrets="kept",
        noise=_noise_facts(plan, facts.seed, steps, before),
        data=facts.data,
        earlier_data=tuple(
            use for use in dict.fromkeys(s.facts.data for s in earlier) if use != facts.data
        ),
        test_is_public=facts.test_is_public,
        task=facts.task,
        preprocessing=facts.preprocessing,
        batch_norm=BatchNormFacts(facts.data.public or "") if has_statistics else None,
        assumptions=(
            *ASSUMPTIONS,
            UNIT_LOSS if facts.mechanism.clipping.unit == "batch" else RECORD_LOSS,
            *((MEASURED,) if facts.task.measures else ()),
            CONSTANT_TIME if facts.constant_time else WATCHED,
        ),
        not_covered=NOT_COVERED,
    )


def _noise_facts(
    plan: Plan, seed: int | None, steps: int, earlier: Sequence[Mechanism]
) -> NoiseFacts:
    spent = [*earlier, plan.mechanism(steps)]
    charge = guarantee.charge_of(spent)
    epsilon = composition.epsilon(spent, plan.delta)
    # A grid is chosen for all steps of a plan. More numbers with noise make it finer, if at all.
    grids = [grid_of(m, m.noise_draws_per_step) for m in earlier if m.steps]
    grids.append(grid_of(plan.mechanism(), plan.num_parameters or 1))
    return NoiseFacts(
        distribution="rounded normal",
        points_per_std=4_194_304 if min(grid.scale for grid in grids) == 22 else 16_777_216,
        generator="threefry4x32-20",
        key_bits=128 if seed is None else 32,
        privacy="computational",
        extra_epsilon=round_up(charge.epsilon),
        extra_delta=round_up(min(charge.added_delta(epsilon), 1.0)),
    )


def _mechanism_facts(job: Job, plan: Plan, params: PyTree) -> MechanismFacts:
    mechanism, clipping = plan.mechanism(), plan.clipping
    norms = clipping.init(params).clipping_norms
    return MechanismFacts(
        kind="dp_sgd",
        steps=mechanism.steps,
        noise_multiplier=_noise_multiplier(mechanism),
        noise_draws_per_step=float(mechanism.noise_draws_per_step),
        sampling=SamplingFacts(
            kind=plan.sampling,
            probability=float(plan.sampling_probability),
            expected_batch_size=float(plan.expected_batch_size),
            num_examples=plan.num_examples,
            generator="philox4x64-10",
            law_distance=SAMPLING if plan.sampling == "poisson" else 0.0,
        ),
        clipping=ClippingFacts(
            kind=clipping.kind,
            call=repr(clipping),
            clipping_norms=public_norms.describe(job),
            unit=clipping.unit,
            batch_units=plan.num_units,
            clipped_together=clipping.joint,
            noise_allocation=job.options.allocation,
            sensitivity_at_first_step=float(clipping.sensitivity(plan.adjacency, norms)),
        ),
        rounding=RoundingFacts(
            noise_raised_by=plan.rounding_slack,
            kind="bound" if plan.rounding_is_bounded else "estimate",
            bound=plan.rounding_bound,
        ),
    )


def _spent_facts(segment: SpentSegment, draws: float) -> MechanismFacts:
    """The facts of a segment with what it spent in place of what was planned."""
    spent = segment.spent
    return replace(
        segment.facts.mechanism,
        steps=spent.steps,
        noise_multiplier=_noise_multiplier(spent),
        noise_draws_per_step=float(draws),
    )


def _noise_multiplier(mechanism: Mechanism) -> float | tuple[NoiseStretch, ...]:
    if isinstance(mechanism.noise_multiplier, tuple):
        return tuple(NoiseStretch(z, count) for z, count in mechanism.noise_multiplier)
    return mechanism.noise_multiplier


def _data_use(data: Dataset) -> DataUse:
    rules = data.rules
    return DataUse(
        name=data.name,
        private=rules["private"],
        public=rules.get("public"),
        test=rules.get("test"),
        window=data.window,
        source=data.source,
        fields=tuple(f"{name}: {kind}" for name, kind in data.fields.items()),
        bad_rows="left_out" if data.skips_bad else "refused",
        cached=data.cached,
        canaries=0 if data.canaries is None else len(data.canaries.included),
    )


def preprocessing_of(data: Format) -> Preprocessing:
    """What a model of jaxdp sees of the inputs of a built-in data set."""
    decoding = hashlib.sha256(data.decoding.encode()).hexdigest()
    return Preprocessing(
        _numbers(data.center), _numbers(data.scale), data.scaling, decoding, data.made_by
    )


def _numbers(values: float | Sequence[float] | None) -> float | tuple[float, ...] | None:
    if isinstance(values, Sequence):
        return tuple(map(float, values))
    return None if values is None else float(values)
