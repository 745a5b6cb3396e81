"""The per-example gradients of one parameter leaf, in whatever form is cheapest.

DP-SGD asks two things of them: their norms and a weighted sum. Every representation answers
both; `materialize` is for people who want to look.
"""

from dataclasses import dataclass
from functools import reduce
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp
from jax.lax import Precision


class Representation(Protocol):
    """b per-example gradients of one leaf of shape `[...]`."""

    @property
    def one_term(self) -> bool:
        """Whether an example adds one term to each number of the sum: c·g, or c·a·b.

        The rounding of such a sum is bounded by the clipped norms. Where an example adds several
        terms, they may be far larger than its gradient and cancel.
        """

    def squared_norms(self) -> jax.Array:
        """Squared norms `[b]`, float32 or wider, never below the exact ones.

        A row that holds NaN or Inf has a non-finite squared norm.
        """

    def weighted_sum(self, coefficients: jax.Array) -> jax.Array:
        """Σ_b coefficients[b]·g_b `[...]`, float32 or wider, exact but for additions.

        Of narrow factors, coefficients are cut (`precision.py`).
        """

    def keep(self, valid: jax.Array) -> "Representation":
        """The same gradients, but every row where `valid [b]` is False is exactly zero."""

    def materialize(self) -> jax.Array:
        """The gradients themselves, `[b, ...]`."""


def accumulation_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """Norms, coefficients, sums and noise are float32 or wider (privacy rule 8)."""
    return jnp.promote_types(dtype, jnp.float32)


def wide(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Casts arrays to one dtype that holds all of them and is float32 or wider."""
    dtype = accumulation_dtype(reduce(jnp.promote_types, [array.dtype for array in arrays]))
    return tuple(array.astype(dtype) for array in arrays)


def guarded(squared: jax.Array) -> jax.Array:
    """Raises a sum of squares by more than XLA's tree reductions can have rounded it down."""
    return squared * (1 + 64 * float(jnp.finfo(squared.dtype).eps))


def weighted(coefficients: jax.Array, rows: jax.Array) -> jax.Array:
    """Σ_b coefficients[b]·rows[b]."""
    return jnp.einsum("b,b...->...", coefficients, rows, precision=Precision.HIGHEST)


@dataclass(frozen=True)
class Dense:
    """The gradients as an array `[b, ...]`, as `vmap(grad)` makes them."""

    gradients: jax.Array

    one_term: ClassVar[bool] = True

    def squared_norms(self) -> jax.Array:
        (g,) = wide(self.gradients)
        return guarded(jnp.sum(jnp.square(g), axis=tuple(range(1, g.ndim))))

    def weighted_sum(self, coefficients: jax.Array) -> jax.Array:
        (g,) = wide(self.gradients)
        return weighted(coefficients, g)

    def keep(self, valid: jax.Array) -> "Dense":
        rows = valid.reshape(valid.shape + (1,) * (self.gradients.ndim - 1))
        return Dense(jnp.where(rows, self.gradients, 0))

    def materialize(self) -> jax.Array:
        return self.gradients


@dataclass(frozen=True)
class Zero:
    """The gradients of a leaf that the loss does not use."""

    size: int
    shape: tuple[int, ...]
    dtype: jnp.dtype

    one_term: ClassVar[bool] = True

    def squared_norms(self) -> jax.Array:
        return jnp.zeros(self.size, self.dtype)

    def weighted_sum(self, coefficients: jax.Array) -> jax.Array:
        return jnp.zeros(self.shape, self.dtype)

    def keep(self, valid: jax.Array) -> "Zero":
        return self

    def materialize(self) -> jax.Array:
        return jnp.zeros((self.size, *self.shape), self.dtype)
