"""Gradients of the matrices of experts in a ragged product: which rows meet which is data."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from .axes import grouped, ungrouped
from .jax_internals import RAGGED_DOT
from .matmul import Norms, gram_matrix
from .precision import as_factors, exactly, multiplied, scaled
from .representations import guarded, wide
from .rounding import lengths, raised_gram, raised_product
from .uses import Use, View

# Rows and cotangents to one product for every expert.
BY_EXPERT = lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), (0,), ())


@dataclass(frozen=True)
class RaggedShape:
    """How one use of a leaf is the experts of a ragged product: g[s, e] = Σ_{t of e} a_t ⊗ c_t.

    The rows t of an example are in groups, one after the other, whose sizes are data: group e
    meets matrix e. Rows behind the last group meet none. s runs over loops over slices.
    """

    view: View
    activation_axes: tuple[tuple[int, ...], ...]  # axes of the rows that are s, t, d
    cotangent_axes: tuple[tuple[int, ...], ...]  # axes of the cotangent that are s, t, p
    ragged_axis: int  # the axis of the rows that the groups divide
    experts: int
    sizes: tuple[int, int, int, int]  # s, t, d, p
    split: tuple[int, ...]  # sizes of the loops over slices, then of the operand's axes
    order: tuple[int, ...]  # the place in `split` of each such loop, then of each operand axis

    recorded: ClassVar[tuple[int, ...]] = (0, 2)

    @property
    def one_term(self) -> bool:
        """Whether an example adds one term to each number of the sum."""
        return self.sizes[1] == 1

    def make(
        self,
        operands: tuple[jax.Array, ...],
        cotangents: jax.Array,
        norms: Norms,
        narrow: bool,
    ) -> "Ragged":
        """The gradients, from what was recorded."""
        rows, group_sizes = operands
        axis, outer, positions = 1 + self.ragged_axis, group_sizes.ndim - 1, self.activation_axes
        experts = _experts(group_sizes, rows.shape[axis])
        other = [i for i in range(outer, rows.ndim) if i != axis]
        experts = jnp.broadcast_to(jnp.expand_dims(experts, other), rows.shape)
        # All along d they are the same: the first is kept.
        experts = grouped(experts, positions)[..., 0]
        inside = (experts < self.experts)[..., None]
        a, c = grouped(rows, positions), grouped(cotangents, self.cotangent_axes)
        (a, c), narrow = as_factors(narrow, jnp.where(inside, a, 0), jnp.where(inside, c, 0))
        return Ragged(a, c, experts, self, norms, narrow)

    def restore(self, products: jax.Array) -> jax.Array:
        """`[..., s, experts, d, p]` to `[..., *leaf.shape]`, with at most one leading axis."""
        lead = products.ndim - 4
        return self.view.restore(ungrouped(products, lead, self.split, self.order), lead)


def ragged_shape(use: Use) -> RaggedShape | None:
    """Reads a ragged product with a leaf as its experts; None if the use is something else."""
    if use.primitive is not RAGGED_DOT or use.operand != 1:
        return None
    rows, experts, group_sizes = use.operands
    numbers = use.params["ragged_dot_dimension_numbers"]
    contracting, batch = numbers.dot_dimension_numbers
    (ragged_axis,) = numbers.lhs_ragged_dimensions
    if batch[0] or group_sizes.ndim != 1 or ragged_axis in contracting[0]:
        return None
    (expert_axis,) = numbers.rhs_group_dimensions
    loops = len(use.view.loops)
    sliced = tuple(i for i, (_, own) in enumerate(use.view.loops) if own)
    shared = tuple(i for i, (_, own) in enumerate(use.view.loops) if not own)
    after = lambda axes: tuple(loops + axis for axis in axes)
    free = [axis for axis in range(rows.ndim) if axis not in contracting[0]]
    taken = (expert_axis, *contracting[1])
    leaf_free = tuple(axis for axis in range(experts.ndim) if axis not in taken)
    place = {axis: len(sliced) + i for i, axis in enumerate((*taken, *leaf_free))}
    lengths_of = lambda which: tuple(use.view.loops[i][0] for i in which)
    size = lambda aval, axes: math.prod(aval.shape[axis] for axis in axes)
    return RaggedShape(
        view=use.view,
        activation_axes=(sliced, shared + after(free), after(contracting[0])),
        cotangent_axes=(
            sliced,
            shared + after(range(len(free))),
            after(range(len(free), use.result.ndim)),
        ),
        ragged_axis=loops + ragged_axis,
        experts=experts.shape[expert_axis],
        sizes=(
            math.prod(lengths_of(sliced)),
            math.prod(lengths_of(shared)) * size(rows, free),
            size(experts, contracting[1]),
            size(experts, leaf_free),
        ),
        split=lengths_of(sliced) + tuple(experts.shape[axis] for axis in place),
        order=(*range(len(sliced)), *(place[axis] for axis in range(experts.ndim))),
    )


@dataclass(frozen=True)
class Ragged:
    """The gradients of experts: g[b, s, e] = Σ_{t of e} a[b, s, t] ⊗ c[b, s, t]."""

    activations: jax.Array  # [b, s, t, d], zero in rows of no expert
    cotangents: jax.Array  # [b, s, t, p], zero in rows of no expert
    experts: jax.Array  # [b, s, t], their number for rows of none
    shape: RaggedShape
    norms: Norms
    narrow: bool = False  # as in `Matmul`

    @property
    def one_term(self) -> bool:
        """Whether an example adds one term to each number of the sum."""
        return not self.narrow and self.shape.one_term

    def squared_norms(self) -> jax.Array:
        a, c = wide(self.activations, self.cotangents)
        length = lengths(a) * lengths(c)
        a, c = self._multiplied
        total = lambda experts, length: (
            jnp.zeros(self.shape.experts, length.dtype).at[experts].add(length, mode="drop")
        )
        per_expert = jax.vmap(jax.vmap(total))(self.experts, length)
        # Each expert's rounding has its own bound; they add up as the lengths of vectors do.
        magnitude = jnp.sqrt(jnp.sum(jnp.square(per_expert), axis=-1))  # [b, s]
        if self.norms == "direct":
            squared = lambda x: guarded(jnp.sum(jnp.square(self._products(*x)), axis=(1, 2, 3)))
            each = lax.map(squared, (a, c, self.experts))
            return jnp.sum(raised_product(each, magnitude, a.shape[2], self.narrow), axis=-1)
        same = self.experts[..., :, None] == self.experts[..., None, :]
        gram = jnp.sum(jnp.where(same, gram_matrix(a) * gram_matrix(c), 0), axis=(2, 3))
        sizes, positions = (a.shape[3], c.shape[3]), [a.shape[2]] if self.narrow else None
        return guarded(jnp.sum(raised_gram(gram, magnitude, sizes, positions), axis=-1))

    def weighted_sum(self, coefficients: jax.Array) -> jax.Array:
        a, c = self._multiplied
        joined = lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:])
        parts = scaled(c, coefficients, self.narrow)
        product = lambda part: self._products(joined(a), joined(part), joined(self.experts))
        return self.shape.restore(reduce(jnp.add, map(product, parts)))

    def keep(self, valid: jax.Array) -> "Ragged":
        rows = valid[:, None, None, None]
        return replace(
            self,
            activations=jnp.where(rows, self.activations, 0),
            cotangents=jnp.where(rows, self.cotangents, 0),
        )

    def materialize(self) -> jax.Array:
        a, c = self._multiplied
        return self.shape.restore(lax.map(lambda x: self._products(*x), (a, c, self.experts)))

    @property
    def _multiplied(self) -> tuple[jax.Array, ...]:
        return multiplied(self.narrow, self.activations, self.cotangents)

    def _products(self, a: jax.Array, c: jax.Array, experts: jax.Array) -> jax.Array:
        """`[s, t, d]`, `[s, t, p]` and `[s, t]` to `[s, experts, d, p]`."""

        def one(x: tuple[jax.Array, ...]) -> jax.Array:
            a, c, experts = x
            order, counts = _sorted(experts, self.shape.experts)
            return lax.ragged_dot_general(
                a[order], c[order], counts, BY_EXPERT, **exactly(self.narrow)
            )

        return lax.map(one, (a, c, experts))


def _experts(group_sizes: jax.Array, rows: int) -> jax.Array:
    """`[..., groups]` sizes to `[..., rows]`: the group of each row, their number behind them."""
    ends = jnp.cumsum(group_sizes, axis=-1)
    return jnp.sum(ends[..., None, :] <= jnp.arange(rows)[:, None], axis=-1, dtype=jnp.int32)


def _sorted(experts: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The order that puts rows of one expert side by side, and how many rows each has."""
    counts = jnp.zeros(count, jnp.int32).at[experts].add(1, mode="drop")
    return jnp.argsort(experts, stable=True), counts


def ragged_for_inputs(
    rows: jax.Array, experts: jax.Array, group_sizes: jax.Array, params: Mapping[str, Any]
) -> jax.Array:
    """The ragged product of one example, which JAX cannot vmap with the experts shared.

    Only the rows get a gradient. That of the experts is zero: a tap takes its place.
    """
    numbers = params["ragged_dot_dimension_numbers"]
    contracting, _ = numbers.dot_dimension_numbers
    (ragged_axis,), (expert_axis,) = numbers.lhs_ragged_dimensions, numbers.rhs_group_dimensions
    free = [axis for axis in range(rows.ndim) if axis not in contracting[0]]
    taken = (expert_axis, *contracting[1])
    leaf_free = [axis for axis in range(experts.ndim) if axis not in taken]
    sizes = lambda array, axes: [array.shape[axis] for axis in axes]
    place = _experts(group_sizes, rows.shape[ragged_axis])
    others = [i for i, axis in enumerate(free) if axis != ragged_axis]
    place = jnp.broadcast_to(jnp.expand_dims(place, others), sizes(rows, free)).reshape(-1)
    matrix = rows.transpose(*free, *contracting[0]).reshape(place.size, -1)
    matrices = experts.transpose(*taken, *leaf_free).reshape(
        experts.shape[expert_axis], matrix.shape[1], -1
    )
    wanted = params["preferred_element_type"]
    product = _product(params["precision"], wanted, rows.dtype)(matrix, matrices, place)
    return product.reshape(*sizes(rows, free), *sizes(experts, leaf_free))


def _product(precision: Any, dtype: Any, rows_dtype: Any) -> Callable[..., jax.Array]:
    """A function of `[t, d]`, `[experts, d, p]` and each t's expert; only rows get gradients."""
    multiply, multiply_back = _multiply(precision, dtype), _multiply(precision, rows_dtype)

    @jax.custom_vjp
    def product(rows: jax.Array, matrices: jax.Array, experts: jax.Array) -> jax.Array:
        return multiply(rows, matrices, experts)

    def forward(rows: jax.Array, matrices: jax.Array, experts: jax.Array) -> Any:
        return multiply(rows, matrices, experts), (matrices, experts)

    def backward(kept: Any, c: jax.Array) -> Any:
        matrices, experts = kept
        gradient = multiply_back(c, matrices.swapaxes(1, 2), experts)
        return gradient, jnp.zeros_like(matrices), None

    product.defvjp(forward, backward)
    return product


def _multiply(precision: Any, dtype: Any) -> Callable[..., jax.Array]:
    """The same function, which nobody differentiates: vmap puts all examples' rows together."""

    @custom_vmap
    def multiply(rows: jax.Array, matrices: jax.Array, experts: jax.Array) -> jax.Array:
        order, counts = _sorted(experts, matrices.shape[0])
        result = lax.ragged_dot(
            rows[order], matrices, counts, precision=precision, preferred_element_type=dtype
        )
        inside = (experts < matrices.shape[0])[:, None]
        return jnp.where(inside, jnp.zeros_like(result).at[order].set(result), 0)

    @multiply.def_vmap
    def multiply_all(
        size: int, batched: Sequence[bool], rows: Any, matrices: Any, experts: Any
    ) -> tuple[jax.Array, bool]:
        own = lambda x, is_own: x if is_own else jnp.broadcast_to(x, (size, *x.shape))
        rows, experts = own(rows, batched[0]), own(experts, batched[2])
        if batched[1]:
            return lax.map(lambda x: multiply(*x), (rows, matrices, experts)), True
        joined = multiply(rows.reshape(-1, rows.shape[-1]), matrices, experts.reshape(-1))
        return joined.reshape(size, -1, joined.shape[-1]), True

    return multiply


SUBSTITUTES = {RAGGED_DOT: ragged_for_inputs}
