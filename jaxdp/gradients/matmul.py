"""Gradients of a matrix product's weights: activations and cotangents instead of their product."""

import math
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
from jax.lax import Precision

from .axes import grouped, ungrouped
from .jax_internals import primitives as p
from .representations import guarded, wide
from .rounding import lengths, raised_gram, raised_product
from .uses import Use, View

Norms = Literal["gram", "direct"]


class Restore(Protocol):
    """The part of a shape that `Matmul` needs: a convolution's patches have one too."""

    @property
    def one_term(self) -> bool:
        """Whether an example adds one term to each number of the sum."""

    def restore(self, products: jax.Array) -> jax.Array:
        """`[..., s, d, p]` to `[..., *leaf.shape]`, with at most one leading axis."""


@dataclass(frozen=True)
class MatmulShape:
    """How one use of a leaf is a product: g[s] = Σ_t a[s, t] ⊗ c[s, t] for one example.

    s runs over axes that the leaf has too (batch axes, loops over slices of it), t over positions
    that share it, d over the axes that the product contracts, p over the leaf's other axes.
    """

    view: View
    activation_axes: tuple[tuple[int, ...], ...]  # axes of the recorded operand that are s, t, d
    cotangent_axes: tuple[tuple[int, ...], ...]  # axes of the cotangent that are s, t, p
    sizes: tuple[int, int, int, int]  # s, t, d, p
    split: tuple[int, ...]  # sizes of the loops over slices, then of the operand's axes
    order: tuple[int, ...]  # the place in `split` of each such loop, then of each operand axis

    @property
    def one_term(self) -> bool:
        """Whether an example adds one term to each number of the sum."""
        return self.sizes[1] == 1

    def restore(self, products: jax.Array) -> jax.Array:
        """`[..., s, d, p]` to `[..., *leaf.shape]`, with at most one leading axis."""
        lead = products.ndim - 3
        return self.view.restore(ungrouped(products, lead, self.split, self.order), lead)


def matmul_shape(use: Use) -> MatmulShape | None:
    """Reads a matrix product with a leaf in it; None if the use is something else."""
    if use.primitive is not p.dot_general_p:
        return None
    contracting, batch = use.params["dimension_numbers"]
    leaf_side, other_side = use.operand, 1 - use.operand
    leaf_aval, other_aval = use.operands[leaf_side], use.operands[other_side]
    loops = len(use.view.loops)
    sliced = tuple(i for i, (_, own) in enumerate(use.view.loops) if own)
    shared = tuple(i for i, (_, own) in enumerate(use.view.loops) if not own)

    def free(side: int) -> tuple[int, ...]:
        taken = {*contracting[side], *batch[side]}
        return tuple(axis for axis in range(use.operands[side].ndim) if axis not in taken)

    after = lambda axes: tuple(loops + axis for axis in axes)
    batch_axes = range(len(batch[0]))
    first = range(len(batch[0]), len(batch[0]) + len(free(0)))
    second = range(len(batch[0]) + len(free(0)), use.result.ndim)
    leaf_results, other_results = (second, first) if leaf_side == 1 else (first, second)
    leaf_axes = (*batch[leaf_side], *contracting[leaf_side], *free(leaf_side))
    # The restored operand has the sliced loops in front, then the operand's own axes.
    position = {axis: len(sliced) + i for i, axis in enumerate(leaf_axes)}
    lengths_sliced = tuple(use.view.loops[i][0] for i in sliced)
    lengths_shared = tuple(use.view.loops[i][0] for i in shared)
    size = lambda aval, axes: math.prod(aval.shape[axis] for axis in axes)
    return MatmulShape(
        view=use.view,
        activation_axes=(
            sliced + after(batch[other_side]),
            shared + after(free(other_side)),
            after(contracting[other_side]),
        ),
        cotangent_axes=(
            sliced + after(batch_axes),
            shared + after(other_results),
            after(leaf_results),
        ),
        sizes=(
            math.prod(lengths_sliced) * size(leaf_aval, batch[leaf_side]),
            math.prod(lengths_shared) * size(other_aval, free(other_side)),
            size(leaf_aval, contracting[leaf_side]),
            size(leaf_aval, free(leaf_side)),
        ),
        split=lengths_sliced + tuple(leaf_aval.shape[axis] for axis in leaf_axes),
        order=(*range(len(sliced)), *(position[axis] for axis in range(leaf_aval.ndim))),
    )


@dataclass(frozen=True)
class Matmul:
    """The gradients of a matrix product's weights: g[b, s] = Σ_t a[b, s, t] ⊗ c[b, s, t]."""

    activations: jax.Array  # [b, s, t, d]
    cotangents: jax.Array  # [b, s, t, p]
    shape: Restore
    norms: Norms

    @property
    def one_term(self) -> bool:
        """Whether an example adds one term to each number of the sum."""
        return self.shape.one_term

    @classmethod
    def make(
        cls, activations: jax.Array, cotangents: jax.Array, shape: MatmulShape, norms: Norms
    ) -> "Matmul":
        return cls(
            grouped(activations, shape.activation_axes),
            grouped(cotangents, shape.cotangent_axes),
            shape,
            norms,
        )

    def squared_norms(self) -> jax.Array:
        a, c = wide(self.activations, self.cotangents)
        magnitude = jnp.sum(lengths(a) * lengths(c), axis=-1)  # [b, s]
        if self.norms == "direct":
            return jnp.sum(raised_product(_squared_products(a, c), magnitude, a.shape[2]), axis=-1)
        return guarded(
            jnp.sum(raised_gram(_gram(a, c), magnitude, max(a.shape[3], c.shape[3])), axis=-1)
        )

    def weighted_sum(self, coefficients: jax.Array) -> jax.Array:
        a, c = wide(self.activations, self.cotangents)
        scaled = c * coefficients[:, None, None, None].astype(c.dtype)
        total = jnp.einsum("bstd,bstp->sdp", a, scaled, precision=Precision.HIGHEST)
        return self.shape.restore(total)

    def keep(self, valid: jax.Array) -> "Matmul":
        rows = valid[:, None, None, None]
        return replace(
            self,
            activations=jnp.where(rows, self.activations, 0),
            cotangents=jnp.where(rows, self.cotangents, 0),
        )

    def materialize(self) -> jax.Array:
        a, c = wide(self.activations, self.cotangents)
        return self.shape.restore(_products(a, c))


def _products(a: jax.Array, c: jax.Array) -> jax.Array:
    return jnp.einsum("bstd,bstp->bsdp", a, c, precision=Precision.HIGHEST)


def _squared_products(a: jax.Array, c: jax.Array) -> jax.Array:
    return guarded(jnp.sum(jnp.square(_products(a, c)), axis=(-1, -2)))


def _gram(a: jax.Array, c: jax.Array) -> jax.Array:
    if a.shape[2] == 1:
        return jnp.sum(jnp.square(a), (2, 3)) * jnp.sum(jnp.square(c), (2, 3))
    inner = lambda x: jnp.einsum("bstd,bsud->bstu", x, x, precision=Precision.HIGHEST)
    return jnp.sum(inner(a) * inner(c), axis=(2, 3))
