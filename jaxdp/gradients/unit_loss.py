"""Losses of batch units, made from losses of single examples."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def mean_loss(
    loss_fn: Callable[..., jax.Array], *, microbatch_size: int | None = None
) -> Callable[..., jax.Array]:
    """Turns the loss of one example into the mean loss of a batch unit.

    For `per_example_grads(mean_loss(loss), unit="batch")` with losses that couple no examples. Its
    gradient is found in one pass, microbatch by microbatch, and added up, so that a unit as large
    as the whole batch takes the memory of one microbatch.

    Args:
      loss_fn: `loss_fn(params, *example) -> scalar`.
      microbatch_size: how many of a unit's records are differentiated at a time; None: all.

    Returns:
      `(params, *records, mask) -> scalar`, the mean over the records where `mask` is True. It has
      a gradient with respect to `params` only.
    """

    def total(params: Any, records: tuple, mask: jax.Array) -> jax.Array:
        losses = jax.vmap(loss_fn, (None, *[0] * len(records)))(params, *records)
        return jnp.sum(jnp.where(mask, losses, 0))

    def value_and_grad(params: Any, records: tuple, mask: jax.Array) -> tuple[jax.Array, Any]:
        size = mask.size
        m = min(microbatch_size or size, size)
        if m == size:
            return jax.value_and_grad(total)(params, records, mask)
        extra = -size % m
        pad = lambda leaf: jnp.concatenate([leaf, jnp.repeat(leaf[-1:], extra, axis=0)])
        records = jax.tree.map(pad, records) if extra else records
        rows = jax.tree.map(
            lambda leaf: leaf.reshape(-1, m, *leaf.shape[1:]),
            (records, jnp.pad(mask, (0, extra))),
        )

        def add(carry: Any, part: tuple) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, carry, jax.value_and_grad(total)(params, *part)), None

        first = jax.tree.map(lambda leaf: leaf[0], rows)
        rest = jax.tree.map(lambda leaf: leaf[1:], rows)
        return jax.lax.scan(add, jax.value_and_grad(total)(params, *first), rest)[0]

    @jax.custom_vjp
    def summed(params: Any, records: tuple, mask: jax.Array) -> jax.Array:
        return total(params, records, mask)

    def forward(params: Any, records: tuple, mask: jax.Array) -> tuple[jax.Array, Any]:
        return value_and_grad(params, records, mask)

    def backward(grads: Any, cotangent: jax.Array) -> tuple:
        return jax.tree.map(lambda g: (cotangent * g).astype(g.dtype), grads), None, None

    summed.defvjp(forward, backward)

    def mean(params: Any, *records_and_mask: Any) -> jax.Array:
        *records, mask = records_and_mask
        # An empty unit's value is 0 rather than NaN; it contributes nothing in any case.
        return summed(params, tuple(records), mask) / jnp.maximum(jnp.sum(mask), 1)

    return mean
