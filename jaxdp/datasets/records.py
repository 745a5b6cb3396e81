"""Records in memory: the private, public and test ones of a run."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ..types import PyTree
from . import splits

USES = ("private", "test", "public")

ROWS_AT_A_TIME = 500  # in a pass over many records, which bounds its memory


@dataclass(frozen=True)
class Records:
    """Some records, each of them a pytree of arrays.

    Attributes:
      fields: the pytree with the records as the first axis: arrays `[n, ...]`.
      ids: `[n] int32`, the records' numbers in the whole data set: they stay the same whatever
        other records are chosen. None: 0 to n - 1.

    Raises:
      ValueError: for arrays of different lengths, without records, or of no numbers.
    """

    fields: PyTree
    ids: np.ndarray | None = None

    def __post_init__(self) -> None:
        lengths = {name: len(array) for name, array in self._named()}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            told = ", ".join(f"{name}: {length}" for name, length in lengths.items()) or "no array"
            raise ValueError(
                f"the arrays of the records have different numbers of rows, or none ({told}): give "
                "one row for each record in every array, and at least one record"
            )
        if self.ids is not None and self.ids.shape != (len(self),):
            raise ValueError(
                f"ids has shape {self.ids.shape}: give one for each of {len(self)} records"
            )

    def _named(self) -> Iterator[tuple[str, np.ndarray]]:
        for path, array in jax.tree_util.tree_leaves_with_path(self.fields):
            yield jax.tree_util.keystr(path) or "the array", array

    def __len__(self) -> int:
        return len(jax.tree.leaves(self.fields)[0])

    @property
    def nbytes(self) -> int:
        """The memory that they take."""
        return sum(array.nbytes for array in jax.tree.leaves(self.fields))

    def numbers(self) -> np.ndarray:
        """Returns the ids, `[n] int32`."""
        return np.arange(len(self), dtype=np.int32) if self.ids is None else self.ids

    def shape_of_one(self) -> PyTree:
        """Returns one record as shapes and dtypes, in the dtypes that JAX gives them."""
        return jax.tree.map(
            lambda array: jax.ShapeDtypeStruct(
                array.shape[1:], jax.dtypes.canonicalize_dtype(array.dtype)
            ),
            self.fields,
        )

    def zero(self) -> PyTree:
        """Returns one record of zeros, to draw parameters by."""
        return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), self.shape_of_one())

    def hold(self, array: np.ndarray) -> bool:
        """Whether an array is one of the fields, as JAX keeps them, and not one number alone."""
        if array.size == 0 or np.all(array == array.flat[0]):
            return False
        return any(
            array.shape == field.shape
            and array.dtype == jax.dtypes.canonicalize_dtype(field.dtype)
            and np.array_equal(array, field.astype(array.dtype))
            for field in jax.tree.leaves(self.fields)
        )

    def digest(self) -> str:
        """Returns a SHA-256 of the records and their ids, in hexadecimal digits."""
        names = [name for name, _ in self._named()]
        arrays = [array for _, array in self._named()]
        return arrays_digest([*arrays, self.numbers()], "\n".join(names))


class Dataset:
    """The records of a run: private ones to train on, test ones to score, and public ones.

    Rows are given as a pytree of arrays whose first axis counts the records, such as `(x, y)` or
    `{"image": x, "label": y}`; or as a list, or another object with a length and rows by number,
    each a pytree of numbers. A record is what is left without the first axis.

    Args:
      private: the rows that the guarantee protects. Their number N is published.
      test: rows to score. None: nothing is scored.
      public: rows that need no protection. None of them may be private.
      name: what the records are called in the privacy statement, which is public.
      test_is_public: whether the test rows need no protection. If they do, so do all scores.

    Raises:
      ValueError: for rows that differ in form, are of different lengths, or hold no numbers.

    Example:
      >>> x, y = np.zeros((100, 8), np.float32), np.zeros(100, np.int32)
      >>> data = Dataset(private=(x[:80], y[:80]), test=(x[80:], y[80:]), name="visits")
      >>> len(data.private), len(data.test)
      (80, 20)
    """

    private: Records
    test: Records | None
    public: Records | None
    name: str
    test_is_public: bool
    rules: Mapping[str, str]
    """Which rows have which use, in words for the privacy statement."""
    window: int | None
    """Of a text: the characters that a record predicts."""
    own: bool
    """Whether the rows were given; else they were loaded by the name of the data set."""
    digests: Mapping[str, str]
    """Of what the rows were taken from. They must stay the same as long as a run goes on."""

    def __init__(
        self,
        private: Any,
        test: Any = None,
        public: Any = None,
        *,
        name: str = "own data",
        test_is_public: bool = False,
    ) -> None:
        given = dict(zip(USES, (private, test, public), strict=True))
        records = {use: _records(use, rows) for use, rows in given.items() if rows is not None}
        rules = {use: f"{len(rows):,} rows that were given" for use, rows in records.items()}
        digests = {use: rows.digest() for use, rows in records.items()}
        self._set(records, name, test_is_public, rules, digests)
        for use, rows in records.items():
            if use != "private" and _share_memory(rows, records.get("private")):
                raise ValueError(
                    f"some {use} rows are rows of the private arrays: give each row one use, or "
                    "take the rows apart by Dataset.split"
                )

    @classmethod
    def split(
        cls,
        rows: Any,
        *,
        private: str,
        test: str | None = None,
        public: str | None = None,
        name: str = "own data",
        test_is_public: bool = False,
    ) -> "Dataset":
        """Takes one set of rows apart by rules, which the privacy statement names.

        Args:
          rows: as for `Dataset`.
          private, test, public: which rows, as `rows[:80%]` or `rows[:100]+rows[200:]`.
          name, test_is_public: as for `Dataset`.

        Raises:
          ValueError: for rules that can't be read, are empty or overlap.

        Example:
          >>> x = np.zeros((100, 8), np.float32)
          >>> data = Dataset.split(x, private="rows[:80%]", test="rows[80%:]")
          >>> data.rules["private"]
          'rows[:80%]'
        """
        whole = _records("rows", rows)
        rules = dict(zip(USES, (private, test, public), strict=True))
        return cls.of_parts(
            split_records(
                {"rows": whole}, {"rows": len(whole)}, rules, lambda use: f"{use} = {rules[use]!r}"
            ),
            name,
            test_is_public,
            rules={use: rule for use, rule in rules.items() if rule is not None},
            digests={"rows": whole.digest()},
        )

    @classmethod
    def of_parts(
        cls,
        records: Mapping[str, Records],
        name: str,
        test_is_public: bool,
        rules: Mapping[str, str],
        digests: Mapping[str, str],
        window: int | None = None,
    ) -> "Dataset":
        """Makes one of records that were taken apart already; the arguments are its attributes."""
        made = cls.__new__(cls)
        made._set(records, name, test_is_public, rules, digests, window)
        made.own = False
        return made

    def _set(
        self,
        records: Mapping[str, Records],
        name: str,
        test_is_public: bool,
        rules: Mapping[str, str],
        digests: Mapping[str, str],
        window: int | None = None,
    ) -> None:
        if "private" not in records:
            raise ValueError("private is None: give the rows to train on and to protect")
        if not (isinstance(name, str) and name.strip() and name.isprintable()):
            raise ValueError(f"name is {name!r}: give a name for the records, as 'visits'")
        self.own = True
        self.private = records["private"]
        self.test, self.public = records.get("test"), records.get("public")
        self.name, self.test_is_public = name, test_is_public
        self.rules, self.digests, self.window = rules, digests, window
        wanted = (
            jax.tree.structure(self.private.fields),
            jax.tree.leaves(self.private.shape_of_one()),
        )
        for use in ("test", "public"):
            other = records.get(use)
            if other is None:
                continue
            found = jax.tree.structure(other.fields), jax.tree.leaves(other.shape_of_one())
            if found != wanted:
                raise ValueError(
                    f"a {use} record is {other.shape_of_one()}, and a private one is "
                    f"{self.private.shape_of_one()}: give records of the same form"
                )


def split_records(
    whole: Mapping[str, Records],
    sizes: Mapping[str, int],
    rules: Mapping[str, str | None],
    title: Callable[[str], str],
) -> dict[str, Records]:
    """Takes the records of every use from the splits of a data set.

    Ids number the records of all splits together.

    Args:
      whole: the splits that the rules name.
      sizes: the number of records of all splits.
      rules: a split for every use, as `train[:90%]`; None: the use has no records.
      title: a function from a use to its title in messages.

    Raises:
      ValueError: for rules that can't be read, are empty or overlap.
    """
    parts = parse_rules(rules, sizes, title)
    names = list(sizes)
    first = {name: sum(sizes[before] for before in names[:i]) for i, name in enumerate(names)}
    join = lambda *arrays: arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return {
        use: Records(
            jax.tree.map(
                join,
                *[jax.tree.map(lambda a: a[p.start : p.stop], whole[p.name].fields) for p in part],
            ),
            join(*[first[p.name] + np.arange(p.start, p.stop, dtype=np.int32) for p in part]),
        )
        for use, part in parts.items()
    }


def parse_rules(
    rules: Mapping[str, str | None], sizes: Mapping[str, int], title: Callable[[str], str]
) -> dict[str, list[splits.Part]]:
    """Reads the split of every use that has one. The arguments are those of `split_records`."""
    parts = {
        use: splits.parse_split(rule, sizes) for use, rule in rules.items() if rule is not None
    }
    splits.check_disjoint({title(use): part for use, part in parts.items()})
    return parts


def arrays_digest(arrays: Sequence[np.ndarray], about: str = "") -> str:
    """Returns the SHA-256 of arrays with their dtypes and shapes, in hexadecimal digits."""
    total = hashlib.sha256(about.encode())
    for array in arrays:
        total.update(f"{array.dtype} {array.shape}\n".encode())
        total.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def _records(use: str, rows: Any) -> Records:
    if isinstance(rows, Records):
        return rows
    try:
        fields = jax.tree.map(np.asarray, _columns(rows))
    except (TypeError, ValueError, LookupError) as error:
        reason = str(error).partition("\n")[0]
        if isinstance(error, LookupError):  # such as a table with rows of other names
            reason = f"no row {reason}: {type(error).__name__}"
        raise ValueError(f"the {use} rows can't be read ({reason}): {_CURE}") from None
    for path, array in jax.tree_util.tree_leaves_with_path(fields):
        _check_numbers(use, jax.tree_util.keystr(path) or "the array", array)
    try:
        return Records(fields)
    except ValueError as error:
        raise ValueError(f"the {use} rows: {error}") from None


MOST_WORK: Any = 1000  # to find out whether arrays overlap


def _share_memory(one: Records, other: Records | None) -> bool:
    """Whether all arrays of the two overlap in memory, as far as that is found out quickly."""
    if other is None:
        return False
    pairs = zip(jax.tree.leaves(one.fields), jax.tree.leaves(other.fields), strict=True)
    try:
        return all(np.shares_memory(a, b, max_work=MOST_WORK) for a, b in pairs)
    except np.exceptions.TooHardError:
        return False


def _check_numbers(use: str, name: str, array: np.ndarray) -> None:
    if array.ndim == 0 or array.dtype.kind not in "biufcV" or array.dtype.names:
        raise ValueError(
            f"the {use} rows hold {name} of shape {array.shape} and type {array.dtype}: {_CURE}"
        )
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    with np.errstate(over="ignore"):
        kept = array.astype(dtype, copy=False)  # as JAX keeps it: 64 bits become 32
    good = np.isfinite(kept) if jax.numpy.issubdtype(dtype, np.inexact) else kept == array
    if not np.all(good):
        row = int(np.argmin(good.reshape(len(array), -1).all(axis=1)))
        raise ValueError(
            f"row {row} of the {use} rows holds NaN, infinity or a number too large for {dtype} in "
            f"{name}: replace it by a constant that was chosen without looking at private rows"
        )


_CURE = (
    "give a pytree of arrays of numbers with one row for each record, such as (x, y), or a list of "
    "such records"
)


def _columns(rows: Any) -> PyTree:
    """The arrays of rows that are given as arrays, or one by one."""
    if isinstance(rows, (tuple, dict, np.ndarray, jax.Array)):
        return rows
    if not (hasattr(rows, "__len__") and hasattr(rows, "__getitem__")):
        raise TypeError(f"they are a {type(rows).__name__}, without a length and rows by number")
    each = [jax.tree.map(np.asarray, rows[i]) for i in range(len(rows))]
    if not each:
        raise ValueError("there are none")
    return jax.tree.map(lambda *leaves: np.stack(leaves), *each)
