"""The budget ledger: the steps that a run has paid for, written to disk before the steps run.

It is a text file that only grows. Every line is a fact with a checksum of all text so far:

    {"ledger": 2, "epsilon": 3.0, "delta": 0.000336, "adjacency": "add_remove", ...} 5c1f...
    {"segment": 1, "start": 0, "noise_multiplier": 1.81, "sampling_probability": 0.5, ...} 09ab...
    {"charge": 1, "first": 0, "last": 19, "time": "2026-01-31T12:00:00Z"} e27d...
    {"sealed": 1, "time": "2026-01-31T13:00:00Z"} 77b0...

The first line fixes the budget for good. A segment is a series of steps with the same secrets and
the same computation. Its steps can be repeated for free, because they give the same results. This
ends when the run is sealed: the secrets of all segments up to the named one are destroyed (`seal`).
"""

import hashlib
import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ...accounting import composition
from ...accounting.mechanism import Mechanism
from ...types import Accountant, Adjacency, Sampling, Unit
from ..disk import BINARY, sync

CHECK_DIGITS = 16
BLOCK_SECONDS = 0.5  # time of the steps that one line charges: a sync may take as long as a step
LARGEST_BLOCK = 1000


@dataclass(frozen=True)
class Budget:
    """What is promised for all segments together; it never changes.

    An infinite epsilon, which the file says as null, promises nothing: the noise is too small.
    """

    epsilon: float
    delta: float
    adjacency: Adjacency
    unit: Unit
    sampling: Sampling = "poisson"


@dataclass(frozen=True)
class Segment:
    """A series of steps with their own secrets.

    Attributes:
      start: its first step.
      num_parameters: how many numbers get noise in a step.
      state: digest of the state before its first step.
      fingerprint: digest of the computation.
      secrets: digest of its keys. It tells nothing about them.
    """

    start: int
    noise_multiplier: float
    sampling_probability: float
    num_examples: int
    num_parameters: int
    state: str
    fingerprint: str
    secrets: str


class Position(NamedTuple):
    """A place in a ledger. A checkpoint keeps it, to recognise the ledger that paid for it."""

    lines: int
    check: str


class Ledger:
    """A ledger. Its file stays open for appending until `close`, unless it was opened by `read`.

    Attributes:
      budget: what the first line says.
      segments: the segments in order; they are numbered from 1.
      sealed: the secrets of segments up to this number are destroyed, or about to be; 0: of none.
      torn: whether a crash left the last line half written; that line is dropped.
    """

    budget: Budget

    def __init__(self, path: Path, text: bytes, descriptor: int | None) -> None:
        self.path = path
        self.segments: list[Segment] = []
        self.sealed = 0
        self.torn = False
        self._stops: list[int] = []  # of every segment, the step after its last charged one
        self._checks: list[str] = []
        self._descriptor = descriptor
        self._size = 0
        self._read(text)

    @classmethod
    def create(cls, path: Path, budget: Budget) -> "Ledger":
        """Makes the file of a new ledger; it must not exist yet."""
        if not budget.epsilon > 0:
            raise ValueError(f"epsilon of the budget is {budget.epsilon}: give a number above 0")
        if not 0 < budget.delta < 1:
            raise ValueError(
                f"delta of the budget is {budget.delta}: give a number between 0 and 1"
            )
        descriptor = os.open(
            path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | BINARY, 0o600
        )
        ledger = cls(path, b"", descriptor)
        epsilon = None if budget.epsilon == math.inf else budget.epsilon
        ledger._append({"ledger": 2, **asdict(budget), "epsilon": epsilon})
        sync(path.parent)
        ledger.budget = budget
        return ledger

    @classmethod
    def open(cls, path: Path) -> "Ledger":
        """Opens a ledger for reading and appending.

        Raises:
          ValueError: if there is no ledger, or a line is damaged.
          OSError: if the file can't be written to.
        """
        text = _text_of(path)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | BINARY)
        try:
            ledger = cls(path, text, descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        if ledger.torn:
            # The line was never synced, so no step that it pays for has run.
            os.ftruncate(descriptor, ledger._size)
        elif text and not text.endswith(b"\n"):
            os.write(descriptor, b"\n")
            ledger._size += 1
        os.fsync(descriptor)
        return ledger

    @classmethod
    def read(cls, path: Path) -> "Ledger":
        """Reads a ledger; nothing can be appended to it."""
        return cls(path, _text_of(path), None)

    def close(self) -> None:
        """Closes the file. After that nothing can be charged."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def open_segment(self, segment: Segment) -> int:
        """Appends a segment and returns its number. From now on only its steps can be charged."""
        _mechanism(self.budget, segment, 0)  # refuses numbers that can't be accounted
        self._append({"segment": len(self.segments) + 1, **asdict(segment)})
        self._add_segment(segment)
        return len(self.segments)

    def charge(self, first: int, last: int) -> None:
        """Pays for steps of the newest segment, including `last`; returns when that is on disk.

        Steps of this segment that are already charged cost nothing more.
        """
        if not self.segments:
            raise ValueError(f"{self.path} has no segment yet: open one before the first charge")
        if self.is_sealed:
            raise ValueError(
                f"the secrets of segment {len(self.segments)} are destroyed: open a new segment "
                "before the next charge"
            )
        stop = self._stops[-1]
        if not self.segments[-1].start <= first <= stop or last < first:
            raise ValueError(
                f"steps {first} to {last} can't be charged to segment {len(self.segments)}, which "
                f"began at step {self.segments[-1].start} and is charged up to {stop - 1}: charge "
                "every step, in order"
            )
        if last < stop:
            return
        self._append({"charge": len(self.segments), "first": stop, "last": last, "time": _now()})
        self._stops[-1] = last + 1

    @property
    def is_sealed(self) -> bool:
        """Whether the newest segment is sealed: no step can be charged to it or repeated."""
        return 0 < self.sealed == len(self.segments)

    def seal(self) -> None:
        """Notes that the secrets of all segments are destroyed; call it before that happens."""
        if not self.segments:
            raise ValueError(f"{self.path} has no segment yet: there are no secrets to destroy")
        if not self.is_sealed:
            self._append({"sealed": len(self.segments), "time": _now()})
            self.sealed = len(self.segments)

    def stop(self, segment: int) -> int:
        """The step after the last charged step of a segment."""
        return self._stops[segment - 1]

    @property
    def steps(self) -> int:
        """Number of charged steps, including those that were run again in a new segment."""
        return sum(m.steps for m in self.mechanisms())

    def mechanisms(self) -> list[Mechanism]:
        """Everything that was charged, for the accountants."""
        return [
            _mechanism(self.budget, segment, stop - segment.start)
            for segment, stop in zip(self.segments, self._stops, strict=True)
        ]

    def epsilon(self, accountant: Accountant | None = None) -> float:
        """ε of everything that was charged, at the budget's δ."""
        return composition.epsilon(self.mechanisms(), self.budget.delta, accountant)

    @property
    def position(self) -> Position:
        """The present end of the ledger, for `holds`."""
        return Position(len(self._checks), self._checks[-1])

    def holds(self, position: Position) -> bool:
        """Whether this is the ledger of that position, unchanged up to there."""
        lines, check = position
        return 0 < lines <= len(self._checks) and self._checks[lines - 1] == check

    def _append(self, fact: dict[str, Any]) -> None:
        if self._descriptor is None:
            raise ValueError(f"{self.path} is not open for writing: use Ledger.open")
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
                    "was spent, so no more steps can be paid for. Put back an undamaged copy"
                ) from None
            self._size += len(line) + 1
        self._size = min(self._size, len(text))

    def _read_line(self, number: int, line: bytes) -> None:
        text, _, check = line.decode().rpartition(" ")
        if check != _check(self._checks[-1] if self._checks else "", text):
            raise ValueError("its checksum is wrong")
        fact = json.loads(text)
        if number == 1:
            if fact.pop("ledger") != 2:
                raise ValueError("it is in a format of another version")
            epsilon = fact.pop("epsilon")
            self.budget = Budget(math.inf if epsilon is None else epsilon, **fact)
        elif "segment" in fact:
            if fact.pop("segment") != len(self.segments) + 1:
                raise ValueError("segments are out of order")
            self._add_segment(Segment(**fact))
        elif "sealed" in fact:
            if self.is_sealed or fact["sealed"] != len(self.segments):
                raise ValueError("seals are out of order")
            self.sealed = fact["sealed"]
        else:
            if self.is_sealed:
                raise ValueError("a step is charged to a segment that is sealed")
            if fact["charge"] != len(self.segments) or fact["first"] != self._stops[-1]:
                raise ValueError("charges are out of order")
            self._stops[-1] = fact["last"] + 1
        self._checks.append(check)

    def _add_segment(self, segment: Segment) -> None:
        self.segments.append(segment)
        self._stops.append(segment.start)


class Payment:
    """Charges the newest segment of a ledger for one block of steps at a time.

    Attributes:
      end: no step from here on may be taken.
      count: number of steps that were paid for and begun, from the first step of the run.
    """

    def __init__(self, ledger: Ledger, start: int, end: int) -> None:
        self.end = end
        self.count = start
        self._ledger = ledger
        self._charged = 0  # this process has charged up to here; repeated steps do not count
        self._block = 1
        self._since = time.monotonic()

    def pay(self, step: int) -> None:
        """Returns when the step is paid for, on disk."""
        if step >= self.end:
            raise ValueError(f"step {step} is not in the budget, which ends before {self.end}")
        if step >= self._ledger.stop(len(self._ledger.segments)):
            self._charge_from(step)
        self.count = step + 1

    def may_stop(self, step: int) -> bool:
        """Whether all steps that this process paid for come before `step`: a stop wastes none."""
        return step >= self._charged

    def _charge_from(self, step: int) -> None:
        now = time.monotonic()
        if now - self._since < BLOCK_SECONDS / 2:
            self._block = min(2 * self._block, LARGEST_BLOCK)
        elif now - self._since > BLOCK_SECONDS:
            self._block = max(self._block // 2, 1)
        self._since = now
        self._charged = min(step + self._block, self.end)
        self._ledger.charge(step, self._charged - 1)


def _text_of(path: Path) -> bytes:
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(
            f"there is no ledger {path}: nobody knows what the run has spent"
        ) from None
    if not text:
        raise ValueError(f"{path}, line 1 is missing: the ledger is empty")
    return text


def _now() -> str:
    """The time, for people: no code reads it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _check(before: str, text: str) -> str:
    return hashlib.sha256(f"{before}\n{text}".encode()).hexdigest()[:CHECK_DIGITS]


def _mechanism(budget: Budget, segment: Segment, steps: int) -> Mechanism:
    return Mechanism(
        noise_multiplier=segment.noise_multiplier,
        steps=steps,
        sampling_probability=segment.sampling_probability,
        sampling=budget.sampling,
        adjacency=budget.adjacency,
        unit=budget.unit,
        num_examples=segment.num_examples,
        noise_draws_per_step=segment.num_parameters,
    )
