"""The pure step: the gradients of a batch, their private mean, the optimizer's update."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..datasets.feeding import Batch, record_keys
from ..dpsgd.devices import Layout
from ..dpsgd.privatizer import Privatizer, PrivatizeState
from ..dpsgd.sums import Diagnostics, Strength, Sums
from ..gradients.lazy import PerExampleGrads
from ..gradients.per_example import per_example_grads
from ..types import Method, PyTree, Unit


class TrainState(NamedTuple):
    """All that a step changes. A checkpoint names its arrays after these fields."""

    params: PyTree
    privatize: PrivatizeState  # its key is a secret
    optimizer: PyTree
    measured: PyTree | None = None  # parameters that the first step measures

    def with_clipping_norms(self, clipping_norms: jax.Array) -> "TrainState":
        """The same state with other clipping norms `[groups]`."""
        clipping = self.privatize.clipping._replace(clipping_norms=clipping_norms)
        return self._replace(privatize=self.privatize._replace(clipping=clipping))


class StepFacts(NamedTuple):
    """Facts about a step's batch, as arrays on the device. They are private."""

    diagnostics: Diagnostics
    strength: Strength
    clipping_norms: jax.Array  # [groups]
    finite: jax.Array  # bool: whether all numbers are that the step changed
    measures: jax.Array  # bool: whether it has measured, and updated nothing


def init_state(
    params: PyTree,
    privatizer: Privatizer,
    optimizer: optax.GradientTransformation,
    measured: PyTree | None = None,
) -> TrainState:
    """The state before the first step.

    Its arrays are copies, each in its own memory: a step is given that memory, and a task may share
    arrays between leaves, an optimizer may keep the parameters as they are.
    """
    copied = lambda tree: jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)
    state = copied(optimizer.init(params))
    return TrainState(copied(params), privatizer.init(params), state, copied(measured))


def make_train_step(
    loss: Callable[..., jax.Array],
    privatizer: Privatizer,
    optimizer: optax.GradientTransformation,
    microbatch_size: int,
    method: Method = "auto",
    unit: Unit = "example",
    constant_time: bool = False,
    numbers_of: Callable[[PyTree], PyTree] | None = None,
    layout: Layout | None = None,
) -> jax.stages.Wrapped:
    """Returns the jitted function `(state, batch, mask, frozen) -> (state, facts)`.

    `batch` is a `Batch`: rows are padding where `mask` is False. `frozen` are the parameters that
    stay as they were drawn. The state is donated: its memory is used again, so the old state can't
    be read after.

    Args:
      loss: the loss of one record, `(params, record, key, shared=(frozen, measured))`; with
        unit="batch" that of a batch unit, `(params, records, keys, mask, shared=(frozen,
        measured))`. A key is that of its record at this step.
      privatizer: makes the gradient private.
      optimizer: uses the private gradient.
      microbatch_size: number of examples (or units) that are differentiated at a time.
      method: as in `per_example_grads`.
      unit: what is clipped.
      constant_time: as in `per_example_grads`.
      numbers_of: the numbers of a record for `TrainState.measured`, in its structure. Step 0 then
        releases their mean in the place of a gradient (privacy rule 44), and updates nothing else.
        The clipping must be individual, to one constant norm.
      layout: of the devices; None: there is one.
    """

    sums = _sums_of(
        privatizer,
        per_example_grads(
            loss,
            method=method,
            unit=unit,
            microbatch_size=microbatch_size,
            constant_time=constant_time,
        ),
        layout,
    )

    def descend(
        state: TrainState, batch: Batch, mask: jax.Array, frozen: PyTree
    ) -> tuple[TrainState, StepFacts]:
        params, private, optimizer_state, measured = state
        examples = (batch.records, record_keys(batch.key, batch.ids))
        found = sums(params, examples, mask, private, shared=(frozen, measured))
        gradient, private, facts = _released(privatizer, found, private, params, measures=False)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)
        params = optax.apply_updates(params, updates)
        facts = facts._replace(finite=_all_finite(params))
        return TrainState(params, private, optimizer_state, measured), facts

    if numbers_of is None:
        return jax.jit(descend, donate_argnums=0)
    means = _make_means(numbers_of, privatizer, microbatch_size, constant_time, layout)

    def step(
        state: TrainState, batch: Batch, mask: jax.Array, frozen: PyTree
    ) -> tuple[TrainState, StepFacts]:
        return jax.lax.cond(
            state.privatize.privatize_step == 0,
            lambda: means(state, batch, mask),
            lambda: descend(state, batch, mask, frozen),
        )

    return jax.jit(step, donate_argnums=0)


def _make_means(
    numbers_of: Callable[[PyTree], PyTree],
    privatizer: Privatizer,
    microbatch_size: int,
    constant_time: bool,
    layout: Layout | None,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, StepFacts]]:
    """Returns a step that puts private means of the records' numbers into `TrainState.measured`.

    The numbers of a record are the gradient of a linear loss, times a constant. So clipping, sum
    and noise are those of every step. Each number of the sum has one term of every record, so a
    bound on the rounding of the model's gradients holds for it too.
    """
    clipping = privatizer.plan.clipping
    norm = clipping.clipping_norm if clipping.bounded else 1.0

    def means(state: TrainState, batch: Batch, mask: jax.Array) -> tuple[TrainState, StepFacts]:
        size = sum(leaf.size for leaf in jax.tree.leaves(state.measured))
        scale = norm / math.sqrt(size)  # a root mean square of 1 becomes the clipping norm

        def loss(numbers: PyTree, record: PyTree) -> jax.Array:
            products = jax.tree.map(
                lambda n, x: jnp.sum(n * (x * scale)), numbers, numbers_of(record)
            )
            return sum(jax.tree.leaves(products), jnp.zeros([]))

        start = jax.tree.map(jnp.zeros_like, state.measured)
        grads = per_example_grads(
            loss, microbatch_size=microbatch_size, constant_time=constant_time
        )
        sums = _sums_of(privatizer, grads, layout)(start, (batch.records,), mask, state.privatize)
        released, private, facts = _released(
            privatizer, sums, state.privatize, start, measures=True
        )
        measured = jax.tree.map(lambda mean: mean / scale, released)
        return state._replace(privatize=private, measured=measured), facts

    return means


def _sums_of(
    privatizer: Privatizer, grads: Callable[..., PerExampleGrads], layout: Layout | None
) -> Callable[..., Sums]:
    """The function `(params, batch, mask, state, *, shared=None) -> Sums` of a whole batch."""
    if layout is not None:
        return layout.sums(privatizer, grads)

    def sums(
        params: PyTree, batch: tuple, mask: jax.Array, state: PrivatizeState, shared: PyTree = None
    ) -> Sums:
        return privatizer.sums(grads(params, batch, mask, shared=shared), state)

    return sums


def _released(
    privatizer: Privatizer,
    sums: Sums,
    private: PrivatizeState,
    like: PyTree,
    *,
    measures: bool,
) -> tuple[PyTree, PrivatizeState, StepFacts]:
    """The private mean of gradients of parameters like these."""
    strength, norms = privatizer.strength(sums, private), private.clipping.clipping_norms
    mean, private = privatizer.release(sums, private, like)
    # The same types for all parameters, since these two kinds of step are branches of one program.
    strength = jax.tree.map(lambda x: x.astype(jnp.float32), strength)
    facts = StepFacts(sums.diagnostics, strength, norms, _all_finite(mean), jnp.array(measures))
    return mean, private, facts


def _all_finite(params: PyTree) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]))
