"""Reads .parquet, some rows of a row group at a time."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from .._distribution import missing
from ._cells import Cells, Rows, Stored, Table, check_names, rows_at_a_time, spelt
from ._files import unreadable
from .schema import Kind

BUFFER = 2**18  # bytes of each column that are read at a time


def open_parquet(file: str) -> Table:
    """Opens a file of Apache Parquet.

    Raises:
      ValueError: in one line, if pyarrow is not installed or the file can't be read.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ValueError(missing("a table in .parquet", str(error.name), "tables")) from None
    with _damage(pyarrow, file), _opened(pyarrow, file) as found:
        fields = list(found.schema_arrow)
        stored = {field.name: _stored(pyarrow, field.type) for field in fields}
    check_names(file, [field.name for field in fields])

    def read(wanted: Mapping[str, Kind]) -> Iterator[Rows]:
        with contextlib.ExitStack() as stack:
            with _damage(pyarrow, file):
                parquet = stack.enter_context(_opened(pyarrow, file))
                at_a_time = rows_at_a_time({name: stored[name] for name in wanted}, wanted)
                batches = parquet.iter_batches(batch_size=at_a_time, columns=list(wanted))
            while True:
                with _damage(pyarrow, file):
                    batch = next(batches, None)
                    rows = None if batch is None else _chunk(pyarrow, batch, wanted)
                if rows is None:
                    return
                yield rows

    return Table(file, stored, read)


def _opened(pyarrow: Any, file: str) -> Any:
    open(file, "rb").close()  # for the system's own words
    # pre_buffer would keep all that was read in memory, however large the file.
    return pyarrow.parquet.ParquetFile(
        file, page_checksum_verification=True, pre_buffer=False, buffer_size=BUFFER
    )


@contextlib.contextmanager
def _damage(pyarrow: Any, file: str) -> Iterator[None]:
    """Turns all that pyarrow raises into one line."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise unreadable(file, error) from None
    except (pyarrow.ArrowException, ValueError, KeyError):
        pass
    else:
        return
    raise ValueError(
        f"{file} is no parquet, or is damaged: copy or write it again, or give it the ending that "
        "its format has"
    ) from None


def _stored(pyarrow: Any, kept: Any) -> Stored:
    types = pyarrow.types
    told = str(kept)
    while types.is_dictionary(kept):
        kept = kept.value_type
    if types.is_boolean(kept):
        return Stored(told, ("category",))
    if types.is_integer(kept) or types.is_floating(kept) or types.is_decimal(kept):
        return Stored(told, ("number", "category"))
    if types.is_string(kept) or types.is_large_string(kept):
        return Stored(told, ("category", "text"))
    if types.is_null(kept):
        return Stored(told, ("number", "category", "text"))
    return Stored(told, ())


def _chunk(pyarrow: Any, batch: Any, wanted: Mapping[str, Kind]) -> Rows:
    bad: dict[int, str] = {}
    columns: dict[str, Cells] = {}
    for name, kind in wanted.items():
        column = batch.column(batch.schema.get_field_index(name))
        if pyarrow.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if pyarrow.types.is_decimal(column.type):
            column = column.cast(pyarrow.float64())
        if kind == "number":
            column = column.cast(pyarrow.float64(), safe=False)
            columns[name] = column.to_numpy(zero_copy_only=False)
        elif pyarrow.types.is_floating(column.type):
            columns[name] = spelt(column.to_numpy(zero_copy_only=False))
        elif pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type):
            columns[name] = _texts(pyarrow, name, column, bad)
        else:
            columns[name] = column.cast(pyarrow.string()).to_pylist()
    return Rows(batch.num_rows, columns, bad)


def _texts(pyarrow: Any, name: str, column: Any, bad: dict[int, str]) -> list[str | None]:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        pass
    texts: list[str | None] = []
    for place, value in enumerate(column.cast(pyarrow.large_binary()).to_pylist()):
        try:
            texts.append(None if value is None else value.decode())
        except UnicodeDecodeError:
            bad.setdefault(place, f"column {name!r} is no UTF-8: write the file anew in it")
            texts.append(None)
    return texts
