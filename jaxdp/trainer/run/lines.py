"""A text file that only grows: every line is a fact in JSON with a checksum of all text so far.

A line is on disk before `_append` returns. So a ledger can say what is paid for before it happens.
"""

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple, Self

from ..disk import BINARY, sync

CHECK_DIGITS = 16


class Position(NamedTuple):
    """A place in a ledger. A checkpoint keeps it, to recognise the ledger that paid for it."""

    lines: int
    check: str


class CheckedLines:
    """The base of ledgers. The file stays open until `close`, unless it was opened by `read`.

    Attributes:
      path: the file.
      torn: whether a crash left the last line half written; that line is dropped.
    """

    missing: str
    """What is lost if there is no file, for the message."""

    def __init__(self, path: Path, text: bytes, descriptor: int | None) -> None:
        self.path = path
        self.torn = False
        self._checks: list[str] = []
        self._descriptor = descriptor
        self._size = 0
        self._read(text)

    @classmethod
    def begin(cls, path: Path, first: dict[str, Any]) -> Self:
        """Makes the file, with its first line; it must not exist yet."""
        descriptor = os.open(
            path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | BINARY, 0o600
        )
        book = cls(path, b"", descriptor)
        book._append(first)
        sync(path.parent)
        return book

    @classmethod
    def open(cls, path: Path) -> Self:
        """Opens a file for reading and appending.

        Raises:
          ValueError: if there is none, or a line is damaged.
          OSError: if it can't be written to.
        """
        text = cls._text_of(path)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | BINARY)
        try:
            book = cls(path, text, descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        if book.torn:
            # The line was never synced, so nothing that it pays for has happened.
            os.ftruncate(descriptor, book._size)
        elif text and not text.endswith(b"\n"):
            os.write(descriptor, b"\n")
            book._size += 1
        os.fsync(descriptor)
        return book

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a file; nothing can be appended to it."""
        return cls(path, cls._text_of(path), None)

    def close(self) -> None:
        """Closes the file. After that nothing can be charged."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @property
    def position(self) -> Position:
        """The present end of the file, for `holds`."""
        return Position(len(self._checks), self._checks[-1])

    def holds(self, position: Position) -> bool:
        """Whether this is the file of that position, unchanged up to there."""
        lines, check = position
        return 0 < lines <= len(self._checks) and self._checks[lines - 1] == check

    def _take(self, number: int, fact: dict[str, Any]) -> None:
        """Reads the fact of a line. Raises ValueError, KeyError or TypeError if it is wrong."""
        raise NotImplementedError

    def _append(self, fact: dict[str, Any]) -> None:
        if self._descriptor is None:
            raise ValueError(f"{self.path} is not open for writing: use `open`")
        self._check_in_place(self._descriptor)
        text = json.dumps(fact)
        check = _check(self._checks[-1] if self._checks else "", text)
        line = f"{text} {check}\n".encode()
        try:
            if os.write(self._descriptor, line) < len(line):
                raise OSError(28, "No space left on device", str(self.path))
            os.fsync(self._descriptor)
        except OSError:
            os.ftruncate(self._descriptor, self._size)  # leaves no half line behind
            raise
        self._size += len(line)
        self._checks.append(check)

    def _check_in_place(self, descriptor: int) -> None:
        """Refuses a file that was deleted or replaced: what is written to it would be lost."""
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            raise FileNotFoundError(2, "the ledger was deleted", str(self.path)) from None
        mine = os.fstat(descriptor)
        if not os.path.samestat(there, mine) or there.st_size != self._size:
            raise FileExistsError(17, "somebody else wrote to the ledger", str(self.path))

    def _read(self, text: bytes) -> None:
        lines = text.split(b"\n")
        if lines[-1] == b"":
            lines.pop()
        for number, line in enumerate(lines, 1):
            try:
                self._read_line(number, line)
            except (ValueError, KeyError, TypeError) as error:
                unfinished = number == len(lines) and not text.endswith(b"\n")
                if unfinished and number > 1:
                    self.torn = True
                    return
                raise ValueError(
                    f"{self.path}, line {number} is damaged ({error}): it no longer says what "
                    "was spent, so nothing more can be paid for. Put back an undamaged copy"
                ) from None
            self._size += len(line) + 1
        self._size = min(self._size, len(text))

    def _read_line(self, number: int, line: bytes) -> None:
        text, _, check = line.decode().rpartition(" ")
        if check != _check(self._checks[-1] if self._checks else "", text):
            raise ValueError("its checksum is wrong")
        self._take(number, json.loads(text))
        self._checks.append(check)

    @classmethod
    def _text_of(cls, path: Path) -> bytes:
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            raise ValueError(f"there is no ledger {path}: {cls.missing}") from None
        if not text:
            raise ValueError(f"{path}, line 1 is missing: the ledger is empty")
        return text


def now() -> str:
    """The time, for people: no code reads it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _check(before: str, text: str) -> str:
    return hashlib.sha256(f"{before}\n{text}".encode()).hexdigest()[:CHECK_DIGITS]
