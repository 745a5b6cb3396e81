"""The gradients of a batch as a lazy value: computed inside the step, never held as arrays."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import NoReturn, TypeVar

import jax
import jax.numpy as jnp

from ..types import PyTree, Unit
from ._padding import pad_rows, split_rows
from .clip import Clip, Rows
from .held import Gradients
from .jax_internals import unchecked_axes, vary, varying_axes

Carry = TypeVar("Carry")


class Microbatch:
    """The gradients of the b rows (examples, or batch units) that are differentiated at a time."""

    def __init__(self, gradients: Gradients, mask: jax.Array, constant_time: bool) -> None:
        self.gradients = gradients
        self._mask = mask
        self._constant_time = constant_time

    @cached_property
    def rows(self) -> Rows:
        """Losses, norms and which rows are valid, where no sum is wanted."""
        return Rows(self.gradients.values, self.gradients.squared_norms(), self._mask)

    def clipped_sum(self, clip: Clip) -> tuple[list[jax.Array], Rows]:
        """For every leaf the sum of the gradients, each times its coefficient; and their `Rows`.

        Padding rows, and rows whose norm is not finite, count as zero.
        """
        return self.gradients.clipped_sum(clip, self._mask, self._constant_time)


_NO_ARRAY = (
    "PerExampleGrads are gradients of single examples, without noise, held lazily: neither arrays "
    "nor a pytree, so they can't be rescaled, mixed, or passed into or out of jit. Put "
    "jaxdp.privatize(plan) (or a jaxdp clipping) first in the optax.chain and other "
    "transformations after it; call .materialize() to look at the gradients themselves"
)


class NoArray:
    """What is no array, and refuses to be used as one, with the reason and the cure."""

    def __getattr__(self, name: str) -> NoReturn:
        # A transformation that asks for an array's shape or dtype is told the reason too.
        raise AttributeError(f"no attribute {name!r}. {_NO_ARRAY}")

    def _refuse(self, *_: object) -> NoReturn:
        raise ValueError(_NO_ARRAY)

    # JAX asks for `__jax_array__` wherever it takes or returns a value (and swallows a TypeError).
    __jax_array__ = property(_refuse)
    __array__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _refuse
    __truediv__ = __rtruediv__ = __neg__ = __pow__ = __abs__ = __getitem__ = __iter__ = _refuse


class PerExampleGrads(NoArray):
    """The gradients of B examples, held as a computation. Make and use it inside one `jit`.

    It is not a pytree, on purpose: a transformation that would mix or rescale examples before they
    are clipped, and so break the privacy of the result, fails with an error instead.
    """

    record_mask: jax.Array | None
    """True for the records that are not padding, `[B]` or `[units, capacity]`; None: none given."""

    def __init__(
        self,
        compute: Callable[[PyTree], Gradients],
        batch: PyTree,
        mask: jax.Array | None,
        like: PyTree,
        microbatch_size: int | None,
        unit: Unit,
        record_mask: jax.Array | None,
        constant_time: bool = False,
    ) -> None:
        self.unit = unit
        self._constant_time = constant_time
        self.record_mask = record_mask
        self._compute = compute
        self._batch = batch
        self._mask = mask
        self._like = like
        self._size = jax.tree.leaves(batch)[0].shape[0]
        self._microbatch_size = min(microbatch_size or self._size, self._size)

    @property
    def rows_at_once(self) -> int:
        """How many examples (units) are differentiated and summed at a time."""
        return self._microbatch_size

    @property
    def row_axes(self) -> frozenset:
        """The mesh axes of a surrounding `shard_map` along which every array of the batch differs.

        Where JAX does not know, all of them.
        """
        unchecked = frozenset(unchecked_axes())
        differ = [varying_axes(leaf) for leaf in jax.tree.leaves(self._batch)]
        return unchecked or frozenset.intersection(*differ)

    @property
    def split_axes(self) -> frozenset:
        """The mesh axes of a surrounding `shard_map` along which the parameters alone differ."""
        return varying_axes(self._like) - self.row_axes

    @property
    def like(self) -> PyTree:
        """The parameters' shapes and dtypes, as a pytree: a sum of these gradients has both."""
        return jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), self._like)

    def fold(self, body: Callable[[Carry, Microbatch], Carry], init: Carry) -> Carry:
        """Folds `body(carry, microbatch) -> carry` over the physical microbatches.

        Microbatches that hold only trailing padding are skipped, unless the time must be constant.
        How many there are is data, not part of the compiled step, so batches of uneven size share
        one.
        """
        m = self._microbatch_size
        if m >= self._size:
            return body(init, self._differentiate(self._batch, self._mask))
        batch, mask = self._padded()
        last_row: jax.Array | int = mask.size
        if not self._constant_time:
            last_row = jnp.max(jnp.where(mask, jnp.arange(1, mask.size + 1), 0))

        def step(k: jax.Array, carry: Carry) -> Carry:
            rows, rows_mask = jax.tree.map(
                lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, k * m, m), (batch, mask)
            )
            return body(carry, self._differentiate(rows, rows_mask))

        # Each device of a shard_map folds its own rows.
        init = vary(init, varying_axes((batch, mask)))
        return jax.lax.fori_loop(0, (last_row + m - 1) // m, step, init)

    def sum(self, part: Callable[[Microbatch], Carry], like: PyTree) -> Carry:
        """Adds up `part(microbatch)`, a pytree of floating arrays like `like`, over all of them.

        Rounding errors are added up too and compensated. Otherwise one number more or less would
        change the rounding of every later addition, and together these changes can move a float32
        sum by more than any one example may.
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
        """Squared norms per leaf and example, `[B]`: a pytree like the parameters."""
        return self._like_params(self._rows(lambda microbatch: microbatch.rows.squared_norms))

    def materialize(self) -> PyTree:
        """The gradients as arrays `[B, ...]`, invalid rows zero. Takes memory for all of them."""
        return self._like_params(self._rows(_materialized))

    def inflation(self) -> jax.Array:
        """The norm that is used over the gradient's own, `[B]`; 1 for gradients of zero.

        Norms are upper bounds that include rounding (privacy rule 9): a gradient that is clipped
        gets shorter by this factor. Takes memory for the gradients of a microbatch.
        """

        def look(microbatch: Microbatch) -> list[jax.Array]:
            rows = [jnp.reshape(g, (g.shape[0], -1)) for g in _materialized(microbatch)]
            exact = sum(jnp.sum(jnp.square(g), axis=1) for g in rows)
            return [jnp.where(exact > 0, jnp.sqrt(microbatch.rows.squared_norm / exact), 1)]

        return self._rows(look)[0]

    def _like_params(self, leaves: list[jax.Array]) -> PyTree:
        return jax.tree.unflatten(jax.tree.structure(self._like), leaves)

    def _rows(self, look: Callable[[Microbatch], list[jax.Array]]) -> list[jax.Array]:
        """Arrays `[B, ...]` of what is seen in every microbatch."""
        m = self._microbatch_size
        if m >= self._size:
            return look(self._differentiate(self._batch, self._mask))
        leaves = jax.lax.map(
            lambda rows: look(self._differentiate(*rows)), split_rows(self._padded(), m)
        )
        return [leaf.reshape(-1, *leaf.shape[2:])[: self._size] for leaf in leaves]

    def _padded(self) -> tuple[PyTree, jax.Array]:
        """Batch and mask, padded to whole microbatches."""
        mask = jnp.ones(self._size, bool) if self._mask is None else self._mask
        return pad_rows(self._batch, mask, self._microbatch_size)

    def _differentiate(self, rows: PyTree, mask: jax.Array | None) -> Microbatch:
        size = jax.tree.leaves(rows)[0].shape[0]
        mask = jnp.ones(size, bool) if mask is None else mask
        return Microbatch(self._compute(rows), mask, self._constant_time)

    def __repr__(self) -> str:
        return f"PerExampleGrads({self._size} rows, microbatches of {self._microbatch_size})"

    def __contains__(self, key: object) -> bool:
        """Whether the parameters have this key, on top. Flax's `TrainState` asks for one."""
        return isinstance(self._like, Mapping) and key in self._like


def _materialized(microbatch: Microbatch) -> list[jax.Array]:
    return microbatch.gradients.materialize(microbatch.rows.valid)


def _rounding_error(a: jax.Array, b: jax.Array, total: jax.Array) -> jax.Array:
    """a + b - total exactly, where total is a + b rounded (Knuth's TwoSum)."""
    b_kept = total - a
    return (a - (total - b_kept)) + (b - b_kept)
