"""The gradients of a batch as a lazy value: computed inside the step, never promised as arrays."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NoReturn, TypeVar

import jax
import jax.numpy as jnp

from ..types import Unit
from .jax_internals import vary, varying_axes
from .representations import Representation

PyTree = Any

Carry = TypeVar("Carry")


class Microbatch:
    """The gradients of the b rows (examples, or batch units) that are differentiated at a time."""

    def __init__(
        self, values: jax.Array, leaves: Sequence[Representation], mask: jax.Array | None
    ) -> None:
        self.values = values  # [b] losses
        self.leaves = leaves
        self._mask = mask

    @cached_property
    def mask(self) -> jax.Array:
        """`[b] bool`: the rows that are no padding."""
        return jnp.ones(self.values.shape, bool) if self._mask is None else self._mask

    @cached_property
    def squared_norms(self) -> list[jax.Array]:
        """For every leaf the squared norms `[b]`, as upper bounds, float32 or wider."""
        return [leaf.squared_norms() for leaf in self.leaves]

    @cached_property
    def finite(self) -> jax.Array:
        """`[b] bool`: rows whose squared norm is finite (in float32: norms below 1.8e19)."""
        return jnp.isfinite(sum(self.squared_norms))

    @cached_property
    def valid(self) -> jax.Array:
        """`[b] bool`: the rows that contribute. A masked or non-finite row contributes zero."""
        return self.mask & self.finite

    def weighted_sum(self, coefficients: Sequence[jax.Array]) -> list[jax.Array]:
        """Σ_b c_b·g_b for every leaf, given its coefficients `[b]`; invalid rows count as zero."""
        weights = [jnp.where(self.valid, c, 0) for c in coefficients]

        all_finite = jnp.all(self.finite)

        def total(leaf: Representation, weights: jax.Array) -> jax.Array:
            # 0·inf is NaN, so invalid rows are zeroed themselves, but only where there are such;
            # leaf by leaf, so that at most one leaf is there twice. (A sum outside of the cond is
            # no faster on CPUs, and takes up to twice the memory.)
            return jax.lax.cond(
                all_finite,
                lambda: leaf.weighted_sum(weights),
                lambda: leaf.keep(self.valid).weighted_sum(weights),
            )

        return [total(leaf, w) for leaf, w in zip(self.leaves, weights, strict=True)]


_NO_ARRAY = (
    "PerExampleGrads are un-noised gradients of single examples, held lazily: they are no array "
    "and no pytree, so they can't be rescaled, mixed, or passed into or out of jit. Put "
    "jaxdp.privatize(plan) (or a jaxdp clipping) first in the optax.chain and other "
    "transformations after it; call .materialize() to look at the gradients themselves"
)


class PerExampleGrads:
    """The gradients of B examples, held as a computation. Make and use it inside one `jit`.

    It is no pytree on purpose: a transformation that would mix or rescale examples before they
    are clipped (and so break the privacy of the result) fails with an error instead.
    """

    def __init__(
        self,
        compute: Callable[[PyTree], tuple[jax.Array, list[Representation]]],
        batch: PyTree,
        mask: jax.Array | None,
        like: PyTree,
        microbatch_size: int | None,
        unit: Unit,
    ) -> None:
        self.unit = unit
        self._compute = compute
        self._batch = batch
        self._mask = mask
        self._like = like
        self._size = jax.tree.leaves(batch)[0].shape[0]
        self._microbatch_size = min(microbatch_size or self._size, self._size)

    @property
    def like(self) -> PyTree:
        """A pytree of the parameters' shapes and dtypes: what a sum of these gradients is like."""
        return jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), self._like)

    def fold(self, body: Callable[[Carry, Microbatch], Carry], init: Carry) -> Carry:
        """Folds `body(carry, microbatch) -> carry` over the physical microbatches.

        Microbatches of trailing padding rows are skipped, by a trip count that is data: batches of
        uneven size share one compiled step.
        """
        m = self._microbatch_size
        if m >= self._size:
            return body(init, self._differentiate(self._batch, self._mask))
        batch, mask = self._padded()
        last_row = jnp.max(jnp.where(mask, jnp.arange(1, mask.size + 1), 0))

        def step(k: jax.Array, carry: Carry) -> Carry:
            rows, rows_mask = jax.tree.map(
                lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, k * m, m), (batch, mask)
            )
            return body(carry, self._differentiate(rows, rows_mask))

        # Each device of a shard_map folds its own rows.
        init = vary(init, varying_axes((batch, mask)))
        return jax.lax.fori_loop(0, (last_row + m - 1) // m, step, init)

    def sum(self, part: Callable[[Microbatch], Carry], like: Any) -> Carry:
        """Adds up `part(microbatch)`, a pytree of floating arrays like `like`, over all of them.

        With compensation: one number more or less would else change the rounding of every later
        addition, and together these can move a float32 sum by more than any one example may.
        """
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
        if self._microbatch_size >= self._size:
            return self.fold(lambda _, microbatch: part(microbatch), zeros)

        def add(carry: tuple, microbatch: Microbatch) -> tuple:
            total, lost = carry
            terms = part(microbatch)
            new = jax.tree.map(jnp.add, total, terms)
            error = jax.tree.map(_rounding_error, total, terms, new)
            return new, jax.tree.map(jnp.add, lost, error)

        return jax.tree.map(jnp.add, *self.fold(add, (zeros, zeros)))

    def squared_norms(self) -> PyTree:
        """Squared norms per leaf and example: a pytree like the parameters of `[B]` arrays."""
        return self._rows(lambda rows: rows.squared_norms)

    def materialize(self) -> PyTree:
        """The gradients as arrays `[B, ...]`, invalid rows zero. Takes the memory that it takes."""
        return self._rows(
            lambda rows: [leaf.keep(rows.valid).materialize() for leaf in rows.leaves]
        )

    def _rows(self, look: Callable[[Microbatch], list[jax.Array]]) -> PyTree:
        m, structure = self._microbatch_size, jax.tree.structure(self._like)
        if m >= self._size:
            return jax.tree.unflatten(structure, look(self._differentiate(self._batch, self._mask)))
        split = lambda leaf: leaf.reshape(-1, m, *leaf.shape[1:])
        leaves = jax.lax.map(
            lambda rows: look(self._differentiate(*rows)), jax.tree.map(split, self._padded())
        )
        joined = [leaf.reshape(-1, *leaf.shape[2:])[: self._size] for leaf in leaves]
        return jax.tree.unflatten(structure, joined)

    def _padded(self) -> tuple[PyTree, jax.Array]:
        """Batch and mask, padded to whole microbatches."""
        extra = -self._size % self._microbatch_size
        mask = jnp.ones(self._size, bool) if self._mask is None else self._mask
        # Padding repeats the last row rather than inventing one: a key of zeros may be no key.
        pad = lambda leaf: jnp.concatenate([leaf, jnp.repeat(leaf[-1:], extra, axis=0)])
        batch = jax.tree.map(pad, self._batch) if extra else self._batch
        return batch, jnp.pad(mask, (0, extra))

    def _differentiate(self, rows: PyTree, mask: jax.Array | None) -> Microbatch:
        values, leaves = self._compute(rows)
        return Microbatch(values, leaves, mask)

    def __repr__(self) -> str:
        return f"PerExampleGrads({self._size} rows, microbatches of {self._microbatch_size})"

    def __getattr__(self, name: str) -> NoReturn:
        # Transformations that look at an array's shape or dtype get the reason too.
        raise AttributeError(f"no attribute {name!r}. {_NO_ARRAY}")

    def _refuse(self, *_: object) -> NoReturn:
        raise ValueError(_NO_ARRAY)

    # JAX asks for `__jax_array__` wherever it takes or returns a value (and swallows a TypeError).
    __jax_array__ = property(_refuse)
    __array__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _refuse
    __truediv__ = __rtruediv__ = __neg__ = __pow__ = __abs__ = __getitem__ = __iter__ = _refuse


def _rounding_error(a: jax.Array, b: jax.Array, total: jax.Array) -> jax.Array:
    """a + b - total exactly, where total is a + b rounded (Knuth's TwoSum)."""
    b_kept = total - a
    return (a - (total - b_kept)) + (b - b_kept)
