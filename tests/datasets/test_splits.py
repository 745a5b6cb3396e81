"""Splits mean what they mean to TFDS, and no record has two uses."""

import pytest

from jaxdp.datasets.splits import Part, check_disjoint, parse_split

SIZES = {"train": 1234, "test": 57}
SPECS = [
    "train", "test", "train[:90%]", "train[90%:]", "train[10%:20%]", "train[-10%:]", "train[100:]",
    "train[:-100]", "train[-5:]", "train[33%:66%]", "train[:10]+test"
]  # fmt: skip


@pytest.mark.parametrize("spec", SPECS)
def test_splits_are_those_of_tfds(spec):
    tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra [data]")
    info = tfds.core.splits.SplitDict(
        [
            tfds.core.SplitInfo(name=name, shard_lengths=[size], num_bytes=0)
            for name, size in SIZES.items()
        ]
    )
    absolute = tfds.core.splits.AbstractSplit.from_spec(spec).to_absolute(info)
    expected = [(a.splitname, a.from_ or 0, a.to or SIZES[a.splitname]) for a in absolute]
    got = [(p.name, p.start, p.stop) for p in parse_split(spec, SIZES)]
    assert got == expected


def test_slices_cut_a_split_without_loss():
    for percent in range(1, 100):
        (left,) = parse_split(f"train[:{percent}%]", SIZES)
        (right,) = parse_split(f"train[{percent}%:]", SIZES)
        assert (left.start, left.stop, right.stop) == (0, right.start, SIZES["train"])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("train[10%]", "can't be read: write it like"),
        ("", "can't be read"),
        ("validation", r"needs 'validation': the data set has train \(1234\), test \(57\)"),
        ("train[:0]", "is empty: 'train' has 1234 records"),
        ("train[2000:]", "'train' has 1234 records: there is no row 2000"),
        ("train[1000:2000]", "there is no row 2000"),
        ("train[:-1235]", "there is no row -1235"),
        ("train[:101%]", "there is no row 101%"),
        ("train+train[:1]", "1 records of 'train' are in it twice"),
    ],
)
def test_wrong_splits_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        parse_split(spec, SIZES)


def test_overlapping_uses_are_refused():
    with pytest.raises(ValueError, match=r"private and public: 100 records of 'train' are in both"):
        check_disjoint({"private": [Part("train", 0, 1000)], "public": [Part("train", 900, 1234)]})
    check_disjoint({"private": [Part("train", 0, 900)], "public": [Part("train", 900, 1234)]})
