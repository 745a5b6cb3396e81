"""The privacy statement for people: the contents of `PRIVACY.md`."""

import math
import textwrap
from collections.abc import Iterator, Sequence

from ...accounting import guarantee
from ...accounting.rounding import shown_delta
from .statement import (
    ClippingFacts,
    DataUse,
    Epsilons,
    GaussianDP,
    MechanismFacts,
    NoiseFacts,
    NoiseStretch,
    RoundingFacts,
    SamplingFacts,
    Statement,
)

ADJACENCIES = {
    "add_remove": "one {unit} is added to the data or removed from it",
    "zero_out": "one {unit} is replaced by an empty one, which contributes nothing",
    "replace_one": "one {unit} is replaced by any other",
}

SAMPLINGS = {
    "poisson": "poisson: every record on its own",
    "shuffled": "shuffled epochs, without amplification",
    "fixed_size": "batches of fixed size, without replacement",
    "full_batch": "all records in every step",
}

SECRETS = {
    "kept": "kept in private/ of the run: with them, the noise can be taken off",
    "destroyed": "destroyed in private/ of the run; copies must be destroyed, too",
}

SEEDED = (
    "A seed was given, so the noise and sampling are reproducible: NOT PRIVATE against anyone who "
    "knows or guesses it. The figures below are what the same run would promise with secret keys."
)

NO_PRIVACY = (
    f"An ε above {guarantee.NO_PRIVACY:g} is no meaningful privacy: whether a record was there "
    "can be told with near certainty."
)


def labelled_epsilons(statement: Statement) -> list[tuple[str, float]]:
    """Every accountant's ε with its name and what it is: the first is the claim."""
    claim = statement.accountant
    others = [(name, value) for name, value in statement.epsilon.items() if name != claim]
    # PLD's ε is RDP's where that is smaller.
    what = lambda value: "a looser bound" if value > statement.claimed_epsilon else "the same here"
    return [
        (f"{claim.upper()}, the claim", statement.claimed_epsilon),
        *((f"{name.upper()}, {what(value)}", value) for name, value in others),
    ]


def as_markdown(statement: Statement) -> str:
    """The statement as a page: the claim, a table, and the conditions."""
    s = statement
    parts = ["# Privacy statement", _wrap(_claim(s))]
    if s.reproducible:
        parts.append(_wrap(f"**{SEEDED}**"))
    if s.claimed_epsilon > guarantee.NO_PRIVACY:
        parts.append(_wrap(f"**{NO_PRIVACY}**"))
    parts.append("\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in _rows(s))]))
    if s.data.test is not None and not s.test_is_public:
        parts.append(_wrap("Accuracy on the test records is a private number: it is not released."))
    parts += ["## It holds if", _bullets(s.assumptions)]
    parts += ["## It does not cover", _bullets(s.not_covered)]
    return "\n\n".join(parts) + "\n"


def _claim(s: Statement) -> str:
    unit = s.privacy_unit.kind
    if math.isfinite(s.claimed_epsilon):
        promise = f"({s.claimed_epsilon:g}, {shown_delta(s.delta):g})-differential privacy"
    else:
        promise = "so little noise that no finite ε can be stated"
    claim = (
        f"This model was trained with {promise}. The privacy unit is one {unit} of the "
        f"{s.num_examples:,} in the private data: neighbouring data sets are those where "
        f"{ADJACENCIES[s.adjacency].format(unit=unit)}."
    )
    if s.steps < s.steps_planned:
        claim += (
            f" The run was stopped after {s.steps} of {s.steps_planned} steps; ε counts those, and "
            "holds if the moment was not chosen by private numbers."
        )
    return claim


def _rows(s: Statement) -> Iterator[tuple[str, str]]:
    for label, value in labelled_epsilons(s):
        yield f"ε at δ by {label}", f"{value:g}"
    yield "δ", f"{shown_delta(s.delta):g}"
    for at in s.epsilon_at_smaller_deltas:
        yield f"ε at δ = {shown_delta(at.delta):g}", _by_accountant(at.epsilon)
    yield "Gaussian-DP equivalent", _gaussian(s.gaussian_dp)
    yield "adjacency", s.adjacency
    if s.mechanisms:
        yield from _mechanism_rows(s.mechanisms[-1])
    yield "steps", f"{s.steps}"
    yield from _segment_rows(s.mechanisms)
    yield from _noise_rows(s.noise)
    yield "keys of noise and sampling", SECRETS[s.secrets]
    yield "privacy against", "everyone who can't break the generator: it is computational"
    yield "data", _data(s.data)
    for used in s.earlier_data:
        yield "data of earlier segments", _data(used)
    if s.data.fields:
        yield "declared fields", "; ".join(s.data.fields).replace("|", "\\|")
    if s.data.bad_rows == "left_out":
        yield "rows that can't be used", "count in N, and are in no batch"
    if s.data.canaries:
        yield (
            "canaries",
            f"{s.data.canaries:,} of the {s.num_examples:,} records are made up, from public facts "
            "alone, to audit the run; each took part by a secret fair coin",
        )
    if s.data.cached:
        yield (
            "copies",
            "decoded records are in a cache on the machine of the run, readable by its owner "
            "alone, until `python -m jaxdp.data clear`",
        )
    yield "task", s.task.name if s.task.model is None else f"{s.task.name}, {s.task.model.name}"
    if s.task.measures:
        yield (
            "first step",
            "it measured a mean of the records' numbers, with the noise of every step, in the "
            "place of an update",
        )
    if s.preprocessing is None:
        yield "preprocessing", "a part of the task: constants in it must not come from private data"
    else:
        yield "preprocessing", s.preprocessing.description
    if s.batch_norm is not None:
        yield (
            "BatchNorm",
            f"the statistics are those of {s.batch_norm.public}, which needs no protection, at the "
            "released parameters; in training they were those of the unit, and none were kept",
        )
    if s.data.test is not None:
        yield "test records", "declared public" if s.test_is_public else "private"
    yield "trained by", f"{s.library.name} {s.library.version}"


def _mechanism_rows(mechanism: MechanismFacts) -> Iterator[tuple[str, str]]:
    clipping = mechanism.clipping
    clipped = "per-example" if clipping.unit == "example" else "batch-unit mean"
    yield "sampling", _sampling(mechanism.sampling)
    yield "expected batch size", f"{mechanism.sampling.expected_batch_size:g}"
    yield "mechanism", f"Gaussian noise on the sum of clipped {clipped} gradients (DP-SGD)"
    yield "clipping", clipping.call
    yield "clipping norms", clipping.clipping_norms
    yield "noise over groups", clipping.noise_allocation
    if clipping.batch_units is not None:
        yield "batch units", f"{clipping.batch_units}"
    yield "sensitivity of the sum at the first step", _sensitivity(clipping)
    yield "noise multiplier", _noise_multiplier(mechanism.noise_multiplier)
    yield "rounding of the sum", _rounding(mechanism.rounding)


def _segment_rows(mechanisms: Sequence[MechanismFacts]) -> Iterator[tuple[str, str]]:
    """A line for every segment, if there are several: ε is for all of them together."""
    if len(mechanisms) < 2:
        return
    for number, part in enumerate(mechanisms, 1):
        yield (
            f"segment {number}",
            f"{part.steps} steps, noise multiplier {_noise_multiplier(part.noise_multiplier)}, "
            f"sampling probability {part.sampling.probability:.6g} of "
            f"{part.sampling.num_examples:,} records, {part.clipping.call}",
        )


def _sampling(sampling: SamplingFacts) -> str:
    if sampling.kind == "poisson":
        return f"poisson, probability {sampling.probability:.6g}"
    return SAMPLINGS[sampling.kind]


def _sensitivity(clipping: ClippingFacts) -> str:
    if not clipping.clipped_together:
        return f"{clipping.sensitivity_at_first_step:g}"
    return (
        f"{clipping.sensitivity_at_first_step:g}, that of the layer with the largest clipping "
        "norm; noise and sensitivity of every layer are in proportion to its norm"
    )


def _by_accountant(epsilons: Epsilons) -> str:
    return ", ".join(f"{value:g} by {name.upper()}" for name, value in epsilons.items())


def _gaussian(equivalent: GaussianDP) -> str:
    holds = (
        "at every δ, but for what the randomness costs"
        if equivalent.at_every_delta
        else "which has the same ε at δ"
    )
    return f"μ = {equivalent.mu:g}, {holds}"


def _noise_multiplier(z: float | tuple[NoiseStretch, ...]) -> str:
    if isinstance(z, tuple):
        return ", then ".join(f"{part.noise_multiplier:g} for {part.steps} steps" for part in z)
    return f"{z:g}"


def _rounding(rounding: RoundingFacts) -> str:
    raised = f"raises the noise by {rounding.noise_raised_by:.2g} of itself"
    if rounding.kind == "bound":
        return f"{raised}, a proved bound"
    if rounding.bound is None:
        return f"{raised}, an estimate: no bound is proved"
    return f"{raised}, an estimate; the proved bound, {rounding.bound:.2g}, is too large to use"


def _noise_rows(noise: NoiseFacts) -> Iterator[tuple[str, str]]:
    grid = f"std/2^{noise.points_per_std.bit_length() - 1}"
    yield "noise", f"{noise.distribution} on a grid of {grid}"
    made = "" if noise.key_bits == 128 else f", made of a seed of {noise.key_bits}"
    yield "random bits", f"from {noise.generator} with a key of 128 bits{made}"
    for_it = f"{noise.extra_epsilon:g} and {noise.extra_delta:g}"
    if noise.extra_delta >= 1:
        for_it = "more than δ at so large an ε, so that none can be stated"
    else:
        for_it += ", included in those above"
    yield "ε and δ that its randomness costs", for_it


def _data(used: DataUse) -> str:
    windows = f", in windows of {used.window + 1} characters" if used.window is not None else ""
    public = f", not protected: {used.public}" if used.public is not None else ""
    scored = f"; scored: {used.test}" if used.test is not None else ""
    return f"{used.name}{windows}; protected: {used.private}{public}{scored}"


def _wrap(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _bullets(items: Sequence[str]) -> str:
    return "\n".join(_wrap(f"- {item}", "  ") for item in items)
