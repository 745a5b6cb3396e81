"""Clipping: an Optax transformation over `PerExampleGrads` that bounds what one record can do."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from ..accounting.mechanism import sensitivity_factor
from ..gradients.lazy import Microbatch, PerExampleGrads
from ..types import Adjacency, Unit
from .groups import (
    SMALLEST_CLIPPING_NORM,
    ClippingNorm,
    Groups,
    Layer,
    all_clipping_norms,
    group_leaves,
    is_clipping_norm,
)

Array = jax.Array
Kind = Literal["individual", "batch", "layerwise", "multiplied", "normalised", "quantile"]


class ClippingState(NamedTuple):
    """Clipping norms `[groups] float32`.

    Replace them with `optax.tree.set(state, clipping_norms=...)`: the noise follows.
    """

    clipping_norms: Array


@dataclass(frozen=True)
class Quantile:
    """How clipping norms follow a quantile: C ← C·exp(−learning_rate·(b̄ − target))."""

    target: float
    learning_rate: float
    count_std: float | None  # of the noise on each count; None: a twentieth of the divisor


@dataclass(frozen=True, repr=False)
class Clipping:
    """An Optax transformation from `PerExampleGrads` to their clipped sum, without noise.

    Made by `clip_individual`, `clip_batch`, `clip_layerwise`, `clip_multiplied`, `clip_normalised`
    and `clip_quantile`. Clippings with equal settings are equal. Beside `init` and `update` it
    answers the questions of `privatize`.

    Attributes:
      kind: which of these functions made it.
      clipping_norm: C: a number or schedule; with several groups also `{pattern: number}` or a
        prefix pytree of the parameters.
      unit: "example" if every example's gradient is clipped, "batch" if a unit's mean gradient is.
      layer: the layers that have one number as their clipping norm; None: all parameters as one.
      stability: γ of `clip_normalised`.
      quantile: of `clip_quantile`.
    """

    kind: Kind
    clipping_norm: Any
    unit: Unit = "example"
    layer: Layer | None = None
    stability: float | None = None
    quantile: Quantile | None = None

    def __post_init__(self) -> None:
        if self.unit not in ("example", "batch"):
            raise ValueError(f"unit is {self.unit!r}: give 'example' or 'batch'")
        if (self.kind, self.unit) in (("individual", "batch"), ("batch", "example")):
            raise ValueError(f"unit is {self.unit!r}, and clip_{self.kind} clips the other one")
        if self.layer not in (None, "tensor", "module"):
            raise ValueError(f"layer is {self.layer!r}: give 'tensor' or 'module'")
        if self.layer is not None and not is_clipping_norm(self.clipping_norm):
            raise ValueError(
                f"layer is {self.layer!r}, and the clipping norms {self.clipping_norm!r} say "
                "themselves what is clipped apart: leave layer out, or give one number for every "
                "layer"
            )
        if self.stability is not None and not SMALLEST_CLIPPING_NORM <= self.stability < math.inf:
            raise ValueError(
                f"stability is {self.stability}: give a number of at least "
                f"{SMALLEST_CLIPPING_NORM} (0.01 is usual)"
            )
        if isinstance(self.clipping_norm, dict):  # a copy: the caller may change it later
            object.__setattr__(self, "clipping_norm", dict(self.clipping_norm))

    def init(self, params: Any) -> ClippingState:
        """The state before the first step."""
        return ClippingState(_norms_at(self.groups(params), 0))

    def update(
        self, updates: PerExampleGrads, state: ClippingState, params: Any = None
    ) -> tuple[Any, ClippingState]:
        """The clipped sum, without noise: `(pytree like the parameters, the same state)`."""
        del params
        self.check(updates)
        groups = self.groups(updates.like)

        def part(microbatch: Microbatch) -> list[Array]:
            return microbatch.weighted_sum(self.weigh(microbatch, groups, state)[0])

        total = updates.sum(part, sum_shapes(updates))
        return jax.tree.unflatten(jax.tree.structure(updates.like), total), state

    @property
    def joint(self) -> bool:
        """Whether one coefficient scales all groups, so that Σ (‖g_h‖/C_h)² is at most 1.

        Norms and noise are then measured in clipping norms. Otherwise every group keeps its own.
        """
        return self.kind == "multiplied"

    @property
    def bounded(self) -> bool:
        """Whether all clipping norms are finite, so that noise can hide what they let through."""
        return all(math.isfinite(norm) for norm in self._first_norms())

    def groups(self, params: Any) -> Groups:
        """The groups of parameters that are clipped separately."""
        return group_leaves(params, self.clipping_norm, self.layer)

    def weigh(
        self, microbatch: Microbatch, groups: Groups, state: ClippingState
    ) -> tuple[list[Array], Array]:
        """Weighs the gradients of a microbatch.

        A coefficient times its gradient is never longer than the clipping norm: norms are upper
        bounds. With `joint` it is the whole gradient that is within or not.

        Returns:
          Coefficients `[b]` per leaf, and per group whether the norm is within C `[groups, b]`.
        """
        clipping_norms = safe_clipping_norms(groups, state.clipping_norms)[:, None]
        # Adding up the leaves may round down too.
        slack = 1 + len(microbatch.leaves) * 2.0**-23
        norms = jnp.sqrt(groups.add_up(microbatch.squared_norms) * slack)
        if self.joint:
            norms = _measured_in(clipping_norms, norms)
            clipping_norms = jnp.ones_like(clipping_norms)
        if self.stability is None:
            coefficients = jnp.minimum(1, clipping_norms / norms)
        else:
            coefficients = clipping_norms / (norms + self.stability)
        nothing = jnp.zeros(norms.shape[1:], norms.dtype)
        per_leaf = [nothing if g is None else coefficients[g] for g in groups.of_leaf]
        return per_leaf, norms <= clipping_norms

    def record_factor(self, adjacency: Adjacency) -> int:
        """How many clipping norms a group's clipped sum moves when one record changes: 1 or 2."""
        return sensitivity_factor(self.unit, adjacency)

    def sensitivity(self, adjacency: Adjacency, clipping_norms: Array | None = None) -> Any:
        """Δ: how far the clipped sum moves, in Euclidean norm, when one record changes.

        With `joint` it is that of the group with the largest clipping norm, which also has the
        most noise; measured in clipping norms, as the noise is, it is `record_factor`.

        Args:
          adjacency: what it means that one record changes.
          clipping_norms: `[groups]` at this step. None: those that the clipping was made with,
            where they say how many groups there are.
        """
        if clipping_norms is not None:
            norm = jnp.max if self.joint else lambda c: jnp.sqrt(jnp.sum(jnp.square(c)))
            return self.record_factor(adjacency) * norm(clipping_norms)
        if self.layer is not None:
            raise ValueError(
                f"{self!r} has as many groups as the model has layers: pass the clipping norms of "
                "its state, clipping.init(params).clipping_norms"
            )
        first = self._first_norms()
        return self.record_factor(adjacency) * (max(first) if self.joint else math.hypot(*first))

    def adapt(
        self, groups: Groups, state: ClippingState, step: Array, fractions: Array
    ) -> ClippingState:
        """The clipping norms for the step after `step`.

        Args:
          groups: of the parameters.
          state: at `step`.
          step: number of the step.
          fractions: `[groups]` noised fractions of the gradients that were within C.
        """
        if self.quantile is None:
            if not any(callable(norm) for norm in groups.clipping_norms):
                return state
            return ClippingState(_norms_at(groups, step + 1))
        shrink = jnp.exp(-self.quantile.learning_rate * (fractions - self.quantile.target))
        largest = 1 / SMALLEST_CLIPPING_NORM
        adapted = jnp.clip(state.clipping_norms * shrink, SMALLEST_CLIPPING_NORM, largest)
        return ClippingState(adapted)

    def count_sensitivity(self, adjacency: Adjacency) -> float:
        """How far one group's count (within C: +½, above: −½) moves with one record."""
        return self.record_factor(adjacency) / 2

    def check(self, grads: object) -> None:
        """Refuses anything but gradients of this clipping's units."""
        if not isinstance(grads, PerExampleGrads):
            raise TypeError(
                f"expected PerExampleGrads, got {type(grads).__name__}: clipping needs every "
                "example's gradient, and a gradient that is already summed or averaged can't be "
                "made private. Pass jaxdp.per_example_grads(loss)(params, batch), or your own "
                "vmap(grad) through jaxdp.from_dense, and keep other transformations after the "
                "clipping"
            )
        if grads.unit != self.unit:
            raise ValueError(
                f'{self!r} clips the gradients of unit="{self.unit}" and got those of '
                f'unit="{grads.unit}": use per_example_grads(loss, unit="{self.unit}")'
            )

    def _first_norms(self) -> list[float]:
        norms = all_clipping_norms(self.clipping_norm)
        return [float(norm(0) if callable(norm) else norm) for norm in norms]

    def __hash__(self) -> int:
        norms = frozenset(all_clipping_norms(self.clipping_norm))  # a dict has no hash
        return hash((self.kind, norms, self.unit, self.layer, self.stability, self.quantile))

    def __repr__(self) -> str:
        """The call that makes it."""
        settings = [_text(self.clipping_norm)]
        if self.quantile is not None:
            settings += [
                f"target={_number(self.quantile.target)}",
                f"learning_rate={_number(self.quantile.learning_rate)}",
                f"count_std={self.quantile.count_std}",
            ]
        if self.stability is not None:
            settings.append(f"stability={_number(self.stability)}")
        if self.layer is not None or self.quantile is not None:
            settings.append(f"layer={self.layer!r}")
        if self.kind not in ("individual", "batch"):
            settings.append(f"unit={self.unit!r}")
        return f"clip_{self.kind}({', '.join(settings)})"


def safe_clipping_norms(groups: Groups, clipping_norms: Array) -> Array:
    """Clipping norms `[groups]` from a state, where nobody checked them.

    They are raised to the least that norms can resolve.
    """
    if clipping_norms.shape != (len(groups.names),):
        raise ValueError(
            f"the state's clipping_norms have shape {clipping_norms.shape}: there are "
            f"{len(groups.names)} groups ({', '.join(groups.names)}), so give shape "
            f"({len(groups.names)},)"
        )
    return jnp.maximum(clipping_norms, SMALLEST_CLIPPING_NORM)


def sum_shapes(grads: PerExampleGrads) -> list[jax.ShapeDtypeStruct]:
    """Shape and dtype of the sum of every leaf, float32 or wider."""
    return [
        jax.ShapeDtypeStruct(p.shape, jnp.promote_types(p.dtype, jnp.float32))
        for p in jax.tree.leaves(grads.like)
    ]


def _norms_at(groups: Groups, step: Any) -> Array:
    norms: list[ClippingNorm] = [
        norm(step) if callable(norm) else norm for norm in groups.clipping_norms
    ]
    return jnp.stack([jnp.asarray(norm, jnp.float32) for norm in norms])


def _measured_in(clipping_norms: Array, norms: Array) -> Array:
    """√Σ (norm/C)² over the groups, as an upper bound: `[groups, b]`, for every group the same."""
    ratios = norms / clipping_norms
    largest = jnp.max(ratios, axis=0)
    # Divided by the largest, so that no square overflows; adding up may round down.
    squares = jnp.square(ratios / jnp.maximum(largest, SMALLEST_CLIPPING_NORM))
    joint = largest * jnp.sqrt(jnp.sum(squares, axis=0) * (1 + (len(ratios) + 8) * 2.0**-23))
    # Rounding up can make the norm of a finite gradient infinite: it contributes nothing then.
    joint = jnp.where(jnp.isfinite(largest), joint, jnp.inf)
    return jnp.broadcast_to(joint, norms.shape)


def _text(clipping_norm: Any) -> str:
    if is_clipping_norm(clipping_norm):
        return "schedule" if callable(clipping_norm) else _number(clipping_norm)
    if isinstance(clipping_norm, Mapping):
        items = (f"{name!r}: {_text(norm)}" for name, norm in clipping_norm.items())
        return "{" + ", ".join(items) + "}"
    return repr(clipping_norm)


def _number(value: float) -> str:
    """Short, and exact: the privacy statement prints it."""
    short = f"{value:g}"
    return short if float(short) == float(value) else repr(float(value))
