"""Gradients of a leaf through any function of parameters alone, f: a few rows at a time.

The loss uses f(w), and the gradients of f(w) are held in some form. Each of them goes through the
VJP of f, once for its norm and once more for the sum. Products of factors in bfloat16 are held
like this, too, with f the identity: then nothing need be known of their rounding.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from .convolution import PATCH_NUMBERS, Conv
from .jax_internals import vary, varying_axes
from .lookup import Lookup
from .matmul import Matmul
from .ragged import Ragged
from .representations import Dense, guarded, weighted, wide

Inner = Matmul | Conv | Ragged | Lookup | Dense

Pull = Callable[[jax.Array], jax.Array]


@dataclass(frozen=True)
class Pulled:
    """The gradients of w, given those of f(w): g[b] = Jᵀ·G[b].

    f may cancel what the rounding errors of G do not, and then a row that is computed twice differs
    from itself. So the sum measures its rows again, and shortens one that is longer than the norm
    that was told.
    """

    inner: Inner
    pull: Pull
    squared: jax.Array  # [b]

    one_term: ClassVar[bool] = True

    @classmethod
    def make(cls, inner: Inner, pull: Pull) -> "Pulled":
        """Measures the gradients of w.

        Args:
          inner: the gradients of f(w).
          pull: the VJP of f, from an array of f(w)'s shape, float32 or wider, to one of w's shape.
        """
        size = _rows_at_once(inner, pull)
        measure = lambda start: guarded(_squares(_rows(inner, pull, start, size)))
        starts = jnp.arange(0, _count(inner), size)
        return cls(inner, pull, lax.map(measure, starts).reshape(-1))

    def squared_norms(self) -> jax.Array:
        return self.squared

    def weighted_sum(self, coefficients: jax.Array) -> jax.Array:
        size = _rows_at_once(self.inner, self.pull)

        def add(total: jax.Array, start: jax.Array) -> tuple[jax.Array, None]:
            rows = _rows(self.inner, self.pull, start, size)
            told, c = (
                lax.dynamic_slice_in_dim(array, start, size)
                for array in (self.squared, coefficients)
            )
            again = _squares(rows)
            c = c * jnp.where(again > told, jnp.sqrt(told / again), 1)
            # A row that is not finite now, but was when it was measured, is left out.
            finite = jnp.isfinite(again)
            rows = jnp.where(finite.reshape(-1, *[1] * (rows.ndim - 1)), rows, 0)
            c = jnp.where(finite, c, 0).astype(rows.dtype)
            return total + weighted(c, rows), None

        row = jax.eval_shape(lambda: _rows(self.inner, self.pull, 0, 1)[0])
        zeros = jnp.zeros(row.shape, row.dtype)
        zeros = vary(zeros, varying_axes((_arrays(self.inner), self.squared, coefficients)))
        return lax.scan(add, zeros, jnp.arange(0, self.squared.size, size))[0]

    def keep(self, valid: jax.Array) -> "Pulled":
        squared = jnp.where(valid, self.squared, 0)
        return replace(self, inner=self.inner.keep(valid), squared=squared)

    def materialize(self) -> jax.Array:
        size = _rows_at_once(self.inner, self.pull)
        part = lambda start: _rows(self.inner, self.pull, start, size)
        rows = lax.map(part, jnp.arange(0, self.squared.size, size))
        return rows.reshape(-1, *rows.shape[2:])


def _arrays(inner: Inner) -> dict[str, jax.Array]:
    """The arrays of a representation, `[b, ...]` each."""
    values = {field.name: getattr(inner, field.name) for field in fields(inner)}
    return {name: value for name, value in values.items() if isinstance(value, jax.Array)}


def _count(inner: Inner) -> int:
    return next(iter(_arrays(inner).values())).shape[0]


def _rows_at_once(inner: Inner, pull: Pull) -> int:
    """How many rows are made at a time: the most that memory allows, in parts of equal size."""
    derived = jax.eval_shape(inner.materialize).size // _count(inner)
    leaf = jax.eval_shape(lambda: _rows(inner, pull, 0, 1)).size
    most = PATCH_NUMBERS // max(1, derived, leaf)
    return max(
        n for n in range(1, _count(inner) + 1) if _count(inner) % n == 0 and n <= max(1, most)
    )


def _rows(inner: Inner, pull: Pull, start: jax.Array | int, size: int) -> jax.Array:
    """The gradients of w of so many rows, float32 or wider."""
    cut = lambda array: lax.dynamic_slice_in_dim(array, start, size)
    part = replace(inner, **jax.tree.map(cut, _arrays(inner)))
    return wide(jax.vmap(pull)(part.materialize()))[0]


def _squares(rows: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(rows), axis=tuple(range(1, rows.ndim)))
