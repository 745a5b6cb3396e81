"""TFDS itself: how it is imported, where it keeps sets, and how it is kept quiet."""

import contextlib
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Tell = Callable[[str], None]

NEEDED = "pip install 'jaxdp[data]' (in a checkout: pip install -e '.[data]')"


def data_folder(folder: str | None) -> str | None:
    """Where prepared sets are: the folder given, TFDS_DATA_DIR, or None for TFDS's own default."""
    return folder or os.environ.get("TFDS_DATA_DIR") or None


def import_tfds() -> Any:
    """The module tensorflow_datasets, or one line about how to get it."""
    try:
        import importlib_resources  # TFDS needs it, and does not say so
        import PIL.Image
        import tensorflow_datasets
    except ModuleNotFoundError as error:
        raise ValueError(
            f"all data sets but digits and text need {error.name}, which is not installed: {NEEDED}"
        ) from None
    del importlib_resources, PIL
    return tensorflow_datasets


def check_reachable(urls: Iterable[str]) -> None:
    """Asks for one of the addresses: TFDS itself tries for minutes where there is no network."""
    for url in list(urls)[:1]:
        request = urllib.request.Request(url, method="HEAD")
        with contextlib.suppress(urllib.error.HTTPError):  # an error is an answer too
            urllib.request.urlopen(request, timeout=20).close()


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps TFDS from logging what it thinks of decoders and folders."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
