"""Canaries: two batches that differ in one record, chosen so that a bug would show.

Some are rows, which go through the whole step. The others are gradients of the length that the
clipping allows, put in place of a row's own: they need no record that has them.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..dpsgd.groups import Groups
from ..dpsgd.plan import Plan
from ..gradients.lazy import PerExampleGrads
from ..gradients.per_example import from_dense
from ..gradients.trees import difference
from ..types import PyTree

Grads = Callable[[PyTree, PyTree, Any], Any]  # (params, batch, mask) -> gradients of examples

Kind = Literal["records", "arrays", "lazy"]


class Input(NamedTuple):
    """What a step gets.

    Attributes:
      rows: a batch as `grads` takes it; or the gradients of all examples (units), `[B, ...]`.
      mask: False for padding.
    """

    rows: PyTree
    mask: np.ndarray


class Canary(NamedTuple):
    """One canary.

    Attributes:
      name: of the canary.
      with_it: the input of a step with the canary.
      without: the input of a neighbour: without it, or with another record in its place.
      kind: what the inputs' rows are: records; gradients, which `grads` gives as arrays; or
        gradients that it gives as `PerExampleGrads`.
    """

    name: str
    with_it: Input
    without: Input
    kind: Kind


ROWS: dict[str, str] = {
    "first": "the first record, of which padding rows are copies",
    "last": "the last record before the padding",
    "duplicate": "a record that is in the batch already",
    "huge": "every number times 10^6",
    "tiny": "every number times 10^-30",
    "nan": "every number NaN",
    "cancelling": "10^4 and -10^4 in turn, which cancel in products",
    "against": "a record times -10^12, where all others are the same one times 10^6",
}
"""Canaries that are rows, with what they are."""

GRADIENTS: dict[str, str] = {
    "coordinate": "a gradient in one coordinate",
    "spread": "a gradient spread over all parameters; if the step clips afterwards, a longer one",
    "emptiest": "a gradient in the leaf where all others have the least",
}
"""Canaries that are gradients as long as the clipping allows, with what they are."""

#: The names of all canaries of `audit_step`.
CANARIES = (*GRADIENTS, *ROWS)

TOO_LONG = 10.0  # times the clipping norm

CANDIDATES = 4  # rows of the batch that are made a canary


def names_for(plan: Plan, grads: Grads, params: PyTree, batch: PyTree) -> tuple[str, ...]:
    """The canaries that make sense for a step: some rows are of floating numbers only.

    What `grads` has clipped and added up already has no place for the gradient of one record.
    """
    floating = any(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(batch))
    rows = tuple(ROWS) if floating else ("first", "last", "duplicate")
    found = jax.eval_shape(_dense(plan, grads, batch), params, batch)
    gradients, wanted = map(jax.tree.leaves, (found, params))
    if len(gradients) != len(wanted):
        told = difference(found, params)
        raise ValueError(f"grads gives no gradients of params: {told}. Give both of one model")
    pairs = zip(gradients, wanted, strict=True)
    sizes = {leaf.shape[:1] if leaf.shape[1:] == like.shape else () for leaf, like in pairs}
    return (*GRADIENTS, *rows) if len(sizes) == 1 and () not in sizes else rows


def row_canary(name: str, plan: Plan, batch: PyTree, of_row: int) -> Canary:
    """A canary in place of a row of the batch, or of a row of its first unit.

    Args:
      name: one of `ROWS`.
      plan: its clipping says whether there are units, and its adjacency what a neighbour is.
      batch: arrays `[B, ...]`, or `[units, capacity, ...]`.
      of_row: the row of which the canary is made, 0 to `CANDIDATES` - 1.
    """
    shape = _shape(plan, batch)
    size = shape[-1]
    real = _real(size)
    place = real - 1 if name == "last" else 0
    others = np.delete(np.arange(size), of_row)
    if name == "against":
        others[:] = of_row
    source = others[0] if name == "duplicate" else of_row
    order = np.insert(others, place, source)
    order[real:] = source  # as padding by the number 0 does, if the canary is the first record
    if plan.adjacency == "replace_one":
        other = np.insert(others, place, others[-1])
        mask = less = np.broadcast_to(np.arange(size) < real, shape)
    else:
        other = np.append(others, others[0])
        mask = np.broadcast_to(np.arange(size) < real, shape)
        less = mask.copy()
        less[(0, real - 1) if len(shape) == 2 else real - 1] = False
    other[real:] = other[0]
    is_canary = np.isin(np.arange(size), [place, *range(real, size)])
    rows = lambda order, changed: jax.tree.map(
        lambda leaf: _rearranged(leaf, len(shape) == 2, order, changed, name), batch
    )
    with_it = Input(rows(order, is_canary), mask)
    without = Input(rows(other, np.zeros(size, bool)), less)
    return Canary(name, with_it, without, "records")


def _rearranged(leaf: Any, in_unit: bool, order: np.ndarray, changed: np.ndarray, name: str) -> Any:
    """The rows of a leaf, or of its first unit, in an order; some of them made a canary."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        rows = (leaf[0] if in_unit else leaf)[order]
        return jnp.concatenate([rows[None], leaf[1:]]) if in_unit else rows
    array = np.asarray(leaf)
    rows = (array[0] if in_unit else array)[order]
    if name in _CHANGES and jnp.issubdtype(rows.dtype, jnp.floating):
        with np.errstate(over="ignore"):
            rows = rows * rows.dtype.type(1e6) if name == "against" else rows
            for place in np.flatnonzero(changed):
                rows[place] = _CHANGES[name](rows[place])
    return np.concatenate([rows[None], array[1:]]) if in_unit else rows


def gradient_canary(
    name: str, plan: Plan, grads: Grads, params: PyTree, batch: PyTree, groups: Groups
) -> Canary:
    """A canary in place of the gradient of the first row, or unit.

    Where a record may be replaced, and for batch units, whose mean one record can turn around, the
    neighbour has the opposite gradient.

    Args:
      name: one of `GRADIENTS`.
      plan: its clipping says how long a gradient may be.
      grads, params, batch: as for `audit_step`.
      groups: `plan.clipping.groups(params)`.
    """
    units = plan.num_units is not None
    kinds: list[Kind] = []
    found = jax.tree.map(np.array, jax.jit(_dense(plan, grads, batch, kinds))(params, batch))
    leaves, structure = jax.tree.flatten(found)
    norms = np.asarray(plan.clipping.init(params).clipping_norms, np.float64)
    canary = _gradient(name, leaves, groups, norms)
    if name == "spread" and kinds[0] == "lazy":
        canary = [TOO_LONG * leaf for leaf in canary]  # so that the step's own clipping shows
    opposite = units or plan.adjacency == "replace_one"
    size = len(leaves[0])  # fewer than rows, if the step's own gradients are not of examples
    real = size if units else _real(size)

    def put(first: list[np.ndarray] | None) -> PyTree:
        rows = []
        for i, leaf in enumerate(leaves):
            others = np.where(_along(np.arange(1, size) < real, leaf), leaf[1:], 0)
            new = [others, np.zeros_like(leaf[:1])] if first is None else [first[i][None], others]
            rows.append(np.concatenate(new).astype(leaf.dtype))
        return jax.tree.unflatten(structure, rows)

    mask = np.arange(size) < real
    without = Input(put([-leaf for leaf in canary]), mask)
    if not opposite:
        without = Input(put(None), np.arange(size) < real - 1)
    return Canary(name, Input(put(canary), mask), without, kinds[0])


def _dense(
    plan: Plan, grads: Grads, batch: PyTree, kinds: list[Kind] | None = None
) -> Callable[[PyTree, PyTree], PyTree]:
    """The step's gradients as arrays; their kind is noted when it is traced."""
    shape = _shape(plan, batch)

    def dense(params: PyTree, batch: PyTree) -> PyTree:
        given = grads(params, batch, np.ones(shape, bool))
        lazy = isinstance(given, PerExampleGrads)
        if kinds is not None:
            kinds.append("lazy" if lazy else "arrays")
        return given.materialize() if lazy else given

    return dense


def gradients(given: Input, kind: Kind, plan: Plan, grads: Grads, params: PyTree) -> Any:
    """The gradients of a canary's input, as `grads` gives them."""
    if kind == "records":
        return grads(params, *given)
    if kind == "arrays":
        return given.rows
    return from_dense(
        given.rows,
        jnp.asarray(given.mask),
        like=params,
        unit=plan.clipping.unit,
        # A plan's bound on rounding is for so many.
        microbatch_size=plan.rounding_rows if plan.rounding_is_bounded else None,
    )


def _gradient(
    name: str, leaves: list[np.ndarray], groups: Groups, norms: np.ndarray
) -> list[np.ndarray]:
    """One gradient, of which every group has its clipping norm, or is zero."""
    like = [np.zeros(leaf.shape[1:], np.float64) for leaf in leaves]
    noisy = {i: group for i, group in enumerate(groups.of_leaf) if group is not None}
    if name == "spread":
        for i, group in noisy.items():
            like[i] += norms[group] / np.sqrt(groups.sizes[group])
        return like
    chosen = list(noisy)[-1]
    if name == "emptiest":
        chosen = min(noisy, key=lambda i: float(np.mean(np.square(leaves[i].astype(np.float64)))))
    length = norms[noisy[chosen]]
    if name == "coordinate":
        like[chosen].flat[0] = length
    else:
        like[chosen] += length / np.sqrt(like[chosen].size)
    return like


_CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "huge": lambda row: row * 1e6,
    "tiny": lambda row: row * 1e-30,
    "nan": lambda row: np.full_like(row, np.nan),
    "against": lambda row: row * -1e6,
    "cancelling": lambda row: (
        row + 1e4 * (1 - 2 * (np.arange(row.size) % 2)).reshape(row.shape).astype(row.dtype)
    ),
}


def _shape(plan: Plan, batch: PyTree) -> tuple[int, ...]:
    """`(B,)`, or `(units, capacity)`."""
    leaves = jax.tree.leaves(batch)
    shape = tuple(leaves[0].shape[: 1 if plan.num_units is None else 2]) if leaves else ()
    if len(shape) != (1 if plan.num_units is None else 2) or shape[-1] < 4:
        wanted = "[B, ...]" if plan.num_units is None else "[units, capacity, ...]"
        raise ValueError(
            f"the batch has arrays of shape {shape}...: give arrays {wanted} with room for at "
            "least 4 records, of which the last quarter becomes padding"
        )
    return shape


def _real(size: int) -> int:
    """How many rows are records; the others are padding."""
    return size - size // 4


def _along(which: np.ndarray, leaf: np.ndarray) -> np.ndarray:
    return which.reshape(-1, *[1] * (leaf.ndim - 1))
