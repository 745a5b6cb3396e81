"""Turns Ctrl-C and SIGTERM into a request to stop."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class StopRequest:
    """Whether the run was asked to stop after the current step, and by which signal."""

    def __init__(self) -> None:
        self.requested = False
        self.signal: int | None = None


@contextmanager
def stop_on_signals(tell: Callable[[], None]) -> Iterator[StopRequest]:
    """Turns the first Ctrl-C or SIGTERM into a request to stop; a second one acts as usual.

    If the process was started with a signal ignored (Ctrl-C in the background of a shell script),
    the signal stays ignored.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread may handle signals
        return

    def handle(signum: int, frame: object) -> None:
        request.signal, request.requested = signum, True
        restore()
        tell()

    def restore() -> None:
        for signum, handler in before.items():
            signal.signal(signum, handler)

    before: dict[int, Any] = {}
    for signum in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(signum) is not signal.SIG_IGN:
            before[signum] = signal.signal(signum, handle)
    try:
        yield request
    finally:
        restore()
