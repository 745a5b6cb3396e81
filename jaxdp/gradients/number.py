"""Gradients through a number that is computed from parameters alone: an L2 penalty, say.

They are the same array for all examples, times a number of each example.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp

from .representations import guarded, wide
from .uses import Derived


@dataclass(frozen=True)
class NumberShape:
    """How a leaf is used in a number that all examples share."""

    source: Derived  # the number
    leaf: int

    recorded: ClassVar[tuple[int, ...]] = ()
    one_term: ClassVar[bool] = True


@dataclass(frozen=True)
class Number:
    """The gradients g[b] = w[b]·v."""

    weights: jax.Array  # [b]
    vector: jax.Array  # [*leaf]

    one_term: ClassVar[bool] = True

    @classmethod
    def joined(cls, weights: Sequence[jax.Array], vector: jax.Array) -> "Number":
        return cls(sum(wide(*weights), jnp.zeros([], jnp.float32)), vector)

    def magnitude(self) -> jax.Array:
        """‖w·v‖ `[b, 1]`, raised by as much as underflow may have hidden."""
        w, v = wide(self.weights, self.vector)
        length = jnp.sqrt(jnp.sum(jnp.square(v)) + v.size * jnp.finfo(v.dtype).tiny)
        return guarded(jnp.abs(w) * length)[:, None]

    def squared_norms(self) -> jax.Array:
        return guarded(jnp.square(self.magnitude()[:, 0]))

    def weighted_sum(self, coefficients: jax.Array) -> jax.Array:
        w, v = wide(self.weights, self.vector)
        return jnp.sum(w * coefficients.astype(w.dtype)) * v

    def keep(self, valid: jax.Array) -> "Number":
        # No row is valid where v is not finite; but 0·inf is NaN.
        vector = jnp.where(jnp.isfinite(self.vector), self.vector, 0)
        return replace(self, weights=jnp.where(valid, self.weights, 0), vector=vector)

    def materialize(self) -> jax.Array:
        w, v = wide(self.weights, self.vector)
        return w.reshape(-1, *[1] * v.ndim) * v
