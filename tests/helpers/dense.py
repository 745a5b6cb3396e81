"""Per-example gradients from arrays."""

from typing import Any

import jax

import jaxdp


def from_dense(
    grads: Any, mask: Any = None, *, unit: Any = "example", microbatch_size: int | None = None
) -> jaxdp.PerExampleGrads:
    """`jaxdp.from_dense` for the parameters that the arrays are gradients of."""
    like = jax.tree.map(lambda g: jax.ShapeDtypeStruct(g.shape[1:], g.dtype), grads)
    if mask is None:
        mask = jaxdp.all_rows(jax.tree.leaves(grads)[0].shape[0])
    return jaxdp.from_dense(grads, mask, like=like, unit=unit, microbatch_size=microbatch_size)
