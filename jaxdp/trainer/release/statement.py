"""The privacy statement of a release: what is promised, on which assumptions, and what is not."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ...accounting import composition, gdp, guarantee
from ...accounting.mechanism import Mechanism, accountants
from ...accounting.rounding import round_up
from ...datasets.config import DataConfig
from ...datasets.records import Dataset
from ...dpsgd.plan import Plan
from .. import public_norms
from ..config import Config

ADJACENCIES = {
    "add_remove": "one record is added to the data or removed from it",
    "zero_out": "one record is replaced by an empty one, which contributes nothing",
    "replace_one": "one record is replaced by any other",
}

SAMPLINGS = {
    "poisson": "poisson: every record on its own",
    "shuffled": "shuffled epochs, without amplification",
    "fixed_size": "batches of fixed size, without replacement",
    "full_batch": "all records in every step",
}

SEEDED = (
    "A seed was given, so the noise and sampling are reproducible: NOT PRIVATE against anyone who "
    "knows or guesses it. The figures below are what the same run would promise with secret keys."
)

ASSUMPTIONS = (
    "The noise and sampling keys stay secret, with every file in private/ and the live output of "
    "the run.",
    "The noise and sampling come from JAX's and NumPy's counter-based generators (Threefry, "
    "Philox), which are taken for random.",
    "The number of private records N is public.",
    "No record is in the data twice, also not in part: windows of a text do not overlap.",
)

RECORD_LOSS = "The loss of a record depends on that record and the parameters only."

UNIT_LOSS = "The loss of a batch unit depends on the records in it and the parameters only."

NO_PRIVACY = (
    f"An ε above {guarantee.NO_PRIVACY:g} is no meaningful privacy: whether a record was there "
    "can be told with near certainty."
)

NOT_COVERED = (
    "Hyperparameters chosen by trying several on the same private records.",
    "Other releases from the same records, such as runs with other seeds: their budgets add up.",
    "Early stopping, or a choice among checkpoints, guided by private numbers.",
    "The best accuracy over epochs or runs: that is a selection on the test records.",
    "Preprocessing constants, vocabularies or architectures taken from private data.",
    "Several records of one person: the guarantee is for one record; k records need group privacy.",
    "Attacks on floating point: the noise is float32, which has about 2^23 values in a binade.",
    "Attacks on timing, memory or power.",
)


def labelled(epsilons: dict[str, float]) -> list[tuple[str, float]]:
    """Every accountant's ε with its name and what it is: the first is the claim."""
    roles = ["the claim", *["a looser bound"] * (len(epsilons) - 1)]
    return [
        (f"{name.upper()}, {role}", value)
        for (name, value), role in zip(epsilons.items(), roles, strict=True)
    ]


def epsilons(
    plan: Plan, steps: int, delta: float | None = None, earlier: Sequence[Mechanism] = ()
) -> dict[str, float]:
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
) -> list[dict[str, float]]:
    """δ about 10, 100 and 1,000 times smaller than the plan's, and ε at each."""
    deltas = [float(f"{plan.delta / ratio:.0e}") for ratio in (10, 100, 1000)]
    return [{"delta": delta, **epsilons(plan, steps, delta, earlier)} for delta in deltas]


def gaussian_dp(plan: Plan, steps: int, earlier: Sequence[Mechanism] = ()) -> dict[str, Any]:
    """The Gaussian-DP equivalent: μ of the one Gaussian mechanism that says the same.

    Where sampling does not amplify, the run is μ-GDP, at every δ. Otherwise μ is that of the
    Gaussian with the same ε at the plan's δ; at other δ they differ.
    """
    spent = [*earlier, plan.mechanism(steps)]
    exact = all(m.sampling_probability == 1 or m.sampling == "shuffled" for m in spent)
    mu = math.hypot(*map(guarantee.gaussian_mu, spent))
    if not exact and math.isfinite(mu):
        mu = gdp.mu_from_epsilon(composition.epsilon(spent, plan.delta), plan.delta)
    return {"mu": round_up(mu), "at_every_delta": exact}


def make_statement(
    plan: Plan,
    config: Config,
    dataset: Dataset,
    steps: int,
    sensitivity: float,
    earlier: Sequence[Mechanism] = (),
    batch_norm: bool = False,
    earlier_data: Sequence[DataConfig] = (),
) -> dict[str, Any]:
    """What `privacy.json` holds: the mechanism and its ε after the steps that were spent.

    Args:
      plan: the numbers of the run, or of its last segment.
      config: its settings.
      dataset: what it was trained on.
      steps: how many steps of the plan were spent.
      sensitivity: of the sum at the first step.
      earlier: what was spent in earlier segments, under other settings or secrets.
      batch_norm: whether the model has BatchNorm.
      earlier_data: what earlier segments used, and for what.
    """
    spent = [m for m in (*earlier, plan.mechanism(steps)) if m.steps]
    clipped = "per-example" if plan.num_units is None else "batch-unit mean"
    return {
        "format": 1,
        "private": config.seed is None,
        "reproducible": config.seed is not None,
        "unit": "one record",
        "adjacency": plan.adjacency,
        "num_examples": plan.num_examples,
        "sampling": plan.sampling,
        "sampling_probability": plan.sampling_probability,
        "expected_batch_size": plan.expected_batch_size,
        "mechanism": f"Gaussian noise on the sum of clipped {clipped} gradients (DP-SGD)",
        "clipping": repr(plan.clipping),
        "clipping_norms": public_norms.describe(
            config, plan.num_examples, len(dataset.public or ())
        ),
        "clipped_together": plan.clipping.joint,
        "noise_allocation": config.clipping.allocation,
        "batch_units": plan.num_units,
        "sensitivity_at_first_step": sensitivity,
        "noise_multiplier": plan.noise_multiplier,
        "steps": sum(m.steps for m in spent),
        "steps_planned": plan.steps,
        "segments": [
            {
                "steps": m.steps,
                "noise_multiplier": m.noise_multiplier,
                "sampling_probability": m.sampling_probability,
                "num_examples": m.num_examples,
            }
            for m in spent
        ],
        "delta": plan.delta,
        "epsilon": epsilons(plan, steps, None, earlier),
        "epsilon_at_smaller_deltas": smaller_deltas(plan, steps, earlier),
        "gaussian_dp": gaussian_dp(plan, steps, earlier),
        "target_epsilon": plan.target_epsilon,
        "data": _describe_data(config.data),
        "data_before": sorted({*map(_describe_data, earlier_data)} - {_describe_data(config.data)}),
        "test_is_public": config.data.test_is_public,
        "preprocessing": dataset.scaling,
        "model": {**asdict(config.model), "widths": list(config.model.widths)},
        "batch_norm": _describe_batch_norm(config.data) if batch_norm else None,
        "assumptions": [*ASSUMPTIONS, UNIT_LOSS if batch_norm else RECORD_LOSS],
        "not_covered": list(NOT_COVERED),
    }


def _describe_data(config: DataConfig) -> str:
    windows = f", in windows of {config.window + 1} characters" if config.name == "text" else ""
    public = f", not protected: {config.public}" if config.public is not None else ""
    return f"{config.name}{windows}; protected: {config.private}{public}; scored: {config.test}"


def _describe_batch_norm(config: DataConfig) -> str:
    return (
        f"the statistics are those of {config.public}, which needs no protection, at the released "
        "parameters; in training they were those of the unit, and none were kept"
    )


def as_markdown(statement: dict[str, Any]) -> str:
    """What `PRIVACY.md` holds: the same for people."""
    s = statement
    claimed, delta = next(iter(s["epsilon"].values())), round_up(s["delta"], 3)
    claim = (
        f"This model was trained with ({claimed:g}, {delta:g})-differential "
        f"privacy. The unit is {s['unit']} of the {s['num_examples']:,} in the private data: "
        f"neighbouring data sets are those where {ADJACENCIES[s['adjacency']]}."
    )
    if s["steps"] < s["steps_planned"]:
        claim += (
            f" The run was stopped after {s['steps']} of {s['steps_planned']} steps; ε counts "
            "those, and holds if the moment was not chosen by private numbers."
        )
    rows = [
        *((f"ε at δ by {label}", f"{value:g}") for label, value in labelled(s["epsilon"])),
        ("δ", f"{delta:g}"),
        *((f"ε at δ = {row['delta']:g}", _by(row)) for row in s["epsilon_at_smaller_deltas"]),
        ("Gaussian-DP equivalent", _gaussian(**s["gaussian_dp"])),
        ("adjacency", s["adjacency"]),
        ("sampling", _sampling(s["sampling"], s["sampling_probability"])),
        ("expected batch size", f"{s['expected_batch_size']:g}"),
        ("mechanism", s["mechanism"]),
        ("clipping", s["clipping"]),
        ("clipping norms", s["clipping_norms"]),
        ("noise over groups", s["noise_allocation"]),
        *([("batch units", f"{s['batch_units']}")] if s["batch_units"] is not None else []),
        ("sensitivity of the sum at the first step", _sensitivity(s)),
        ("noise multiplier", _noise(s["noise_multiplier"])),
        ("steps", f"{s['steps']}"),
        *_segments(s["segments"]),
        ("data", s["data"]),
        *(("data of earlier segments", used) for used in s.get("data_before", [])),
        ("preprocessing", s["preprocessing"]),
        *([("BatchNorm", s["batch_norm"])] if s.get("batch_norm") else []),
        ("test records", "declared public" if s["test_is_public"] else "private"),
    ]
    parts = ["# Privacy statement", _wrap(claim)]
    if s["reproducible"]:
        parts.append(_wrap(f"**{SEEDED}**"))
    if claimed > guarantee.NO_PRIVACY:
        parts.append(_wrap(f"**{NO_PRIVACY}**"))
    parts.append("\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows)]))
    if not s["test_is_public"]:
        parts.append(_wrap("Accuracy on the test records is a private number: it is not released."))
    parts += ["## It holds if", _bullets(s["assumptions"])]
    parts += ["## It does not cover", _bullets(s["not_covered"])]
    return "\n\n".join(parts) + "\n"


def _sampling(sampling: str, probability: float) -> str:
    if sampling == "poisson":
        return f"poisson, probability {probability:.6g}"
    return SAMPLINGS[sampling]


def _sensitivity(s: dict[str, Any]) -> str:
    if not s["clipped_together"]:
        return f"{s['sensitivity_at_first_step']:g}"
    return (
        f"{s['sensitivity_at_first_step']:g}, that of the layer with the largest clipping norm; "
        "noise and sensitivity of every layer are in proportion to its norm"
    )


def _by(row: dict[str, float]) -> str:
    return ", ".join(f"{row[name]:g} by {name.upper()}" for name in ("pld", "rdp") if name in row)


def _gaussian(mu: float, at_every_delta: bool) -> str:
    return f"μ = {mu:g}, " + ("at every δ" if at_every_delta else "which has the same ε at δ")


def _noise(z: float | list | tuple) -> str:
    if isinstance(z, list | tuple):
        return ", then ".join(f"{value:g} for {count} steps" for value, count in z)
    return f"{z:g}"


def _segments(segments: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """A line for every segment, if there are several: ε is for all of them together."""
    if len(segments) < 2:
        return []
    return [
        (
            f"segment {number}",
            f"{part['steps']} steps, noise multiplier {_noise(part['noise_multiplier'])}, sampling "
            f"probability {part['sampling_probability']:.6g} of {part['num_examples']:,} records",
        )
        for number, part in enumerate(segments, 1)
    ]


def _wrap(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _bullets(items: list[str]) -> str:
    return "\n".join(_wrap(f"- {item}", "  ") for item in items)
