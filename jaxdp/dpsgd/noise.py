"""The noise: its standard deviation for every group, and how sums get it, on a grid.

A release is the integer m = rint(sum·s/σ) + n with n = round(N(0, s²)), s = 2^22 or 2^24; then
m·σ/s. Everything after m is post-processing. rint and the rounded Gaussian together are a rounding
of (integer + Gaussian): post-processing of the Gaussian mechanism. rint moves a sum of D numbers by
up to √D more, which `noise_grid` pays for with larger standard deviations (privacy rule 23).
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..accounting.mechanism import Mechanism, event_factor
from ..accounting.noise_charge import UNKNOWN_DRAWS
from ..gradients.jax_internals import vary, varying_axes
from ..types import Allocation
from ._noise_tables import Scale
from .clipping import Clipping, safe_clipping_norms
from .groups import Groups
from .plan import Plan
from .rounded_gaussian import element_numbers, rounded_gaussian_at

LARGEST_MOVE = 0.01  # of the noise's standard deviation; more takes the finer grid
LARGEST_SUM = 2.0**49  # in grid points: what is larger is clamped, which moves no two sums apart


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
    raised = (1 + plan.rounding_slack) * noise_grid(plan, groups).inflation
    return z[jnp.minimum(step, z.size - 1)] * spread * raised


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


@dataclass(frozen=True)
class NoiseGrid:
    """The grid on which sums are released.

    Attributes:
      scale: log2 of s, the noise's standard deviation in grid points.
      inflation: what every standard deviation is multiplied by, because sums are rounded to the
        grid: 1/(1 − z√D/s).
    """

    scale: Scale
    inflation: float


def noise_grid(plan: Plan, groups: Groups) -> NoiseGrid:
    """Chooses the grid for a model: from the numbers that the plan declares, if it does.

    Raises:
      ValueError: if more numbers get noise than the plan has paid for, or so many that rounding
        would need more noise than there is.
    """
    draws = draws_per_step(plan.clipping, groups)
    check_draws(plan, draws)
    return grid_of(plan.mechanism(), draws if plan.num_parameters is None else plan.num_parameters)


def draws_per_step(clipping: Clipping, groups: Groups) -> int:
    """How many numbers get noise in a step, the counts of `clip_quantile` included."""
    return sum(groups.sizes) + (0 if clipping.quantile is None else len(groups.names))


def check_draws(plan: Plan, draws: int) -> None:
    """Refuses a model of which more numbers get noise in a step than the plan has paid for."""
    if plan.num_parameters is None:
        if draws * plan.steps > UNKNOWN_DRAWS:
            raise ValueError(
                f"num_parameters is None, and {draws:,} numbers get noise in each of "
                f"{plan.steps:,} steps, more than the {UNKNOWN_DRAWS:g} draws that are charged "
                f"for then: give the plan num_parameters={draws}"
            )
    elif draws > plan.num_parameters:
        raise ValueError(
            f"num_parameters is {plan.num_parameters:,}, and {draws:,} numbers get noise in a "
            f"step, with the counts of clip_quantile: give the plan num_parameters={draws}"
        )


def grid_of(mechanism: Mechanism, draws: float) -> NoiseGrid:
    """The grid of a mechanism, from its largest noise multiplier.

    Raises:
      ValueError: if rounding would need more noise than there is.
    """
    # As the accountant is given it: where that doubles the sensitivity, z is twice the plan's.
    z = max((z for z, _ in mechanism.schedule), default=0.0) * event_factor(mechanism)
    moved = lambda scale: z * math.sqrt(draws) / 2.0**scale
    scale: Scale = 22 if moved(22) <= LARGEST_MOVE else 24
    if moved(scale) >= 1:
        raise ValueError(
            f"the noise multiplier is {z:g} for {draws:,} numbers: rounding them to a grid would "
            "need more noise than there is. Take a larger epsilon, fewer steps or fewer parameters"
        )
    return NoiseGrid(scale, 1 / (1 - moved(scale)))


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


_SMALL = 2**16  # numbers


@functools.cache  # so that jit knows a grid's function again
def noise_adder(
    scale: Scale, divisor: float = 1.0, dtypes: tuple[jnp.dtype, ...] | None = None
) -> Callable[[jax.Array, jax.Array, list, list], list]:
    """Returns the function `(key words [4], step, stds, sums) -> noised means` of a grid.

    Under vmap every member must have a key of its own.

    Args:
      scale: of the grid.
      divisor: of the noised sums.
      dtypes: of the results; None: of the sums.
    """

    @jax.custom_batching.custom_vmap
    def add_noise(key: jax.Array, step: jax.Array, stds: list, sums: list) -> list:
        wanted = dtypes or tuple(total.dtype for total in sums)
        means: dict[int, jax.Array] = {}
        # Elements are numbered row by row: in another shape they have the same noise.
        shapes = [total.shape if total.size > _SMALL else (total.size,) for total in sums]
        for leaves in _alike(shapes, sums, wanted):
            total = jnp.stack([sums[i].reshape(shapes[i]) for i in leaves])
            std, numbers = jnp.stack([stds[i] for i in leaves]), jnp.asarray(leaves, jnp.uint32)
            dtype = wanted[leaves[0]]
            drawn = _noised_means(key, step, numbers, std, total, scale, divisor, dtype)
            means |= zip(leaves, drawn, strict=True)
        return [means[i].reshape(total.shape) for i, total in enumerate(sums)]

    @add_noise.def_vmap
    def _for_members(
        axis_size: int, in_batched: list, key: jax.Array, step: jax.Array, stds: list, sums: list
    ) -> tuple[list, list]:
        key_batched, *others_batched = in_batched
        if not key_batched:
            raise ValueError(SHARED_NOISE)
        spread = lambda x, batched: x if batched else jnp.repeat(x[None], axis_size, axis=0)
        others = jax.tree.map(spread, [step, stds, sums], others_batched)
        stds = others[1]
        alike = jnp.sum(jnp.all(key[:, None] == key[None], axis=-1), axis=-1)
        apart = alike == 1  # members with copies of one key would share their noise
        others[1] = [jnp.where(apart, std, jnp.nan) for std in stds]
        # lax.map, not vmap: a vmap here would call this rule again, without end.
        released = jax.lax.map(lambda args: add_noise(*args), (key, *others))
        return released, [True] * len(sums)

    return add_noise


def _alike(shapes: list, sums: list, dtypes: Sequence[Any]) -> list[list[int]]:
    """The leaves that are drawn at once, by number: small ones of one size.

    A program with a loop for each of them takes long to compile. Large ones stay where they are.
    """
    groups: dict[Any, list[int]] = {}
    for i, (shape, total, dtype) in enumerate(zip(shapes, sums, dtypes, strict=True)):
        alone = i if total.size > _SMALL else None
        groups.setdefault((alone, shape, total.dtype, jnp.dtype(dtype)), []).append(i)
    return list(groups.values())


@functools.partial(jax.jit, static_argnames=("scale", "divisor", "dtype"))  # one trace for a shape
def _noised_means(
    key: jax.Array,
    step: jax.Array,
    leaves: jax.Array,
    stds: jax.Array,
    totals: jax.Array,
    scale: Scale,
    divisor: float,
    dtype: jnp.dtype,
) -> list[jax.Array]:
    """(rint(total·s/std) + n)·std/s over the divisor; NaN where total or std is not finite.

    Args:
      key, step: as for `rounded_gaussian`.
      leaves: the numbers of k leaves `[k]`.
      stds: `[k]`.
      totals: `[k, ...]`.
      scale, divisor, dtype: as in `noise_adder`.
    """

    def release(totals: jax.Array) -> jax.Array:
        return (_noised(key, step, leaves, stds, totals, scale) / divisor).astype(dtype)

    def nothing(totals: jax.Array) -> jax.Array:
        # On the devices of a mesh it differs wherever the released number does.
        axes = varying_axes((key, step, stds, totals))
        return vary(jnp.full_like(totals, jnp.nan, dtype), axes)

    # A branch of its own: else XLA would draw the noise again for everything that reads it, such
    # as either moment of Adam.
    means = jax.lax.cond(jnp.any(jnp.isfinite(stds)), release, nothing, totals)
    # Taken apart at once: so what reads them is the same program for all leaves of a shape.
    return jax.lax.optimization_barrier(list(means))


def _noised(
    key: jax.Array,
    step: jax.Array,
    leaves: jax.Array,
    stds: jax.Array,
    totals: jax.Array,
    scale: Scale,
) -> jax.Array:
    """rint(total·s/std) + n, times std/s; NaN where the total or the std is not finite."""
    k, *shape = totals.shape
    # A scalar for one leaf: so the loops of two large leaves of one shape are the same program.
    of_leaf = lambda numbers: numbers[0] if k == 1 else numbers.reshape(k, *[1] * len(shape))
    std = of_leaf(stds.astype(totals.dtype))
    # Rounded before it is split: the parts of a whole number are exact.
    points = jnp.rint(jnp.clip(totals * (2.0**scale / std), -LARGEST_SUM, LARGEST_SUM))
    # The integer in two words, m = whole·2^20 + rest with 0 <= rest < 2^20.
    high = jnp.floor(points * 2.0**-20)
    drawn = (points - high * 2.0**20).astype(jnp.int32)
    low, high_word = (word[None] for word in element_numbers(tuple(shape)))
    drawn = drawn + rounded_gaussian_at(key, step, of_leaf(leaves), low, high_word, scale)
    whole = high.astype(jnp.int32) + (drawn >> 20)
    rest = drawn & (2**20 - 1)
    value = (whole.astype(std.dtype) * 2.0**20 + rest.astype(std.dtype)) * (std / 2.0**scale)
    return jnp.where(jnp.isfinite(totals) & jnp.isfinite(std), value, jnp.nan)
