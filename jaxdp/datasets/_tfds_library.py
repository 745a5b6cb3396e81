"""The library TFDS: its import, its folder, its network and its log."""

import contextlib
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from typing import Any

from .._distribution import missing


def data_folder(folder: str | None) -> str | None:
    """Returns where prepared sets are: `folder`, TFDS_DATA_DIR, or None for TFDS's default."""
    return folder or os.environ.get("TFDS_DATA_DIR") or None


def import_tfds() -> Any:
    """Returns the module tensorflow_datasets.

    Raises:
      ValueError: in one line, if the extra is not installed.
    """
    try:
        import importlib_resources  # TFDS needs it, but does not declare it
        import PIL.Image
        import tensorflow_datasets
    except ModuleNotFoundError as error:
        what = "a data set of TFDS (not digits, texts, tables, folders or your own)"
        raise ValueError(missing(what, str(error.name), "data")) from None
    del importlib_resources, PIL
    return tensorflow_datasets


def check_reachable(urls: Iterable[str]) -> None:
    """Tries the first address, because TFDS would try for minutes without a network.

    Raises:
      OSError: if there is no answer.
    """
    for url in list(urls)[:1]:
        request = urllib.request.Request(url, method="HEAD")
        with contextlib.suppress(urllib.error.HTTPError):  # an error of the server is an answer
            urllib.request.urlopen(request, timeout=20).close()


def first_line(error: BaseException) -> str:
    """Returns the type of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps TFDS from logging warnings about decoders and folders."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
