"""The per-example gradients of one parameter leaf, in whatever form is cheapest.

DP-SGD asks two things of them: their norms and a weighted sum. Every representation answers
both; `materialize` is for people who want to look.
"""

from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
from jax.lax import Precision


class Representation(Protocol):
    """b per-example gradients of one leaf of shape `[...]`."""

    def squared_norms(self) -> jax.Array:
        """Squared norms `[b]`, float32 or wider, never below the exact ones.

        A row that holds NaN or Inf has a non-finite squared norm.
        """

    def weighted_sum(self, coefficients: jax.Array) -> jax.Array:
        """Σ_b coefficients[b]·g_b `[...]`, float32 or wider, at full matrix precision."""

    def keep(self, valid: jax.Array) -> "Representation":
        """The same with every row where `valid [b]` is False made exactly zero."""

    def materialize(self) -> jax.Array:
        """The gradients themselves, `[b, ...]`."""


def accumulation_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """Norms, coefficients, sums and noise are float32 or wider (DESIGN rule 8)."""
    return jnp.promote_types(dtype, jnp.float32)


def guarded(squared: jax.Array) -> jax.Array:
    """Raises a sum of squares by more than XLA's tree reductions can have rounded it down."""
    return squared * (1 + 64 * float(jnp.finfo(squared.dtype).eps))


@dataclass(frozen=True)
class Dense:
    """The gradients as an array `[b, ...]`, as `vmap(grad)` makes them."""

    gradients: jax.Array

    def squared_norms(self) -> jax.Array:
        g = self._wide()
        return guarded(jnp.sum(jnp.square(g), axis=tuple(range(1, g.ndim))))

    def weighted_sum(self, coefficients: jax.Array) -> jax.Array:
        return jnp.einsum("b,b...->...", coefficients, self._wide(), precision=Precision.HIGHEST)

    def keep(self, valid: jax.Array) -> "Dense":
        rows = valid.reshape(valid.shape + (1,) * (self.gradients.ndim - 1))
        return Dense(jnp.where(rows, self.gradients, 0))

    def materialize(self) -> jax.Array:
        return self.gradients

    def _wide(self) -> jax.Array:
        return self.gradients.astype(accumulation_dtype(self.gradients.dtype))
