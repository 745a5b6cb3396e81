"""Files of a user: whether they were changed, and what is said of those that can't be read."""

from pathlib import Path

Stat = tuple[int, int, int, int]  # inode, size and times


def stat_of(path: Path) -> Stat:
    """What changes if a file is replaced or written to.

    Raises:
      OSError: if there is no such file, or it can't be looked at.
    """
    found = path.stat()
    # The second time can't be put back after a write.
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def why(error: OSError) -> str:
    """The system's reason, without the name of the file."""
    return (error.strerror or str(error)).lower()


def unreadable(what: str, error: OSError) -> ValueError:
    """The message, in one line, about a file that the system does not give."""
    return ValueError(f"{what} can't be read ({why(error)}): put it there, or give its right path")
