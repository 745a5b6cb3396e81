"""Norms as upper bounds that include rounding (DESIGN rule 9).

A norm that is computed apart from the sum it scales may round down further than its gradient
does: where the terms of a gradient nearly cancel, without limit. The magnitude
M = Σ_t ‖a_t‖‖c_t‖ of the uncancelled terms bounds what rounding can hide.
"""

import jax
import jax.numpy as jnp


def unit_roundoff(dtype: jnp.dtype) -> float:
    return float(jnp.finfo(dtype).eps) / 2


def lengths(vectors: jax.Array) -> jax.Array:
    """‖v‖ over the last axis, never below what underflow may have hidden in products of v."""
    info = jnp.finfo(vectors.dtype)
    hidden = vectors.shape[-1] * float(info.tiny) / (8 * unit_roundoff(vectors.dtype))
    return jnp.sqrt(jnp.sum(jnp.square(vectors), axis=-1) + hidden)


def raised_gram(gram: jax.Array, magnitude: jax.Array, length: int) -> jax.Array:
    """Upper bound of a squared norm that was computed as a sum of products of inner products.

    Args:
      gram: the sum.
      magnitude: M.
      length: of the inner products; very long ones round further (measured: length / 35 units).
    """
    hidden = (8 + length / 32) * unit_roundoff(gram.dtype)
    return jnp.maximum(gram, 0) + hidden * jnp.square(magnitude)


def raised_product(squared: jax.Array, magnitude: jax.Array, length: int = 0) -> jax.Array:
    """Upper bound of the squared norm of a product that will be computed again for the sum.

    Args:
      squared: the squared norm of the product.
      magnitude: M.
      length: how many terms each of its numbers adds up (measured: length / 360 units).
    """
    hidden = (8 + length / 256) * unit_roundoff(squared.dtype)
    return jnp.square(jnp.sqrt(squared) + hidden * magnitude)
