"""A schema declares every column, and says what is wrong with it."""

import re

import pytest

from jaxdp.datasets.schema import (
    MISSING_VALUES,
    Category,
    Ignored,
    Number,
    PublicRows,
    Text,
    read_schema,
)

WHOLE = """
origin = \"\"\"the code book,
  page 3\"\"\"
missing_values = ["", "-9"]
comment = "|"
delimiter = ";"
[columns.age]
kind = "number"
low = 17
high = 90.5
missing = 38
[columns.work]
kind = "category"
values = ["Private", 7]
missing = true
other = true
strip = "."
[columns."my notes"]
kind = "text"
missing = true
[columns.id]
kind = "ignored"
[public]
file_digest = "abc"
rule = "train[:3]"
rows = 9
"""


def read(tmp_path, text):
    path = tmp_path / "columns.toml"
    path.write_text(text)
    return read_schema(str(path))


def test_all_keys_are_read(tmp_path):
    schema = read(tmp_path, WHOLE)
    assert schema.file == str(tmp_path / "columns.toml")
    assert schema.origin == "the code book, page 3"
    assert schema.missing_values == ("", "-9")
    assert (schema.comment, schema.delimiter) == ("|", ";")
    assert schema.public == PublicRows("abc", "train[:3]", 9)
    assert schema.columns == {
        "age": Number(17.0, 90.5, 38.0),
        "work": Category(("Private", "7"), missing=True, other=True, strip="."),
        "my notes": Text(missing=True),
        "id": Ignored(),
    }
    assert list(schema.columns) == ["age", "work", "my notes", "id"]


def test_what_is_left_out_has_a_default(tmp_path):
    schema = read(tmp_path, 'origin = "x"\n[columns]\na.kind = "text"\nb.kind = "ignored"\n')
    assert schema.missing_values == MISSING_VALUES == ("", "?", "NA", "NaN", "null")
    assert (schema.comment, schema.delimiter, schema.public) == ("", ",", None)


AGE = '\n[columns.age]\nkind = "number"\nlow = 1\nhigh = 2\n'
WORK = '\n[columns.work]\nkind = "category"\nvalues = ["a", "b"]\n'
START = 'origin = "x"\n'


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("origin = ", "is no TOML (Invalid value"),
        ("", "origin is missing: say in words"),
        (START.replace("x", " ") + AGE, "origin is missing"),
        ("origin = 3\n" + AGE, "origin is 3: give text in quotes"),
        (START, "there are no columns: declare each"),
        (START + "[columns]\n", "there are no columns"),
        (START + 'columns = "age"\n', "columns is 'age': give a table"),
        (START + 'columns.age = "number"\n', "'age' is 'number': write [columns.age]"),
        (START + "orign = 3\n" + AGE, "the key 'orign' is unknown: did you mean 'origin'?"),
        (START + "units = 3\n" + AGE, "the key 'units' is unknown: there are origin, missing"),
        (START + 'missing_values = "?"\n' + AGE, "missing_values is '?': give a list of texts"),
        (START + "missing_values = [1.5]\n" + AGE, "missing_values is [1.5]: give a list"),
        (START + 'missing_values = ["", ""]\n' + AGE, "missing_values has '' twice"),
        (START + "comment = 1\n" + AGE, "comment is 1: give text in quotes"),
        (START + 'delimiter = ";;"\n' + AGE, "delimiter is ';;': give one character"),
        (START + 'delimiter = " "\n' + AGE, "delimiter is ' ': give one character"),
        (START + "[columns.age]\nlow = 3\n", "column 'age': kind is missing: give number, "),
        (START + '[columns.age]\nkind = "nmber"', "column 'age': kind is 'nmber': did you mean 'n"),
        (START + "[columns.age]\nkind = 3", "column 'age': kind is 3: give text in quotes"),
        (START + AGE + "hihg = 3", "column 'age': the key 'hihg' is unknown: did you mean 'high'?"),
        (START + AGE + "values = []", "column 'age': the key 'values' is unknown"),
        (START + AGE.replace("low = 1", ""), "column 'age': low is missing: give the range"),
        (START + AGE.replace("high = 2", ""), "column 'age': high is missing: give the range"),
        (START + AGE.replace("1", "2"), "column 'age': low is 2 and high is 2: give a low that"),
        (START + AGE.replace("1", "3"), "column 'age': low is 3 and high is 2: give a low that"),
        (START + AGE.replace("1", "true"), "column 'age': low is True: give a number"),
        (START + AGE.replace("1", '"1"'), "column 'age': low is '1': give a number"),
        (START + AGE.replace("1", "-inf"), "column 'age': low is -inf: give a number of usual"),
        (START + AGE.replace("2", "nan"), "column 'age': high is nan: give a number of usual"),
        (START + AGE.replace("2", "1e39"), "column 'age': high is 1e+39: give a number of usual"),
        (START + AGE + "missing = 3", "column 'age': missing is 3: give a fill value of 1 to 2"),
        (START + AGE + "missing = true", "column 'age': missing is True: give a number"),
        (START + AGE + "other = true", "column 'age': the key 'other' is unknown"),
        (START + WORK.replace("values", "value"), "the key 'value' is unknown: did you mean 'valu"),
        (START + WORK.replace('"a", "b"', ""), "column 'work': there are no values: list them"),
        (START + WORK.replace('"b"', '"a"'), "column 'work': values has 'a' twice"),
        (START + WORK.replace('"b"', "1, '1'"), "column 'work': values has '1' twice"),
        (START + WORK.replace('"b"', "true"), "column 'work': values is ['a', True]: give a list"),
        (START + WORK.replace('["a", "b"]', '"a"'), "column 'work': values is 'a': give a list"),
        (START + WORK.replace('"b"', '"b "'), "values has 'b ', which no cell is after blanks are"),
        (START + WORK.replace('"b"', '"b."') + 'strip = "."', "blanks and '.' are stripped"),
        (START + WORK.replace('"b"', '"NA"'), "values has 'NA', which counts as missing"),
        (START + WORK + "missing = 1", "column 'work': missing is 1: give true or false"),
        (START + WORK + 'other = "yes"', "column 'work': other is 'yes': give true or false"),
        (START + WORK + "strip = true", "column 'work': strip is True: give text in quotes"),
        (START + '[columns.a]\nkind = "text"\nlow = 1', "column 'a': the key 'low' is unknown"),
        (START + '[columns.a]\nkind = "ignored"\nlow = 1', "column 'a': the key 'low' is unknown"),
        (START + AGE + "[public]\nfile_digest = 'a'", "file_digest, rule and rows belong together"),
        (START + AGE + "[public]\nrule = 1", "rule is 1: give text in quotes"),
        (START + AGE + "[public]\nrules = 'a'", "public: the key 'rules' is unknown: did you mean"),
        (START + "public = true\n" + AGE, "public is True: give a table, [public]"),
    ],
)
def test_a_wrong_schema_is_refused_in_one_line(tmp_path, text, part):
    with pytest.raises(ValueError, match=re.escape(part)) as error:
        read(tmp_path, text)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert message.startswith(f"the schema {tmp_path / 'columns.toml'}")


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "columns.toml"
    with pytest.raises(
        ValueError, match=r"columns\.toml can't be read \(no such file or directory\): put it there"
    ):
        read_schema(str(path))
    path.mkdir()
    with pytest.raises(ValueError, match=r"columns\.toml can't be read \(is a directory\)"):
        read_schema(str(path))
    path.rmdir()
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"columns\.toml is no text in UTF-8"):
        read_schema(str(path))
