"""Gradients of a table from which rows are looked up: indices and cotangents, no table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.lax import GatherScatterMode, Precision

from .axes import grouped, ungrouped
from .jax_internals import primitives as p
from .layout import Axis
from .representations import guarded, wide
from .rounding import lengths, raised_product
from .uses import Use, View

# Up to this many look-ups an example (t), a [t, t] matrix product adds up those of equal rows.
MATMUL_LOOKUPS = 1024


@dataclass(frozen=True)
class LookupShape:
    """How one use of a leaf looks up rows of it: g[x_t] += c_t for one example."""

    view: View
    index_axes: tuple[tuple[int, ...], ...]  # axes of the recorded indices that are t, 1
    cotangent_axes: tuple[tuple[int, ...], ...]  # axes of the cotangent that are t, p
    rows: int
    sizes: tuple[int, int]  # t, p
    split: tuple[int, ...]  # the table's sizes: its rows, then its other axes
    order: tuple[int, ...]  # the place in `split` of each axis of the table
    clipped: bool  # indices outside the table read its edge; otherwise they read nothing

    recorded: ClassVar[tuple[int, ...]] = (1,)

    @property
    def row_axis(self) -> Axis:
        """Where the rows lie in the leaf."""
        return self.view.layout.axes[self.order.index(0)]

    @property
    def other_axes(self) -> list[Axis]:
        """Where the numbers of a row lie in the leaf, in the order of the cotangents."""
        return [self.view.layout.axes[self.order.index(i)] for i in range(1, len(self.order))]

    @property
    def one_term(self) -> bool:
        """Whether an example adds one term to each number of the sum."""
        return self.sizes[0] == 1

    def restore(self, table: jax.Array) -> jax.Array:
        """`[..., rows, p]` to `[..., *leaf.shape]`."""
        lead = table.ndim - 2
        return self.view.restore(ungrouped(table, lead, self.split, self.order), lead)


def lookup_shape(use: Use) -> LookupShape | None:
    """Reads `table[indices]` along one axis; None if the use is something else."""
    if use.primitive is not p.gather_p or use.operand != 0 or use.view.sliced:
        return None
    numbers, mode = use.params["dimension_numbers"], use.params["mode"]
    table, indices = use.operands
    if numbers.operand_batching_dims or len(numbers.start_index_map) != 1:
        return None
    (axis,) = numbers.start_index_map
    whole = (*table.shape[:axis], 1, *table.shape[axis + 1 :])
    if numbers.collapsed_slice_dims != (axis,) or tuple(use.params["slice_sizes"]) != whole:
        return None
    loops = len(use.view.loops)
    shared = tuple(range(loops))
    after = lambda axes: tuple(loops + i for i in axes)
    row_axes = numbers.offset_dims
    position_axes = tuple(i for i in range(use.result.ndim) if i not in row_axes)
    rest = tuple(i for i in range(table.ndim) if i != axis)
    place = {own: i for i, own in enumerate((axis, *rest))}
    size = lambda aval, axes: math.prod(aval.shape[i] for i in axes)
    iterations = math.prod(length for length, _ in use.view.loops)
    return LookupShape(
        view=use.view,
        index_axes=(shared + after(range(indices.ndim - 1)), after([indices.ndim - 1])),
        cotangent_axes=(shared + after(position_axes), after(row_axes)),
        rows=table.shape[axis],
        sizes=(iterations * size(use.result, position_axes), size(table, rest)),
        split=tuple(table.shape[i] for i in (axis, *rest)),
        order=tuple(place[i] for i in range(table.ndim)),
        clipped=mode == GatherScatterMode.CLIP,
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
        return self.shape.one_term

    @classmethod
    def make(cls, indices: jax.Array, cotangents: jax.Array, shape: LookupShape) -> "Lookup":
        rows = grouped(indices, shape.index_axes)[..., 0].astype(jnp.int32)
        c = grouped(cotangents, shape.cotangent_axes)
        if shape.clipped:
            return cls(jnp.clip(rows, 0, shape.rows - 1), c, shape)
        inside = (rows >= 0) & (rows < shape.rows)
        return cls(jnp.where(inside, rows, shape.rows), jnp.where(inside[..., None], c, 0), shape)

    @classmethod
    def joined(cls, uses: Sequence["Lookup"]) -> "Lookup":
        """Of several uses of one table."""
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
