"""Clipping: Optax transformations over `PerExampleGrads` that bound what one example can do."""

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .accounting import Adjacency
from .gradients import PerExampleGrads, Units

Unit = Literal["example", "batch"]
SMALLEST_BOUND = 1e-12  # below, squares of the entries of a gradient this short underflow float32


class ClippingState(NamedTuple):
    """Bounds `[groups] float32`, replaceable by `optax.tree.set(state, clipping_bounds=...)`."""

    clipping_bounds: jax.Array


class Clipping(optax.GradientTransformation):
    """An Optax transformation from `PerExampleGrads` to their clipped sum, without noise.

    Beside `init` and `update` it holds what `privatize` needs to know:

    Attributes:
      unit: "example": what is clipped is one example's gradient.
      weigh: `(units, state) -> coefficients [b] per leaf`.
      sensitivity: `(adjacency, state=None) -> Δ`, how far the clipped sum moves at most, in
        Euclidean norm, when the data change by one record.
    """

    unit: Unit
    weigh: Callable[[Units, ClippingState], list[jax.Array]]
    sensitivity: Callable[..., Any]
    _name: str

    def __new__(
        cls,
        name: str,
        init: Callable[[Any], ClippingState],
        weigh: Callable[[Units, ClippingState], list[jax.Array]],
        sensitivity: Callable[..., Any],
        unit: Unit,
    ) -> "Clipping":
        def update(
            updates: PerExampleGrads, state: ClippingState, params: Any = None
        ) -> tuple[Any, ClippingState]:
            del params
            return clipped_sum(updates, lambda units: weigh(units, state)), state

        self = super().__new__(cls, init, update)
        self._name, self.weigh, self.sensitivity, self.unit = name, weigh, sensitivity, unit
        return self

    def __repr__(self) -> str:
        return self._name


def clip_individual(bound: float) -> Clipping:
    """Clips every example's gradient to norm `bound`: g·min(1, bound/‖g‖) (Abadi et al. 2016).

    One record moves the sum of the clipped gradients by at most `bound` when it is added, removed
    or zeroed out, and by twice that when it is replaced. Norms are upper bounds that include
    rounding, so this holds for the computed sums too.

    Args:
      bound: the clipping norm C, at least 1e-12. `inf` leaves the gradients whole: good for plain
        training, but no noise hides such a sum.

    Raises:
      ValueError, TypeError: for a bound that is no positive Python number.
    """
    bound = _check_bound(bound)

    def init(params: Any) -> ClippingState:
        del params
        return ClippingState(clipping_bounds=jnp.full(1, bound, jnp.float32))

    def weigh(units: Units, state: ClippingState) -> list[jax.Array]:
        norms = jnp.sqrt(sum(units.squared_norms))
        return [jnp.minimum(1, state.clipping_bounds[0] / norms)] * len(units.leaves)

    def sensitivity(adjacency: Adjacency, state: ClippingState | None = None) -> Any:
        records_changed = 2 if adjacency == "replace_one" else 1
        return records_changed * (bound if state is None else state.clipping_bounds[0])

    return Clipping(f"clip_individual({bound:g})", init, weigh, sensitivity, "example")


def clipped_sum(grads: PerExampleGrads, weigh: Callable[[Units], Sequence[jax.Array]]) -> Any:
    """Σ over examples of coefficient times gradient: a pytree like the parameters, un-noised."""
    check_grads(grads)
    leaves = grads.fold(
        lambda total, units: [
            t + s for t, s in zip(total, units.weighted_sum(weigh(units)), strict=True)
        ],
        zeros(grads),
    )
    return jax.tree.unflatten(jax.tree.structure(grads.like), leaves)


def zeros(grads: PerExampleGrads) -> list[jax.Array]:
    """Zeros for the sum of every leaf, float32 or wider."""
    return [
        jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32))
        for p in jax.tree.leaves(grads.like)
    ]


def check_grads(grads: object) -> None:
    if not isinstance(grads, PerExampleGrads):
        raise TypeError(
            f"expected PerExampleGrads, got {type(grads).__name__}: clipping needs every example's "
            "gradient, and a gradient that is already summed or averaged can't be made private. "
            "Pass jaxdp.per_example_grads(loss)(params, batch), or your own vmap(grad) through "
            "jaxdp.from_dense, and keep other transformations after the clipping"
        )


def _check_bound(bound: float) -> float:
    if isinstance(bound, bool) or not isinstance(bound, numbers.Real):
        raise TypeError(
            f"the clipping norm is {bound!r}, a {type(bound).__name__}: give a Python number. It "
            "can't be injected as a hyperparameter, because noise and accounting rest on it"
        )
    if math.isnan(bound) or bound < SMALLEST_BOUND:
        raise ValueError(
            f"the clipping norm is {bound}: give a number of at least {SMALLEST_BOUND} (1.0 is a "
            "common start), or inf for no clipping and no privacy"
        )
    return float(bound)
