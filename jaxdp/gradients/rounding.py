"""Norms as upper bounds that include rounding (privacy rule 9).

A norm that is computed apart from the sum that it scales may be rounded down further than its
gradient: without limit, where the terms of a gradient nearly cancel. The magnitude
M = Σ_t ‖a_t‖‖c_t‖ of the terms before they cancel bounds what rounding can hide.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from .precision import ACCUMULATOR


def unit_roundoff(dtype: jnp.dtype) -> float:
    """The largest relative error of one rounding: 2⁻²⁴ for float32."""
    return float(jnp.finfo(dtype).eps) / 2


def lengths(vectors: jax.Array) -> jax.Array:
    """‖v‖ over the last axis, raised by as much as underflow may have hidden in products of v."""
    info = jnp.finfo(vectors.dtype)
    hidden = vectors.shape[-1] * float(info.tiny) / (8 * unit_roundoff(vectors.dtype))
    return jnp.sqrt(jnp.sum(jnp.square(vectors), axis=-1) + hidden)


def raised_gram(
    gram: jax.Array,
    magnitude: jax.Array,
    terms: Sequence[int],
    positions: Sequence[int] | None = None,
) -> jax.Array:
    """Raises a squared norm, computed as a sum of products of inner products, to an upper bound.

    Args:
      gram: the sum.
      magnitude: M.
      terms: how many terms the inner products have, of all factors that take part; long ones round
        further (measured: length / 35 units of roundoff).
      positions: of narrow factors, on any accelerator: how many terms each number of a product adds
        up. What the inner products and the sum itself may be off is proved (docs/design.md).
    """
    unit = unit_roundoff(gram.dtype)
    hidden = (8 + max(terms) / 32) * unit
    if positions is not None:
        hidden = 8 * unit + sum(map(_accumulated, [*terms, *positions, *positions]))
    return jnp.maximum(gram, 0) + hidden * jnp.square(magnitude)


def raised_product(
    squared: jax.Array, magnitude: jax.Array, length: int = 0, narrow: bool = False
) -> jax.Array:
    """Raises the squared norm of a product, which the sum computes again, to an upper bound.

    Args:
      squared: the squared norm of the product.
      magnitude: M.
      length: how many terms each of its numbers adds up (measured: length / 360 units of
        roundoff).
      narrow: whether it is of bfloat16 numbers, on any accelerator, and the sum makes it again.
    """
    unit = unit_roundoff(squared.dtype)
    hidden = 8 * unit + (2 * _accumulated(length) if narrow else length / 256 * unit)
    return jnp.square(jnp.sqrt(squared) + hidden * magnitude)


def _accumulated(terms: int) -> float:
    """The relative error of a sum of so many; 1.01 is for the products of errors."""
    return 1.01 * (terms + 8) * ACCUMULATOR
