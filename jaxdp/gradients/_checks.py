"""Checks made before any gradient is computed: of the loss, the parameters, the batch, its mask."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ..types import PyTree


def check_microbatch_size(size: int | None) -> None:
    """Raises a ValueError unless the size is None or a whole number of at least 1."""
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise ValueError(
            f"microbatch_size is {size!r}: it counts examples, so give a whole number of at least "
            "1, or None for the whole batch at once"
        )


def check_params(params: PyTree) -> None:
    """Raises an error unless all parameters are real floating arrays, none of them batch_stats."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError(f"params is {params!r}, which has no arrays: there is nothing to train")
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path) or "params"
        if not hasattr(leaf, "dtype"):
            raise TypeError(f"parameter {name} is {leaf!r}: pass JAX arrays")
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"parameter {name} has dtype {leaf.dtype}, which has no gradient here: pass real "
                "floating parameters only, and close over everything else"
            )
        if leaf.size == 0:
            raise ValueError(f"parameter {name} has shape {leaf.shape}: it holds no numbers")
    if isinstance(params, Mapping) and "batch_stats" in params:
        layers = jax.tree_util.tree_leaves_with_path(params["batch_stats"])
        where = jax.tree_util.keystr(layers[0][0][:-1]) if layers else "batch_stats"
        raise ValueError(
            f"the model has BatchNorm (layer {where}), whose batch_stats are in params: it mixes "
            "the examples of a batch, so no gradient belongs to one example. Use GroupNorm or "
            "LayerNorm; or clip batch units, with jaxdp.models.batchnorm.unit_loss and params alone"
        )


def batch_size(batch: PyTree) -> int:
    """The length of the leading axis; raises a ValueError unless all leaves agree in it."""
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    if not leaves:
        raise ValueError("batch has no arrays: pass the loss's arguments after params, e.g. (x, y)")
    sizes = {}
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path)
        if not hasattr(leaf, "shape") or leaf.shape == ():
            raise ValueError(
                f"batch{name} is {leaf!r}, without a leading axis of examples: close over what all "
                "examples share"
            )
        sizes[name] = leaf.shape[0]
    if len(set(sizes.values())) > 1:
        each = ", ".join(f"batch{name} has {size}" for name, size in sizes.items())
        raise ValueError(f"the batch's leaves disagree in their number of examples: {each}")
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


def check_dense(grads: PyTree, size: int, like: PyTree) -> None:
    """Raises a ValueError unless every leaf is `[size, *shape of its parameter]`."""
    trees: list[Any] = [jax.tree.structure(tree) for tree in (grads, like)]
    if trees[0] != trees[1]:
        raise ValueError(
            f"grads is a tree {trees[0]}, and the parameters are {trees[1]}: give the gradients of "
            "all parameters, one example a row"
        )
    named = jax.tree_util.tree_leaves_with_path(grads)
    for (path, leaf), param in zip(named, jax.tree.leaves(like), strict=True):
        if leaf.shape != (size, *param.shape):
            raise ValueError(
                f"gradient {jax.tree_util.keystr(path) or 'grads'} has shape {leaf.shape}, and its "
                f"parameter has shape {param.shape}: expected {(size, *param.shape)}, one example "
                "a row. A gradient that is already summed or averaged can't be made private"
            )


def check_loss(loss_fn: Callable[..., jax.Array], params: PyTree, batch: tuple) -> None:
    """Raises a TypeError unless the loss of one example is one real floating number."""
    # Slices inside the traced function, so that typed keys and tracers need no special case.
    out = jax.eval_shape(
        lambda p, b: loss_fn(p, *jax.tree.map(lambda leaf: leaf[0], b)), params, batch
    )
    if not isinstance(out, jax.ShapeDtypeStruct):
        raise TypeError(
            f"loss_fn returned {type(out).__name__}: return the loss of one example alone, a scalar"
        )
    if out.shape != () or not jnp.issubdtype(out.dtype, jnp.floating):
        raise TypeError(
            f"loss_fn returned shape {out.shape} and dtype {out.dtype}: it gets one example, "
            "without a batch axis, and must return one real floating number (reduce it, e.g. with "
            ".mean() or .sum())"
        )
