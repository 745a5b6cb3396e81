"""The distribution: its name, its version, and the message about a missing extra."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

__version__ = "0.1.0"
DISTRIBUTION = "jaxdp-privacy"  # on the package index, where `jaxdp` is another project


def missing(what: str, module: str, extra: str) -> str:
    """Returns the message that a module of an extra is missing, with how to install it."""
    return (
        f"{what} needs {module}, which is not installed: pip install '{DISTRIBUTION}[{extra}]' (in "
        f"a checkout: pip install -e '.[{extra}]')"
    )


@contextmanager
def needed_by(what: str, extra: str) -> Iterator[None]:
    """Turns a failed import of another project's module into one line that names the extra.

    Args:
      what: the command or function that needs the import.
      extra: the extra that installs it.

    Raises:
      ModuleNotFoundError: with that line. If a module of jaxdp itself is missing, the error stays
        as it is.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "jaxdp":
            raise
        raise ModuleNotFoundError(missing(what, error.name, extra), name=error.name) from None


@contextmanager
def exit_without(command: str, extra: str) -> Iterator[None]:
    """Ends a command whose imports fail: prints the line of `needed_by`, with exit status 1."""
    try:
        with needed_by(command, extra):
            yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "jaxdp":
            raise
        sys.exit(str(error))
