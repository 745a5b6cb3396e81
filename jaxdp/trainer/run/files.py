"""The files of a run: makes and locks its folder, and writes private files.

release/                 may be shared (`release.parameters`)
private/ledger.txt       what was spent (`ledger`)
private/segment-1.json   secrets, facts, configuration and fingerprint of a segment (`segment`)
private/canaries.json    the key and coins of made-up records, if the run has some (`canaries`)
private/config.json      the configuration of the newest segment, if the command made the run
private/checkpoints/     the state after some steps (`checkpoint`)
private/metrics.jsonl    numbers about every step, without noise
private/scores.jsonl     scores of the test records during training
private/results.json     scores and times at the end
private/tensorboard/     the numbers of metrics.jsonl as events, if `fit` is asked for them
private/*.png            figures, after `python -m jaxdp.report`
private/lock             locked by the process that trains
"""

import datetime
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from filelock import lock_descriptor

from ..disk import BINARY, sync

PARTIAL = ".partial"  # the end of a file's name until it is complete


def write_private(path: Path, content: str | bytes) -> None:
    """Writes a file, whole or not at all. Only its owner may read it; it is synced on return."""
    partial = path.with_name(path.name + PARTIAL)
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY | BINARY, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(descriptor)
    partial.replace(path)
    sync(path.parent)


def append_private(path: Path) -> TextIO:
    """Opens a text file at its end. If it is new, only its owner may read it."""
    return open(path, "a", opener=lambda name, flags: os.open(name, flags, 0o600))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a run's folder. The lock ends with this process at the latest.

    Raises:
      ValueError: if another process trains in it, or it is not the folder of a run.
    """
    path = folder / "private" / "lock"
    if not path.parent.is_dir():
        raise ValueError(f"there is no run in {folder}: name the folder of a run, with private/")
    with locked_file(path, f"{folder} is being trained in", f"{folder}", "the folder of a run"):
        yield


@contextmanager
def locked_file(path: Path, busy: str, title: str, kind: str) -> Iterator[None]:
    """Keeps other processes out as long as a file is locked. It is made if it is missing.

    Args:
      path: the file.
      busy: what another process does that holds it, for the message.
      title: what is kept, for the message.
      kind: what to name instead if it can't be locked.

    Raises:
      ValueError: if another process holds it, or it can't be locked.
    """
    descriptor = None
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | BINARY, 0o600)
        mine = lock_descriptor(descriptor, blocking=False)
    except OSError as error:
        if descriptor is not None:
            os.close(descriptor)
        raise ValueError(
            f"{title} can't be locked ({error.strerror}: {path}): name {kind}, in a place that you "
            "may write to and whose file system has locks"
        ) from None
    try:
        os.lseek(descriptor, 1, os.SEEK_SET)  # Windows locks the first byte against reading, too
        if not mine:
            holder = os.read(descriptor, 200).decode(errors="replace") or "another process"
            raise ValueError(
                f"{busy} by {holder}: wait until it ends, or end it. Two processes would spend the "
                "budget twice"
            )
        me = f"process {os.getpid()} on {socket.gethostname()}".encode()
        os.write(descriptor, me)
        os.ftruncate(descriptor, 1 + len(me))
        yield
    finally:
        os.close(descriptor)


def is_locked(folder: Path) -> bool:
    """Whether a process trains in a run's folder, as far as this process may know it."""
    try:
        descriptor = os.open(folder / "private" / "lock", os.O_RDWR | BINARY)
    except OSError:
        return False
    try:
        return not lock_descriptor(descriptor, blocking=False)
    except OSError:
        return False
    finally:
        os.close(descriptor)


def make_run_folder(
    name: str, output: str | None, now: datetime.datetime, *, numbered: bool = False
) -> Path:
    """Makes the folder of a run, with `private/` in it.

    Args:
      name: name of the run.
      output: the folder, which must not exist unless `numbered`; None makes runs/NAME-TIME.
      now: the TIME in that name.
      numbered: if `output` exists, takes OUTPUT-2, OUTPUT-3, ... instead.

    Raises:
      ValueError: if it exists already or can't be made.
    """
    stem = Path("runs") / f"{name}-{now:%Y%m%d-%H%M%S}" if output is None else Path(output)
    folder, attempt = stem, 1
    try:
        while True:
            try:
                folder.mkdir(parents=True)  # fails if another run has just made it
                break
            except FileExistsError:
                if output is not None and not numbered:
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
