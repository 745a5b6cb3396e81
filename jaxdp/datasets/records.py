"""Some records: arrays, in memory or read when they are asked for."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ..types import PyTree
from .digests import arrays_digest
from .rows import ROWS_AT_A_TIME, ArrayRows, Rows, SourceRows, in_chunks, record_bytes


class Records:
    """Some records, each of them a pytree of arrays.

    Args:
      fields: the pytree with the records as the first axis: arrays `[n, ...]`.
      ids: `[n] int32`, the records' numbers in the whole data set: they stay the same whatever
        other records are chosen. None: 0 to n - 1.

    Raises:
      ValueError: for arrays of different lengths, without records, or of no numbers.
    """

    def __init__(self, fields: PyTree, ids: np.ndarray | None = None) -> None:
        size = number_of_rows(fields)
        if ids is not None and ids.shape != (size,):
            raise ValueError(f"ids has shape {ids.shape}: give one for each of {size} records")
        self._set([Part(ArrayRows(fields), range(size))], ids, None)

    @classmethod
    def of_parts(
        cls,
        parts: Sequence["Part"],
        ids: np.ndarray | None = None,
        bad: np.ndarray | None = None,
    ) -> "Records":
        """Makes some of rows by number.

        Args:
          parts: ranges of rows of the same form, one after the other.
          ids: as for `Records`.
          bad: `[n] bool`, the records that can't be used. They count, and are in no batch. None:
            there are none.
        """
        made = cls.__new__(cls)
        made._set(parts, ids, bad)
        return made

    def _set(self, parts: Sequence["Part"], ids: np.ndarray | None, bad: np.ndarray | None) -> None:
        self._parts = tuple(parts)
        self._ends = np.cumsum([len(part.where) for part in parts])
        self._ids = ids
        self.bad = bad

    def followed_by(self, part: "Part", ids: np.ndarray, bad: np.ndarray) -> "Records":
        """These and more records of the same form, with their ids and which can't be used."""
        whole = np.concatenate([~self.good(), bad])
        numbers = np.concatenate([self.numbers(), ids]).astype(np.int32)
        return Records.of_parts([*self._parts, part], numbers, whole if whole.any() else None)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def form(self) -> PyTree:
        """One record, as shapes with the dtypes that are read."""
        return self._parts[0].rows.form

    @property
    def in_memory(self) -> bool:
        """Whether all of them are in memory; else they are read when they are asked for."""
        return all(part.rows.in_memory for part in self._parts)

    @property
    def repeats(self) -> bool:
        """Whether reading a record again surely gives the same bits."""
        return all(part.rows.repeats for part in self._parts)

    @property
    def nbytes(self) -> int:
        """The memory that all of them take."""
        return len(self) * record_bytes(self.form)

    @property
    def fields(self) -> PyTree:
        """All of them as arrays `[n, ...]`."""
        return self.take(range(len(self)))

    def take(self, rows: range | np.ndarray) -> PyTree:
        """The records of these places, 0 to n - 1, as arrays `[len(rows), ...]`.

        Raises:
          ReadFailed: if they can't be read any more, or have changed.
        """
        starts = self._ends - [len(part.where) for part in self._parts]
        if isinstance(rows, range):
            taken = [
                part.rows.take(part.where[max(0, rows.start - start) : rows.stop - start])
                for part, start, end in zip(self._parts, starts, self._ends, strict=True)
                if rows.start < end and rows.stop > start
            ]
            if len(taken) == 1:
                return taken[0]
            return jax.tree.map(lambda *arrays: np.concatenate(arrays), *taken)
        if len(self._parts) == 1:
            (part,) = self._parts
            return part.rows.take(part.where.start + rows)
        own = np.searchsorted(self._ends, rows, side="right")
        found = jax.tree.map(lambda s: np.empty((len(rows), *s.shape), s.dtype), self.form)
        for i, (part, start) in enumerate(zip(self._parts, starts, strict=True)):
            here = np.flatnonzero(own == i)
            if len(here):
                some = part.rows.take(part.where.start + rows[here] - start)
                if len(here) == len(rows):
                    return some
                for to, taken_from in zip(
                    jax.tree.leaves(found), jax.tree.leaves(some), strict=True
                ):
                    to[here] = taken_from
        return found

    def chunks(self) -> Iterator[tuple[range, PyTree]]:
        """All of them, some at a time: their places, and arrays."""
        for places in in_chunks(len(self), ROWS_AT_A_TIME):
            yield places, self.take(places)

    def good(self) -> np.ndarray:
        """Which records can be used, `[n] bool`."""
        return np.ones(len(self), bool) if self.bad is None else ~self.bad

    def good_fields(self) -> PyTree:
        """The records that can be used, as arrays."""
        return self.fields if self.bad is None else self.take(np.flatnonzero(~self.bad))

    def numbers(self) -> np.ndarray:
        """Returns the ids, `[n] int32`."""
        return np.arange(len(self), dtype=np.int32) if self._ids is None else self._ids

    def shape_of_one(self) -> PyTree:
        """Returns one record as shapes and dtypes, in the dtypes that JAX gives them."""
        return jax.tree.map(
            lambda s: jax.ShapeDtypeStruct(s.shape, jax.dtypes.canonicalize_dtype(s.dtype)),
            self.form,
        )

    def zero(self) -> PyTree:
        """Returns one record of zeros, to draw parameters by."""
        return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), self.shape_of_one())

    def hold(self, array: np.ndarray) -> bool:
        """Whether an array is one of the fields, as JAX keeps them, and not one number alone."""
        if array.size == 0 or np.all(array == array.flat[0]):
            return False
        leaves = jax.tree.leaves(self.shape_of_one())
        same = [array.shape == (len(self), *s.shape) and array.dtype == s.dtype for s in leaves]
        if not any(same):
            return False
        for places, fields in self.chunks():
            mine = array[places.start : places.stop]
            for i, field in enumerate(jax.tree.leaves(fields)):
                same[i] = same[i] and np.array_equal(mine, field.astype(array.dtype))
            if not any(same):
                return False
        return True

    def digest(self) -> str:
        """Returns a SHA-256 of the records and their ids, in hexadecimal digits."""
        names = [
            jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(self.form)
        ]
        about = [*names, *(part.rows.digest(part.where) for part in self._parts)]
        bad = [] if self.bad is None else [self.bad]
        return arrays_digest([self.numbers(), *bad], "\n".join(about))

    def fields_told(self) -> Mapping[str, str]:
        """What a source says of its fields."""
        rows = self._parts[0].rows
        return getattr(rows.source, "fields", {}) if isinstance(rows, SourceRows) else {}

    def only_rows(self) -> Rows:
        """The rows that they are, if they are all of them."""
        ((rows, _),) = self._parts
        return rows

    def has_rows_of(self, other: "Records") -> bool:
        """Whether all fields of the two overlap in memory, as far as that is found out quickly."""
        one, two = self._parts[0].rows, other._parts[0].rows
        if isinstance(one, SourceRows) and isinstance(two, SourceRows):
            return one.source is two.source
        if not (isinstance(one, ArrayRows) and isinstance(two, ArrayRows)):
            return False
        try:
            return all(
                np.shares_memory(a, b, max_work=MOST_WORK)
                for a, b in zip(
                    jax.tree.leaves(one.fields), jax.tree.leaves(two.fields), strict=True
                )
            )
        except np.exceptions.TooHardError:
            return False


class Part(NamedTuple):
    """A range of some rows."""

    rows: Rows
    where: range


MOST_WORK: Any = 1000  # to find out whether arrays overlap


def number_of_rows(fields: PyTree) -> int:
    """Returns the number of rows that all arrays have.

    Raises:
      ValueError: if they differ, or there are none.
    """
    lengths = {
        jax.tree_util.keystr(path) or "the array": len(array)
        for path, array in jax.tree_util.tree_leaves_with_path(fields)
    }
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        told = ", ".join(f"{name}: {length}" for name, length in lengths.items()) or "no array"
        raise ValueError(
            f"the arrays of the records have different numbers of rows, or none ({told}): give "
            "one row for each record in every array, and at least one record"
        )
    return next(iter(lengths.values()))
