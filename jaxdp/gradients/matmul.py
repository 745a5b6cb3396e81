"""Gradients of a matrix product's weights: activations and cotangents instead of their product."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp

from .factors import Factors, Step
from .jax_internals import primitives as p
from .precision import as_factors, contracted, multiplied, scaled
from .representations import guarded, wide
from .rounding import lengths, raised_gram, raised_product
from .uses import Derived, Use

Norms = Literal["gram", "direct"]

# The value of an operand of the equation that makes a derived value, `[*loops, *its shape]`.
Known = Callable[[Derived, int], jax.Array]


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

    form: Factors
    steps: tuple[Step, ...]  # from the recorded operand and the cotangent to a and c
    recorded: tuple[int, ...]

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """s, t, d, p."""
        return self.form.sizes

    @property
    def one_term(self) -> bool:
        """Whether an example adds one term to each number of the sum."""
        return self.form.t == 1

    def restore(self, products: jax.Array) -> jax.Array:
        """`[..., s, d, p]` to `[..., *leaf.shape]`, with at most one leading axis."""
        lead, layout = products.ndim - 3, self.form.layout
        apart = products.reshape(*products.shape[:lead], *layout.shape)
        return layout.restore(apart, lead, self.form.shape)

    def factors(
        self, operands: Sequence[jax.Array], cotangents: jax.Array, known: Known
    ) -> tuple[jax.Array, jax.Array]:
        """a `[b, s, t, d]` and c `[b, s, t, p]`."""
        (a,), c = operands, cotangents
        for step in self.steps:
            a, c = step.transform(a, c, None if step.known is None else known(*step.known))
        return a, c


def matmul_form(use: Use) -> tuple[Factors, Step] | None:
    """The factors of the gradient of the source of a use, if this is a matrix product."""
    view = use.view
    if use.primitive is not p.dot_general_p or view.layout.repeats:
        return None
    contracting, batch = use.params["dimension_numbers"]
    leaf_side, other_side = use.operand, 1 - use.operand
    outer = len(use.outer)
    sliced = [outer + i for i, (_, axis) in enumerate(view.loops) if axis is not None]
    shared = [outer + i for i, (_, axis) in enumerate(view.loops) if axis is None]

    def free(side: int) -> list[int]:
        taken = {*contracting[side], *batch[side]}
        return [axis for axis in range(use.operands[side].ndim) if axis not in taken]

    loops = outer + len(view.loops)
    first = range(len(batch[0]), len(batch[0]) + len(free(0)))
    second = range(len(batch[0]) + len(free(0)), use.result.ndim)
    leaf_results, other_results = (second, first) if leaf_side == 1 else (first, second)
    after = lambda axes: [loops + axis for axis in axes]
    lengths_shared = [view.loops[i - outer][0] for i in shared]
    positions = [use.operands[other_side].shape[axis] for axis in free(other_side)]
    axes = lambda places: tuple(axis for k in places for axis in view.layout.dims[k])
    form = Factors(
        shape=view.shape,
        offset=view.layout.offset,
        s=(*[axis for _, axis in view.loops if axis is not None], *axes(batch[leaf_side])),
        t=math.prod([*lengths_shared, *positions]),
        d=axes(contracting[leaf_side]),
        p=axes(free(leaf_side)),
        outer=use.outer,
    )

    sizes = lambda axes: [axis.size for axis in axes]

    def transform(a: jax.Array, c: jax.Array, _: Any) -> tuple[jax.Array, jax.Array]:
        s, t = [*range(outer), *sliced], shared
        a = _grouped(
            a,
            [*s, *after(batch[other_side])],
            [*t, *after(free(other_side))],
            after(contracting[other_side]),
        )
        c = _grouped(
            c,
            [*s, *after(range(len(batch[0])))],
            [*t, *after(other_results)],
            after(leaf_results),
        )
        split = lambda x, own: x.reshape(*x.shape[: 1 + outer], *sizes(form.s), form.t, *sizes(own))
        return split(a, form.d), split(c, form.p)

    return form, Step(transform)


def _grouped(array: jax.Array, s: list[int], t: list[int], own: list[int]) -> jax.Array:
    """`[b, *axes]` to `[b, *s, t, *own]`; axes are counted behind b."""
    array = array.transpose(0, *[1 + axis for axis in (*s, *t, *own)])
    behind = 1 + len(s)
    positions = math.prod(array.shape[behind : behind + len(t)])
    return array.reshape(*array.shape[:behind], positions, *array.shape[behind + len(t) :])


@dataclass(frozen=True)
class Matmul:
    """The gradients of a matrix product's weights: g[b, s] = Σ_t a[b, s, t] ⊗ c[b, s, t]."""

    activations: jax.Array  # [b, s, t, d]
    cotangents: jax.Array  # [b, s, t, p]
    shape: Restore
    norms: Norms
    narrow: bool = False  # whether the factors are in bfloat16, to be multiplied as they are

    @property
    def one_term(self) -> bool:
        """Whether an example adds one term to each number of the sum."""
        return not self.narrow and self.shape.one_term and self.activations.shape[2] == 1

    @classmethod
    def joined(
        cls,
        factors: Sequence[tuple[jax.Array, jax.Array]],
        shape: Restore,
        norms: Norms,
        narrow: bool,
    ) -> "Matmul":
        """Of several uses, whose positions are put side by side."""
        if len(factors) == 1:
            a, c = factors[0]
        else:
            a, c = (jnp.concatenate(wide(*side), axis=2) for side in zip(*factors, strict=True))
        (a, c), narrow = as_factors(narrow, a, c)
        return cls(a, c, shape, norms, narrow)

    def magnitude(self) -> jax.Array:
        """Σ_t ‖a_t‖‖c_t‖ `[b, s]`."""
        a, c = wide(self.activations, self.cotangents)
        return jnp.sum(lengths(a) * lengths(c), axis=-1)

    def squared_norms(self) -> jax.Array:
        a, c = self._multiplied
        magnitude = self.magnitude()
        if self.norms == "direct":
            squared = raised_product(_squared_products(a, c), magnitude, a.shape[2], self.narrow)
            return jnp.sum(squared, axis=-1)
        # One position takes no inner product of two: its lengths are added up in float32.
        sizes, t = (a.shape[3], c.shape[3]), a.shape[2]
        positions = [t] if self.narrow and t > 1 else None
        return guarded(jnp.sum(raised_gram(_gram(a, c), magnitude, sizes, positions), axis=-1))

    def weighted_sum(self, coefficients: jax.Array) -> jax.Array:
        return self.shape.restore(self.weighted_products(coefficients))

    def weighted_products(self, coefficients: jax.Array) -> jax.Array:
        """Σ_bt coefficients[b]·a_t ⊗ c_t, `[s, d, p]`."""
        a, c = self._multiplied
        parts = scaled(c, coefficients, self.narrow)
        return reduce(jnp.add, [contracted("bstd,bstp->sdp", a, part) for part in parts])

    @property
    def _multiplied(self) -> tuple[jax.Array, ...]:
        return multiplied(self.narrow, self.activations, self.cotangents)

    def keep(self, valid: jax.Array) -> "Matmul":
        rows = valid[:, None, None, None]
        return replace(
            self,
            activations=jnp.where(rows, self.activations, 0),
            cotangents=jnp.where(rows, self.cotangents, 0),
        )

    def materialize(self) -> jax.Array:
        return self.shape.restore(products(*self._multiplied))


def products(a: jax.Array, c: jax.Array) -> jax.Array:
    """Σ_t a_t ⊗ c_t, `[b, s, d, p]`."""
    return contracted("bstd,bstp->bsdp", a, c)


def _squared_products(a: jax.Array, c: jax.Array) -> jax.Array:
    return guarded(jnp.sum(jnp.square(products(a, c)), axis=(-1, -2)))


def _gram(a: jax.Array, c: jax.Array) -> jax.Array:
    if a.shape[2] == 1:
        a, c = wide(a, c)
        return jnp.sum(jnp.square(a), (2, 3)) * jnp.sum(jnp.square(c), (2, 3))
    return jnp.sum(gram_matrix(a) * gram_matrix(c), axis=(2, 3))


def gram_matrix(vectors: jax.Array) -> jax.Array:
    """⟨v_t, v_u⟩ for all t and u, `[b, s, t, t]`."""
    return contracted("bstd,bsud->bstu", vectors, vectors)
