"""What a clipping asks for: the sum of all rows' gradients, each times its coefficient."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp

Array = jax.Array


@dataclass(frozen=True)
class Clip:
    """How much of every gradient may be added.

    Attributes:
      group_of: the group of every leaf that is clipped together; None: the leaf is frozen.
      clipping_norms: `[groups]`.
      coefficients: for every leaf `[b]`, zero or more, given every leaf's squared norms `[b]`.
      coefficient: the same for a leaf that is a group of its own, from its squared norms `[b]` and
        its clipping norm. None: the coefficients of all groups depend on each other.
      fits: given coefficients, squared norms and a number, whether a gradient times its
        coefficients is at most that number times as long as the clipping norm, in every group:
        `[b] bool`. It is asked where the sum is of other roundings than the norms were.
      strict: whether the sum must keep to the clipping norm there, too. Otherwise it may be longer
        by as much as these roundings may differ.
    """

    group_of: Sequence[int | None]
    clipping_norms: Array
    coefficients: Callable[[Sequence[Array]], list[Array]]
    coefficient: Callable[[Array, Array], Array] | None
    fits: Callable[[Sequence[Array], Sequence[Array], float], Array]
    strict: bool


@dataclass(frozen=True)
class Rows:
    """What is known of the b rows (examples, or batch units) that are differentiated at a time.

    Attributes:
      values: `[b]` losses.
      squared_norms: for every leaf the squared norms `[b]`, as upper bounds, float32 or wider.
      mask: `[b] bool`, True for the rows that are not padding.
    """

    values: Array
    squared_norms: list[Array]
    mask: Array

    @cached_property
    def squared_norm(self) -> Array:
        """`[b]`: that of the whole gradient."""
        # XLA would add up all leaves again wherever it is read.
        return jax.lax.optimization_barrier(sum(self.squared_norms))

    @cached_property
    def finite(self) -> Array:
        """`[b] bool`: True where the squared norm is finite (in float32: norms below 1.8e19)."""
        return jnp.isfinite(self.squared_norm)

    @cached_property
    def valid(self) -> Array:
        """`[b] bool`: True for the rows that contribute: a masked or non-finite row does not."""
        return self.mask & self.finite
