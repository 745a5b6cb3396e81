"""The loop that takes the steps: pays, logs, saves and stops."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from .metrics import Metrics, measure
from .signals import StopRequest
from .step import PyTree, State, StepFacts


class Payment(Protocol):
    """Pays for steps: see `payment`."""

    count: int
    """Steps that were paid for and begun, those before a resume included."""

    def pay(self, step: int) -> None:
        """Returns when the step is paid for."""

    def may_stop(self, step: int) -> bool:
        """Whether nothing is paid for that would be wasted by stopping before this step."""


class Visitor(Protocol):
    """Looks at the state between steps, now and then: see `checkpoints` and `scoring`."""

    def due(self, step: int) -> bool:
        """Whether it wants to see the state after that many steps."""

    def visit(self, step: int, state: State) -> None:
        """Sees the state, which is donated to the next step afterwards."""


class NotFinite(ArithmeticError):
    """The parameters became NaN or infinite."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the parameters are not finite after step {step}")
        self.step = step


def train(
    train_step: jax.stages.Wrapped,
    state: State,
    batches: Iterable[tuple[PyTree, np.ndarray]],
    *,
    spent: Payment,
    stop: StopRequest,
    watch: Callable[[Metrics], None],
    start: int = 0,
    visitors: Sequence[Visitor] = (),
    refresh: Callable[[int, State], State] = lambda step, state: state,
) -> State:
    """Runs the steps until the batches end or a stop is requested.

    Args:
      train_step: from `make_train_step`.
      state: from `init_state`; donated.
      batches: batch and mask of every step.
      spent: every step is paid for before it is dispatched.
      stop: looked at after every step.
      watch: called with the metrics of every step.
      start: the first step.
      visitors: shown the state whenever they are due; never one whose parameters are not finite.
      refresh: called with every step and the state before it; what it returns is trained on. It
        may look at nothing but these and public data (see `refreshing`).

    Raises:
      NotFinite: if the parameters become NaN or infinite.
    """
    pending: tuple[int, StepFacts, jax.Array] | None = None

    def settle() -> None:
        if pending is not None:
            watch(measure(*pending[:2]))
            if not pending[2]:
                raise NotFinite(pending[0])

    for step, (batch, mask) in enumerate(batches, start):
        spent.pay(step)
        state = refresh(step, state)
        state, facts = train_step(state, batch, mask)
        finite = _all_finite(state[0])
        # The metrics are read one step late, so that the device never waits for this program.
        # The first step compiles, so it is waited for.
        settle()
        pending = step + 1, facts, finite
        if step == start:
            jax.block_until_ready(state)
        due = [visitor for visitor in visitors if visitor.due(step + 1)]
        if due:
            settle()
            pending = None
            for visitor in due:
                visitor.visit(step + 1, state)
        if stop.requested and spent.may_stop(step + 1):
            break
    settle()
    return jax.block_until_ready(state)


@jax.jit
def _all_finite(params: PyTree) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]))
