"""The noise: its standard deviation for every group, and how it is drawn."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ..types import Allocation
from .clipping import safe_clipping_norms
from .groups import Groups
from .plan import Plan


def noise_stds(
    plan: Plan,
    groups: Groups,
    clipping_norms: jax.Array,
    allocation: Allocation = "proportional",
    step: jax.Array | int = 0,
) -> jax.Array:
    """Standard deviations `[groups]` of the noise on the clipped sum of every group of parameters.

    Args:
      plan: the numbers of the run.
      groups: `plan.clipping.groups(params)`.
      clipping_norms: `[groups]` the clipping norms at this step.
      allocation: as in `privatize`.
      step: the step, for plans whose noise multiplier is a schedule.
    """
    z = jnp.asarray(gradient_noise_multipliers(plan, len(groups.names)), jnp.float32)
    deltas = plan.clipping.record_factor(plan.adjacency) * safe_clipping_norms(
        groups, clipping_norms
    )
    if plan.clipping.joint:
        spread = deltas  # Σ (moved_h/Δ_h)² is at most 1 for all groups together
    else:
        weights = ALLOCATIONS[allocation](deltas, jnp.asarray(groups.sizes, jnp.float32))
        spread = weights * jnp.linalg.norm(deltas / weights)
    return z[jnp.minimum(step, z.size - 1)] * spread * (1 + plan.rounding_slack)


def noise_norm(
    plan: Plan,
    groups: Groups,
    clipping_norms: jax.Array,
    allocation: Allocation = "proportional",
    step: jax.Array | int = 0,
) -> jax.Array:
    """Root mean square norm of the noise on the mean gradient. Arguments as in `noise_stds`."""
    if plan.noise_multiplier == 0:
        return jnp.zeros([])
    stds = noise_stds(plan, groups, clipping_norms, allocation, step)
    energy = jnp.sum(jnp.asarray(groups.sizes, jnp.float32) * jnp.square(stds))
    return jnp.sqrt(energy) / plan.divisor


# std_g = z·w_g·√Σ(Δ_h/w_h)² has noise multiplier z for any positive weights w (privacy rule 2).
ALLOCATIONS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "proportional": lambda deltas, sizes: deltas,
    "isotropic": lambda deltas, sizes: jnp.ones_like(deltas),
    "dimension": lambda deltas, sizes: jnp.sqrt(deltas / jnp.sqrt(sizes)),
}


def count_std(plan: Plan) -> float:
    """Standard deviation of the noise on the counts of `clip_quantile`; 0 for other clippings."""
    quantile = plan.clipping.quantile
    if quantile is None:
        return 0.0
    return plan.divisor / 20 if quantile.count_std is None else quantile.count_std


def gradient_noise_multipliers(plan: Plan, num_groups: int) -> np.ndarray:
    """z of the gradient at every step: together with the noisy counts it makes the plan's z.

    Sums and counts are one Gaussian release: their (Δ/std)² add up to 1/z² (privacy rule 2).
    """
    z = plan.noise_multipliers()
    if plan.clipping.quantile is None or plan.noise_multiplier == 0:
        return z
    moved = plan.clipping.count_sensitivity(plan.adjacency)
    cost = num_groups * (moved / count_std(plan)) ** 2
    if cost * z.max() ** 2 >= 1:
        raise ValueError(
            f"the counts of {plan.clipping!r} ({num_groups}, noise std {count_std(plan):g} each) "
            f"cost more than the noise multiplier {z.max():g} pays for: raise count_std above "
            f"{moved * z.max() * np.sqrt(num_groups):.3g}, or use fewer groups"
        )
    return z / np.sqrt(1 - cost * z**2)


SHARED_NOISE = (
    "privatize is under vmap with one noise key for all members: they would share their noise, and "
    "the difference of two members would be released without any. Give every member its own "
    "state: stack the states of separate init calls, made outside, and vmap over them"
)


@jax.custom_batching.custom_vmap
def copy_key(data: jax.Array, leaf: jax.Array) -> jax.Array:
    """Copies key data. Under a vmap of `leaf`, every member must have its own data."""
    del leaf
    return jnp.array(data, copy=True)


@copy_key.def_vmap
def _copy_key_for_members(
    axis_size: int, in_batched: list, data: jax.Array, leaf: jax.Array
) -> tuple[jax.Array, bool]:
    del axis_size, leaf
    if not in_batched[0]:
        raise ValueError(SHARED_NOISE)
    return jnp.array(data, copy=True), True


@jax.custom_batching.custom_vmap
def add_noise(step_key: jax.Array, stds: list, leaves: list) -> list:
    """Adds Gaussian noise to every leaf, each with its own key and standard deviation.

    Under vmap every member must have a key of its own.
    """
    return [
        leaf + std * jax.random.normal(jax.random.fold_in(step_key, i), leaf.shape, leaf.dtype)
        for i, (std, leaf) in enumerate(zip(stds, leaves, strict=True))
    ]


@add_noise.def_vmap
def _add_noise_to_members(
    axis_size: int, in_batched: list, step_key: jax.Array, stds: list, leaves: list
) -> tuple[list, list]:
    key_batched, *others_batched = in_batched
    if not key_batched:
        raise ValueError(SHARED_NOISE)
    spread = lambda x, batched: x if batched else jnp.repeat(x[None], axis_size, axis=0)
    others = jax.tree.map(spread, [stds, leaves], others_batched)
    # lax.map, not vmap: a vmap here would call this rule again, without end.
    noised = jax.lax.map(lambda args: add_noise(*args), (step_key, *others))
    return noised, [True] * len(leaves)
