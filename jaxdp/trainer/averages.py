"""A moving average of the parameters: post-processing, which costs no privacy."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class AverageState(NamedTuple):
    average_step: jax.Array  # int32
    average_params: Any  # like the parameters


def average_parameters(decay: float) -> optax.GradientTransformation:
    """Keeps an exponential moving average of the parameters; changes no update.

    Put it last in a chain. At step t the decay is (1 + t)/(10 + t) if that is less: so the first
    parameters, which are random, are soon forgotten.

    Args:
      decay: the share of the old average that a step keeps, in (0, 1).

    References:
      De et al. 2022, Unlocking High-Accuracy Differentially Private Image Classification through
      Scale, section 3.4 (arXiv 2204.13650).
    """

    def init(params: Any) -> AverageState:
        # A copy: the step uses the memory of the parameters and of the average again.
        return AverageState(jnp.zeros([], jnp.int32), jax.tree.map(jnp.array, params))

    def update(updates: Any, state: AverageState, params: Any = None) -> tuple[Any, AverageState]:
        if params is None:
            raise ValueError("params is None: pass the parameters, which are averaged")
        step = state.average_step + 1
        share = jnp.minimum(decay, (1 + step) / (10 + step))
        average = jax.tree.map(
            lambda old, new: (share * old + (1 - share) * new).astype(old.dtype),
            state.average_params,
            optax.apply_updates(params, updates),
        )
        return updates, AverageState(step, average)

    return optax.GradientTransformation(init, update)


def with_average(
    optimizer: optax.GradientTransformation, decay: float
) -> optax.GradientTransformation:
    """The optimizer with a moving average behind it; the same optimizer if the decay is 0."""
    return optax.chain(optimizer, average_parameters(decay)) if decay else optimizer


def averaged(optimizer_state: Any) -> Any | None:
    """The averaged parameters in an optimizer's state, or None if it keeps no average."""
    is_average = lambda x: isinstance(x, AverageState)
    for part in jax.tree.leaves(optimizer_state, is_leaf=is_average):
        if is_average(part):
            return part.average_params
    return None


def describe(decay: float) -> str:
    """Which parameters are scored and released, in words."""
    return f"moving average, ema {decay:g}" if decay else "those after the last step"
