"""Checks made before any gradient is computed: of the loss, the parameters, the batch, its mask."""

import numbers
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..types import PyTree
from ._cures import KEYS_BY_RECORD, NO_BATCH_NORM, shapes, tell_the_cure
from .trees import difference


def check_microbatch_size(size: int | None) -> None:
    """Raises a ValueError unless the size is None or a whole number of at least 1."""
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise ValueError(
            f"microbatch_size is {size!r}: it counts examples, so give a whole number of at least "
            "1, or None for the whole batch at once"
        )


def check_memory_limit(limit: int | None) -> None:
    """Raises a ValueError unless the limit is None or a whole number of at least 1."""
    whole = isinstance(limit, numbers.Integral) and not isinstance(limit, bool)
    if limit is not None and not (whole and limit >= 1):
        raise ValueError(
            f"memory_limit is {limit!r}: it counts bytes, so give a whole number of at least 1, "
            "such as 4 * 10**9, or None for no limit"
        )


def check_order(params: PyTree, batch: Any) -> None:
    """Raises a TypeError unless the batch is a tuple or list."""
    if isinstance(batch, tuple | list):
        return
    kind = type(batch).__name__
    if isinstance(params, tuple | list) and isinstance(batch, dict):
        raise TypeError(
            f"params is a {type(params).__name__} and batch is a {kind}, as if they were swapped: "
            "call per_example_grads(loss)(params, batch, mask), with a tuple as batch"
        )
    raise TypeError(
        f"batch is a {kind}: pass the tuple of the loss's arguments after params, e.g. (x, y), or "
        "(x,) for one"
    )


def check_axes(params: PyTree, batch: PyTree) -> None:
    """Refuses arrays that lie along mesh axes of JAX's explicit mode.

    There the sharding of an array is part of its type, and gradients of single rows have none.
    """
    for what, tree in (("parameters", params), ("batch", batch)):
        for leaf in jax.tree.leaves(tree):
            names = [name for name in jax.typeof(leaf).sharding.spec if name is not None]
            if names:
                raise ValueError(
                    f"arrays of the {what} lie along the mesh axis {names[0]!r}, whose type is "
                    "Explicit: make the mesh with jax.make_mesh(..., "
                    "axis_types=(jax.sharding.AxisType.Auto, ...))"
                )


def check_params(params: PyTree) -> None:
    """Raises an error unless all are real floating arrays, and none is a statistic or state."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError(f"params is {params!r}, which has no arrays: there is nothing to train")
    _check_variables(params)
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path) or "params"
        if any(
            getattr(entry, "key", getattr(entry, "name", "")) == "batch_stats" for entry in path
        ):
            raise ValueError(
                f"the model has BatchNorm (layer {jax.tree_util.keystr(path[:-1])}), whose "
                f"batch_stats are in params: {NO_BATCH_NORM}"
            )
        if not hasattr(leaf, "dtype"):
            cure = _EQUINOX if callable(leaf) else "pass JAX arrays"
            raise TypeError(f"parameter {name} is {leaf!r}, and no array: {cure}")
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            cure = _EQUINOX if _is_equinox(params) else _OTHER_CONSTANTS
            if _is_key(leaf):
                cure = f"a key is no parameter. {KEYS_BY_RECORD}"
            raise TypeError(
                f"parameter {name} has dtype {leaf.dtype}, which has no gradient here: {cure}"
            )
        if leaf.size == 0:
            raise ValueError(f"parameter {name} has shape {leaf.shape}: it holds no numbers")


_OTHER_CONSTANTS = (
    "pass real floating parameters only. What else the loss needs is shared: "
    "per_example_grads(loss)(params, batch, mask, shared=rest), and loss(params, *example, shared)"
)

_EQUINOX = (
    "pass arrays to be trained only. For an Equinox module: params, rest = "
    "eqx.partition(model, eqx.is_inexact_array), and in the loss model = eqx.combine(params, rest)"
)


def _is_equinox(params: PyTree) -> bool:
    equinox: Any = sys.modules.get("equinox")  # without it there are no modules
    if equinox is None:
        return False
    is_module = lambda node: isinstance(node, equinox.Module)
    return any(map(is_module, jax.tree.leaves(params, is_leaf=is_module)))


def _check_variables(params: PyTree) -> None:
    """Refuses Flax nnx variables that are no parameters: statistics, random state, caches."""
    nnx: Any = sys.modules.get("flax.nnx")  # Flax is an extra: without it there are no variables
    if nnx is None:
        return
    is_variable = lambda node: isinstance(node, nnx.Variable)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_variable):
        if not is_variable(leaf) or isinstance(leaf, nnx.Param):
            continue
        kind = type(leaf).__name__
        why = "It would be changed by noise, as parameters are"
        if isinstance(leaf, nnx.BatchStat):
            why = NO_BATCH_NORM
        elif isinstance(leaf, nnx.RngState):
            why = f"Every example would draw the same. {KEYS_BY_RECORD}"
        raise ValueError(
            f"{jax.tree_util.keystr(path) or 'params'} in params is an nnx.{kind}, and no "
            "nnx.Param. Give the parameters alone: graph, params, rest = "
            f"nnx.split(model, nnx.Param, ...), or params = nnx.state(model, nnx.Param). {why}"
        )


def _is_key(leaf: Any) -> bool:
    """Whether it is a key of JAX: a typed one, or a single one as plain words."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return True
    return leaf.dtype == jnp.uint32 and leaf.shape in ((2,), (4,))


def batch_size(batch: PyTree) -> int:
    """The length of the leading axis; raises a ValueError unless all leaves agree in it."""
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    if not leaves:
        raise ValueError("batch has no arrays: pass the loss's arguments after params, e.g. (x, y)")
    sizes = {}
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path)
        if not hasattr(leaf, "shape") or leaf.shape == ():
            cure = "pass what all examples share by name, as shared=..."
            if isinstance(leaf, bool | int | float):
                cure = (
                    "a list is a tree of numbers to JAX: pass arrays, jnp.asarray(rows), and "
                    "what all examples share by name, as shared=..."
                )
            elif hasattr(leaf, "dtype") and _is_key(leaf):
                cure = f"all examples would draw the same numbers. {KEYS_BY_RECORD}"
            raise ValueError(f"batch{name} is {leaf!r}, without a leading axis of examples: {cure}")
        sizes[name] = leaf.shape[0]
    if len(set(sizes.values())) > 1:
        each = ", ".join(f"batch{name} has {size}" for name, size in sizes.items())
        cure = f". {KEYS_BY_RECORD}" if any(_is_key(leaf) for _, leaf in leaves) else ""
        raise ValueError(f"the batch's leaves disagree in their number of examples: {each}{cure}")
    size = next(iter(sizes.values()))
    if size == 0:
        raise ValueError(
            "the batch has 0 rows. An empty Poisson sample is a step too: pass one padding row "
            "with mask=[False] (plan.batches() does)"
        )
    return size


def unit_rows(batch: tuple, mask: jax.Array | None) -> tuple[tuple, jax.Array]:
    """The arguments of the units' losses, and a mask of the units that have any record.

    The arguments are the batch, with zeros in place of masked records, and the mask of records.
    """
    shapes = {leaf.shape[:2] for leaf in jax.tree.leaves(batch)}
    if len(shapes) > 1 or len(next(iter(shapes))) < 2:
        raise ValueError(
            f'the batch\'s leaves begin with axes of sizes {sorted(shapes)}: unit="batch" takes '
            "[units, capacity, ...] arrays that agree in both"
        )
    shape = next(iter(shapes))
    mask = jnp.ones(shape, bool) if mask is None else jnp.asarray(mask)
    if mask.shape != shape or mask.dtype != bool:
        raise ValueError(
            f"mask has shape {mask.shape} and dtype {mask.dtype}: expected {shape} and bool, True "
            "for the records that count"
        )

    def clean(leaf: jax.Array) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        return jnp.where(mask.reshape(shape + (1,) * (leaf.ndim - 2)), leaf, 0)

    return (*jax.tree.map(clean, batch), mask), jnp.any(mask, axis=1)


def check_mask(mask: jax.Array | None, size: int) -> jax.Array | None:
    """The mask as an array; raises a ValueError unless it is None or `[size] bool`."""
    if mask is None:
        return None
    mask = jnp.asarray(mask)
    if mask.shape != (size,) or mask.dtype != bool:
        raise ValueError(
            f"mask has shape {mask.shape} and dtype {mask.dtype}: expected ({size},) and bool, "
            "True for the rows that count"
        )
    return mask


def check_dense(grads: PyTree, like: PyTree) -> None:
    """Raises a ValueError unless every leaf is `[B, *shape of its parameter]`."""
    if (differ := difference(grads, like)) is not None:
        raise ValueError(f"{differ}: give the gradients of all parameters, one example a row")
    named = jax.tree_util.tree_leaves_with_path(grads)
    for (path, leaf), param in zip(named, jax.tree.leaves(like), strict=True):
        shape = jnp.shape(param)
        if leaf.ndim != 1 + len(shape) or leaf.shape[1:] != shape:
            raise ValueError(
                f"gradient {jax.tree_util.keystr(path) or 'grads'} has shape {leaf.shape}, and its "
                f"parameter has shape {shape}: expected that behind an axis of examples, one "
                "a row. A gradient that is already summed or averaged can't be made private"
            )


def check_loss(loss_fn: Callable[..., jax.Array], params: PyTree, batch: tuple) -> None:
    """Raises a TypeError unless the loss of one example is one real floating number."""
    example = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), batch)
    # Slices inside the traced function, so that typed keys and tracers need no special case.
    with tell_the_cure(example):
        out = jax.eval_shape(
            lambda p, b: loss_fn(p, *jax.tree.map(lambda leaf: leaf[0], b)), params, batch
        )
    if not isinstance(out, jax.ShapeDtypeStruct):
        raise TypeError(
            f"loss_fn returned {type(out).__name__}: return the loss of one example alone, a scalar"
        )
    if out.shape != () or not jnp.issubdtype(out.dtype, jnp.floating):
        raise TypeError(
            f"loss_fn returned shape {out.shape} and dtype {out.dtype} for {shapes(example)}: "
            "return one real floating number, the loss of one example (reduce it, e.g. with "
            ".mean() or .sum())"
        )
