"""Tables: .csv, .tsv, .parquet and .npz, whose columns a schema declares."""

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from ..types import PyTree, Tell
from . import decoding, splits
from ._cells import Table
from ._delimited import open_delimited
from ._layout import Layout, alone, lay_out
from ._npz import open_npz
from ._parquet import open_parquet
from .config import COMMA_ENDINGS, TABLE_ENDINGS, DataConfig
from .decoding import Reading, Split
from .digests import files_digest
from .schema import Category, Schema, read_schema
from .sources import SplitSet

TRAIN, TEST = "train", "test"


def open_table(config: DataConfig, tell: Tell) -> SplitSet:
    """Reads and checks a table. All its rows are the split `train`, if nothing else is said.

    A record is `(input, label)`. The input is `features`, float32 `[k]`; or `tokens`, int32
    `[length]`, where only columns of text are left; or a dictionary of both. The label is a class,
    the place of its value in the schema, int32; or a number, float32.

    Args:
      config: the data section of a configuration, with a table as its file.
      tell: gets a line about everything that takes long.

    Raises:
      ValueError: in one line, for a file or schema that can't be read, for columns that don't fit
        the schema, for the first bad row, and for private rows that the schema was made of.
    """
    schema = _schema(config)
    assert config.file is not None
    table = _open(config.file, config, schema)
    layout = lay_out(config, schema, table)
    whole = {TRAIN: _read(table, layout, config, tell)}
    if config.test_from is not None:
        test = _open(config.test_from, config, schema)
        same = lay_out(config, schema, test)
        _check_widths(table, layout, test, same)
        whole[TEST] = _read(test, same, config, tell)
        if whole[TEST].digest == whole[TRAIN].digest:
            raise ValueError(
                f"data.test-from is {config.test_from}, whose bytes are those of {config.file}: "
                "give another file, or leave it out and give slices, as --data.test train[90%:]"
            )
    rows = {name: np.arange(len(split)) for name, split in whole.items()}
    found = whole
    if layout.split_by is not None:
        rows = _rows_of_splits(table, layout, whole[TRAIN])
        found = {name: _selected(config.file, whole[TRAIN], rows[name]) for name in rows}
    files = {name: whole.get(name, whole[TRAIN]) for name in rows}
    _check_not_public(config, schema, files, rows)
    return SplitSet(
        sizes={name: len(split) for name, split in found.items()},
        read=found.__getitem__,
        format=layout.format(),
    )


def read_inputs(config: DataConfig) -> PyTree:
    """Reads the inputs of all rows of a table, to predict its label. It may be missing.

    Args:
      config: the data section of the configuration with which the model was trained, with another
        file.

    Returns:
      What `open_table` describes, as arrays `[n, ...]` in memory.

    Raises:
      ValueError: as `open_table` does; there must be no bad row.
    """
    schema = _schema(config)
    assert config.file is not None
    table = _open(config.file, config, schema)
    layout = lay_out(config, schema, table, to_predict=True)
    unknown = {layout.label, layout.split_by}
    kinds = {name: kind for name, kind in layout.kinds.items() if name not in unknown}
    chunks, row = [], 0
    for rows in table.read(kinds):
        parts, bad = layout.inputs(rows)
        if bad:
            raise ValueError(f"{table.title}, row {row + min(bad)}: {bad[min(bad)]}")
        chunks.append(alone(parts))
        row += rows.size
    if not chunks:
        raise ValueError(f"{table.title} holds no records: give a file that has some")
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *chunks)


def open_rows(
    file: str,
    delimiter: str,
    comment: str,
    names: tuple[str, ...],
    expected: tuple[str, ...],
) -> Table:
    """Opens a file by its ending. The arguments are those of `open_delimited`.

    Raises:
      ValueError: as the reader of that format does, and for another ending.
    """
    ending = Path(file).suffix
    if ending not in (*TABLE_ENDINGS, *COMMA_ENDINGS):
        raise ValueError(f"{file} is no table: give NAME{', NAME'.join(TABLE_ENDINGS)}")
    if ending in (".tsv", *COMMA_ENDINGS):
        mark = "\t" if ending == ".tsv" else delimiter
        return open_delimited(file, mark, comment, names, expected)
    if names:
        raise ValueError(
            f"data.columns is set, and {file} has names for its columns: leave --data.columns out"
        )
    return open_parquet(file) if ending == ".parquet" else open_npz(file)


def _open(file: str, config: DataConfig, schema: Schema) -> Table:
    return open_rows(file, schema.delimiter, schema.comment, config.columns, tuple(schema.columns))


def _schema(config: DataConfig) -> Schema:
    if config.schema is None:
        raise ValueError(
            f"{config.file} is a table, and data.schema is not set: ranges and categories must "
            "not be taken from private rows, as they leak. Write them down from public knowledge, "
            "or let `python -m jaxdp.data schema FILE --public` take them from public rows, and "
            "give --data.schema FILE.toml"
        )
    return read_schema(config.schema)


def _read(table: Table, layout: Layout, config: DataConfig, tell: Tell) -> Split:
    reading = Reading(
        title=table.title,
        files=(Path(table.title),),
        about=f"{Path(table.title).suffix} {config.columns} {layout.about}",
        form=layout.form(),
        chunks=lambda: map(layout.chunk, table.read(layout.kinds)),
        telling=f"Reading {table.title} (once)",
        rows_by=layout.rows_by,
    )
    return decoding.read(reading, skip_bad=config.skip_bad, tell=tell)


def _check_widths(table: Table, layout: Layout, test: Table, same: Layout) -> None:
    for name, shape in layout.features.items():
        if same.features[name] != shape:
            raise ValueError(
                f"{test.title}: column {name!r} holds {test.stored[name].told}, and in "
                f"{table.title} it holds {table.stored[name].told}: give both one shape"
            )


def _rows_of_splits(table: Table, layout: Layout, whole: Split) -> dict[str, np.ndarray]:
    """The rows of the file that are in each split, in order."""
    assert layout.split_by is not None
    column = layout.schema.columns[layout.split_by]
    assert isinstance(column, Category)
    places = np.asarray(whole.fields[2])
    for row in np.flatnonzero(places < 0).tolist():
        raise ValueError(
            f"{table.title}, row {row}: {whole.bad[row]}. --data.skip-bad can't leave it out, as "
            "nobody can tell in which split it counts"
        )
    return {name: np.flatnonzero(places == i) for i, name in enumerate(column.values)}


def _selected(file: str, whole: Split, rows: np.ndarray) -> Split:
    """Some rows of a split, copied unless they follow one another."""
    first, last = (int(rows[0]), int(rows[-1])) if len(rows) else (0, -1)
    pick = slice(first, last + 1) if last - first + 1 == len(rows) else rows
    bad = {
        place: f"row {row} of {file}: {whole.bad[row]}"
        for place, row in enumerate(rows.tolist())
        if row in whole.bad
    }
    fields = jax.tree.map(lambda array: array[pick], whole.fields[:2])
    return Split(fields, whole.digest, bad=bad, cached=whole.cached)


def _check_not_public(
    config: DataConfig,
    schema: Schema,
    files: Mapping[str, Split],
    rows: Mapping[str, np.ndarray],
) -> None:
    """Refuses private rows that the schema was made of.

    Args:
      files: the file, as a split, that each split is taken from.
      rows: the rows of that file, for each split.
    """
    if schema.public is None:
        return
    private = splits.parse_split(config.private, {name: len(rows[name]) for name in rows})
    path_of = dict.fromkeys(rows, config.file or "")
    if config.test_from is not None:
        path_of[TEST] = config.test_from
    for part in private:
        file = files[part.name]
        if files_digest(path_of[part.name]) != schema.public.digest:
            continue
        if len(file) != schema.public.rows:
            raise ValueError(
                f"the schema {schema.file} was made of {schema.public.rule} of this file, when it "
                f"had {schema.public.rows} rows, and now {len(file)} are counted: its comment, "
                "delimiter or --data.columns must be what they were. Write the schema anew"
            )
        taken = rows[part.name][part.start : part.stop]
        shared = sum(
            int(((taken >= known.start) & (taken < known.stop)).sum())
            for known in splits.parse_split(schema.public.rule, {TRAIN: len(file)})
        )
        if shared:
            raise ValueError(
                f"data.private is {config.private!r}: {shared} of these rows are public by the "
                f"schema {schema.file}, which was made of {schema.public.rule} of this file. A "
                "record can't be both: leave those rows out of data.private, or write the schema "
                "from public knowledge"
            )
