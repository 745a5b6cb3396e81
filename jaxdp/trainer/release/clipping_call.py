"""What follows from the call that a statement names as its clipping: how far a record moves sums.

This is written anew, not taken from `jaxdp.dpsgd`, so that one can be held against the other.
"""

import ast
import math
from typing import Any

from ...types import Adjacency
from .statement import ClippingFacts

MOST_LAYERS = 1e9


def wrong_in(clipping: ClippingFacts, adjacency: Adjacency) -> str:
    """What the facts of a clipping contradict each other in; empty: nothing.

    Args:
      clipping: the facts.
      adjacency: which data sets are neighbours.
    """
    name, norms, settings = _read(clipping.call)
    if name != f"clip_{clipping.kind}":
        return f"kind is {clipping.kind}, and the call is {clipping.call}"
    unit = settings.get("unit", "batch" if clipping.kind == "batch" else "example")
    if clipping.unit != unit:
        return f"unit is {clipping.unit}, and by the call {clipping.call} it is {unit}"
    if (clipping.batch_units is None) != (unit == "example"):
        return f"batch_units is {clipping.batch_units}, and the unit is {unit}"
    joint = clipping.kind == "multiplied"
    if clipping.clipped_together != joint:
        return f"clipped_together is {clipping.clipped_together}, and the call is {clipping.call}"
    stated = clipping.sensitivity_at_first_step
    if not stated >= 0:
        return f"the sensitivity is {stated:g}"
    expected = _sensitivity(norms, settings, joint)
    if expected is None:
        return ""
    # One record removes a clipped gradient and adds another one, or turns a unit's mean around.
    expected *= 2 if unit == "batch" or adjacency == "replace_one" else 1
    if settings.get("layer") is not None and not joint:
        # √(Σ C²) over layers of which only their number is open.
        ratio = stated / expected if expected else 0.0
        layers = min(ratio, MOST_LAYERS) ** 2
        if 0.5 < layers < MOST_LAYERS and abs(layers - round(layers)) <= 1e-4 * layers:
            return ""
        return f"the sensitivity is {stated:g}, and {expected:g} for each layer"
    if math.isclose(stated, expected, rel_tol=1e-5):  # it is stated in float32
        return ""
    return f"the sensitivity is {stated:g}, and {expected:g} by {clipping.call} and {adjacency}"


def _read(call: str) -> tuple[str, Any, dict[str, Any]]:
    """The function, its first argument (None: it can't be told), and the others by their names."""
    name = call.partition("(")[0]
    try:
        tree = ast.parse(call, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return name, None, {}
    if not isinstance(tree, ast.Call) or len(tree.args) != 1:
        return name, None, {}
    named = {setting.arg: _value(setting.value) for setting in tree.keywords if setting.arg}
    return name, _value(tree.args[0]), named


def _value(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError, MemoryError):
        return None


def _sensitivity(norms: Any, settings: dict[str, Any], joint: bool) -> float | None:
    """How far one clipped gradient moves the sum; None: the norms can't be told from the call."""
    found = list(_leaves(norms))
    if not found or not all(0 < norm < math.inf for norm in found if norm != 0):
        return None
    return max(found) if joint else math.hypot(*found)


def _leaves(norms: Any) -> Any:
    if isinstance(norms, dict):
        norms = list(norms.values())
    if isinstance(norms, list | tuple):
        for norm in norms:
            yield from _leaves(norm)
    else:
        number = isinstance(norms, int | float) and not isinstance(norms, bool)
        yield float(norms) if number and abs(norms) < 1e308 else math.nan
