"""Files that can't be used: one line that says why, and no cell of theirs."""

import io
import os
import re
import sys
import zipfile

import numpy as np
import pytest
from helpers.tables import COLUMNS, opened, write_table

NUMBER, WORD = 987654.25, "SECRETWORD"  # in private cells
HEADER = ",".join(COLUMNS)
GOOD = f"50,{NUMBER},private,{WORD},no"


def lines(*more, header=HEADER):
    return "\n".join([header, GOOD, *more, ""]).encode()


def arrays(save=np.savez, **changes):
    """The bytes of an .npz."""
    columns = {
        "age": np.array([50.0, 10.0]),
        "income": np.array([NUMBER, NUMBER]),
        "work": np.array([WORD, "state"]),
        "id": np.array([1, 2]),
        "sick": np.array(["no", "yes"]),
    }
    columns = {k: v for k, v in (columns | changes).items() if v is not None}
    file = io.BytesIO()
    save(file, **columns)
    return file.getvalue()


def damaged(data, place, value=0xFF):
    changed = bytearray(data)
    changed[place] ^= value
    return bytes(changed)


def parquet(**changes):
    """The bytes of a .parquet, from lists or functions of pyarrow that return arrays."""
    pyarrow = pytest.importorskip("pyarrow")
    writer = pytest.importorskip("pyarrow.parquet")
    columns = {
        "age": [50.0, 10.0],
        "income": [NUMBER, NUMBER],
        "work": [WORD, "state"],
        "id": [1, 2],
        "sick": ["no", "yes"],
    }
    columns = {k: v(pyarrow) if callable(v) else v for k, v in (columns | changes).items()}
    table = pyarrow.table({k: v for k, v in columns.items() if v is not None})
    file = io.BytesIO()
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    writer.write_table(table, file, write_page_checksum=True, **plain)
    return file.getvalue()


def twice_parquet():
    pyarrow = pytest.importorskip("pyarrow")
    writer = pytest.importorskip("pyarrow.parquet")
    file = io.BytesIO()
    columns = [pyarrow.array([NUMBER])] * 2
    writer.write_table(pyarrow.Table.from_arrays(columns, ["age", "age"]), file)
    return file.getvalue()


def locked_npz():
    """An archive whose members claim to be encrypted."""
    data = bytearray(arrays())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = data.find(mark)
        while place >= 0:
            data[place + offset] |= 1
            place = data.find(mark, place + 1)
    return bytes(data)


def other_checksum(data):
    """An archive whose first array is not the one that the checksum is of."""
    return damaged(data, data.find(b"PK\x01\x02") + 16)


def other_zip():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("notes.txt", WORD)
    return file.getvalue()


def vague_npz(shape):
    """An archive in which one array claims another shape."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive, archive.open("age.npy", "w") as member:
        np.lib.format.write_array_header_1_0(
            member, {"descr": "<f8", "fortran_order": False, "shape": shape}
        )
        member.write(np.array([NUMBER]).tobytes())
    return file.getvalue()


# ending, bytes, row (None: the file as a whole), part of the message
ROWS_OF_TEXT = {
    "too few cells": ("csv", lines(f"50,1,{WORD}"), 1, "3 cells where 5 are expected"),
    "too many cells": ("csv", lines(GOOD + ",1"), 1, "6 cells where 5 are expected"),
    "too many cells of a tsv": (
        "tsv",
        lines(GOOD + ",1").replace(b",", b"\t"),
        1,
        "6 cells where 5 are expected",
    ),
    "no number": ("csv", lines(f"{WORD},1,state,1,no"), 1, "'age' is no finite number"),
    "a decimal comma": ("csv", lines('"987654,25",1,state,1,no'), 1, "'age' is no finite number"),
    "a number with a unit": ("csv", lines("987654.25kg,1,state,1,no"), 1, "'age' is no finite"),
    "an infinite number": ("csv", lines("inf,1,state,1,no"), 1, "'age' is no finite number"),
    "a NaN": ("csv", lines("nan,1,state,1,no"), 1, "'age' is no finite number"),
    "too large a number": ("csv", lines("1e999,1,state,1,no"), 1, "'age' is no finite number"),
    "a missing number": ("csv", lines(" ,1,state,1,no"), 1, "'age' is missing"),
    "a number that is a question mark": ("csv", lines("?,1,state,1,no"), 1, "'age' is missing"),
    "a label that is not listed": (
        "csv",
        lines(f"5,1,state,1,{WORD}"),
        1,
        "'sick' holds no listed",
    ),
    "a missing label": ("csv", lines("5,1,state,1,"), 1, "'sick', which no row can do without"),
    "no UTF-8": (
        "csv",
        lines(GOOD, GOOD) + "50,1,café SECRETWORD,1,no\n".encode("latin-1"),
        3,
        "it is no UTF-8",
    ),
    "no UTF-8 in a cell that is ignored": (
        "csv",
        lines() + b"50,1,state,\xffSECRETWORD,no\n" + lines(),
        1,
        "it is no UTF-8",
    ),
    "a NUL byte": ("csv", lines(f"50,1,{WORD}\0,1,no"), 1, "it has a NUL byte"),
    "a quote that is never closed": ("csv", lines(f'50,1,"{WORD},1,no', GOOD), 1, "a quote is not"),
    "a quote that the next row closes": (
        "csv",
        lines(f'50,1,"{WORD},1,no', f'50,"1,{WORD},1,no'),
        1,
        "a quote is not closed, or characters follow it",
    ),
    "a quote that hides a row": (
        "csv",
        lines(f'50,1,"{WORD},1,no', '50,1,state",1,no,5'),
        1,
        "on 2 lines",
    ),
    "the names again": ("csv", lines(HEADER), 1, "'age' is no finite number"),
    "a blank in a line": ("csv", lines(" "), 1, "1 cells where 5 are expected"),
}
WHOLE_TEXTS = {
    "an empty file": ("csv", b"", None, "is empty"),
    "blank lines": ("csv", b"\n\n\n", None, "is empty"),
    "names without rows": ("csv", f"{HEADER}\n".encode(), None, "holds no records"),
    "a name twice": ("csv", lines(header=HEADER.replace("id", "age")), None, "two columns 'age'"),
    "no name": ("csv", lines(header=HEADER.replace("id", "")), None, "column 3 (from 0) has no"),
    "another column": (
        "csv",
        lines(GOOD + ",1", header=HEADER + ",dose"),
        None,
        "has the column 'dose', which the schema",
    ),
    "a column less": ("csv", b"age,income,work,sick\n", None, "lacks the column 'id'"),
    "a column that is misspelt": (
        "csv",
        lines(header=HEADER.replace("income", "incomes")),
        None,
        "has the column 'incomes'",
    ),
    "no names at all": ("csv", f"{GOOD}\n{GOOD}\n".encode(), None, "give --data.columns"),
    "another delimiter": ("csv", lines().replace(b",", b";"), None, "the schema's delimiter"),
    "commas in a tsv": ("tsv", lines(), None, "its first line has too few names"),
    "UTF-16": ("csv", f"{HEADER}\n{GOOD}\n".encode("utf-16"), None, "is UTF-16"),
    "names that are no UTF-8": ("csv", lines().replace(b"id", b"\xff"), None, "it is no UTF-8"),
    "names with an open quote": ("csv", b'"' + lines(), None, "a quote is not closed"),
    "a spreadsheet as csv": ("csv", other_zip(), None, "a zip archive or a spreadsheet"),
    "parquet as csv": ("csv", b"PAR1" + bytes(50), None, "is parquet"),
    "gzip as csv": ("csv", b"\x1f\x8b" + bytes(50), None, "is compressed by gzip"),
}
NPZ = {
    "NaN": ("npz", lambda: arrays(age=np.array([np.nan, NUMBER])), 0, "'age' is missing"),
    "infinite": ("npz", lambda: arrays(age=np.array([NUMBER, np.inf])), 1, "'age' is no finite"),
    "a label that is not listed": (
        "npz",
        lambda: arrays(sick=np.array(["no", WORD])),
        1,
        "'sick' holds no listed value",
    ),
    "text for a number": (
        "npz",
        lambda: arrays(age=np.array([WORD, "5"])),
        None,
        "'age' holds <U10, and the schema",
    ),
    "more axes for a category": (
        "npz",
        lambda: arrays(work=np.ones((2, 3))),
        None,
        "'work' holds float64 of shape (3,), and the schema",
    ),
    "complex numbers": ("npz", lambda: arrays(age=np.ones(2, complex)), None, "complex128"),
    "bytes": ("npz", lambda: arrays(work=np.array([b"a", b"b"])), None, "'work' holds |S1"),
    "objects": (
        "npz",
        lambda: arrays(work=np.array([WORD, None], object)),
        None,
        "'work' holds Python objects",
    ),
    "different lengths": ("npz", lambda: arrays(age=np.ones(3)), None, "'age' has 3 rows and"),
    "a single value": (
        "npz",
        lambda: arrays(age=np.array(NUMBER)),
        None,
        "'age' is a single value",
    ),
    "no features": ("npz", lambda: arrays(age=np.ones((2, 0))), None, "leave it out"),
    "no rows": (
        "npz",
        lambda: arrays(
            **{name: np.zeros(0, "U1" if name in ("work", "sick") else float) for name in COLUMNS}
        ),
        None,
        "holds no records",
    ),
    "no arrays": ("npz", lambda: b"PK\x05\x06" + bytes(18), None, "has no columns"),
    "a column less": ("npz", lambda: arrays(age=None), None, "lacks the column 'age'"),
    "another column": ("npz", lambda: arrays(dose=np.ones(2)), None, "has the column 'dose'"),
    "cut": ("npz", lambda: arrays()[:-60], None, "or is damaged"),
    "another byte": ("npz", lambda: damaged(arrays(), 140), None, "or is damaged"),
    "a wrong checksum": ("npz", lambda: other_checksum(arrays()), None, "or is damaged"),
    "a wrong checksum of what is compressed": (
        "npz",
        lambda: other_checksum(arrays(np.savez_compressed)),
        None,
        "or is damaged",
    ),
    "no archive": ("npz", lambda: WORD.encode() * 100, None, "no archive of numpy's arrays"),
    "an empty file": ("npz", lambda: b"", None, "no archive of numpy's arrays"),
    "other members": ("npz", other_zip, None, "no archive of numpy's arrays"),
    "a password": ("npz", locked_npz, None, "has a password"),
    "an array that claims to be longer": ("npz", lambda: vague_npz((10**9,)), None, "is damaged"),
    "an array that claims to be shorter": ("npz", lambda: vague_npz((0,)), None, "is damaged"),
}
PARQUET = {
    "null": ("parquet", lambda: parquet(age=[NUMBER, None]), 1, "'age' is missing"),
    "NaN": ("parquet", lambda: parquet(age=[NUMBER, float("nan")]), 1, "'age' is missing"),
    "infinite": ("parquet", lambda: parquet(age=[-np.inf, NUMBER]), 0, "'age' is no finite"),
    "a label that is null": (
        "parquet",
        lambda: parquet(sick=["no", None]),
        1,
        "'sick', which no row can do without",
    ),
    "a label that is not listed": (
        "parquet",
        lambda: parquet(sick=["no", WORD]),
        1,
        "'sick' holds no listed value",
    ),
    "no UTF-8": (
        "parquet",
        lambda: parquet(
            work=lambda arrow: arrow.StringArray.from_buffers(
                2,
                arrow.py_buffer(np.array([0, 1, 2], np.int32).tobytes()),
                arrow.py_buffer(b"a\xff"),
            )
        ),
        1,
        "'work' is no UTF-8",
    ),
    "text for a number": (
        "parquet",
        lambda: parquet(age=[WORD, "5"]),
        None,
        "'age' holds string, and the schema",
    ),
    "dates": (
        "parquet",
        lambda: parquet(age=lambda arrow: arrow.array([1, 2], arrow.date32())),
        None,
        "'age' holds date32[day], and the schema",
    ),
    "lists": ("parquet", lambda: parquet(work=[[WORD], []]), None, "'work' holds list<"),
    "truth values for a number": (
        "parquet",
        lambda: parquet(age=[True, False]),
        None,
        "declare it category or ignored",
    ),
    "no rows": (
        "parquet",
        lambda: parquet(**{name: [] for name in COLUMNS}),
        None,
        "holds no records",
    ),
    "a column less": ("parquet", lambda: parquet(age=None), None, "lacks the column 'age'"),
    "a name twice": ("parquet", twice_parquet, None, "two columns 'age'"),
    "cut": ("parquet", lambda: parquet()[:-20], None, "is no parquet, or is damaged"),
    "a beginning only": ("parquet", lambda: parquet()[:100], None, "is no parquet, or is damaged"),
    "no parquet": ("parquet", lambda: lines(), None, "is no parquet, or is damaged"),
    "an empty file": ("parquet", lambda: b"", None, "is no parquet, or is damaged"),
    "another number in a page": (
        "parquet",
        lambda: damaged(parquet(), parquet().find(np.float64(NUMBER).tobytes())),
        None,
        "or is damaged",
    ),
    "other pages": ("parquet", lambda: damaged(parquet(), 6), None, "or is damaged"),
}
GROUPS = {"text": ROWS_OF_TEXT, "whole text": WHOLE_TEXTS, "npz": NPZ, "parquet": PARQUET}
CASES = {f"{group}: {name}": case for group, kind in GROUPS.items() for name, case in kind.items()}


def refusal(path, **options):
    """The message, which is one line and holds no cell."""
    with pytest.raises(ValueError, match=r": ") as error:
        opened(path, **options)
    assert type(error.value) is ValueError
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert str(path) in message
    assert str(NUMBER) not in message
    assert "987654" not in message
    assert WORD not in message
    return message


@pytest.mark.parametrize("case", CASES)
def test_damaged_files_are_refused_in_one_line(tmp_path, case):
    ending, data, row, part = CASES[case]
    path = tmp_path / f"table.{ending}"
    path.write_bytes(data() if callable(data) else data)
    message = refusal(path)
    assert part in message
    assert ": " in message  # the cure follows
    found = re.search(r", row (\d+): ", message)
    assert (None if found is None else int(found[1])) == row


@pytest.mark.parametrize("make", [arrays, parquet])
def test_wherever_a_byte_is_another_one_the_message_is_one_line(tmp_path, make):
    data = make()
    path = tmp_path / ("table.npz" if make is arrays else "table.parquet")
    refused = 0
    for place in range(0, len(data), 13):
        path.write_bytes(damaged(data, place))
        try:
            source = opened(path)
        except ValueError as error:
            found = error
            refused += 1
        else:  # what is another byte is of no use, or not covered by a checksum
            features = source.read("train").fields[0].tolist()
            assert features == [[0, 1, 0, 0, 0, 0], [-1, 1, 0, 0, 1, 0]]
            continue
        assert type(found) is ValueError
        assert len(str(found).splitlines()) == 1
        assert WORD not in str(found)
    assert refused > 20


def test_there_are_many_cases():
    assert len(CASES) >= 60


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".parquet", ".npz"])
def test_files_that_are_not_there_or_closed_are_refused(tmp_path, ending):
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"table{ending}"
    assert "no such file" in refusal(path)
    path.mkdir()
    assert "is a directory" in refusal(path)
    path.rmdir()
    write_table(path)
    path.chmod(0)
    if not os.access(path, os.R_OK):  # the administrator may read all
        assert "permission denied" in refusal(path)


def test_parquet_needs_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = tmp_path / "table.parquet"
    path.touch()
    with pytest.raises(ValueError, match=r"needs pyarrow.*\[tables\]"):
        opened(path)
