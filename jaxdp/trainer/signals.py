"""Ctrl-C and SIGTERM as a request to stop."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class StopRequest:
    """Whether somebody asked the run to stop after the step at work, and by which signal."""

    def __init__(self) -> None:
        self.requested = False
        self.signal: int | None = None


@contextmanager
def stop_on_signals(tell: Callable[[], None]) -> Iterator[StopRequest]:
    """Turns the first Ctrl-C or SIGTERM into a request to stop; a second one acts as usual.

    A signal that this process was started to ignore, as Ctrl-C in the background of a shell script,
    stays ignored.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread may handle signals
        return

    def handle(signum: int, frame: object) -> None:
        request.requested, request.signal = True, signum
        restore()
        tell()

    def restore() -> None:
        for signum, handler in before.items():
            signal.signal(signum, handler)

    before = {
        signum: signal.signal(signum, handle)
        for signum in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(signum) is not signal.SIG_IGN
    }
    try:
        yield request
    finally:
        restore()
