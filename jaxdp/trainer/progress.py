"""What is told of a run's steps while it trains: public facts to callbacks, others to files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from .. import _distribution
from ..accounting.rounding import round_up
from ..types import Tell
from .metrics import Metrics
from .run.ledger import Ledger
from .session import Opened, Watch


@dataclass(frozen=True)
class Progress:
    """Public facts after a step: nothing in it depends on the records.

    Attributes:
      step: how many steps were taken, in the whole run.
      steps: how many the plan has.
    """

    step: int
    steps: int
    _ledger: Ledger

    @cached_property
    def epsilon(self) -> float:
        """ε that is spent, with the steps that are paid for in advance. It takes a moment."""
        return round_up(self._ledger.epsilon())


class Watchers:
    """The functions that get the metrics of every step, until it is closed."""

    def __init__(self, each: Sequence[Watch], close: Callable[[], object]) -> None:
        self.each = each
        self.close = close


def make_watchers(
    opened: Opened,
    callbacks: Sequence[Callable[[Progress], object]],
    metrics: Literal["tensorboard"] | None,
    tell: Tell,
) -> Watchers:
    """Makes the functions that see every step.

    Args:
      opened: the run.
      callbacks: get public facts.
      metrics: writes private facts as events for TensorBoard.
      tell: gets a line about a callback that fails.
    """
    steps, ledger = opened.run.plan.steps, opened.history.ledger
    working = list(callbacks)

    def call(facts: Metrics) -> None:
        for callback in list(working):
            try:
                callback(Progress(facts.step, steps, ledger))
            except Exception as error:  # it must not cost the steps that are spent
                working.remove(callback)
                tell(f"A callback failed and is not called any more: {error!r}")

    if metrics is None:
        return Watchers([call], lambda: None)
    writer = _event_writer(opened.private / "tensorboard")

    def write(facts: Metrics) -> None:
        for name, value in facts._asdict().items():
            if name != "step" and isinstance(value, (int, float)):
                writer.add_scalar(name, value, facts.step)

    return Watchers([call, write], writer.close)


def check_metrics(metrics: object) -> None:
    """Refuses metrics that can't be written, before anything is spent.

    Raises:
      ValueError: for a name that is not known, or a library that is missing.
    """
    if metrics not in (None, "tensorboard"):
        raise ValueError(f"metrics is {metrics!r}: give 'tensorboard' or None")
    if metrics == "tensorboard":
        try:
            import tensorboardX  # noqa: F401
        except ModuleNotFoundError as error:
            raise ValueError(
                _distribution.missing("metrics='tensorboard'", str(error.name), "tensorboard")
            ) from None


def _event_writer(folder: Path) -> Any:
    from tensorboardX import SummaryWriter

    folder.mkdir(mode=0o700, exist_ok=True)
    return SummaryWriter(str(folder))
