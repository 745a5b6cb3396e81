"""The gradients of some rows, of all leaves: held until they are weighted, or computed again."""

from collections.abc import Sequence
from typing import Protocol

import jax
import jax.numpy as jnp

from .clip import Clip, Rows
from .representations import Dense, Representation

_SMALL = 2**18  # numbers


class Gradients(Protocol):
    """The gradients of b rows, for every leaf."""

    @property
    def values(self) -> jax.Array:
        """The losses `[b]`."""

    @property
    def one_term(self) -> bool:
        """Whether an example adds one term to each number of every sum (`Representation`)."""

    def squared_norms(self) -> list[jax.Array]:
        """For every leaf the squared norms `[b]`, as upper bounds, float32 or wider."""

    def clipped_sum(
        self, clip: Clip, mask: jax.Array, constant_time: bool
    ) -> tuple[list[jax.Array], Rows]:
        """Σ_b c_b·g_b for every leaf, and what was found on the way; invalid rows count as zero.

        Args:
          clip: makes the coefficients.
          mask: `[b] bool`, False for padding.
          constant_time: whether the time must not tell which rows are valid.
        """

    def materialize(self, valid: jax.Array) -> list[jax.Array]:
        """The gradients themselves, `[b, ...]`, invalid rows zero."""


class Held:
    """The gradients of every leaf as a representation: norms and sum are of the same numbers."""

    def __init__(self, values: jax.Array, leaves: Sequence[Representation]) -> None:
        self.values = values
        self.leaves = leaves

    @property
    def one_term(self) -> bool:
        return all(leaf.one_term for leaf in self.leaves)

    def squared_norms(self) -> list[jax.Array]:
        return [leaf.squared_norms() for leaf in self.leaves]

    def clipped_sum(
        self, clip: Clip, mask: jax.Array, constant_time: bool
    ) -> tuple[list[jax.Array], Rows]:
        rows = Rows(self.values, self.squared_norms(), mask)
        # XLA would compute them again for every leaf, from the norms of all leaves.
        coefficients = jax.lax.optimization_barrier(clip.coefficients(rows.squared_norms))
        all_valid = None if constant_time else jnp.all(rows.valid)
        totals = [
            sum_of_kept(leaf, c, rows.valid, all_valid)
            for leaf, c in zip(self.leaves, coefficients, strict=True)
        ]
        return totals, rows

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
    weights = jnp.where(kept, coefficients, 0)
    zeroed = lambda: leaf.keep(kept).weighted_sum(weights)
    small = isinstance(leaf, Dense) and leaf.gradients.size <= _SMALL
    if all_kept is None or small:
        return zeroed()
    return jax.lax.cond(all_kept, lambda: leaf.weighted_sum(weights), zeroed)
