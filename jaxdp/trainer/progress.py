"""What a run shows: a live line on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .metrics import Metrics

PLAIN_LINES = 10


class StepDisplay:
    """Shows the steps of a run and remembers how long the first took, which compiles."""

    def __init__(self, console: Console, steps: int) -> None:
        self.compile_seconds = 0.0
        self._console = console
        self._steps = steps
        self._start = time.monotonic()
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=console,
            auto_refresh=console.is_terminal,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=steps, facts="", visible=False)

    def show(self, metrics: Metrics) -> None:
        """Takes the metrics of one more step."""
        facts = "empty batch"
        if metrics.loss is not None:
            facts = f"loss {metrics.loss:.3f}, clipped {metrics.clipped_fraction:.0%}"
        if not self.compile_seconds:  # the first step of this process
            self.compile_seconds = time.monotonic() - self._start
        if self._console.is_terminal:
            self._progress.update(self._task, completed=metrics.step, facts=facts, visible=True)
            return
        every = max(1, self._steps // PLAIN_LINES)
        if metrics.step % every == 0 or metrics.step in (1, self._steps):
            seconds = time.monotonic() - self._start
            width = len(str(self._steps))
            self._console.print(
                f"step {metrics.step:{width}d}/{self._steps}  {facts}  {seconds:.1f} s"
            )


@contextmanager
def step_display(console: Console, steps: int) -> Iterator[StepDisplay]:
    """Announces the compilation, then shows the steps while the context is open."""
    console.print("Compiling the train step, then training ...")
    display = StepDisplay(console, steps)
    with display._progress:
        yield display
