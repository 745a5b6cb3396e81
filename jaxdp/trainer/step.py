"""The pure step."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from ..dpsgd.privatizer import Privatizer
from ..dpsgd.sums import Diagnostics, Strength
from ..gradients.per_example import per_example_grads
from ..types import Unit

PyTree = Any
State = tuple[PyTree, tuple[PyTree, PyTree]]  # parameters, (privatize's state, the optimizer's)


class StepFacts(NamedTuple):
    """What a step says of its batch, as arrays on the device: private."""

    diagnostics: Diagnostics
    strength: Strength
    bounds: jax.Array  # [groups] clipping norms


def init_state(params: PyTree, privatizer: Privatizer, optimizer: Any) -> State:
    return params, (privatizer.init(params), optimizer.init(params))


def make_train_step(
    loss: Callable[..., jax.Array],
    privatizer: Privatizer,
    optimizer: optax.GradientTransformation,
    microbatch_size: int,
    unit: Unit = "example",
) -> jax.stages.Wrapped:
    """Returns the jitted `(state, batch, mask) -> (state, facts)`.

    `batch` is the tuple of the loss's arguments after the parameters, padded where `mask` says so.
    The state is donated: its memory is used again, and the old one can't be read any more.

    Args:
      loss: of one example; with unit="batch" of a batch unit, whose last argument is its mask.
      privatizer: makes the gradient private.
      optimizer: uses the private gradient.
      microbatch_size: examples, or units, that are differentiated at a time.
      unit: whose gradient is clipped.
    """
    grads = per_example_grads(loss, unit=unit, microbatch_size=microbatch_size)

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: State, batch: PyTree, mask: jax.Array) -> tuple[State, StepFacts]:
        params, (private_state, optimizer_state) = state
        sums = privatizer.sums(grads(params, batch, mask), private_state)
        facts = StepFacts(
            sums.diagnostics,
            privatizer.strength(sums, private_state),
            private_state.clipping.clipping_bounds,
        )
        gradient, private_state = privatizer.release(sums, private_state, params)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)
        params = optax.apply_updates(params, updates)
        return (params, (private_state, optimizer_state)), facts

    return train_step
