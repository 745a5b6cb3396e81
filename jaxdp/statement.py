"""The privacy statement of a release: what is promised, on which assumptions, and what is not."""

import decimal
import textwrap
from dataclasses import asdict
from typing import Any

from . import accounting
from .config import Config
from .data import Dataset
from .plan import Plan

ADJACENCIES = {
    "add_remove": "one record is added to the data or removed from it",
    "zero_out": "one record is replaced by an empty one, which contributes nothing",
    "replace_one": "one record is replaced by any other",
}

LABELS = {"pld": "PLD, the claim", "rdp": "RDP, a looser bound"}

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
    "The loss of a record depends on that record and the parameters only.",
)

NOT_COVERED = (
    "Hyperparameters chosen by trying several on the same private records.",
    "Other releases from the same records, such as runs with other seeds: their budgets add up.",
    "Early stopping, or a choice among checkpoints, guided by private numbers.",
    "Preprocessing constants, vocabularies or architectures taken from private data.",
    "Several records of one person: the guarantee is for one record; k records need group privacy.",
    "Attacks on floating point: the noise is float32, which has about 2^23 values in a binade.",
    "Attacks on timing, memory or power.",
)


def round_up(value: float) -> float:
    """Rounds up to five digits, so that what is printed never promises too much."""
    rounded = decimal.Context(prec=5, rounding=decimal.ROUND_CEILING).create_decimal(value)
    return float(rounded)


def epsilons(plan: Plan, steps: int) -> dict[str, float]:
    """ε after some steps by every accountant that is sound for the plan, the claim first."""
    names = accounting.accountants(plan.sampling, plan.adjacency)
    return {name: round_up(plan.epsilon(steps, name)) for name in names}


def make_statement(
    plan: Plan, config: Config, dataset: Dataset, steps: int, sensitivity: float
) -> dict[str, Any]:
    """What `privacy.json` holds: the mechanism and its ε after the steps that were spent."""
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
        "batch_units": plan.num_units,
        "sensitivity_at_first_step": sensitivity,
        "noise_multiplier": plan.noise_multiplier,
        "steps": steps,
        "steps_planned": plan.steps,
        "delta": plan.delta,
        "epsilon": epsilons(plan, steps),
        "target_epsilon": plan.target_epsilon,
        "data": config.data.name,
        "test_is_public": config.data.test_is_public,
        "preprocessing": dataset.scaling,
        "model": {**asdict(config.model), "widths": list(config.model.widths)},
        "assumptions": list(ASSUMPTIONS),
        "not_covered": list(NOT_COVERED),
    }


def as_markdown(statement: dict[str, Any]) -> str:
    """What `PRIVACY.md` holds: the same for people."""
    s = statement
    claim = (
        f"This model was trained with ({s['epsilon']['pld']:g}, {s['delta']:.3g})-differential "
        f"privacy. The unit is {s['unit']} of the {s['num_examples']:,} in the private data: "
        f"neighbouring data sets are those where {ADJACENCIES[s['adjacency']]}."
    )
    if s["steps"] < s["steps_planned"]:
        claim += (
            f" The run was stopped after {s['steps']} of {s['steps_planned']} steps; ε counts "
            "those, and holds if the moment was not chosen by private numbers."
        )
    rows = [
        *((f"ε at δ by {LABELS[name]}", f"{value:g}") for name, value in s["epsilon"].items()),
        ("δ", f"{s['delta']:.4g}"),
        ("adjacency", s["adjacency"]),
        ("sampling", f"{s['sampling']}, probability {s['sampling_probability']:.6g}"),
        ("expected batch size", f"{s['expected_batch_size']:g}"),
        ("mechanism", s["mechanism"]),
        ("clipping", s["clipping"]),
        *([("batch units", f"{s['batch_units']}")] if s["batch_units"] is not None else []),
        ("sensitivity of the sum at the first step", f"{s['sensitivity_at_first_step']:g}"),
        ("noise multiplier", f"{s['noise_multiplier']:g}"),
        ("steps", f"{s['steps']}"),
        ("data", s["data"]),
        ("preprocessing", s["preprocessing"]),
        ("test records", "declared public" if s["test_is_public"] else "private"),
    ]
    parts = ["# Privacy statement", _wrap(claim)]
    if s["reproducible"]:
        parts.append(_wrap(f"**{SEEDED}**"))
    parts.append("\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows)]))
    if not s["test_is_public"]:
        parts.append(_wrap("Accuracy on the test records is a private number: it is not released."))
    parts += ["## It holds if", _bullets(s["assumptions"])]
    parts += ["## It does not cover", _bullets(s["not_covered"])]
    return "\n\n".join(parts) + "\n"


def _wrap(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _bullets(items: list[str]) -> str:
    return "\n".join(_wrap(f"- {item}", "  ") for item in items)
