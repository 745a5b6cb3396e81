"""Writes that outlast a power failure, on every operating system."""

import os
from pathlib import Path

BINARY = getattr(os, "O_BINARY", 0)  # for `os.open`: without it, Windows writes \n as \r\n

FOLDERS_CAN_BE_SYNCED = os.name != "nt"  # Windows can't open a folder


def sync(path: Path) -> None:
    """Returns when a file, or the names in a folder, are on disk.

    On Windows nothing is done for a folder: its names are in the journal of the file system.
    """
    if not path.is_dir():
        flags = os.O_RDWR | BINARY  # Windows syncs only what may be written
    elif FOLDERS_CAN_BE_SYNCED:
        flags = os.O_RDONLY
    else:
        return
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
