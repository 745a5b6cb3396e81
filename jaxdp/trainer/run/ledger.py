"""The budget ledger: the steps that a run has paid for, written to disk before the steps run.

It only grows (`lines`). Every line is a fact with a checksum of all text so far:

    {"ledger": 2, "epsilon": 3.0, "delta": 0.000336, "adjacency": "add_remove", ...} 5c1f...
    {"segment": 1, "start": 0, "noise_multiplier": 1.81, "sampling_probability": 0.5, ...} 09ab...
    {"charge": 1, "first": 0, "last": 19, "time": "2026-01-31T12:00:00Z"} e27d...
    {"sealed": 1, "time": "2026-01-31T13:00:00Z"} 77b0...

The first line fixes the budget for good. A segment is a series of steps with the same secrets and
the same computation. Its steps can be repeated for free, because they give the same results. This
ends when the run is sealed: the secrets of all segments up to the named one are destroyed (`seal`).
"""

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...accounting import composition
from ...accounting.mechanism import Mechanism
from ...types import Accountant, Adjacency, Sampling, Unit
from ..distributed import first
from .lines import CheckedLines, now

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


class Ledger(CheckedLines):
    """A ledger. Its file stays open for appending until `close`, unless it was opened by `read`.

    Attributes:
      budget: what the first line says.
      segments: the segments in order; they are numbered from 1.
      sealed: the secrets of segments up to this number are destroyed, or about to be; 0: of none.
    """

    missing = "nobody knows what the run has spent"

    budget: Budget

    def __init__(self, path: Path, text: bytes, descriptor: int | None) -> None:
        self.segments: list[Segment] = []
        self.sealed = 0
        self._stops: list[int] = []  # of every segment, the step after its last charged one
        super().__init__(path, text, descriptor)

    @classmethod
    def create(cls, path: Path, budget: Budget) -> "Ledger":
        """Makes the file of a new ledger; it must not exist yet."""
        if not budget.epsilon > 0:
            raise ValueError(f"epsilon of the budget is {budget.epsilon}: give a number above 0")
        if not 0 < budget.delta < 1:
            raise ValueError(
                f"delta of the budget is {budget.delta}: give a number between 0 and 1"
            )
        epsilon = None if budget.epsilon == math.inf else budget.epsilon
        ledger = cls.begin(path, {"ledger": 2, **asdict(budget), "epsilon": epsilon})
        ledger.budget = budget
        return ledger

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
        self._append({"charge": len(self.segments), "first": stop, "last": last, "time": now()})
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
            self._append({"sealed": len(self.segments), "time": now()})
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

    def _take(self, number: int, fact: dict[str, Any]) -> None:
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

    def _add_segment(self, segment: Segment) -> None:
        self.segments.append(segment)
        self._stops.append(segment.start)


class Payment:
    """Charges the newest segment of a ledger for one block of steps at a time.

    In several processes, process 0 has the ledger. It tells the others what is paid for when that
    is on disk, and none of them may take another step before.

    Attributes:
      end: no step from here on may be taken.
      count: number of steps that were paid for and begun, from the first step of the run.
    """

    def __init__(self, ledger: Ledger | None, start: int, end: int) -> None:
        self.end = end
        self.count = start
        self._ledger = ledger
        self._paid = start  # up to here, as process 0 has told all
        self._block = 1
        self._since = time.monotonic()

    def pay(self, step: int) -> None:
        """Returns when the step is paid for, on disk."""
        if step >= self.end:
            raise ValueError(f"step {step} is not in the budget, which ends before {self.end}")
        if step >= self._paid:
            self._paid = first("paid up to", lambda: self._paid_from(step))
        self.count = step + 1

    def may_stop(self, step: int) -> bool:
        """Whether all steps that were paid for here come before `step`: a stop wastes none."""
        return step >= self._paid

    def _paid_from(self, step: int) -> int:
        """Charges a block of steps if they are not paid for. Returns the step after it."""
        assert self._ledger is not None  # process 0 has it
        if step < self._ledger.stop(len(self._ledger.segments)):
            return step + 1
        now = time.monotonic()
        if now - self._since < BLOCK_SECONDS / 2:
            self._block = min(2 * self._block, LARGEST_BLOCK)
        elif now - self._since > BLOCK_SECONDS:
            self._block = max(self._block // 2, 1)
        self._since = now
        stop = min(step + self._block, self.end)
        self._ledger.charge(step, stop - 1)
        return stop


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
