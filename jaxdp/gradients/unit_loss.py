"""The loss of a batch unit, made from the loss of one example."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..types import PyTree
from ._padding import pad_rows, split_rows
from .shared import with_shared


def mean_loss(
    loss_fn: Callable[..., jax.Array], *, microbatch_size: int | None = None
) -> Callable[..., jax.Array]:
    """Turns the loss of one example into the mean loss of a batch unit.

    Use it as `per_example_grads(mean_loss(loss), unit="batch")`, if the loss of an example does not
    depend on the others. The gradient is computed and added up microbatch by microbatch, so that a
    batch unit as large as the whole batch takes the memory of one microbatch.

    Args:
      loss_fn: `loss_fn(params, *example) -> scalar`.
      microbatch_size: how many records are differentiated at a time. None takes all.

    Returns:
      A function `(params, *records, mask, shared=None) -> scalar`: the mean over the records where
      `mask` is True. It has a gradient with respect to `params` only. `shared` goes to `loss_fn` as
      in `per_example_grads`.
    """

    def mean(params: PyTree, *records_and_mask: Any, shared: PyTree = None) -> jax.Array:
        *records, mask = records_and_mask
        summed = _summed(with_shared(loss_fn, shared), microbatch_size)
        # An empty unit's loss is 0 rather than NaN; it contributes nothing in any case.
        return summed(params, tuple(records), mask) / jnp.maximum(jnp.sum(mask), 1)

    return mean


def _summed(
    loss_fn: Callable[..., jax.Array], microbatch_size: int | None
) -> Callable[[PyTree, tuple, jax.Array], jax.Array]:
    """The sum of the losses where the mask is True, differentiated microbatch by microbatch."""

    def total(params: PyTree, records: tuple, mask: jax.Array) -> jax.Array:
        losses = jax.vmap(loss_fn, (None, *[0] * len(records)))(params, *records)
        return jnp.sum(jnp.where(mask, losses, 0))

    def value_and_grad(params: PyTree, records: tuple, mask: jax.Array) -> tuple[jax.Array, PyTree]:
        size = mask.size
        m = min(microbatch_size or size, size)
        if m == size:
            return jax.value_and_grad(total)(params, records, mask)
        rows = split_rows(pad_rows(records, mask, m), m)

        def add(carry: Any, part: tuple) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, carry, jax.value_and_grad(total)(params, *part)), None

        first = jax.tree.map(lambda leaf: leaf[0], rows)
        rest = jax.tree.map(lambda leaf: leaf[1:], rows)
        return jax.lax.scan(add, jax.value_and_grad(total)(params, *first), rest)[0]

    @jax.custom_vjp
    def summed(params: PyTree, records: tuple, mask: jax.Array) -> jax.Array:
        return total(params, records, mask)

    def forward(params: PyTree, records: tuple, mask: jax.Array) -> tuple[jax.Array, PyTree]:
        return value_and_grad(params, records, mask)

    def backward(grads: PyTree, cotangent: jax.Array) -> tuple:
        return jax.tree.map(lambda g: (cotangent * g).astype(g.dtype), grads), None, None

    summed.defvjp(forward, backward)
    return summed
