"""The ledger of private test records: what noisy scores of them have cost.

It belongs to the records, not to a run: all releases that are scored on the same private test
records share one ledger, and one budget, which its first line fixes for good:

    {"test_ledger": 1, "records": "visits", "budget": "2", "adjacency": "add_remove"} 5c1f...
    {"spent": "0.5", "time": "2026-01-31T12:00:00Z"} 09ab...

Every evaluation is ε-differentially private for its ε, without a δ, so the numbers just add up,
also if later evaluations and models depend on what earlier ones told. They are kept as decimal
fractions and added exactly. A line is on disk before its noise is drawn. The records are known by
the declared name of their data set: a digest of them would tell something about them.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..run.files import locked_file
from ..run.lines import CheckedLines, now


class ScoreLedger(CheckedLines):
    """A ledger of test records; `opened` opens it.

    Attributes:
      records: the declared name of their data set.
      budget: ε that all evaluations together may spend.
      spent: ε that they have spent.
    """

    missing = "nobody knows what was spent on the test records"

    records: str
    budget: Fraction

    def __init__(self, path: Path, text: bytes, descriptor: int | None) -> None:
        self.spent = Fraction(0)
        super().__init__(path, text, descriptor)

    @classmethod
    def create(cls, path: Path, records: str, budget: Fraction) -> "ScoreLedger":
        """Makes the file of a new ledger; it must not exist yet."""
        first = {"test_ledger": 1, "records": records, "budget": as_decimal(budget)}
        book = cls.begin(path, {**first, "adjacency": "add_remove"})
        book.records, book.budget = records, budget
        return book

    @property
    def left(self) -> Fraction:
        """ε that is not spent."""
        return self.budget - self.spent

    def charge(self, epsilon: Fraction) -> None:
        """Pays for an evaluation; returns when that is on disk.

        Raises:
          ValueError: if the budget does not have it.
          OSError: if it can't be written.
        """
        if epsilon > self.left:
            raise ValueError(
                f"epsilon is {as_decimal(epsilon)}, and {self.path} has {as_decimal(self.left)} "
                f"left of {as_decimal(self.budget)}: "
                + ("give at most that" if self.left else "its budget is used up for good")
            )
        self._append({"spent": as_decimal(epsilon), "time": now()})
        self.spent += epsilon

    def _take(self, number: int, fact: dict[str, Any]) -> None:
        if number == 1:
            if fact["test_ledger"] != 1 or fact["adjacency"] != "add_remove":
                raise ValueError("it is in a format of another version")
            self.records, self.budget = fact["records"], Fraction(fact["budget"])
        else:
            self.spent += Fraction(fact["spent"])


@contextmanager
def opened(
    path: Path, records: str, epsilon: Fraction, budget: Fraction | None
) -> Iterator[ScoreLedger]:
    """Opens the ledger of some test records, or begins it, and keeps other processes out.

    Args:
      path: the file.
      records: the declared name of their data set.
      epsilon: what will be charged; a ledger that can't pay it is refused.
      budget: of a new ledger; None for one that exists.

    Raises:
      ValueError: if the ledger is missing, damaged, of other records, in use, or can't pay; or if a
        budget is given for one that exists.
      OSError: if it can't be written to.
    """
    if budget is not None and epsilon > budget:
        raise ValueError(
            f"epsilon is {as_decimal(epsilon)}, more than the budget {as_decimal(budget)} of the "
            "new ledger: an evaluation spends a part of the budget"
        )
    if budget is None and not path.is_file():
        raise ValueError(
            f"there is no ledger {path}: name the one of these test records; or, if nothing was "
            "ever scored on them, give --budget E, the ε that all evaluations together may spend"
        )
    lock = path.with_name(f"{path.name}.lock")
    busy = f"{path} is being charged"
    with locked_file(lock, busy, f"{path}", "a file for the ledger"):
        if budget is None:
            book = ScoreLedger.open(path)
        elif path.exists():
            raise ValueError(
                f"{path} exists already, with a budget that was fixed when it began: leave out "
                "--budget"
            )
        else:
            book = ScoreLedger.create(path, records, budget)
        with closing(book):
            if book.records != records:
                raise ValueError(
                    f"{path} is the ledger of {book.records!r}, and the test records are of "
                    f"{records!r}: name the ledger of these records"
                )
            yield book


def as_fraction(name: str, value: float) -> Fraction:
    """An option as the decimal fraction that it was written as.

    Raises:
      ValueError: unless it is finite and above 0.
    """
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} is {value:g}: give a number above 0")
    return Fraction(repr(value))


def as_decimal(value: Fraction) -> str:
    """The decimal digits of a fraction that has finitely many, such as 0.5."""
    digits = 0
    while (value * 10**digits).denominator != 1:
        digits += 1
    whole = f"{value * 10**digits}".rjust(digits + 1, "0")
    return f"{whole[:-digits]}.{whole[-digits:]}" if digits else whole
