"""What a run claims: the privacy statement of its mechanisms, and on what it rests."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ... import _distribution
from ...accounting import composition, gdp, guarantee
from ...accounting.mechanism import Mechanism, accountants
from ...accounting.rounding import round_up
from ...datasets.config import DataConfig
from ...datasets.records import Dataset
from ...dpsgd.noise import grid_of
from ...dpsgd.plan import Plan
from .. import public_norms
from ..clipping_options import make_clipping
from ..config import Config
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
)

ASSUMPTIONS = (
    "The noise and sampling keys stay secret, with every file in private/ and the live output of "
    "the run, which shows losses, norms and the number of sampled records step by step.",
    "Generators are taken for random, so that privacy is computational: Threefry-4x32 with 20 "
    "rounds for the noise and for deriving keys, NumPy's Philox for sampling, all with keys of 128 "
    "bits (made of 32, if a seed was given); and JAX's Threefry-2x32 for augmentation and initial "
    "parameters, with a derived key of 64 bits for every step.",
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
class EarlierSegment:
    """A segment of the run before the last one: what it spent, and its settings."""

    mechanism: Mechanism
    config: Config


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


def make_statement(
    plan: Plan,
    config: Config,
    dataset: Dataset,
    steps: int,
    sensitivity: float,
    earlier: Sequence[EarlierSegment] = (),
    batch_norm: bool = False,
) -> Statement:
    """Makes the statement of a release: the mechanisms, and their ε after the steps spent.

    Args:
      plan: the numbers of the run, or of its last segment.
      config: its settings.
      dataset: what it was trained on.
      steps: how many steps of the plan were spent.
      sensitivity: how far one record moves the clipped sum of the plan's first step, in Euclidean
        norm: `plan.clipping.sensitivity(plan.adjacency, clipping_norms)`.
      earlier: the segments before, under other settings or secrets.
      batch_norm: whether the model has BatchNorm.
    """
    before = [segment.mechanism for segment in earlier]
    mechanisms = [_earlier_facts(segment, config, dataset) for segment in earlier]
    mechanisms.append(_mechanism_facts(plan, config, dataset, steps, sensitivity))
    spent = tuple(facts for facts in mechanisms if facts.steps)
    used = _data_use(config.data)
    return Statement(
        format=FORMAT,
        library=Library(_distribution.DISTRIBUTION, _distribution.__version__),
        private=config.seed is None,
        reproducible=config.seed is not None,
        privacy_unit=PrivacyUnit("record"),
        adjacency=plan.adjacency,
        num_examples=plan.num_examples,
        delta=plan.delta,
        accountant=plan.accountant,
        epsilon=epsilons(plan, steps, None, before),
        epsilon_at_smaller_deltas=smaller_deltas(plan, steps, before),
        gaussian_dp=gaussian_dp(plan, steps, before),
        target_epsilon=plan.target_epsilon,
        steps=sum(facts.steps for facts in spent),
        steps_planned=plan.steps,
        mechanisms=spent,
        secrets="kept",
        noise=_noise_facts(plan, config, steps, before),
        data=used,
        earlier_data=_other_data(used, earlier),
        test_is_public=config.data.test_is_public,
        model=config.model,
        preprocessing=Preprocessing(
            _numbers(dataset.center), _numbers(dataset.scale), dataset.scaling
        ),
        batch_norm=BatchNormFacts(config.data.public or "") if batch_norm else None,
        assumptions=(
            *ASSUMPTIONS,
            UNIT_LOSS if batch_norm else RECORD_LOSS,
            CONSTANT_TIME if config.training.constant_time else WATCHED,
        ),
        not_covered=NOT_COVERED,
    )


def _noise_facts(
    plan: Plan, config: Config, steps: int, earlier: Sequence[Mechanism]
) -> NoiseFacts:
    spent = [*earlier, plan.mechanism(steps)]
    charge = guarantee.charge_of(spent)
    epsilon = composition.epsilon(spent, plan.delta)
    # A grid is chosen for all steps of a plan.
    grids = [grid_of(m, m.noise_draws_per_step) for m in (*earlier, plan.mechanism()) if m.steps]
    return NoiseFacts(
        distribution="rounded normal",
        points_per_std=4_194_304 if min(grid.scale for grid in grids) == 22 else 16_777_216,
        generator="threefry4x32-20",
        key_bits=128 if config.seed is None else 32,
        privacy="computational",
        extra_epsilon=round_up(charge.epsilon),
        extra_delta=round_up(min(charge.added_delta(epsilon), 1.0)),
    )


def _mechanism_facts(
    plan: Plan, config: Config, dataset: Dataset, steps: int, sensitivity: float
) -> MechanismFacts:
    mechanism = plan.mechanism(steps)
    return MechanismFacts(
        kind="dp_sgd",
        steps=mechanism.steps,
        noise_multiplier=_noise_multiplier(mechanism),
        sampling=_sampling_facts(mechanism, plan.expected_batch_size),
        clipping=ClippingFacts(
            kind=plan.clipping.kind,
            call=repr(plan.clipping),
            clipping_norms=public_norms.describe(
                config, plan.num_examples, len(dataset.public or ())
            ),
            unit=plan.clipping.unit,
            batch_units=plan.num_units,
            clipped_together=plan.clipping.joint,
            noise_allocation=config.clipping.allocation,
            sensitivity_at_first_step=float(sensitivity),
        ),
        rounding=RoundingFacts(
            noise_raised_by=plan.rounding_slack,
            kind="bound" if plan.rounding_is_bounded else "estimate",
            bound=plan.rounding_bound,
        ),
    )


def _earlier_facts(segment: EarlierSegment, config: Config, dataset: Dataset) -> MechanismFacts:
    """The same of a segment whose plan and public records are no longer at hand."""
    mechanism, clipping = segment.mechanism, segment.config.clipping
    sampling = _sampling_facts(mechanism, segment.config.plan.expected_batch_size)
    norms, given = None, clipping.norms_from == "given"
    if given or segment.config.data.public == config.data.public:
        norms = public_norms.describe(
            segment.config, sampling.num_examples, len(dataset.public or ())
        )
    return MechanismFacts(
        kind="dp_sgd",
        steps=mechanism.steps,
        noise_multiplier=_noise_multiplier(mechanism),
        sampling=sampling,
        clipping=ClippingFacts(
            kind=make_clipping(clipping).kind if given else clipping.kind,
            call=None,
            clipping_norms=norms,
            unit=mechanism.unit,
            batch_units=clipping.units if mechanism.unit == "batch" else None,
            clipped_together=None,
            noise_allocation=clipping.allocation,
            sensitivity_at_first_step=None,
        ),
        rounding=None,
    )


def _noise_multiplier(mechanism: Mechanism) -> float | tuple[NoiseStretch, ...]:
    if isinstance(mechanism.noise_multiplier, tuple):
        return tuple(NoiseStretch(z, count) for z, count in mechanism.noise_multiplier)
    return mechanism.noise_multiplier


def _sampling_facts(mechanism: Mechanism, expected_batch_size: float) -> SamplingFacts:
    assert mechanism.num_examples is not None  # plans and the ledger know it
    return SamplingFacts(
        kind=mechanism.sampling,
        probability=float(mechanism.sampling_probability),
        expected_batch_size=float(expected_batch_size),
        num_examples=mechanism.num_examples,
    )


def _data_use(config: DataConfig) -> DataUse:
    window = config.window if config.name == "text" else None
    return DataUse(config.name, config.private, config.public, config.test, window)


def _other_data(used: DataUse, earlier: Sequence[EarlierSegment]) -> tuple[DataUse, ...]:
    uses = dict.fromkeys(_data_use(segment.config.data) for segment in earlier)
    return tuple(use for use in uses if use != used)


def _numbers(values: float | Sequence[float] | None) -> float | tuple[float, ...] | None:
    if isinstance(values, Sequence):
        return tuple(map(float, values))
    return None if values is None else float(values)
