"""The records of a run: private ones to train on, test ones to score, and public ones."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from ..types import PyTree
from . import splits
from .decoding import Split
from .records import Part, Records, number_of_rows
from .rows import (
    CURE,
    ArrayRows,
    Rows,
    by_number,
    check_numbers,
    columns,
    open_source,
    shown,
)

USES = ("private", "test", "public")

Kind = Literal["given", "digits", "tfds", "text", "table", "folder"]


class Canaries(NamedTuple):
    """Made-up records among the private ones, for an audit. See `add_canaries`.

    Attributes:
      fields: the canaries, as a pytree of arrays `[m, ...]`.
      ids: their numbers, `[m] int32`.
      included: which of them take part, `[m] bool`; private.
      digest: a checksum of all that.
      real: the private records without them.
      key: that decides them, in words of 32 bits.
    """

    fields: PyTree
    ids: np.ndarray
    included: np.ndarray
    digest: str
    real: Records
    key: tuple[int, ...] = ()


class Dataset:
    """The records of a run: private ones to train on, test ones to score, and public ones.

    Rows are given as a pytree of arrays whose first axis counts the records, such as `(x, y)` or
    `{"image": x, "label": y}`, which may be mapped from files (`np.load(file, mmap_mode="r")`); as
    a list of records; or as a source, `jaxdp.datasets.Source`, whose rows are read when they are
    sampled. A record is what is left without the first axis. Data sets of other libraries with a
    length and rows by number (Hugging Face's, Grain's) are sources, too. They are read whole once,
    to know whether a run goes on with the same records; and without a `digest` of their own a run
    that goes on repeats no step for free, unless they fit into memory.

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
    source: Kind
    """What has read the rows; "given": their owner."""
    fields: Mapping[str, str]
    """The declared columns or fields of a record, with what they are, in words."""
    digests: Mapping[str, str]
    """Of what the rows were taken from. They must stay the same as long as a run goes on."""
    cached: bool
    """Whether decoded copies of the rows are in the cache."""
    skips_bad: bool
    """Whether rows that can't be used are left out of every batch; else there are none."""
    bad_rows: Mapping[str, Mapping[int, str]]
    """These rows by their split and number, with the reason. They are private."""
    canaries: Canaries | None
    """Made-up records at the end of `private`; None: there are none."""

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
            same = digests[use] == digests["private"]
            if use != "private" and (same or rows.has_rows_of(self.private)):
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
        made = cls.__new__(cls)
        made._set(
            _of_rules(
                {"rows": whole.only_rows()},
                {},
                {"rows": len(whole)},
                rules,
                lambda use: f"{use} = {rules[use]!r}",
            ),
            name,
            test_is_public,
            rules={use: rule for use, rule in rules.items() if rule is not None},
            digests={"rows": whole.digest()},
        )
        return made

    @classmethod
    def of_splits(
        cls,
        splits_of: Mapping[str, Split],
        sizes: Mapping[str, int],
        rules: Mapping[str, str | None],
        title: Callable[[str], str],
        *,
        name: str,
        test_is_public: bool,
        source: Kind,
        fields: Mapping[str, str],
        window: int | None = None,
        skips_bad: bool = False,
    ) -> "Dataset":
        """Makes one of the splits of a set that jaxdp reads. Ids number the records of all splits.

        Args:
          splits_of: the splits that the rules name.
          sizes: the number of records of all splits.
          rules: a split for every use, as `train[:90%]`; None: the use has no records.
          title: a function from a use to its title in messages.
          name, test_is_public: as for `Dataset`.
          source, fields, window, skips_bad: the attributes.

        Raises:
          ValueError: for rules that can't be read, are empty or overlap, and for a use without any
            row that can be used.
        """
        rows = {name: ArrayRows(split.fields, split.content) for name, split in splits_of.items()}
        made = cls.__new__(cls)
        made._set(
            _of_rules(
                rows, {name: list(s.bad) for name, s in splits_of.items()}, sizes, rules, title
            ),
            name,
            test_is_public,
            rules={use: rule for use, rule in rules.items() if rule is not None},
            digests={name: split.digest for name, split in splits_of.items()},
            window=window,
        )
        made.source, made.fields, made.skips_bad = source, fields, skips_bad
        made.cached = any(split.cached for split in splits_of.values())
        made.bad_rows = {name: split.bad for name, split in splits_of.items() if split.bad}
        return made

    @property
    def real(self) -> Records:
        """The private records without canaries."""
        return self.private if self.canaries is None else self.canaries.real

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
        self.source, self.fields = "given", records["private"].fields_told()
        self.cached, self.skips_bad, self.bad_rows = False, False, {}
        self.canaries = None
        self.private = records["private"]
        self.test, self.public = records.get("test"), records.get("public")
        self.name, self.test_is_public = name, test_is_public
        self.rules, self.digests, self.window = rules, digests, window
        wanted = (
            jax.tree.structure(self.private.form),
            jax.tree.leaves(self.private.shape_of_one()),
        )
        for use in ("test", "public"):
            other = records.get(use)
            if other is None:
                continue
            found = jax.tree.structure(other.form), jax.tree.leaves(other.shape_of_one())
            if found != wanted:
                raise ValueError(
                    f"a {use} record is {shown(other.shape_of_one())}, and a private one is "
                    f"{shown(self.private.shape_of_one())}: give records of the same form"
                )


def _of_rules(
    rows: Mapping[str, Rows],
    bad: Mapping[str, Sequence[int]],
    sizes: Mapping[str, int],
    rules: Mapping[str, str | None],
    title: Callable[[str], str],
) -> dict[str, Records]:
    parsed = parse_rules(rules, sizes, title)
    names = list(sizes)
    first = {name: sum(sizes[before] for before in names[:i]) for i, name in enumerate(names)}
    wrong = {}
    for name in rows:
        wrong[name] = np.zeros(sizes[name], bool)
        wrong[name][list(bad.get(name, ()))] = True
    made = {}
    for use, parts in parsed.items():
        marked = np.concatenate([wrong[p.name][p.start : p.stop] for p in parts])
        if marked.all():
            raise ValueError(
                f"{title(use)}: none of these {len(marked)} rows can be used. Mend the file, or "
                "its schema"
            )
        made[use] = Records.of_parts(
            [Part(rows[p.name], range(p.start, p.stop)) for p in parts],
            np.concatenate(
                [first[p.name] + np.arange(p.start, p.stop, dtype=np.int32) for p in parts]
            ),
            marked if marked.any() else None,
        )
    return made


def parse_rules(
    rules: Mapping[str, str | None], sizes: Mapping[str, int], title: Callable[[str], str]
) -> dict[str, list[splits.Part]]:
    """Reads the split of every use that has one. The arguments are those of `Dataset.of_splits`."""
    parts = {
        use: splits.parse_split(rule, sizes) for use, rule in rules.items() if rule is not None
    }
    splits.check_disjoint({title(use): part for use, part in parts.items()})
    return parts


def _opened(use: str, given: Any) -> Rows:
    """Rows that a user gives: arrays, a list of records, or a source, each of them checked."""
    if isinstance(given, (tuple, dict, list, np.ndarray, jax.Array)):
        return ArrayRows(_arrays(use, given))
    if hasattr(given, "iloc"):
        cure = "give (df[inputs].to_numpy(), df[label].to_numpy())"
        raise ValueError(f"the {use} rows are a table of pandas: {cure}")
    if by_number(given):
        return open_source(use, given)
    kind = f"a {type(given).__name__}, without a length and rows by number"
    raise ValueError(f"the {use} rows can't be read (they are {kind}): {CURE}")


def _arrays(use: str, given: Any) -> PyTree:
    try:
        fields = columns(given) if isinstance(given, list) else jax.tree.map(np.asarray, given)
    except (TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"the {use} rows can't be read ({reason}): {CURE}") from None
    check_numbers(use, fields)
    try:
        number_of_rows(fields)
    except ValueError as error:
        raise ValueError(f"the {use} rows: {error}") from None
    return fields


def _records(use: str, given: Any) -> Records:
    if isinstance(given, Records):
        return given
    rows = _opened(use, given)
    return Records.of_parts([Part(rows, range(len(rows)))])
