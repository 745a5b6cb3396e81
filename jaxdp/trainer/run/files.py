"""The files of a run: its folder, its lock, and how private files are written."""

import datetime
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner may read, whole or not at all, synced when it returns."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with open(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    partial.rename(path)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a run's folder; the system lets go when this process ends.

    Raises:
      ValueError: if another process is in it, or it is no folder of a run.
    """
    path = folder / "private" / "lock"
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise ValueError(
            f"{folder} can't be resumed ({error.strerror}: {path}): name the folder of a run, in a "
            "place that you may write to"
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.read(descriptor, 200).decode(errors="replace") or "another process"
        os.close(descriptor)
        raise ValueError(
            f"{folder} is being trained in by {holder}: wait for it or end it, two would spend the "
            "budget twice"
        ) from None
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        os.close(descriptor)


def make_run_folder(name: str, output: str | None, now: datetime.datetime) -> Path:
    """Makes the folder of a run, with `private/` in it.

    Args:
      name: name of the run.
      output: the folder, which must not exist; None makes runs/NAME-TIME.
      now: TIME.

    Raises:
      ValueError: if it exists already or can't be written.
    """
    stem = Path("runs") / f"{name}-{now:%Y%m%d-%H%M%S}" if output is None else Path(output)
    folder, attempt = stem, 1
    try:
        while True:
            try:
                folder.mkdir(parents=True)  # fails if another run has just made it
                break
            except FileExistsError:
                if output is not None:
                    raise
                attempt += 1
                folder = stem.with_name(f"{stem.name}-{attempt}")
        (folder / "private").mkdir(mode=0o700)
    except FileExistsError:
        raise ValueError(
            f"the output folder {folder} exists already, and a run never overwrites anything: "
            "name another one, or leave --output out for runs/NAME-TIME"
        ) from None
    except OSError as error:
        raise ValueError(
            f"the output folder {folder} can't be made ({error.strerror}): name one in a place "
            "that you may write to, as --output FOLDER"
        ) from None
    return folder
