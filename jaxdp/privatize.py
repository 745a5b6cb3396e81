"""The one owner of the release: clips, sums, draws the noise, divides by a constant."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from . import keys
from .clipping import ClippingState, safe_bounds, sum_shapes
from .gradients import Microbatch, PerExampleGrads
from .groups import Groups
from .plan import Plan
from .tracing import is_traced, is_vmapped, varying_axes

Allocation = Literal["proportional", "isotropic", "dimension"]

# Norms are counted in bins of a quarter octave; the first and last are open.
NORM_BIN_EDGES = np.exp2(np.arange(-80, 81) / 4).astype(np.float32)


class PrivatizeState(NamedTuple):
    """Secret: whoever knows the key can subtract the noise."""

    privatize_key: jax.Array  # typed PRNG key, the same for the whole run
    privatize_step: jax.Array  # int32, releases made so far
    clipping: ClippingState


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Diagnostics:
    """Private facts about a batch, un-noised: for the owner of the data, never to be released."""

    count: jax.Array  # units (examples) that were not padding
    loss_sum: jax.Array  # over the finite ones
    clipped: jax.Array  # units with a gradient above its bound, in some group
    nonfinite: jax.Array  # units whose gradient was not finite, and so counted as zero
    norm_histogram: jax.Array  # [162] units per bin of gradient norm, between NORM_BIN_EDGES


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sums:
    """What a batch adds up to before the noise. Sums of disjoint parts of a batch add with `+`."""

    gradient: Any  # pytree like the parameters, float32 or wider: the clipped sum, un-noised
    counts: jax.Array  # [groups] units within the bound minus units above it, halved, un-noised
    diagnostics: Diagnostics
    # How many parts were added, and the sum of the bounds `[groups]` that each was clipped to: what
    # was clipped to other bounds than those of the release must not pass for private.
    parts: jax.Array
    bounds: jax.Array

    def __add__(self, other: "Sums") -> "Sums":
        if not isinstance(other, Sums):
            raise TypeError(f"Sums can be added to Sums only, not to {type(other).__name__}")
        return jax.tree.map(jnp.add, self, other)


class Strength(NamedTuple):
    """The clipped mean gradient beside its noise. Private: the first is un-noised."""

    clipped_mean_norm: jax.Array  # norm of the clipped sum over the divisor, before the noise
    noise_norm: jax.Array  # root mean square norm of the noise on it


class Privatizer(optax.GradientTransformationExtraArgs):
    """An Optax transformation from `PerExampleGrads` to a private mean gradient.

    Attributes:
      sums: `(grads, state) -> Sums`, the first half of `update`: the un-noised clipped sum of one
        part of the batch. Parts (microbatches, devices, hosts) are added.
      release: `(sums, state, params=None) -> (mean gradient, state)`, the second half: one noise
        for the whole logical batch. Never release two parts of one batch separately.
      strength: `(sums, state) -> Strength` of what `release` would make of them. Private.
    """

    sums: Callable[[PerExampleGrads, PrivatizeState], Sums]
    release: Callable[..., tuple[Any, PrivatizeState]]
    strength: Callable[[Sums, PrivatizeState], Strength]

    def __new__(
        cls,
        init: Callable[[Any], PrivatizeState],
        sums: Callable,
        release: Callable,
        strength: Callable,
    ) -> "Privatizer":
        def update(
            updates: PerExampleGrads,
            state: PrivatizeState,
            params: Any = None,
            **extra_args: Any,
        ) -> tuple[Any, PrivatizeState]:
            del extra_args  # Optax hands every transformation of a chain those of the others
            return release(sums(updates, state), state, params)

        self = super().__new__(cls, init, update)
        self.sums, self.release, self.strength = sums, release, strength
        return self


def privatize(
    plan: Plan, *, key: jax.Array | None = None, allocation: Allocation = "proportional"
) -> Privatizer:
    """Makes the gradient private: clip, sum, add Gaussian noise, divide by the plan's constant.

    Put it first in an `optax.chain`; everything after it is post-processing and free. The noise
    has standard deviation `plan.noise_multiplier` times the sensitivity that the plan's clipping
    has under the plan's adjacency (times 1 + `plan.rounding_slack`), whatever the bound is at that
    step. The divisor is the *expected* batch size, not the sampled one (with batch units their
    number). An empty batch is a step.

    The noise of a step is a function of (key, step, leaf), so `update` is a pure function of its
    arguments and the state's key is a secret. Use every state once: two updates from one state
    share their noise, and their difference is bare.

    Args:
      plan: the numbers of the run.
      key: None draws the noise key from the operating system's entropy when `init` is called, so
        call `init` outside `jit` and `vmap`. A key is for reproducible runs, which are not private
        if others can guess it; every `init` with it begins the same noise again.
      allocation: how the noise is spread over groups that are clipped separately, at the same
        noise multiplier: std "proportional" to the group's bound, "isotropic" (the same for all),
        or "dimension" (std² ∝ bound/√size), which has the least total energy. Clippings with one
        coefficient for all groups (`clip_multiplied`) take "proportional" only.

    References:
      Abadi et al. 2016, Deep Learning with Differential Privacy, algorithm 1 (arXiv 1607.00133).
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"plan is a {type(plan).__name__}: pass a jaxdp.Plan")
    if allocation not in _WEIGHTS:
        raise ValueError(
            f"allocation is {allocation!r}: choose one of {', '.join(map(repr, _WEIGHTS))}"
        )
    given = None if key is None else keys.stream(key, "noise")
    clipping = plan.clipping
    if clipping.joint and allocation != "proportional":
        raise ValueError(
            f"allocation is {allocation!r}: with {clipping!r} any one group may move by its whole "
            "bound, so that no group can do with less noise than in proportion to it. Give "
            "'proportional', which has the least noise everywhere"
        )

    def init(params: Any) -> PrivatizeState:
        _gradient_noise(plan, len(clipping.groups(params).names))  # refuses counts that cost all
        leaves = jax.tree.leaves(params)
        if given is None and is_traced():
            raise ValueError(
                "privatize(plan) draws its secret key in init, and init is being traced by jit or "
                "vmap: the key would become a constant that every call and every member shares. "
                "Call init outside"
            )
        if given is None:
            noise_key = keys.secret_key()
        elif is_vmapped() and not isinstance(given, jax.core.Tracer):
            raise ValueError(_SHARED_NOISE)
        else:
            # A copy: donating the state must not delete the key that this closure holds.
            data = _copy_key(jax.random.key_data(given), leaves[0])
            noise_key = jax.random.wrap_key_data(data, impl=jax.random.key_impl(given))
        return PrivatizeState(noise_key, jnp.zeros([], jnp.int32), clipping.init(params))

    def sums(grads: PerExampleGrads, state: PrivatizeState) -> Sums:
        clipping.check(grads)
        groups = clipping.groups(grads.like)

        def part(microbatch: Microbatch) -> tuple[list[Any], jax.Array, Diagnostics]:
            coefficients, within = clipping.weigh(microbatch, groups, state.clipping)
            counts = jnp.sum(
                jnp.where(microbatch.valid, within - 0.5, 0), axis=1, dtype=jnp.float32
            )
            return microbatch.weighted_sum(coefficients), counts, _diagnose(microbatch, within)

        none = jnp.zeros([], jnp.float32)
        bins = jnp.zeros(len(NORM_BIN_EDGES) + 1, jnp.float32)
        no_counts = jnp.zeros(len(groups.names), jnp.float32)
        like = (sum_shapes(grads), no_counts, Diagnostics(none, none, none, none, bins))
        leaves, counts, diagnostics = grads.sum(part, like)
        gradient = jax.tree.unflatten(jax.tree.structure(grads.like), leaves)
        return Sums(gradient, counts, diagnostics, jnp.float32(1), state.clipping.clipping_bounds)

    def release(
        sums: Sums, state: PrivatizeState, params: Any = None
    ) -> tuple[Any, PrivatizeState]:
        if not isinstance(sums, Sums):
            raise TypeError(
                f"release takes what .sums(grads, state) returned, got {type(sums).__name__}"
            )
        leaves, structure = jax.tree.flatten(sums.gradient)
        _check_reduced([*leaves, sums.counts], state.privatize_key)
        groups = clipping.groups(sums.gradient)
        noised, counts = leaves, sums.counts
        if plan.noise_multiplier != 0:  # else an infinite bound would give 0·inf
            bounds = state.clipping.clipping_bounds
            stds = noise_stds(plan, groups, bounds, allocation, state.privatize_step)
            clipped_to = sums.bounds / sums.parts
            # NaN rather than a release with noise for other bounds than the sum was clipped to.
            stds = jnp.where(jnp.allclose(clipped_to, bounds, rtol=1e-5, atol=0), stds, jnp.nan)
            # A frozen leaf's sum is zero whatever the data are: it needs no noise.
            noisy = [i for i, group in enumerate(groups.of_leaf) if group is not None]
            step_key = jax.random.fold_in(state.privatize_key, state.privatize_step)
            *released, counts = _add_noise(
                step_key,
                [stds[groups.of_leaf[i]] for i in noisy] + [jnp.float32(_count_std(plan))],
                [leaves[i] for i in noisy] + [counts],
            )
            noised = list(leaves)
            for i, leaf in zip(noisy, released, strict=True):
                noised[i] = leaf
        means = jax.tree.unflatten(structure, [leaf / plan.divisor for leaf in noised])
        if params is not None:
            means = jax.tree.map(lambda mean, p: mean.astype(p.dtype), means, params)
        adapted = clipping.adapt(
            groups, state.clipping, state.privatize_step, counts / plan.divisor + 0.5
        )
        return means, PrivatizeState(state.privatize_key, state.privatize_step + 1, adapted)

    def strength(sums: Sums, state: PrivatizeState) -> Strength:
        squares = [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(sums.gradient)]
        groups, bounds = clipping.groups(sums.gradient), state.clipping.clipping_bounds
        return Strength(
            jnp.sqrt(sum(squares)) / plan.divisor,
            noise_norm(plan, groups, bounds, allocation, state.privatize_step),
        )

    return Privatizer(init, sums, release, strength)


def noise_stds(
    plan: Plan,
    groups: Groups,
    bounds: jax.Array,
    allocation: Allocation = "proportional",
    step: jax.Array | int = 0,
) -> jax.Array:
    """Standard deviations `[groups]` of the noise on the clipped sum of every group of parameters.

    Args:
      plan: the numbers of the run.
      groups: `plan.clipping.groups(params)`.
      bounds: `[groups]` the clipping norms at this step.
      allocation: as in `privatize`.
      step: which step, for plans whose noise multiplier is a schedule.
    """
    z = jnp.asarray(_gradient_noise(plan, len(groups.names)), jnp.float32)
    deltas = plan.clipping.record_factor(plan.adjacency) * safe_bounds(groups, bounds)
    if plan.clipping.joint:
        spread = deltas  # Σ (moved_h/Δ_h)² is at most 1 for all groups together
    else:
        weights = _WEIGHTS[allocation](deltas, jnp.asarray(groups.sizes, jnp.float32))
        spread = weights * jnp.linalg.norm(deltas / weights)
    return z[jnp.minimum(step, z.size - 1)] * spread * (1 + plan.rounding_slack)


def noise_norm(
    plan: Plan,
    groups: Groups,
    bounds: jax.Array,
    allocation: Allocation = "proportional",
    step: jax.Array | int = 0,
) -> jax.Array:
    """Root mean square norm of the noise on the mean gradient; the arguments are `noise_stds`'s."""
    if plan.noise_multiplier == 0:
        return jnp.zeros([])
    stds = noise_stds(plan, groups, bounds, allocation, step)
    energy = jnp.sum(jnp.asarray(groups.sizes, jnp.float32) * jnp.square(stds))
    return jnp.sqrt(energy) / plan.divisor


# std_g = z·w_g·√Σ(Δ_h/w_h)² has noise multiplier z for any positive weights w (DESIGN rule 2).
_WEIGHTS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "proportional": lambda deltas, sizes: deltas,
    "isotropic": lambda deltas, sizes: jnp.ones_like(deltas),
    "dimension": lambda deltas, sizes: jnp.sqrt(deltas / jnp.sqrt(sizes)),
}


def _count_std(plan: Plan) -> float:
    quantile = plan.clipping.quantile
    if quantile is None:
        return 0.0
    return plan.divisor / 20 if quantile.count_std is None else quantile.count_std


def _gradient_noise(plan: Plan, num_groups: int) -> np.ndarray:
    """z of the gradient at every step, so that with the adaptive counts it is the plan's z.

    Sums and counts are one Gaussian release: their (Δ/std)² add up to 1/z² (DESIGN rule 2).
    """
    z = plan.noise_multipliers()
    if plan.clipping.quantile is None or plan.noise_multiplier == 0:
        return z
    moved = plan.clipping.count_sensitivity(plan.adjacency)
    cost = num_groups * (moved / _count_std(plan)) ** 2
    if cost * z.max() ** 2 >= 1:
        raise ValueError(
            f"the counts of {plan.clipping!r} ({num_groups}, noise std {_count_std(plan):g} each) "
            f"cost more than the noise multiplier {z.max():g} pays for: raise count_std above "
            f"{moved * z.max() * np.sqrt(num_groups):.3g}, or use fewer groups"
        )
    return z / np.sqrt(1 - cost * z**2)


_SHARED_NOISE = (
    "privatize is under vmap with one noise key for all members: they would share their noise, and "
    "the difference of two members would be released without any. Give every member its own "
    "state: stack the states of separate init calls, made outside, and vmap over them"
)


@jax.custom_batching.custom_vmap
def _copy_key(data: jax.Array, leaf: jax.Array) -> jax.Array:
    del leaf
    return jnp.array(data, copy=True)


@_copy_key.def_vmap
def _copy_key_for_members(
    axis_size: int, in_batched: list, data: jax.Array, leaf: jax.Array
) -> tuple[jax.Array, bool]:
    del axis_size, leaf
    if not in_batched[0]:
        raise ValueError(_SHARED_NOISE)
    return jnp.array(data, copy=True), True


@jax.custom_batching.custom_vmap
def _add_noise(step_key: jax.Array, stds: list, leaves: list) -> list:
    return [
        leaf + std * jax.random.normal(jax.random.fold_in(step_key, i), leaf.shape, leaf.dtype)
        for i, (std, leaf) in enumerate(zip(stds, leaves, strict=True))
    ]


@_add_noise.def_vmap
def _add_noise_to_members(
    axis_size: int, in_batched: list, step_key: jax.Array, stds: list, leaves: list
) -> tuple[list, list]:
    key_batched, *others_batched = in_batched
    if not key_batched:
        raise ValueError(_SHARED_NOISE)
    spread = lambda x, batched: x if batched else jnp.repeat(x[None], axis_size, axis=0)
    others = jax.tree.map(spread, [stds, leaves], others_batched)
    # lax.map, not vmap: a vmap here would ask for this very rule again.
    noised = jax.lax.map(lambda args: _add_noise(*args), (step_key, *others))
    return noised, [True] * len(leaves)


def _check_reduced(leaves: list[jax.Array], key: jax.Array) -> None:
    """Refuses sums that still differ between the devices of a shard_map: each would be released."""
    varying = varying_axes(leaves) - varying_axes(key)
    if varying:
        raise ValueError(
            f"the sums differ along the mesh axes {sorted(varying)}: add them up first with "
            "jax.lax.psum, then release once. Each device would add the same noise to its own part"
        )


def _diagnose(microbatch: Microbatch, within: jax.Array) -> Diagnostics:
    valid = microbatch.valid
    count = lambda rows: jnp.sum(rows, dtype=jnp.float32)
    norms = jnp.sqrt(sum(microbatch.squared_norms)).astype(jnp.float32)
    bins = jnp.searchsorted(jnp.asarray(NORM_BIN_EDGES), norms)
    losses = jnp.where(valid, microbatch.values, 0)
    return Diagnostics(
        count=count(microbatch.mask),
        loss_sum=jnp.sum(losses, dtype=jnp.float32),
        clipped=count(valid & ~jnp.all(within, axis=0)),
        nonfinite=count(microbatch.mask & ~microbatch.finite),
        norm_histogram=jnp.zeros(len(NORM_BIN_EDGES) + 1, jnp.float32).at[bins].add(valid),
    )
