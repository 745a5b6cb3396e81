"""A cache of arrays between runs, so that images are decoded only once."""

import contextlib
import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]


def cache_folder() -> Path:
    """Returns `$XDG_CACHE_HOME/jaxdp`, or `~/.cache/jaxdp` where that is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxdp"


def forget() -> int:
    """Deletes all that `cached` keeps, and returns how many files that were.

    Nothing else ever deletes it. Copies that backups made of it stay.
    """
    kept = [*cache_folder().glob("*.npz"), *cache_folder().glob("*.partial")]
    for path in kept:
        path.unlink(missing_ok=True)
    return len(kept)


def cached(name: str, make: Callable[[], Arrays]) -> Arrays:
    """Returns the arrays that are kept under a name, or makes them and keeps them.

    A damaged file is made again: NumPy checks its checksums. A file is written whole or not at
    all. Only its owner may read it, because it holds private records as they are.

    Args:
      name: of the file, without its ending.
      make: makes the arrays.
    """
    path = cache_folder() / f"{name}.npz"
    damaged = (ValueError, EOFError, KeyError, zipfile.BadZipFile)
    with contextlib.suppress(OSError, *damaged), path.open("rb") as file:
        kept = np.load(file, allow_pickle=False)
        return {key: kept[key] for key in kept.files}
    arrays = make()
    # If the disk is full or read-only, the next run makes the arrays again. That is no error.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as file:
            partial = Path(file.name)
            try:
                np.savez(file, allow_pickle=False, **arrays)
                file.flush()
                os.fsync(file.fileno())
                file.close()  # Windows renames no open file
                partial.replace(path)
            finally:
                file.close()
                partial.unlink(missing_ok=True)
    return arrays
