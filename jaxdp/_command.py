"""What the commands share as programs: their version, and ends without a traceback."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from ._distribution import DISTRIBUTION, __version__

INTERRUPTED = 128 + signal.SIGINT  # as a shell reports it
READER_GONE = 128 + 13  # SIGPIPE, which Windows lacks

Main = Callable[[Sequence[str]], int]


def tell_version(args: Sequence[str]) -> bool:
    """Prints the version if the arguments ask for it, and returns whether they do."""
    if "--version" in args:
        print(f"{DISTRIBUTION} {__version__}")
    return "--version" in args


def tell_about(args: Sequence[str], usage: str) -> bool:
    """Prints the version or the usage if the arguments ask for it, and returns whether they do."""
    if tell_version(args):
        return True
    if {"-h", "--help"}.isdisjoint(args):
        return False
    print(usage)
    return True


def run(main: Main) -> NoReturn:
    """Runs a command as a program and ends the process with its exit status.

    Args:
      main: gets the arguments, and returns the exit status.
    """
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        status = main(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BrokenPipeError:
        status = READER_GONE  # as `| head` does: nobody wants the rest
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.stdout.flush()
    sys.stderr.flush()
    if status != 0:
        # All is written. A compilation or a checkpoint that was cut short may still have threads.
        # They would crash or print tracebacks while Python shuts down.
        os._exit(status)
    sys.exit(0)


def _is_command() -> bool:
    """Whether this process is `python -m jaxdp...` or `jaxdp ...`, before its program begins."""
    if Path(sys.argv[0]).stem == "jaxdp":
        return True
    words = sys.orig_argv
    if sys.argv[0] != "-m" or "-m" not in words:
        return False
    return words[words.index("-m") + 1].partition(".")[0] == "jaxdp"


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    os._exit(INTERRUPTED)


if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _leave)  # until `run`: Ctrl-C while a command imports
