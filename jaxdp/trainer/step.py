"""The pure step: the gradients of a batch, their private mean, the optimizer's update."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..datasets.feeding import Batch, record_keys
from ..dpsgd.privatizer import Privatizer, PrivatizeState
from ..dpsgd.sums import Diagnostics, Strength
from ..gradients.per_example import per_example_grads
from ..types import Method, PyTree, Unit


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
    finite: jax.Array  # bool: whether all parameters are, after the step


def init_state(
    params: PyTree, privatizer: Privatizer, optimizer: optax.GradientTransformation
) -> TrainState:
    """The state before the first step.

    Its arrays are copies, each in its own memory: a step is given that memory, and a task may share
    arrays between leaves, an optimizer may keep the parameters as they are.
    """
    copied = lambda tree: jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)
    return TrainState(copied(params), privatizer.init(params), copied(optimizer.init(params)))


def make_train_step(
    loss: Callable[..., jax.Array],
    privatizer: Privatizer,
    optimizer: optax.GradientTransformation,
    microbatch_size: int,
    method: Method = "auto",
    unit: Unit = "example",
    constant_time: bool = False,
) -> jax.stages.Wrapped:
    """Returns the jitted function `(state, batch, mask, frozen) -> (state, facts)`.

    `batch` is a `Batch`: rows are padding where `mask` is False. `frozen` are the parameters that
    are not trained. The state is donated: its memory is used again, so the old state can't be read
    after.

    Args:
      loss: the loss of one record, `(params, record, key, shared=(frozen,))`; with unit="batch"
        that of a batch unit, `(params, records, keys, mask, shared=(frozen,))`. A key is that of
        its record at this step.
      privatizer: makes the gradient private.
      optimizer: uses the private gradient.
      microbatch_size: number of examples (or units) that are differentiated at a time.
      method: as in `per_example_grads`.
      unit: what is clipped.
      constant_time: as in `per_example_grads`.
    """

    grads = per_example_grads(
        loss,
        method=method,
        unit=unit,
        microbatch_size=microbatch_size,
        constant_time=constant_time,
    )

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(
        state: TrainState, batch: Batch, mask: jax.Array, frozen: PyTree
    ) -> tuple[TrainState, StepFacts]:
        params, private, optimizer_state = state
        examples = (batch.records, record_keys(batch.key, batch.ids))
        sums = privatizer.sums(grads(params, examples, mask, shared=(frozen,)), private)
        strength, norms = privatizer.strength(sums, private), private.clipping.clipping_norms
        gradient, private = privatizer.release(sums, private, params)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)
        params = optax.apply_updates(params, updates)
        facts = StepFacts(sums.diagnostics, strength, norms, _all_finite(params))
        return TrainState(params, private, optimizer_state), facts

    return train_step


def _all_finite(params: PyTree) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]))
