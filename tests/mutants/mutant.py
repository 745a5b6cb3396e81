"""A privacy bug as plain data: one small substitution, and the tests that must go red."""

from typing import NamedTuple


class Mutant(NamedTuple):
    """A planted bug.

    Attributes:
      name: what is wrong, in words joined by `-`.
      file: the file of the project that is changed.
      old: a text that is in this file exactly once.
      new: what stands in its place.
      tests: one or two tests, `tests/FILE.py::test_NAME`, also with `[...]`. Each must fail, by
        what it checks: an error at import, in a fixture or of a name does not count.
      rule: the privacy rule of docs/design.md that is broken; None: one that has no number.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    rule: int | None = None
