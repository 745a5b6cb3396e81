"""The loop that takes the steps: it pays, steps, logs, shows the state around, and stops."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ..types import PyTree
from .metrics import Metrics, measure
from .signals import StopRequest
from .step import StepFacts, TrainState


class Payment(Protocol):
    """Pays for steps: see `run.ledger`."""

    count: int
    """Steps that were paid for and begun, those before a resume included."""

    def pay(self, step: int) -> None:
        """Returns when the step is paid for."""

    def may_stop(self, step: int) -> bool:
        """Whether a stop before this step would waste nothing that is paid for."""


class Visitor(Protocol):
    """Looks at the state between steps, now and then: see `run.checkpoint` and `scoring`."""

    def due(self, step: int) -> bool:
        """Whether it wants to see the state after that many steps."""

    def visit(self, step: int, state: TrainState) -> None:
        """Sees the state, which is donated to the next step afterwards."""


class NotFinite(ArithmeticError):
    """The parameters became NaN or infinite."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the parameters are not finite after step {step}")
        self.step = step


class _Taken(NamedTuple):
    """A step that was dispatched, whose numbers are not read yet."""

    step: int
    facts: StepFacts
    finite: jax.Array


def train(
    train_step: jax.stages.Wrapped,
    state: TrainState,
    batches: Iterable[tuple[PyTree, np.ndarray]],
    *,
    payment: Payment,
    stop: StopRequest,
    watch: Callable[[Metrics], None],
    start: int = 0,
    visitors: Sequence[Visitor] = (),
    refresh: Callable[[int, TrainState], TrainState] = lambda step, state: state,
) -> TrainState:
    """Takes the steps until the batches end or a stop is requested.

    Args:
      train_step: from `make_train_step`.
      state: from `init_state`; donated.
      batches: batch and mask of every step.
      payment: every step is paid for before it is dispatched.
      stop: looked at after every step.
      watch: called with the metrics of every step.
      start: the first step.
      visitors: shown the state whenever they are due, but never a state that is not finite.
      refresh: called with every step and the state before it; the step starts from the state that
        it returns. It may look at nothing but these and public data (see `public_norms`).

    Raises:
      NotFinite: if the parameters become NaN or infinite.
    """
    unread: _Taken | None = None
    for step, (batch, mask) in enumerate(batches, start):
        payment.pay(step)
        state = refresh(step, state)
        state, facts = train_step(state, batch, mask)
        finite = _all_finite(state.params)
        # Numbers are read one step late, so that the device never waits for this program.
        _read(unread, watch)
        unread = _Taken(step + 1, facts, finite)
        if step == start:  # the first step compiles
            jax.block_until_ready(state)
        due = [visitor for visitor in visitors if visitor.due(step + 1)]
        if due:
            _read(unread, watch)
            unread = None
            for visitor in due:
                visitor.visit(step + 1, state)
        if stop.requested and payment.may_stop(step + 1):
            break
    _read(unread, watch)
    return jax.block_until_ready(state)


def _read(taken: _Taken | None, watch: Callable[[Metrics], None]) -> None:
    """Reads the numbers of a step, which waits for it, and refuses to go on without finite ones."""
    if taken is None:
        return
    watch(measure(taken.step, taken.facts))
    if not taken.finite:
        raise NotFinite(taken.step)


@jax.jit
def _all_finite(params: PyTree) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]))
