"""The pure step: the gradients of a batch, their private mean, the optimizer's update."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from ..dpsgd.privatizer import Privatizer, PrivatizeState
from ..dpsgd.sums import Diagnostics, Strength
from ..gradients.per_example import per_example_grads
from ..types import PyTree, Unit


class TrainState(NamedTuple):
    """All that a step changes. A checkpoint names its arrays after these fields."""

    params: PyTree
    privatize: PrivatizeState  # its key is a secret
    optimizer: PyTree

    def with_clipping_norms(self, clipping_norms: jax.Array) -> "TrainState":
        """The same state with other clipping norms `[groups]`."""
        clipping = self.privatize.clipping._replace(clipping_norms=clipping_norms)
        return self._replace(privatize=self.privatize._replace(clipping=clipping))


class StepFacts(NamedTuple):
    """Facts about a step's batch, as arrays on the device. They are private."""

    diagnostics: Diagnostics
    strength: Strength
    clipping_norms: jax.Array  # [groups]


def init_state(params: PyTree, privatizer: Privatizer, optimizer: Any) -> TrainState:
    """The state before the first step."""
    return TrainState(params, privatizer.init(params), optimizer.init(params))


def make_train_step(
    loss: Callable[..., jax.Array],
    privatizer: Privatizer,
    optimizer: optax.GradientTransformation,
    microbatch_size: int,
    unit: Unit = "example",
    constant_time: bool = False,
) -> jax.stages.Wrapped:
    """Returns the jitted function `(state, batch, mask) -> (state, facts)`.

    `batch` is the tuple of the loss's arguments after the parameters. Rows are padding where `mask`
    is False. The state is donated: its memory is used again, so the old state can't be read after.

    Args:
      loss: the loss of one example; with unit="batch" that of a batch unit, with its mask as the
        last argument.
      privatizer: makes the gradient private.
      optimizer: uses the private gradient.
      microbatch_size: number of examples (or units) that are differentiated at a time.
      unit: what is clipped.
      constant_time: as in `per_example_grads`.
    """
    grads = per_example_grads(
        loss, unit=unit, microbatch_size=microbatch_size, constant_time=constant_time
    )

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(
        state: TrainState, batch: PyTree, mask: jax.Array
    ) -> tuple[TrainState, StepFacts]:
        params, private, optimizer_state = state
        sums = privatizer.sums(grads(params, batch, mask), private)
        facts = StepFacts(
            sums.diagnostics,
            privatizer.strength(sums, private),
            private.clipping.clipping_norms,
        )
        gradient, private = privatizer.release(sums, private, params)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)
        params = optax.apply_updates(params, updates)
        return TrainState(params, private, optimizer_state), facts

    return train_step
