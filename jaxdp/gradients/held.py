"""The gradients of some rows, of all leaves: held until they are weighted, or computed again."""

from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol

import jax

from .representations import Dense, Representation

# Given every leaf's squared norms `[b]`, whether a row may contribute with its coefficients `[b]`.
Allowed = Callable[[Sequence[jax.Array]], jax.Array]

_SMALL = 2**18  # numbers


class Gradients(Protocol):
    """The gradients of b rows, for every leaf."""

    @property
    def count(self) -> int:
        """How many leaves there are."""

    @property
    def one_term(self) -> bool:
        """Whether an example adds one term to each number of every sum (`Representation`)."""

    @property
    def excess(self) -> float:
        """The fraction by which a contribution may be above what its norm says.

        It comes on top of privacy rule 9's 1e-5.
        """

    def squared_norms(self) -> list[jax.Array]:
        """For every leaf the squared norms `[b]`, as upper bounds, float32 or wider."""

    def weighted_sum(
        self,
        coefficients: Sequence[jax.Array],
        valid: jax.Array,
        allowed: Allowed,
        constant_time: bool,
    ) -> list[jax.Array]:
        """Σ_b c_b·g_b for every leaf, given its coefficients `[b]`; invalid rows count as zero.

        Args:
          coefficients: for every leaf `[b]`, zero or more.
          valid: `[b] bool`.
          allowed: asked again where the sum is of other roundings than the norms were.
          constant_time: whether the time must not tell which rows are valid.
        """

    def materialize(self, valid: jax.Array) -> list[jax.Array]:
        """The gradients themselves, `[b, ...]`, invalid rows zero."""


class Held:
    """The gradients of every leaf as a representation: norms and sum are of the same numbers."""

    excess: ClassVar[float] = 0.0

    def __init__(self, leaves: Sequence[Representation]) -> None:
        self.leaves = leaves

    @property
    def count(self) -> int:
        return len(self.leaves)

    @property
    def one_term(self) -> bool:
        return all(leaf.one_term for leaf in self.leaves)

    def squared_norms(self) -> list[jax.Array]:
        return [leaf.squared_norms() for leaf in self.leaves]

    def weighted_sum(
        self,
        coefficients: Sequence[jax.Array],
        valid: jax.Array,
        allowed: Allowed,
        constant_time: bool,
    ) -> list[jax.Array]:
        del allowed
        all_valid = None if constant_time else jax.numpy.all(valid)
        return [
            sum_of_kept(leaf, c, valid, all_valid)
            for leaf, c in zip(self.leaves, coefficients, strict=True)
        ]

    def materialize(self, valid: jax.Array) -> list[jax.Array]:
        return [leaf.keep(valid).materialize() for leaf in self.leaves]


def sum_of_kept(
    leaf: Representation, coefficients: jax.Array, kept: jax.Array, all_kept: jax.Array | None
) -> jax.Array:
    """Σ_b c_b·g_b over the rows where `kept [b]` is True.

    0·inf is NaN, so the other rows are zeroed themselves, but only if there are any; leaf by leaf,
    so that at most one leaf is held twice. (A sum outside of the cond is no faster on CPUs, and
    takes up to twice the memory.) Small arrays are zeroed in any case: a branch would cost more
    time, of the compiler too.

    Args:
      leaf: the gradients.
      coefficients: `[b]`.
      kept: `[b] bool`.
      all_kept: whether all are; None: rows are zeroed in any case, which takes the same time.
    """
    weights = jax.numpy.where(kept, coefficients, 0)
    zeroed = lambda: leaf.keep(kept).weighted_sum(weights)
    small = isinstance(leaf, Dense) and leaf.gradients.size <= _SMALL
    if all_kept is None or small:
        return zeroed()
    return jax.lax.cond(all_kept, lambda: leaf.weighted_sum(weights), zeroed)
