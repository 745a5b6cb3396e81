"""Gradients of a leaf that is used in several ways: the sum of several representations.

‖g₁ + g₂‖² = ‖g₁‖² + ‖g₂‖² + 2⟨g₁, g₂⟩. The inner product of a look-up with a matrix product (tied
embeddings) is a gather; no gradient is made.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce

import jax
import jax.numpy as jnp
from jax.lax import Precision

from .convolution import Conv
from .jax_internals import vary, varying_axes
from .layout import merged
from .lookup import Lookup
from .matmul import Matmul, MatmulShape
from .number import Number
from .precision import cut
from .ragged import Ragged
from .representations import guarded, wide
from .rounding import raised_gram

Meeting = Matmul | Lookup | Number  # those that may have an inner product with another

Product = Matmul | Conv | Ragged

Addend = Meeting | Product


@dataclass(frozen=True)
class Several:
    """The sum of several representations of one leaf's gradients."""

    parts: tuple[Addend, ...]
    # Which of them are gradients of the same numbers; the others have no inner product.
    meet: tuple[tuple[int, int], ...]

    @property
    def one_term(self) -> bool:
        """Whether an example adds one term to each number of the sum."""
        return not self.meet and all(part.one_term for part in self.parts)

    def squared_norms(self) -> jax.Array:
        total = reduce(jnp.add, [part.squared_norms() for part in self.parts])
        if not self.meet:
            return guarded(total)
        meeting: dict[int, Meeting] = {}
        for i, part in enumerate(self.parts):
            if isinstance(part, Meeting):
                meeting[i] = part
        for i, j in self.meet:
            total = total + 2 * inner_products(meeting[i], meeting[j])
        magnitude = reduce(jnp.add, [jnp.sum(part.magnitude(), -1) for part in meeting.values()])
        return guarded(raised_gram(total, magnitude, self._terms(), self._positions()))

    def weighted_sum(self, coefficients: jax.Array) -> jax.Array:
        # Parts may cancel: all of them need the same coefficients.
        same = cut(coefficients) if self._narrow else coefficients
        return reduce(jnp.add, [part.weighted_sum(same) for part in self.parts])

    def keep(self, valid: jax.Array) -> "Several":
        return replace(self, parts=tuple(part.keep(valid) for part in self.parts))

    def materialize(self) -> jax.Array:
        return reduce(jnp.add, [part.materialize() for part in self.parts])

    @property
    def _narrow(self) -> bool:
        return any(isinstance(part, Product) and part.narrow for part in self.parts)

    def _positions(self) -> list[int] | None:
        """How many terms each number of a narrow product adds up; None if all are wide.

        The norm of a part is raised by what its own rounding takes of it. Parts may cancel, so all
        of it counts beside the norm of the whole.
        """
        products = [part for part in self.parts if isinstance(part, Matmul) and part.narrow]
        return [part.activations.shape[2] for part in products] or None

    def _terms(self) -> list[int]:
        """How many terms the inner products have."""
        sizes = [
            factor.shape[-1]
            for part in self.parts
            if isinstance(part, Matmul)
            for factor in (part.activations, part.cotangents)
        ]
        vectors = [part.vector.size for part in self.parts if isinstance(part, Number)]
        tables = [part.cotangents.shape[-1] for part in self.parts if isinstance(part, Lookup)]
        return [*sizes, *vectors, *tables]


def inner_products(one: Meeting, two: Meeting) -> jax.Array:
    """⟨g₁, g₂⟩ of every example, `[b]`."""
    if isinstance(one, Number):
        return _with_number(two, one)
    if isinstance(two, Number):
        return _with_number(one, two)
    if isinstance(one, Lookup) and isinstance(two, Matmul):
        return _of_lookup(one, two)
    assert isinstance(one, Matmul)
    assert isinstance(two, Lookup)
    return _of_lookup(two, one)


def _of_lookup(lookup: Lookup, matmul: Matmul) -> jax.Array:
    """Σ_ts a_s[x_t]·⟨c_t, v_s⟩, where a runs along the rows of the table, and v across them."""
    a, v = matmul.activations[:, 0], matmul.cotangents[:, 0]  # [b, s, d], [b, s, p]
    assert isinstance(matmul.shape, MatmulShape)
    if merged(matmul.shape.form.d) != merged(lookup.shape.row_axes):
        a, v = v, a
    a, v, c = wide(a, v, lookup.cotangents)
    # Where nothing is read, c is zero.
    read = jnp.take_along_axis(a, lookup.rows[:, None, :], axis=2, mode="clip")  # [b, s, t]
    inner = jnp.einsum("bsp,btp->bst", v, c, precision=Precision.HIGHEST)
    return jnp.sum(read * inner, axis=(1, 2))


def _with_number(other: Meeting, number: Number) -> jax.Array:
    """w·⟨g, v⟩."""
    weights, v = wide(number.weights, number.vector)
    if isinstance(other, Number):
        return weights * other.weights * jnp.sum(v * other.vector)
    # ⟨restore(g), v⟩ = ⟨g, the transpose of restore, of v⟩.
    if isinstance(other, Lookup):
        rows, across = other.shape.rows, other.cotangents.shape[-1]
        own = _transposed(other.shape.restore, (rows, across), v)
        read = jnp.take(own, other.rows, axis=0, mode="clip")  # [b, t, p]
        return weights * jnp.sum(read * other.cotangents, axis=(1, 2))
    a, c = wide(other.activations, other.cotangents)
    own = _transposed(other.shape.restore, (a.shape[1], a.shape[3], c.shape[3]), v)
    through = jnp.einsum("bstd,sdp->bstp", a, own, precision=Precision.HIGHEST)
    return weights * jnp.sum(through * c, axis=(1, 2, 3))


def _transposed(
    restore: Callable[[jax.Array], jax.Array], shape: tuple[int, ...], v: jax.Array
) -> jax.Array:
    """The transpose of a linear function of arrays of this shape, of v."""
    # Made to vary like v: else shard_map would add up over the devices here.
    zeros = vary(jnp.zeros(shape, v.dtype), varying_axes(v))
    return jax.vjp(restore, zeros)[1](v)[0]
