"""Clipping: an Optax transformation over `PerExampleGrads` that bounds what one record can do."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..accounting.mechanism import sensitivity_factor
from ..gradients.clip import Clip
from ..gradients.lazy import PerExampleGrads
from ..types import Adjacency, ClippingKind, Layer, Unit
from .groups import (
    SMALLEST_CLIPPING_NORM,
    ClippingNorm,
    Groups,
    all_clipping_norms,
    group_leaves,
    is_clipping_norm,
)

Array = jax.Array

_UNIT = 2.0**-23


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
    count_std: float | None  # std of the noise on each count; None: a twentieth of the divisor


@dataclass(frozen=True, repr=False)
class Clipping:
    """An Optax transformation from `PerExampleGrads` to their clipped sum, without noise.

    Made by `clip_individual`, `clip_batch`, `clip_layerwise`, `clip_multiplied`, `clip_normalised`
    and `clip_quantile`. Clippings with equal settings are equal. `init` and `update` are for Optax;
    `privatize` calls the other methods.

    Attributes:
      kind: the function that made it, without `clip_`.
      clipping_norm: C: a number or schedule; with several groups also `{pattern: number}` or a
        prefix pytree of the parameters.
      unit: "example": every example's gradient is clipped; "batch": every unit's mean gradient.
      layer: where C is one number, what gets this number: every "tensor", every "module", or with
        None all parameters as one.
      stability: γ of `clip_normalised`.
      quantile: the settings of `clip_quantile`.
    """

    kind: ClippingKind
    clipping_norm: Any
    unit: Unit = "example"
    layer: Layer | None = None
    stability: float | None = None
    quantile: Quantile | None = None

    def __post_init__(self) -> None:
        if self.unit not in ("example", "batch"):
            raise ValueError(f"unit is {self.unit!r}: give 'example' or 'batch'")
        if (self.kind, self.unit) in (("individual", "batch"), ("batch", "example")):
            raise ValueError(f"unit is {self.unit!r}, but clip_{self.kind} clips the other unit")
        if self.layer not in (None, "tensor", "module"):
            raise ValueError(f"layer is {self.layer!r}: give 'tensor' or 'module'")
        if self.layer is not None and not is_clipping_norm(self.clipping_norm):
            raise ValueError(
                f"layer is {self.layer!r}, but the clipping norms {self.clipping_norm!r} already "
                "say which layers are clipped together: leave layer out, or give one number for "
                "every layer"
            )
        if self.stability is not None and not SMALLEST_CLIPPING_NORM <= self.stability < math.inf:
            raise ValueError(
                f"stability is {self.stability}: give a number of at least "
                f"{SMALLEST_CLIPPING_NORM} (0.01 is usual)"
            )
        # A copy: the caller may change the containers later.
        object.__setattr__(self, "clipping_norm", _copied(self.clipping_norm))

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

        clip = self.clip(groups, state, strict=False)
        total = updates.sum(lambda part: part.clipped_sum(clip)[0], sum_shapes(updates))
        return jax.tree.unflatten(jax.tree.structure(updates.like), total), state

    @property
    def joint(self) -> bool:
        """Whether one coefficient scales all groups, so that Σ (‖g_h‖/C_h)² is at most 1.

        Norms and noise are then measured in clipping norms. Otherwise every group keeps its own.
        """
        return self.kind == "multiplied"

    @property
    def bounded(self) -> bool:
        """Whether all clipping norms are finite. Noise hides nothing if one is infinite."""
        return all(math.isfinite(norm) for norm in self._first_norms())

    def groups(self, params: Any) -> Groups:
        """The groups of parameters that are clipped separately."""
        return group_leaves(params, self.clipping_norm, self.layer)

    def clip(self, groups: Groups, state: ClippingState, *, strict: bool) -> Clip:
        """What the gradients of a microbatch are told, to add them up.

        A gradient times its coefficient is never longer than the clipping norm, because norms are
        upper bounds. `strict`: also where the gradients are computed again to add them up.
        """
        clipping_norms = safe_clipping_norms(groups, state.clipping_norms)

        def coefficients(squared_norms: Sequence[Array]) -> list[Array]:
            norms, limits = self._measured(squared_norms, groups, clipping_norms)
            of_groups = self._coefficients(norms, limits)
            nothing = jnp.zeros(norms.shape[1:], norms.dtype)
            return [nothing if g is None else of_groups[g] for g in groups.of_leaf]

        def fits(
            coefficients: Sequence[Array], squared_norms: Sequence[Array], longest: float
        ) -> Array:
            squares = [
                jnp.square(c * jnp.sqrt(squared))
                for c, squared in zip(coefficients, squared_norms, strict=True)
            ]
            norms, limits = self._measured(squares, groups, clipping_norms)
            return jnp.all(norms <= limits * longest, axis=0)

        alone = None if self.joint else self._coefficients_alone
        return Clip(groups.of_leaf, clipping_norms, coefficients, alone, fits, strict)

    def within(self, squared_norms: Sequence[Array], groups: Groups, state: ClippingState) -> Array:
        """Whether gradients are within the clipping norms `[groups, b]`.

        With `joint` the whole gradient is within or not.
        """
        clipping_norms = safe_clipping_norms(groups, state.clipping_norms)
        norms, limits = self._measured(squared_norms, groups, clipping_norms)
        return norms <= limits

    def _measured(
        self, squared_norms: Sequence[Array], groups: Groups, clipping_norms: Array
    ) -> tuple[Array, Array]:
        """The norm of each group, as an upper bound, `[groups, b]`, and how large it may be."""
        # Adding up the squared norms of the leaves may round down too.
        slack = 1 + len(groups.of_leaf) * _UNIT
        norms, limits = jnp.sqrt(groups.add_up(squared_norms) * slack), clipping_norms[:, None]
        if self.joint:
            return _measured_in(limits, norms), jnp.ones_like(limits)
        return norms, limits

    def _coefficients(self, norms: Array, clipping_norms: Array) -> Array:
        if self.stability is None:
            return jnp.minimum(1, clipping_norms / norms)
        return clipping_norms / (norms + self.stability)

    def _coefficients_alone(self, squared_norms: Array, clipping_norm: Array) -> Array:
        return self._coefficients(jnp.sqrt(squared_norms * (1 + _UNIT)), clipping_norm)

    def record_factor(self, adjacency: Adjacency) -> int:
        """How many times C a group's clipped sum may move when one record changes: 1 or 2."""
        return sensitivity_factor(self.unit, adjacency)

    def sensitivity(self, adjacency: Adjacency, clipping_norms: Array | None = None) -> Any:
        """Δ: how far the clipped sum can move, in Euclidean norm, when one record changes.

        With `joint` it is the Δ of the group with the largest clipping norm, which also has the
        most noise. Measured in clipping norms, as the noise is, it is `record_factor`.

        Args:
          adjacency: what it means that one record changes.
          clipping_norms: `[groups]` at this step. None: the first ones. A clipping with `layer`
            doesn't know how many groups there are: it needs them.
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
          groups: the groups of the parameters.
          state: the state at `step`.
          step: the number of the step.
          fractions: `[groups]` the fraction of the gradients within C, with noise.
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
        """How far one record can move a group's count: +½ if it is within C, −½ if above."""
        return self.record_factor(adjacency) / 2

    def check(self, grads: object) -> None:
        """Refuses everything except per-example gradients of this clipping's unit."""
        if not isinstance(grads, PerExampleGrads):
            raise TypeError(
                f"expected PerExampleGrads, got {type(grads).__name__}: clipping needs every "
                "example's gradient, and a gradient that is already summed or averaged can't be "
                "made private. Pass jaxdp.per_example_grads(loss)(params, batch), or your own "
                "vmap(grad) through jaxdp.from_dense, and keep other transformations after the "
                "clipping. After another privatize or clipping in the same chain, gradients are "
                "summed already: keep one of them, jaxdp.privatize(plan) alone"
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
    """The clipping norms `[groups]` of a state, which nobody has checked yet.

    They are raised to the smallest clipping norm that float32 can resolve.
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
    """An upper bound on √Σ (norm/C)² over the groups: `[groups, b]`, the same for every group."""
    ratios = norms / clipping_norms
    largest = jnp.max(ratios, axis=0)
    # They are divided by the largest: no square overflows then. Adding up may round down.
    squares = jnp.square(ratios / jnp.maximum(largest, SMALLEST_CLIPPING_NORM))
    joint = largest * jnp.sqrt(jnp.sum(squares, axis=0) * (1 + (len(ratios) + 8) * 2.0**-23))
    # Rounding up can make the norm of a finite gradient infinite: it then contributes nothing.
    joint = jnp.where(jnp.isfinite(largest), joint, jnp.inf)
    return jnp.broadcast_to(joint, norms.shape)


def _copied(norms: Any) -> Any:
    if isinstance(norms, Mapping):
        return {key: _copied(value) for key, value in norms.items()}
    return jax.tree.map(lambda norm: norm, norms)


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
