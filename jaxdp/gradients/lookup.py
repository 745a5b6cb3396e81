"""Gradients of a table from which rows are looked up: indices and cotangents, no table."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import GatherScatterMode, Precision

from .axes import grouped, ungrouped
from .jax_internals import primitives as p
from .layout import Axis
from .representations import guarded, wide
from .rounding import lengths, raised_product
from .uses import Use, View

# Up to this many look-ups an example (t), a [t, t] matrix product adds up those of equal rows.
MATMUL_LOOKUPS = 1024


MODES = (
    GatherScatterMode.CLIP,
    GatherScatterMode.FILL_OR_DROP,
    GatherScatterMode.PROMISE_IN_BOUNDS,
)


@dataclass(frozen=True)
class LookupShape:
    """How one use of a leaf looks up rows of it: g[x_t] += c_t for one example.

    The table is seen as a matrix. One number counts its rows: first over axes where each position
    has its own part of the table (loops over slices, batch axes), then over those looked up in.
    """

    view: View
    recorded: tuple[int, ...]  # the operands with the indices
    positions: tuple[int, ...]  # the sizes of the axes that t runs over
    own: tuple[int, ...]  # those of them where each position has its own part of the table
    columns: tuple[tuple[int, int], ...]  # of each axis looked up in: its index, and its size
    whole: tuple[int, ...]  # the indices of axes that are taken whole: anything but 0 is outside
    cotangent_axes: tuple[tuple[int, ...], ...]  # axes of the cotangent that are t, p
    width: int  # p
    split: tuple[int, ...]  # the table's sizes: those that make its rows, then its other axes
    order: tuple[int, ...]  # the place in `split` of each axis of the table
    clipped: bool  # indices outside the table read its edge; otherwise they read nothing

    @property
    def sizes(self) -> tuple[int, int]:
        """t, p."""
        return math.prod(self.positions), self.width

    @property
    def row_axes(self) -> list[Axis]:
        """Where the rows lie in the leaf."""
        return self._axes_at(range(len(self.own) + len(self.columns)))

    @property
    def other_axes(self) -> list[Axis]:
        """Where the numbers of a row lie in the leaf, in the order of the cotangents."""
        return self._axes_at(range(len(self.own) + len(self.columns), len(self.order)))

    def _axes_at(self, places: Iterable[int]) -> list[Axis]:
        dims = self.view.with_loops.dims
        return [axis for i in places for axis in dims[self.order.index(i)]]

    @property
    def rows(self) -> int:
        """How many rows the matrix has."""
        return self._parts * math.prod(size for _, size in self.columns)

    @property
    def one_term(self) -> bool:
        """Whether an example adds one term to each number of the sum."""
        return self.sizes[0] == self._parts

    @property
    def _parts(self) -> int:
        return math.prod(self.positions[axis] for axis in self.own)

    def make(self, operands: tuple[jax.Array, ...], cotangents: jax.Array) -> "Lookup":
        """The gradients, from what was recorded."""
        size = cotangents.shape[0]
        if len(self.recorded) == 1:
            indices = operands[0].reshape(size, math.prod(self.positions), -1)
        else:
            indices = jnp.stack([index.reshape(size, -1) for index in operands], axis=-1)
        rows, inside = jnp.asarray(self._first_rows()), jnp.asarray(True)
        for column, length in self.columns:
            index = _narrowed(indices[..., column], length)
            inside &= self.clipped | ((index >= 0) & (index < length))
            rows = rows * length + jnp.clip(index, 0, length - 1)
        for column in self.whole:
            inside &= self.clipped | (indices[..., column] == 0)
        c = grouped(cotangents, self.cotangent_axes)
        rows, inside = jnp.where(inside, rows, self.rows), jnp.broadcast_to(inside, c.shape[:2])
        return Lookup(rows, jnp.where(inside[..., None], c, 0), self)

    def _first_rows(self) -> np.ndarray:
        """At each position, which part of the table is its own: `[t]`."""
        part = np.zeros((), np.int32)
        for axis in self.own:
            count = self.positions[axis]
            place = np.arange(count, dtype=np.int32)
            part = part * count + place.reshape(count, *[1] * (len(self.positions) - axis - 1))
        return np.broadcast_to(part, self.positions).reshape(-1)

    def restore(self, table: jax.Array) -> jax.Array:
        """`[..., rows, p]` to `[..., *leaf.shape]`."""
        lead = table.ndim - 2
        return self.view.restore(ungrouped(table, lead, self.split, self.order), lead)


def _narrowed(index: jax.Array, length: int) -> jax.Array:
    """The index as int32; one outside of an axis of this length stays outside."""
    if jnp.iinfo(index.dtype).max > jnp.iinfo(jnp.int32).max:
        index = jnp.clip(index, min=-1 if jnp.issubdtype(index.dtype, jnp.signedinteger) else 0)
        index = jnp.clip(index, max=length)
    return index.astype(jnp.int32)


def lookup_shape(use: Use) -> LookupShape | None:
    """Reads a look-up of single rows along some axes; None if the use is something else."""
    if use.operand != 0:
        return None
    if use.primitive is p.gather_p:
        return _gathered(use)
    if use.primitive is p.dynamic_slice_p:
        axes = tuple(range(use.operands[0].ndim))
        return _shape(use, tuple(1 + i for i in axes), axes, axes, {}, (), True)
    return None


def _gathered(use: Use) -> LookupShape | None:
    numbers, mode = use.params["dimension_numbers"], use.params["mode"]
    if mode not in MODES:
        return None
    batches = dict(
        zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
    )
    return _shape(
        use,
        recorded=(1,),
        indexed=tuple(numbers.start_index_map),
        row_axes=tuple(numbers.offset_dims),
        batches=batches,
        positions=use.operands[1].shape[:-1],
        clipped=mode == GatherScatterMode.CLIP,
    )


def _shape(
    use: Use,
    recorded: tuple[int, ...],
    indexed: tuple[int, ...],
    row_axes: tuple[int, ...],
    batches: dict[int, int],
    positions: tuple[int, ...],
    clipped: bool,
) -> LookupShape | None:
    """The shape of a look-up; None if it takes more than a row and less than all along an axis.

    Args:
      use: the look-up.
      recorded: its operands with indices.
      indexed: the axis of the table that each index belongs to.
      row_axes: axes of the result that come from the table.
      batches: for each batch axis of the table, the same axis of the positions.
      positions: the sizes of the axes of the indices.
      clipped: whether indices outside the table read its edge.
    """
    table, taken = use.operands[0].shape, use.params["slice_sizes"]
    single = tuple(axis for axis in indexed if taken[axis] == 1)
    rest = tuple(axis for axis in range(len(table)) if axis not in (*batches, *single))
    if not single or any(taken[axis] != table[axis] for axis in rest):
        return None
    loops = [length for length, _ in use.view.loops]
    sliced = [i for i, (_, own) in enumerate(use.view.loops) if own]
    position_axes = [i for i in range(use.result.ndim) if i not in row_axes]
    place = {axis: len(sliced) + i for i, axis in enumerate((*batches, *single, *rest))}
    sizes = [table[axis] for axis in place]
    return LookupShape(
        view=use.view,
        recorded=recorded,
        positions=(*loops, *positions),
        own=(*sliced, *(len(loops) + axis for axis in batches.values())),
        columns=tuple((indexed.index(axis), table[axis]) for axis in single),
        whole=tuple(i for i, axis in enumerate(indexed) if axis not in single),
        cotangent_axes=(
            (*range(len(loops)), *(len(loops) + axis for axis in position_axes)),
            tuple(len(loops) + axis for axis in row_axes),
        ),
        width=math.prod(table[axis] for axis in rest),
        split=(*(loops[i] for i in sliced), *sizes),
        order=(*range(len(sliced)), *(place[axis] for axis in range(len(table)))),
        clipped=clipped,
    )


@dataclass(frozen=True)
class Lookup:
    """The gradients of a table: g[b, x[b, t]] += c[b, t]."""

    rows: jax.Array  # [b, t], rows of the table; one past its end where nothing is read
    cotangents: jax.Array  # [b, t, p], zero where nothing is read
    shape: LookupShape

    @property
    def one_term(self) -> bool:
        """Whether an example adds one term to each number of the sum."""
        return self.shape.one_term and self.rows.shape[1] == self.shape.sizes[0]

    @classmethod
    def joined(cls, uses: Sequence["Lookup"]) -> "Lookup":
        """Of several uses of one table."""
        if len(uses) == 1:
            return uses[0]
        rows = jnp.concatenate([use.rows for use in uses], axis=1)
        cotangents = jnp.concatenate(wide(*[use.cotangents for use in uses]), axis=1)
        return cls(rows, cotangents, uses[0].shape)

    def magnitude(self) -> jax.Array:
        """Σ_t ‖c_t‖ `[b, 1]`."""
        return jnp.sum(lengths(*wide(self.cotangents)), axis=-1)[:, None]

    def squared_norms(self) -> jax.Array:
        (c,) = wide(self.cotangents)
        sums = jax.vmap(_row_sums)(self.rows, c)
        squared = guarded(jnp.sum(jnp.square(sums), axis=(1, 2)))
        # The numbers of one row are added up one after the other.
        count = lambda rows: jnp.zeros(self.shape.rows + 1, c.dtype).at[rows].add(1)[rows]
        repeated = jax.vmap(count)(self.rows)
        return raised_product(squared, jnp.sum((1 + repeated / 4) * lengths(c), axis=-1))

    def weighted_sum(self, coefficients: jax.Array) -> jax.Array:
        c = wide(self.cotangents)[0] * coefficients[:, None, None]
        table = jnp.zeros((self.shape.rows, c.shape[-1]), c.dtype)
        return self.shape.restore(table.at[self.rows].add(c, mode="drop"))

    def keep(self, valid: jax.Array) -> "Lookup":
        return replace(self, cotangents=jnp.where(valid[:, None, None], self.cotangents, 0))

    def materialize(self) -> jax.Array:
        (c,) = wide(self.cotangents)
        table = jnp.zeros((self.shape.rows, c.shape[-1]), c.dtype)
        fill = lambda rows, c: table.at[rows].add(c, mode="drop")
        return self.shape.restore(jax.vmap(fill)(self.rows, c))


def _row_sums(rows: jax.Array, c: jax.Array) -> jax.Array:
    """`[t, p]`: the sums of the cotangents of equal rows, each at one t, zero at the others."""
    equal = rows[:, None] == rows[None, :]
    first = jnp.argmax(equal, axis=1)
    positions = jnp.arange(rows.size)
    if rows.size > MATMUL_LOOKUPS:
        return jnp.zeros_like(c).at[first].add(c)
    chosen = (equal & (first == positions)[:, None]).astype(c.dtype)
    return jnp.matmul(chosen, c, precision=Precision.HIGHEST)
