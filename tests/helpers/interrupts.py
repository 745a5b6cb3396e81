"""Ctrl-C in tests."""

import signal
from contextlib import contextmanager


@contextmanager
def interrupts_raise():
    """Ctrl-C interrupts this process, and those started in here, as it does in a terminal.

    A build server may have started the tests to ignore it, and every child would ignore it, too.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
