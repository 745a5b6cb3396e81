"""The only module that releases: it clips, sums, adds the noise, and divides by a constant."""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ..gradients.jax_internals import is_traced, is_vmapped
from ..gradients.lazy import Microbatch, PerExampleGrads
from ..gradients.nnx_optimizer import gathered
from ..types import Allocation, PyTree
from . import keys
from ._checks import (
    axes_of,
    check_reduced,
    check_rows,
    check_scattered,
    check_shapes,
    check_terms,
    has_own_key,
)
from .clipping import ClippingState, sum_shapes
from .groups import Groups
from .noise import (
    ALLOCATIONS,
    SHARED_NOISE,
    copy_key,
    count_std,
    gradient_noise_multipliers,
    noise_adder,
    noise_grid,
    noise_norm,
    noise_stds,
)
from .plan import Plan
from .sums import (
    NORM_BIN_EDGES,
    Diagnostics,
    Strength,
    Sums,
    check_wide,
    diagnose,
    is_whole,
    stamp,
)


class PrivatizeState(NamedTuple):
    """The state of `privatize`. It is a secret: whoever knows the key can subtract the noise."""

    privatize_key: jax.Array  # typed PRNG key, the same for the whole run
    privatize_step: jax.Array  # int32, releases made so far
    clipping: ClippingState


@dataclass(frozen=True, eq=False)
class Privatizer:
    """An Optax transformation from `PerExampleGrads` to a private mean gradient.

    Made by `privatize`. `update` does both halves of a step: `sums`, then `release`.

    Attributes:
      plan: the numbers of the run.
      allocation: how the noise is spread over groups that are clipped separately.
      key_bits: width of the key that was given, at most as many bits of entropy: 64 for JAX's
        Threefry keys (32 if they were made of a seed), 128 for `secret_key` or where none was.
      key: the noise key, a secret; None: `init` draws one.
    """

    plan: Plan
    allocation: Allocation = "proportional"
    key_bits: int = 128
    key: jax.Array | None = field(default=None, repr=False)

    def init(self, params: Any) -> PrivatizeState:
        """The state before the first step. Without a key, call it outside `jit` and `vmap`.

        In several processes call it in all of them: all get the same key.
        """
        plan, clipping = self.plan, self.plan.clipping
        groups = clipping.groups(params)
        # Both refuse what the plan does not pay for: counts, and more numbers with noise.
        gradient_noise_multipliers(plan, len(groups.names))
        if plan.noise_multiplier != 0:
            noise_grid(plan, groups)
        about = f"{plan} {[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(params)]}"
        if self.key is None:
            if is_traced():
                raise ValueError(
                    "privatize(plan) draws its secret key in init, and init is being traced by jit "
                    "or vmap: the key would become a constant that every call and every member "
                    "shares. Call init outside"
                )
            noise_key = keys.shared_key("privatize", about)
        elif is_vmapped() and not isinstance(self.key, jax.core.Tracer):
            raise ValueError(SHARED_NOISE)
        else:
            keys.check_same_key("privatize", self.key, about)
            # A copy: donating the state must not delete the key that this object holds.
            data = copy_key(jax.random.key_data(self.key), jax.tree.leaves(params)[0])
            noise_key = jax.random.wrap_key_data(data, impl=jax.random.key_impl(self.key))
        return PrivatizeState(noise_key, jnp.zeros([], jnp.int32), clipping.init(params))

    def update(
        self,
        updates: PerExampleGrads,
        state: PrivatizeState,
        params: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, PrivatizeState]:
        """Makes the private mean gradient of a whole batch: `(mean gradient, state)`."""
        del extra_args  # Optax passes them to every transformation of a chain
        return self.release(self.sums(gathered(updates), state), state, params)

    def sums(
        self,
        grads: PerExampleGrads,
        state: PrivatizeState,
        part: tuple[int | jax.Array, int] = (0, 1),
    ) -> Sums:
        """The first half of `update`: the clipped sum of one part of a batch, without noise.

        Add the sums of all parts with `+`, and those of all devices of a `shard_map` with `psum`.

        Args:
          grads: the gradients of the part's records, with their mask.
          state: the state before the step.
          part: `(i, n)` for part i of n of a batch. Every part must be in the sums exactly once:
            else `release` gives NaN. The devices that `psum` adds up are counted by it.
        """
        clipping = self.plan.clipping
        clipping.check(grads)
        if grads.split_axes:
            raise ValueError(
                f"the parameters differ along the mesh axes {sorted(grads.split_axes)}, and the "
                "batch does not: norms would be of a part of each gradient only. Leave these axes "
                "to jit, shard_map(..., axis_names={the axes of the batch}), as jaxdp.Layout does"
            )
        step, norms = _step(state), state.clipping.clipping_norms
        parts = stamp(grads, step, norms, part)
        check_rows(self.plan, grads.rows_at_once)
        groups = clipping.groups(grads.like)
        clip = clipping.clip(groups, state.clipping, strict=True)  # the noise is for C itself

        def sums_of(microbatch: Microbatch) -> tuple[list[Any], jax.Array, Diagnostics]:
            check_terms(self.plan, microbatch)
            total, rows = microbatch.clipped_sum(clip)
            within = clipping.within(rows.squared_norms, groups, state.clipping)
            within = jax.lax.optimization_barrier(within)  # as in `Rows.squared_norm`
            counts = jnp.sum(jnp.where(rows.valid, within - 0.5, 0), axis=1, dtype=jnp.float32)
            return total, counts, diagnose(rows, within)

        none = jnp.zeros([], jnp.float32)
        bins = jnp.zeros(len(NORM_BIN_EDGES) + 1, jnp.float32)
        no_counts = jnp.zeros(len(groups.names), jnp.float32)
        like = (sum_shapes(grads), no_counts, Diagnostics(none, none, none, none, bins))
        leaves, counts, diagnostics = grads.sum(sums_of, like)
        gradient = jax.tree.unflatten(jax.tree.structure(grads.like), leaves)
        return Sums(gradient, counts, diagnostics, parts, clipping, grads.row_axes)

    def psum(
        self, sums: Sums, axis: str | tuple[str, ...], scattered: PyTree | None = None
    ) -> Sums:
        """Adds up the sums of the devices along axes of a mesh, inside `jax.shard_map`, at once.

        Args:
          sums: those of each device.
          axis: the axes.
          scattered: a pytree of `PartitionSpec` like the parameters: the part of the whole sum that
            each device gets, along some of the axes; None: all of it.

        Raises:
          ValueError: if they were added along the axis already, or not every array of the batch
            differs along it: then devices may have the same rows; if an axis is there twice; and if
            the sum is scattered along another axis.
        """
        check_wide(sums)
        axes = (axis,) if isinstance(axis, str) else tuple(axis)
        if len(set(axes)) < len(axes):
            raise ValueError(f"axis is {axes}: give every axis once")
        check_scattered(scattered, axes)
        for name in axes:
            if name not in sums.row_axes:
                raise ValueError(
                    f"the devices along the mesh axis {name!r} were added up already, or not every "
                    "array of the batch differs along it, so that records would count several "
                    "times: add up once, and give every device its own rows (in_specs)"
                )
        own = jnp.arange(jax.lax.axis_size(axes)) == jax.lax.axis_index(axes)
        parts = jnp.where(own[:, None, None], sums.parts, 0)
        sums = replace(
            sums,
            parts=parts.reshape(-1, sums.parts.shape[1]),
            row_axes=sums.row_axes - set(axes),
        )
        if scattered is None:
            return jax.lax.psum(sums, axes)
        gradient = jax.tree.map(partial(_scattered, axes=axes), sums.gradient, scattered)
        rest = jax.lax.psum(replace(sums, gradient=None), axes)
        return replace(rest, gradient=gradient)

    def release(
        self, sums: Sums, state: PrivatizeState, params: Any = None
    ) -> tuple[Any, PrivatizeState]:
        """The second half of `update`: adds noise once, to the sums of the whole batch.

        Never release two parts of one batch separately.

        Args:
          sums: the sums of the whole batch.
          state: the state that the sums were made with.
          params: the parameters, whose dtypes the result gets; or None.

        Returns:
          `(mean gradient, state)`. The gradient is NaN, and never a number, if a part of the batch
          is missing, was added twice or scaled; if padding came before records; for sums of another
          step, or clipped to other norms, than the state's; after the plan's last step; and where
          several devices have copies of one key.

        Raises:
          ValueError: for sums of another clipping, sums that differ between devices, and parameters
            of other shapes; and wherever JAX can't tell whether sums differ between devices.
        """
        if not isinstance(sums, Sums):
            raise TypeError(
                f"release takes what .sums(grads, state) returned, got {type(sums).__name__}"
            )
        plan, clipping = self.plan, self.plan.clipping
        if sums.clipping != clipping:
            raise ValueError(
                f"the sums were clipped by {sums.clipping!r}, and the plan's noise is for "
                f"{clipping!r}: release them by the privatizer that made them"
            )
        check_wide(sums)
        if params is not None:
            check_shapes(sums.gradient, params)
        if plan.rounding_is_bounded and sums.parts.shape[0] > plan.rounding_parts:
            raise ValueError(
                f"the sums have {sums.parts.shape[0]} parts, and the plan's rounding bound holds "
                f"for {plan.rounding_parts}: give plan.with_rounding_bound(parts=...) their number"
            )
        leaves = jax.tree.leaves(sums.gradient)
        check_reduced(sums, state.privatize_key)
        groups = clipping.groups(sums.gradient)
        # nnx.Optimizer differentiates variables, and passes plain arrays to Optax.
        like, structure = jax.tree.flatten(sums.gradient if params is None else params)
        dtypes = [leaf.dtype for leaf in like]
        # A release that must not happen is NaN.
        step = _step(state)
        allowed = is_whole(sums, step, state.clipping.clipping_norms)
        if plan.noise_multiplier == 0:  # an infinite clipping norm would give 0·inf
            divisor = jnp.where(allowed, plan.divisor, jnp.nan)
            means = [(s / divisor).astype(d) for s, d in zip(leaves, dtypes, strict=True)]
            counts = sums.counts / divisor
        else:
            allowed &= (step >= 0) & (step < plan.steps) & has_own_key(state.privatize_key)
            noised, counts = self._noised(sums, state, groups, dtypes, allowed)
            # A frozen leaf's sum is 0 or -0. The sign would tell of the data.
            zeros = [jnp.zeros(leaf.shape, d) for leaf, d in zip(leaves, dtypes, strict=True)]
            means = [noised.get(i, zero) for i, zero in enumerate(zeros)]
        adapted = clipping.adapt(groups, state.clipping, step, counts + 0.5)
        means = jax.tree.unflatten(structure, means)
        return means, PrivatizeState(state.privatize_key, step + 1, adapted)

    def _noised(
        self,
        sums: Sums,
        state: PrivatizeState,
        groups: Groups,
        dtypes: list[jnp.dtype],
        allowed: jax.Array,
    ) -> tuple[dict[int, jax.Array], jax.Array]:
        """Means with noise: of every leaf that is not frozen, by its number; and of the counts."""
        plan, quantile = self.plan, self.plan.clipping.quantile
        clipping_norms, step = state.clipping.clipping_norms, _step(state)
        grid = noise_grid(plan, groups)
        stds = noise_stds(plan, groups, clipping_norms, self.allocation, step)
        stds = jnp.where(allowed, stds, jnp.nan)
        leaves, group_of = jax.tree.leaves(sums.gradient), groups.of_leaf
        noisy = [i for i, group in enumerate(group_of) if group is not None]
        std_of, sum_of = [stds[group_of[i]] for i in noisy], [leaves[i] for i in noisy]
        dtype_of = [dtypes[i] for i in noisy]
        if quantile is not None:
            std = count_std(plan) * (1 + plan.rounding_slack) * grid.inflation
            std_of.append(jnp.where(allowed, jnp.float32(std), jnp.nan))
            sum_of.append(sums.counts)
            dtype_of.append(sums.counts.dtype)
        add_noise = noise_adder(grid.scale, plan.divisor, tuple(dtype_of))
        means = add_noise(jax.random.key_data(state.privatize_key), step, std_of, sum_of)
        counts = sums.counts / plan.divisor if quantile is None else means.pop()
        return dict(zip(noisy, means, strict=True)), counts

    def strength(self, sums: Sums, state: PrivatizeState) -> Strength:
        """The clipped mean gradient beside the noise that `release` would add. Private."""
        squares = [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(sums.gradient)]
        groups = self.plan.clipping.groups(sums.gradient)
        norms, step = state.clipping.clipping_norms, state.privatize_step
        return Strength(
            jnp.sqrt(sum(squares)) / self.plan.divisor,
            noise_norm(self.plan, groups, norms, self.allocation, step),
        )


def privatize(
    plan: Plan,
    *more: object,
    key: jax.Array | None = None,
    allocation: Allocation = "proportional",
) -> Privatizer:
    """Makes the gradient private: clip, sum, add noise, divide by the plan's constant.

    Put it first in an `optax.chain`. Everything after it is post-processing, which costs no
    privacy. The noise is a Gaussian that is rounded to a grid. It has standard deviation
    `plan.noise_multiplier` times the sensitivity of the plan's clipping under the plan's adjacency,
    at the clipping norm of that step; it is raised a little for what rounding does
    (`plan.rounding_slack` and `NoiseGrid.inflation`). The divisor is the *expected* batch size, not
    the sampled one; with batch units it is their number. An empty batch is a step, too.

    The noise of a step is a function of the key and the step. So `update` is a pure function of its
    arguments, and the state's key is a secret. Use every state once: two updates from one state
    have the same noise, and their difference has none.

    Args:
      plan: the numbers of the run.
      key: None draws the noise key, 128 bits, from the operating system's entropy when `init` is
        called, so call `init` outside `jit` and `vmap`. Give a key to make a run reproducible:
        `secret_key()`, or any JAX key, also traced. The noise key is a hash of it, which is no
        more secret than the key itself (`Privatizer.key_bits`): a run is not private if others
        can guess the key. Every `init` with it begins the same noise again.
      allocation: how the noise is spread over groups that are clipped separately, at the same
        noise multiplier: std "proportional" to the group's clipping norm C, "isotropic" (the same
        for all), or "dimension" (std² ∝ C/√size), which has the least total energy. Clippings with
        one coefficient for all groups (`clip_multiplied`) take "proportional" only.

    References:
      Abadi et al. 2016, Deep Learning with Differential Privacy, algorithm 1 (arXiv 1607.00133).
    """
    if more:
        raise TypeError(
            f"privatize takes the plan alone, and got {1 + len(more)} arguments: give the numbers "
            "of the run to jaxdp.Plan(...), and a key as key=key"
        )
    if not isinstance(plan, Plan):
        raise TypeError(f"plan is a {type(plan).__name__}: pass a jaxdp.Plan")
    if allocation not in ALLOCATIONS:
        raise ValueError(
            f"allocation is {allocation!r}: choose one of {', '.join(map(repr, ALLOCATIONS))}"
        )
    if plan.clipping.joint and allocation != "proportional":
        raise ValueError(
            f"allocation is {allocation!r}: with {plan.clipping!r} any one group may move by its "
            "whole clipping norm, so every group needs noise in proportion to it. Give "
            "'proportional'"
        )
    if key is None:
        return Privatizer(plan, allocation)
    return Privatizer(plan, allocation, keys.bits_of(key), keys.derived(key, "noise"))


def _step(state: PrivatizeState) -> jax.Array:
    """The number of the step. In a narrower type it would begin again at 0, with the same noise."""
    step = state.privatize_step
    if step.dtype != jnp.int32:
        raise ValueError(f"privatize_step has dtype {step.dtype}: leave it as int32")
    return step


def _scattered(total: jax.Array, spec: PartitionSpec, axes: tuple[str, ...]) -> jax.Array:
    """The part of the sum over the devices that a spec gives to each."""
    for dimension, entry in enumerate(spec):
        if names := axes_of(entry):
            total = jax.lax.psum_scatter(total, names, scatter_dimension=dimension, tiled=True)
            axes = tuple(name for name in axes if name not in names)
    return jax.lax.psum(total, axes) if axes else total
