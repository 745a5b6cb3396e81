"""Data sets are taken apart as asked, and a record keeps its use in all segments of a run."""

from dataclasses import replace

import pytest

from jaxdp.datasets import loading
from jaxdp.datasets.config import DataConfig

pytest.importorskip("sklearn")


SPLIT = DataConfig(private="train[:1200]", public="train[1200:]", test="test[:100]")


@pytest.mark.parametrize(
    ("now", "says"),
    [
        (
            DataConfig(private="train"),
            r"data.public = 'train\[1200:\]' in an earlier segment of the run and "
            r"data.private = 'train': 237 records of 'train'",
        ),
        (DataConfig(private="train[:1200]+test[:1]", test="test[100:]"), "1 records of 'test'"),
        (DataConfig(private="train[:1000]", public="train[1000:]"), "200 records of 'train'"),
        (DataConfig(private="train[:1000]", test="train[1199:]"), "1 records of 'train'"),
    ],
    ids=["public to private", "test to private", "private to public", "private to test"],
)
def test_a_run_protects_the_same_records_from_first_to_last(now, says):
    loading.load(now)
    with pytest.raises(ValueError, match=says):
        loading.load(now, earlier=[(SPLIT, {})])


def test_the_records_of_every_segment_are_kept():
    last = DataConfig(private="train[:1000]", test="test[:100]")
    now = replace(last, public="train[1000:1200]")
    assert len(loading.load(now, earlier=[(last, {})])[0].public) == 200
    with pytest.raises(ValueError, match="200 records of 'train'"):
        loading.load(now, earlier=[(SPLIT, {}), (last, {})])


def test_a_run_may_leave_records_out_or_take_new_ones():
    now = DataConfig(private="train[10:1190]+test[100:]", public="train[1201:]", test="test[:50]")
    data, _ = loading.load(now, earlier=[(SPLIT, {}), (now, {})])
    assert len(data.private) == 1180 + 260


def test_a_run_keeps_its_records(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("to be or not to be, that is the question. " * 40)
    first = DataConfig(name="text", file=str(path), window=15, private="train[:50%]")
    run = [(first, loading.load(first)[0].digests)]

    # The same file by another name is the same records: what was protected stays so.
    copy = tmp_path / "b.txt"
    copy.write_bytes(path.read_bytes())
    other = replace(first, file=str(copy), private="train[50%:]", public="train[:50%]")
    with pytest.raises(ValueError, match="in an earlier segment of the run"):
        loading.load(other, earlier=run)
    assert len(loading.load(replace(first, file=str(copy)), earlier=run)[0].private)

    # Half of it is other records under the same numbers.
    path.write_text(path.read_text()[: path.stat().st_size // 2])
    shifted = replace(first, private="train[:50%]", public="train[50%:]")
    with pytest.raises(ValueError, match="are not those that the run began with"):
        loading.load(shifted, earlier=run)
    with pytest.raises(ValueError, match=r"data\.name is 'digits', and the run began with 'text'"):
        loading.load(SPLIT, earlier=run)


def test_a_missing_file_name_is_asked_for():
    with pytest.raises(ValueError, match=r"give --data.file TEXT.txt"):
        loading.load(DataConfig(name="text"))


SAME_SPLIT = {"private": "train[:80%]", "test": "train[80%:]"}


@pytest.mark.parametrize("said", [None, True, False])
def test_only_the_test_split_of_a_published_set_is_public_by_itself(said, tmp_path):
    table, text = tmp_path / "visits.csv", tmp_path / "a.txt"
    table.write_text("x,y\n" + "1,0\n2,1\n" * 10)
    text.write_text("to be or not to be, that is the question. " * 40)
    schema = tmp_path / "schema.toml"
    schema.write_text(SCHEMA)
    own = {"file": str(table), "schema": str(schema), "label": "y"}
    cases = [
        ({}, True),
        ({"test": "test[:50%]"}, True),
        (SAME_SPLIT, False),
        ({"private": "train+test[:9]", "test": "test[9:]"}, False),
        ({**own, **SAME_SPLIT}, False),
        ({**own, "test_from": str(table)}, False),
        ({"file": str(text), "window": 7}, False),
    ]
    for options, by_itself in cases:
        if "test_from" in options:  # other rows
            other = tmp_path / "other.csv"
            other.write_text("x,y\n" + "2,0\n1,1\n" * 3)
            options["test_from"] = str(other)
        data, _ = loading.load(DataConfig(**options, test_is_public=said))
        assert data.test_is_public is (by_itself if said is None else said), options


SCHEMA = """
origin = "common sense"
[columns.x]
kind = "number"
low = 0
high = 3
[columns.y]
kind = "category"
values = ["0", "1"]
"""


def test_the_data_set_says_what_it_is_made_of(tmp_path):
    data, made = loading.load(SPLIT)
    assert (data.name, data.window, data.test_is_public) == ("digits", None, True)
    assert data.rules == {"private": SPLIT.private, "public": SPLIT.public, "test": SPLIT.test}
    assert sorted(data.digests) == ["test", "train"]
    assert (made.outputs, made.inputs, made.target) == (10, "image", "class")
    assert "public" not in loading.load(DataConfig())[0].rules
    file = tmp_path / "a.txt"
    file.write_text("to be or not to be, that is the question. " * 40)
    data, made = loading.load(DataConfig(name="text", file=str(file), window=15))
    assert (data.name, data.window, data.test_is_public) == ("text", 15, False)
    assert (made.inputs, made.target) == ("tokens", "tokens")
