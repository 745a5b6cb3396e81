"""Which column of a table becomes which part of a record."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np

from ..types import PyTree
from . import _columns
from ._cells import Rows, Table
from .config import DataConfig
from .decoding import Chunk
from .schema import Category, Column, Ignored, Kind, Number, Schema, Text, meant
from .sources import Format
from .tokens import Tokens, make_tokens

FEATURES, TOKENS = "features", "tokens"
GIVEN_SPLITS = ("private", "rows")  # how `Dataset` calls rows that it is given


@dataclass(frozen=True)
class Layout:
    """How a row of a table becomes a record.

    Attributes:
      schema: what the columns are.
      label: the column to predict.
      split_by: the column with the name of the split, if there is one.
      features: the columns of numbers and categories that are inputs, with the shapes of a cell.
      texts: the columns of text, all of them inputs.
      tokens: how documents become tokens, if there are any.
      length: tokens of a document.
    """

    schema: Schema
    label: str
    split_by: str | None
    features: Mapping[str, tuple[int, ...]]
    texts: tuple[str, ...]
    tokens: Tokens | None
    length: int

    @property
    def kinds(self) -> dict[str, Kind]:
        """The columns to read, and as what."""
        names = [*self.features, *self.texts, self.label]
        names += [] if self.split_by is None else [self.split_by]
        return {name: self.schema.columns[name].kind for name in names}  # type: ignore[union-attr]

    @property
    def about(self) -> str:
        """All that decides the records besides the file."""
        schema = self.schema
        tokens = None if self.tokens is None else self.tokens.about
        return (
            f"{dict(schema.columns)} {schema.missing_values} {schema.comment!r} "
            f"{schema.delimiter!r} {self.label!r} {self.split_by!r} {self.features} {tokens!r}"
        )

    @property
    def decoding(self) -> str:
        """All constants and options that decide inputs and labels."""
        tokens = None if self.tokens is None else f"{self.tokens.about} {self.length}"
        return f"{dict(self.schema.columns)} {self.label!r} {self.split_by!r} {tokens!r}"

    @property
    def rows_by(self) -> str:
        """What decides which line of the file is which row."""
        return f"{self.schema.comment!r} {self.schema.delimiter!r} {self.split_by!r}"

    def form(self) -> PyTree:
        """A record: (input, label), and the place of its split if there is `split_by`."""
        parts = {}
        if self.features:
            widths = [_columns.width(self._column(n), shape) for n, shape in self.features.items()]
            parts[FEATURES] = jax.ShapeDtypeStruct((sum(widths),), np.float32)
        if self.tokens is not None:
            parts[TOKENS] = jax.ShapeDtypeStruct((self.length,), np.int32)
        numeric = isinstance(self.schema.columns[self.label], Number)
        label = jax.ShapeDtypeStruct((), np.float32 if numeric else np.int32)
        split = () if self.split_by is None else (jax.ShapeDtypeStruct((), np.int32),)
        return (alone(parts), label, *split)

    def inputs(self, rows: Rows) -> tuple[dict[str, np.ndarray], dict[int, str]]:
        """Makes inputs of rows: their parts by name, and the rows that can't be used."""
        missing = frozenset(self.schema.missing_values)
        parts: dict[str, np.ndarray] = {}
        made = [
            _columns.features(name, self._column(name), rows.columns[name], missing)
            for name in self.features
        ]
        if made:
            parts[FEATURES] = np.concatenate([each.values for each in made], axis=1)
        found = [each.bad for each in made]
        if self.tokens is not None:
            texts, wrong = self._documents(rows, missing)
            parts[TOKENS] = self.tokens.encode(texts)
            found.append(wrong)
        return parts, _first_reasons([rows.bad, *found])

    def chunk(self, rows: Rows) -> Chunk:
        """Makes records of rows."""
        missing = frozenset(self.schema.missing_values)
        parts, bad = self.inputs(rows)
        label = _columns.targets(
            self.label, self._column(self.label), rows.columns[self.label], missing
        )
        found = [bad, label.bad]
        split: tuple[np.ndarray, ...] = ()
        if self.split_by is not None:
            name = self.split_by
            places = _columns.targets(name, self._column(name), rows.columns[name], missing)
            found.append(places.bad)
            split = (places.values,)
        bad = _first_reasons(found)
        for array in (*parts.values(), label.values):
            array[list(bad)] = 0
        return Chunk((alone(parts), label.values, *split), bad)

    def format(self) -> Format:
        """What the records are."""
        schema, target = self.schema, self._column(self.label)
        told = {name: column.told() for name, column in schema.columns.items()}
        told[self.label] += ", the label"
        if self.split_by is not None:
            told[self.split_by] = "the name of the split"
        words = []
        if self.features:
            words.append(
                "numbers are clipped to a range and mapped to [-1, 1], and categories become a 1 "
                "in the place of their value"
            )
        outputs, center, scale = 1, 0.0, 1.0
        if isinstance(target, Number):
            words.append("the label is clipped to a range")
            center, scale = target.middle, target.half
        else:
            outputs = len(target.values)
        words.append(f"ranges and values are declared by a schema, from: {schema.origin}")
        if self.tokens is not None:
            words.append(self.tokens.told)
        if len(self.texts) > 1:
            words.append(f"a document is the columns {', '.join(self.texts)}, one below the other")
        inputs: Literal["features", "tokens", "mixed"] = "features" if self.features else "tokens"
        if self.features and self.tokens is not None:
            inputs = "mixed"
        return Format(
            inputs=inputs,
            target="number" if isinstance(target, Number) else "class",
            outputs=outputs,
            center=0.0 if self.features else None,
            scale=1.0 if self.features else None,
            scaling="; ".join(words),
            vocabulary=None if self.tokens is None else self.tokens.vocabulary,
            target_center=center,
            target_scale=scale,
            fields=told,
            decoding=self.decoding,
        )

    def _column(self, name: str) -> Number | Category:
        column = self.schema.columns[name]
        assert isinstance(column, Number | Category)
        return column

    def _documents(self, rows: Rows, missing: frozenset[str]) -> tuple[list[str], dict[int, str]]:
        columns: list[list[str]] = []
        bad: dict[int, str] = {}
        for name in self.texts:
            column = self.schema.columns[name]
            assert isinstance(column, Text)
            texts, wrong = _columns.documents(name, rows.columns[name], missing, column.missing)
            columns.append(texts)
            bad |= wrong
        return ["\n".join(texts) for texts in zip(*columns, strict=True)], bad


def _first_reasons(found: Sequence[Mapping[int, str]]) -> dict[int, str]:
    """The first reason for each bad row."""
    reasons: dict[int, str] = {}
    for each in found:
        reasons = {**each, **reasons}
    return reasons


def lay_out(
    config: DataConfig, schema: Schema, table: Table, *, to_predict: bool = False
) -> Layout:
    """Decides what becomes of each column.

    Args:
      config: the data section of a configuration.
      schema: what the columns are.
      table: the file.
      to_predict: whether the label and the names of splits may be missing.

    Raises:
      ValueError: in one line, if the table, the schema and the options don't fit together.
    """
    label = _label(config, schema)
    split_by = _split_by(config, schema)
    _check_columns(schema, table, {label, split_by} if to_predict else set())
    features: dict[str, tuple[int, ...]] = {}
    texts = []
    for name, column in schema.columns.items():
        if isinstance(column, Ignored) or name not in table.stored:
            continue
        stored = table.stored[name]
        if column.kind not in stored.kinds:
            fits = f"declare it {' or '.join((*stored.kinds, 'ignored'))}"
            raise ValueError(
                f"{table.title}: column {name!r} holds {stored.told}, and the schema {schema.file} "
                f"declares {column.kind}: {fits}, or write the file with another type"
            )
        if name in (label, split_by):
            if stored.shape:
                raise ValueError(
                    f"{table.title}: column {name!r} holds {stored.told}, and is the label: choose "
                    "a column with a single value in each row"
                )
        elif isinstance(column, Text):
            texts.append(name)
        else:
            features[name] = stored.shape
    if not features and not texts:
        raise ValueError(
            f"the schema {schema.file} leaves no column besides the label {label!r}: declare at "
            "least one that is not ignored"
        )
    tokens = make_tokens(config.tokens, config.vocabulary, config.length) if texts else None
    return Layout(schema, label, split_by, features, tuple(texts), tokens, config.length)


def _check_columns(schema: Schema, table: Table, may_lack: Container[str | None]) -> None:
    for name in table.stored:
        if name not in schema.columns:
            raise ValueError(
                f"{table.title} has the column {name!r}, which the schema {schema.file} does not "
                'declare: declare it there, if only as kind = "ignored"'
            )
    for name in schema.columns:
        if name not in table.stored and name not in may_lack:
            raise ValueError(
                f"{table.title} lacks the column {name!r}, which the schema {schema.file} declares"
                f"{meant(name, table.stored)}"
            )


def _label(config: DataConfig, schema: Schema) -> str:
    if config.label is None:
        raise ValueError(
            f"{config.file} is a table, and data.label is not set: give --data.label COLUMN, one "
            f"of {', '.join(schema.columns)}"
        )
    column = _declared("label", config.label, schema)
    if not isinstance(column, Number | Category):
        raise ValueError(
            f"data.label is {config.label!r}, which the schema {schema.file} declares "
            f"{column.told()}: give a column of kind number or category"
        )
    if isinstance(column, Category) and len(column.values) < 2:
        raise ValueError(
            f"data.label is {config.label!r}, which has a single value in the schema "
            f"{schema.file}: list all its values there"
        )
    return config.label


def _split_by(config: DataConfig, schema: Schema) -> str | None:
    if config.split_by is None:
        return None
    if config.test_from is not None:
        raise ValueError(
            f"data.split-by is {config.split_by!r} and data.test-from is {config.test_from}: give "
            "one of them"
        )
    column = _declared("split-by", config.split_by, schema)
    if not isinstance(column, Category) or config.split_by == config.label:
        raise ValueError(
            f"data.split-by is {config.split_by!r}: give a column of kind category that is not the "
            "label"
        )
    wrong = [
        value
        for value in column.values
        if not value.replace("_", "a").isalnum() or value in GIVEN_SPLITS
    ]
    if wrong:
        raise ValueError(
            f"the schema {schema.file}, column {config.split_by!r}: {wrong[0]!r} can't be the name "
            f"of a split: use letters, digits and _ only, as train, and neither of "
            f"{', '.join(GIVEN_SPLITS)}"
        )
    return config.split_by


def _declared(option: str, name: str, schema: Schema) -> Column:
    if name not in schema.columns:
        raise ValueError(
            f"data.{option} is {name!r}, which is no column of {schema.file}"
            f"{meant(name, schema.columns)}"
        )
    return schema.columns[name]


def alone(parts: Mapping[str, PyTree]) -> PyTree:
    """The only part as it is, or all of them by their names."""
    return next(iter(parts.values())) if len(parts) == 1 else dict(parts)
