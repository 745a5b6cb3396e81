"""Arrays kept between runs, so that images are decoded once."""

import contextlib
import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/jaxdp`, or `~/.cache/jaxdp`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxdp"


def cached(name: str, make: Callable[[], Arrays]) -> Arrays:
    """Returns the arrays kept under a name, or makes and keeps them.

    A file that is damaged (NumPy checks its checksums) is made again. Files appear whole or not at
    all, and only their owner may read them: they hold private data as it came.
    """
    path = cache_folder() / f"{name}.npz"
    damaged = (ValueError, EOFError, KeyError, zipfile.BadZipFile)
    with contextlib.suppress(OSError, *damaged), path.open("rb") as file:
        kept = np.load(file, allow_pickle=False)
        return {key: kept[key] for key in kept.files}
    arrays = make()
    # A disk that is full or may not be written costs time in the next run, and nothing else.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as file:
            partial = Path(file.name)
            try:
                np.savez(file, allow_pickle=False, **arrays)
                file.flush()
                os.fsync(file.fileno())
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
    return arrays
