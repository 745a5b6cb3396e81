"""A cache of decoded records: files and images are decoded once, and then mapped into memory.

Only the owner may read it, because it holds private records as they are. What was not used for a
month is deleted, and so is what was not used longest, where all of it would be too large.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .digests import arrays_digest

FACTS = "facts.json"
PARTIAL = "partial-"  # begins the names of folders that are being written
LIMIT, DAYS = "JAXDP_CACHE_GB", "JAXDP_CACHE_DAYS"  # environment variables
DEFAULTS = {LIMIT: 50.0, DAYS: 30.0}


class Kept(NamedTuple):
    """An entry of the cache.

    Attributes:
      arrays: mapped into memory, read-only.
      digest: of their content.
      facts: what was kept beside them.
    """

    arrays: list[np.ndarray]
    digest: str
    facts: Mapping[str, Any]


def cache_folder() -> Path:
    """Returns `$XDG_CACHE_HOME/jaxdp`, or `~/.cache/jaxdp` where that is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxdp"


def clear() -> int:
    """Deletes everything in the cache, and returns how many entries that were.

    Copies that backups made of it stay.
    """
    entries = _entries()
    for entry in entries:
        _delete(entry)
    return len(entries)


def find(key: str) -> Kept | None:
    """Returns the entry of that key. A damaged one is deleted, and None returned."""
    _expire()
    entry = cache_folder() / key
    try:
        facts = json.loads((entry / FACTS).read_text())
        arrays = [_mapped(entry / f"{i}.bin", *leaf) for i, leaf in enumerate(facts["leaves"])]
        digest = arrays_digest(arrays)
        if digest != facts["digest"]:
            raise ValueError("the content has changed")
        os.utime(entry / FACTS)
        return Kept(arrays, digest, facts["facts"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        _delete(entry)
        return None


def remembers(fact: str) -> bool:
    """Whether `remember` was called with that text."""
    return find(_key(fact)) is not None


def remember(fact: str) -> None:
    """Keeps that something was checked. If the cache can't be written, it is checked again."""
    with contextlib.suppress(OSError), writing() as entry:
        entry.finish(_key(fact), {})


def _key(fact: str) -> str:
    return f"checked-{hashlib.sha256(fact.encode()).hexdigest()}"


class Writer:
    """Writes an entry, chunk by chunk.

    Args:
      folder: where its files are until it is complete.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: list[Any] = []
        self._leaves: list[tuple[str, list[int]]] = []
        self._bytes = 0
        self._limit = _setting(LIMIT) * 1e9

    def add(self, arrays: Sequence[np.ndarray]) -> None:
        """Appends rows.

        Raises:
          OSError: if it can't be written, or gets larger than the cache may be.
        """
        if not self._leaves:
            self._leaves = [(array.dtype.str, [0, *array.shape[1:]]) for array in arrays]
            for i in range(len(arrays)):
                self._files.append(_opened(self._folder / f"{i}.bin"))
        self._bytes += sum(array.nbytes for array in arrays)
        if self._bytes > self._limit:
            raise OSError(f"the cache may have {self._limit / 1e9:g} GB ({LIMIT})")
        for array, file, (_, shape) in zip(arrays, self._files, self._leaves, strict=True):
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            shape[0] += len(array)

    def close(self) -> None:
        for file in self._files:
            file.close()

    def finish(self, key: str, facts: Mapping[str, Any]) -> Kept:
        """Makes it an entry, whole or not at all."""
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
        self.close()
        arrays = [_mapped(self._folder / f"{i}.bin", *leaf) for i, leaf in enumerate(self._leaves)]
        digest = arrays_digest(arrays)
        with _opened(self._folder / FACTS) as file:
            told = {"leaves": self._leaves, "digest": digest, "facts": dict(facts)}
            file.write(json.dumps(told).encode())
            file.flush()
            os.fsync(file.fileno())
        _make_room(self._bytes, self._limit)
        entry = cache_folder() / key
        _delete(entry)
        self._folder.replace(entry)
        # Mapped anew, so that the arrays know their file by its name, and changes are seen.
        arrays = [_mapped(entry / f"{i}.bin", *leaf) for i, leaf in enumerate(self._leaves)]
        return Kept(arrays, digest, facts)


@contextlib.contextmanager
def writing() -> Iterator[Writer]:
    """Opens a new entry; what is not finished at the end is deleted.

    Raises:
      OSError: if the cache can't be written to.
    """
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    cache.chmod(0o700)
    folder = Path(tempfile.mkdtemp(dir=cache, prefix=PARTIAL))
    writer = Writer(folder)
    try:
        yield writer
    finally:
        writer.close()
        _delete(folder)


def _mapped(path: Path, dtype: str, shape: Sequence[int]) -> np.ndarray:
    if path.stat().st_size != math.prod(shape) * np.dtype(dtype).itemsize:
        raise ValueError(f"{path} has another size")
    return np.memmap(path, dtype, "r", shape=tuple(shape))


def _opened(path: Path) -> Any:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def _entries() -> list[Path]:
    try:
        return sorted(cache_folder().iterdir())
    except OSError:  # there is none, or it can't be read
        return []


def _delete(entry: Path) -> None:
    if entry.is_dir():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):  # as rmtree is told to
            entry.unlink()


def _last_used(entry: Path) -> float:
    facts = entry / FACTS
    try:
        return (facts if facts.exists() else entry).stat().st_mtime
    except OSError:  # another process has deleted it
        return 0.0


def _size(entry: Path) -> int:
    return sum(path.stat().st_size for path in entry.glob("*.bin"))


def _expire() -> None:
    days = _setting(DAYS)
    for entry in _entries():
        if time.time() - _last_used(entry) > days * 86400:
            _delete(entry)


def _make_room(needed: int, limit: float) -> None:
    """Deletes what was not used longest, until an entry of that size fits beside the others."""
    kept = [e for e in _entries() if (e / FACTS).exists() and not e.name.startswith(PARTIAL)]
    total = sum(map(_size, kept)) + needed
    for entry in sorted(kept, key=_last_used):
        if total <= limit:
            return
        total -= _size(entry)
        _delete(entry)


def _setting(name: str) -> float:
    """A number from the environment.

    Raises:
      ValueError: if it is no number above 0.
    """
    text = os.environ.get(name, "")
    try:
        value = float(text) if text else DEFAULTS[name]
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {text!r}: give a number above 0, as {DEFAULTS[name]:g}")
    return value
