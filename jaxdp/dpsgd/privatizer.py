"""The only module that releases: it clips, sums, adds the noise, and divides by a constant."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..gradients.jax_internals import is_traced, is_vmapped, varying_axes
from ..gradients.lazy import Microbatch, PerExampleGrads
from ..types import Allocation
from . import keys
from .clipping import ClippingState, sum_shapes
from .noise import (
    ALLOCATIONS,
    SHARED_NOISE,
    add_noise,
    copy_key,
    count_std,
    gradient_noise_multipliers,
    noise_norm,
    noise_stds,
)
from .plan import Plan
from .sums import NORM_BIN_EDGES, Diagnostics, Strength, Sums, diagnose


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
      key: the noise key, a secret; None: `init` draws one.
    """

    plan: Plan
    allocation: Allocation = "proportional"
    key: jax.Array | None = field(default=None, repr=False)

    def init(self, params: Any) -> PrivatizeState:
        """The state before the first step. Without a key, call it outside `jit` and `vmap`."""
        plan, clipping = self.plan, self.plan.clipping
        # Refuses counts that cost more than the noise multiplier pays for.
        gradient_noise_multipliers(plan, len(clipping.groups(params).names))
        if self.key is None:
            if is_traced():
                raise ValueError(
                    "privatize(plan) draws its secret key in init, and init is being traced by jit "
                    "or vmap: the key would become a constant that every call and every member "
                    "shares. Call init outside"
                )
            noise_key = keys.secret_key()
        elif is_vmapped() and not isinstance(self.key, jax.core.Tracer):
            raise ValueError(SHARED_NOISE)
        else:
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
        return self.release(self.sums(updates, state), state, params)

    def sums(self, grads: PerExampleGrads, state: PrivatizeState) -> Sums:
        """The first half of `update`: the clipped sum of one part of a batch, without noise.

        Add the sums of all parts (microbatches, devices, hosts) with `+` or `jax.lax.psum`.
        """
        clipping = self.plan.clipping
        clipping.check(grads)
        groups = clipping.groups(grads.like)

        def part(microbatch: Microbatch) -> tuple[list[Any], jax.Array, Diagnostics]:
            coefficients, within = clipping.weigh(microbatch, groups, state.clipping)
            counts = jnp.sum(
                jnp.where(microbatch.valid, within - 0.5, 0), axis=1, dtype=jnp.float32
            )
            return microbatch.weighted_sum(coefficients), counts, diagnose(microbatch, within)

        none = jnp.zeros([], jnp.float32)
        bins = jnp.zeros(len(NORM_BIN_EDGES) + 1, jnp.float32)
        no_counts = jnp.zeros(len(groups.names), jnp.float32)
        like = (sum_shapes(grads), no_counts, Diagnostics(none, none, none, none, bins))
        leaves, counts, diagnostics = grads.sum(part, like)
        gradient = jax.tree.unflatten(jax.tree.structure(grads.like), leaves)
        return Sums(gradient, counts, diagnostics, jnp.float32(1), state.clipping.clipping_norms)

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
          `(mean gradient, state)`.
        """
        if not isinstance(sums, Sums):
            raise TypeError(
                f"release takes what .sums(grads, state) returned, got {type(sums).__name__}"
            )
        plan, clipping = self.plan, self.plan.clipping
        leaves, structure = jax.tree.flatten(sums.gradient)
        _check_reduced([*leaves, sums.counts], state.privatize_key)
        groups = clipping.groups(sums.gradient)
        noised, counts = leaves, sums.counts
        if plan.noise_multiplier != 0:  # else an infinite clipping norm would give 0·inf
            clipping_norms, step = state.clipping.clipping_norms, state.privatize_step
            stds = noise_stds(plan, groups, clipping_norms, self.allocation, step)
            # If the sum was clipped to other norms, the noise would be wrong: release NaN instead.
            clipped_to = sums.clipping_norms / sums.parts
            matches = jnp.allclose(clipped_to, clipping_norms, rtol=1e-5, atol=0)
            stds = jnp.where(matches, stds, jnp.nan)
            # A frozen leaf's sum is zero for all data: it needs no noise.
            noisy = [i for i, group in enumerate(groups.of_leaf) if group is not None]
            *released, counts = add_noise(
                jax.random.fold_in(state.privatize_key, step),
                [stds[groups.of_leaf[i]] for i in noisy] + [jnp.float32(count_std(plan))],
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
    plan: Plan, *, key: jax.Array | None = None, allocation: Allocation = "proportional"
) -> Privatizer:
    """Makes the gradient private: clip, sum, add Gaussian noise, divide by the plan's constant.

    Put it first in an `optax.chain`. Everything after it is post-processing, which costs no
    privacy. The noise has standard deviation `plan.noise_multiplier` times the sensitivity of the
    plan's clipping under the plan's adjacency (times 1 + `plan.rounding_slack`), at the clipping
    norm of that step. The divisor is the *expected* batch size, not the sampled one; with batch
    units it is their number. An empty batch is a step, too.

    The noise of a step is a function of (key, step, leaf). So `update` is a pure function of its
    arguments, and the state's key is a secret. Use every state once: two updates from one state
    have the same noise, and their difference has none.

    Args:
      plan: the numbers of the run.
      key: None draws the noise key from the operating system's entropy when `init` is called, so
        call `init` outside `jit` and `vmap`. Give a key to make a run reproducible: it is not
        private if others can guess the key, and every `init` with it begins the same noise again.
      allocation: how the noise is spread over groups that are clipped separately, at the same
        noise multiplier: std "proportional" to the group's clipping norm C, "isotropic" (the same
        for all), or "dimension" (std² ∝ C/√size), which has the least total energy. Clippings with
        one coefficient for all groups (`clip_multiplied`) take "proportional" only.

    References:
      Abadi et al. 2016, Deep Learning with Differential Privacy, algorithm 1 (arXiv 1607.00133).
    """
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
    return Privatizer(plan, allocation, None if key is None else keys.stream(key, "noise"))


def _check_reduced(leaves: list[jax.Array], key: jax.Array) -> None:
    """Refuses sums that still differ between the devices of a shard_map."""
    varying = varying_axes(leaves) - varying_axes(key)
    if varying:
        raise ValueError(
            f"the sums differ along the mesh axes {sorted(varying)}: add them up first with "
            "jax.lax.psum, then release once. Each device would add the same noise to its own part"
        )
