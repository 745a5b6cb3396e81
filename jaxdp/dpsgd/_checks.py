"""What is refused before sums are taken or released."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ..gradients.jax_internals import unchecked_axes, varying_axes
from ..gradients.lazy import Microbatch
from ..gradients.trees import difference
from .plan import Plan
from .sums import Sums


def check_shapes(gradient: Any, params: Any) -> None:
    """Refuses gradients of other parameters, such as the dense gradients of a mean loss."""
    if (differ := difference(gradient, params)) is not None:
        raise ValueError(
            f"{differ}: pass the parameters that were differentiated, for Flax nnx the state of "
            "nnx.split(model, nnx.Param, ...)"
        )
    named = jax.tree_util.tree_leaves_with_path(gradient)
    for (path, leaf), param in zip(named, jax.tree.leaves(params), strict=True):
        if leaf.shape != jnp.shape(param):
            raise ValueError(
                f"the gradient {jax.tree_util.keystr(path)} has shape {leaf.shape}, and the "
                f"parameter {jnp.shape(param)}: they belong to other parameters"
            )


def check_rows(plan: Plan, rows_at_once: int) -> None:
    """Refuses to sum more rows at a time than the plan's bound on rounding is for."""
    if plan.rounding_is_bounded and rows_at_once > (plan.rounding_rows or 0):
        raise ValueError(
            f"{rows_at_once} rows are summed at a time, and the plan's rounding bound holds for "
            f"{plan.rounding_rows}: give per_example_grads(microbatch_size={plan.rounding_rows}), "
            f"or a plan made by with_rounding_bound({rows_at_once}). Where its bound is above 1 %, "
            "that plan's rounding is estimated, as it is without any bound"
        )


def check_terms(plan: Plan, microbatch: Microbatch) -> None:
    """Refuses gradients for which the plan's bound on rounding was not proved."""
    if plan.rounding_is_bounded and not microbatch.gradients.one_term:
        raise ValueError(
            "the plan has a rounding bound, and for these gradients none is known: an example adds "
            "several terms to some numbers of the sum (jaxdp.explain tells to which), or, on a "
            "TPU or a GPU, factors are in bfloat16. Take the plan without with_rounding_bound, "
            'whose rounding is estimated, or per_example_grads(method="vmap"); or, for factors, '
            'precision="highest"'
        )


def check_reduced(sums: Sums, key: jax.Array) -> None:
    """Refuses sums that still differ between the devices of a shard_map, or may do so."""
    if axes := unchecked_axes():
        raise ValueError(
            f"release is under pmap, or shard_map with check_vma=False, over the axes {axes}: JAX "
            "does not know there whether the sums are the same on all devices, and several "
            "releases with the same noise would be private no more. Return privatizer.psum(sums, "
            "axis) with out_specs=PartitionSpec() and release outside; or leave out "
            "check_vma=False"
        )
    varying = varying_axes((sums.gradient, sums.counts, sums.parts)) | sums.row_axes
    varying -= varying_axes(key)
    if varying:
        raise ValueError(
            f"the sums differ along the mesh axes {sorted(varying)}: add them up first with "
            "privatizer.psum(sums, axis), then release once. Each device would add the same noise "
            "to its own part"
        )


def axes_of(entry: Any) -> tuple[str, ...]:
    """The mesh axes in an entry of a `PartitionSpec`."""
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


def check_scattered(specs: Any, axes: tuple[str, ...]) -> None:
    """Refuses to scatter a sum along axes along which it is not added up.

    The devices would be added up along them without being counted.
    """
    for spec in jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, PartitionSpec)):
        if not isinstance(spec, PartitionSpec):
            raise TypeError(f"scattered has a {spec!r}: give a PartitionSpec for every parameter")
        names = [name for entry in spec for name in axes_of(entry)]
        if wrong := sorted({name for name in names if name not in axes or names.count(name) > 1}):
            raise ValueError(
                f"the sum is scattered along the mesh axes {wrong}, and added up along {axes}: "
                "scatter along axes that are added up, and each once"
            )


def has_own_key(key: jax.Array) -> jax.Array:
    """Whether no other device has this key, where keys differ along the axes of a mesh.

    Devices that release sums of their own, each with its state, would share the noise otherwise.
    """
    axes = tuple(sorted(varying_axes(key)))
    if not axes:
        return jnp.bool_(True)
    words = jax.random.key_data(key)
    all_words = jax.lax.all_gather(words, axes).reshape(-1, words.shape[-1])
    return jnp.sum(jnp.all(all_words == words, axis=-1)) == 1
