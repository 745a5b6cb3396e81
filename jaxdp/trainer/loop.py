"""The training loop: it pays for a step, takes it, logs it, shows the state, and may stop."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import jax
import numpy as np

from ..types import PyTree
from .metrics import Metrics, measure
from .step import StepFacts, TrainState


class PaysSteps(Protocol):
    """Pays for steps. See `run.ledger`."""

    count: int
    """Steps that were paid for and begun, with those before a resume."""

    def pay(self, step: int) -> None:
        """Returns when the step is paid for."""

    def may_stop(self, step: int) -> bool:
        """Whether a stop before this step wastes no step that is paid for."""


Visit = Callable[[int, TrainState], None]


class Visitor(NamedTuple):
    """Looks at the state after some of the steps. See `run.checkpoint` and `scoring`.

    Attributes:
      due: whether it wants to see the state after so many steps.
      visit: sees the number of steps and the state, which it must not keep: the next step uses its
        memory again.
    """

    due: Callable[[int], bool]
    visit: Visit


class NotFinite(ArithmeticError):
    """The parameters became NaN or infinite."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the parameters are not finite after step {step}")
        self.step = step


class _Taken(NamedTuple):
    """A step that was dispatched, but whose numbers are not read yet."""

    step: int
    facts: StepFacts


def train(
    train_step: Callable[[TrainState, PyTree, np.ndarray], tuple[TrainState, StepFacts]],
    state: TrainState,
    batches: Iterable[tuple[PyTree, np.ndarray]],
    *,
    payment: PaysSteps,
    stop: Callable[[], bool],
    watch: Callable[[Metrics], None],
    start: int = 0,
    visitors: Sequence[Visitor] = (),
    refresh: Callable[[int, TrainState], TrainState] = lambda step, state: state,
    hold: Callable[[TrainState], TrainState] = lambda state: state,
) -> TrainState:
    """Takes the steps until the batches end or a stop is requested.

    Args:
      train_step: `(state, batch, mask) -> (state, facts)`.
      state: the state before the first of these steps; donated.
      batches: the batch and the mask of every step.
      payment: pays for every step before it is dispatched.
      stop: whether to stop. The loop asks wherever a stop wastes nothing.
      watch: called with the metrics of every step.
      start: the first step.
      visitors: they see the state when they are due, but never a state that is not finite.
      refresh: called with every step and the state before it; the step starts from the state that
        it returns. It may look only at these two and at public data (see `public_norms`).
      hold: makes the state that visitors see. All processes call it, if there are several.

    Raises:
      NotFinite: if the parameters become NaN or infinite.
    """
    unread: _Taken | None = None
    for step, (batch, mask) in enumerate(batches, start):
        payment.pay(step)
        state = refresh(step, state)
        state, facts = train_step(state, batch, mask)
        # Numbers are read one step late: so the device never waits for this program.
        _read(unread, watch)
        unread = _Taken(step + 1, facts)
        if step == start:  # the first step compiles
            jax.block_until_ready(state)
        due = [visitor for visitor in visitors if visitor.due(step + 1)]
        if due:
            _read(unread, watch)
            unread = None
            seen = hold(state)
            for visitor in due:
                visitor.visit(step + 1, seen)
        if payment.may_stop(step + 1) and stop():
            break
    _read(unread, watch)
    return jax.block_until_ready(state)


def _read(taken: _Taken | None, watch: Callable[[Metrics], None]) -> None:
    """Waits for a step, passes on its metrics, and raises if its parameters are not finite."""
    if taken is None:
        return
    watch(measure(taken.step, taken.facts))
    if not taken.facts.finite:
        raise NotFinite(taken.step)
