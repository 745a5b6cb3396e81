"""Data sets: private and test records are told apart, and constants are not taken from them."""

from dataclasses import replace

import numpy as np
import pytest

from jaxdp.datasets import loading
from jaxdp.datasets.config import DataConfig
from jaxdp.datasets.records import Dataset, Records

pytest.importorskip("sklearn")


def test_digits_are_split_by_class_and_nothing_is_lost():
    from sklearn.datasets import load_digits

    dataset = loading.load(DataConfig())
    assert (len(dataset.private), len(dataset.test)) == (1437, 360)
    everything = np.concatenate([dataset.private.inputs, dataset.test.inputs])
    key = lambda images: sorted(image.tobytes() for image in images.astype(np.uint8))
    assert key(everything[..., 0]) == key(load_digits().images)
    classes = [np.bincount(part.labels) / len(part) for part in (dataset.private, dataset.test)]
    np.testing.assert_allclose(*classes, atol=2e-3)


def test_the_split_is_the_same_every_time():
    first, second = loading.load(DataConfig()), loading.load(DataConfig())
    np.testing.assert_array_equal(first.private.inputs, second.private.inputs)


def test_labels_out_of_range_are_refused():
    records = Records(np.zeros((2, 8, 8, 1)), np.array([0, 10]))
    with pytest.raises(ValueError, match="test records go from 0 to 10: expected 0 to 9"):
        Dataset(Records(records.inputs, np.array([0, 1])), records, 10, 0.0, 1.0, "")


@pytest.mark.parametrize(("inputs", "labels"), [(2, 3), (0, 0)])
def test_records_need_one_label_each(inputs, labels):
    with pytest.raises(ValueError, match=f"{inputs} inputs and {labels} labels"):
        Records(np.zeros((inputs, 4)), np.zeros(labels, int))


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


def test_a_run_may_leave_records_out_or_take_new_ones():
    now = DataConfig(private="train[10:1190]+test[100:]", public="train[1201:]", test="test[:50]")
    assert len(loading.load(now, earlier=[(SPLIT, {}), (now, {})]).private) == 1180 + 260


def test_a_run_keeps_its_records(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("to be or not to be, that is the question. " * 40)
    first = DataConfig(name="text", file=str(path), window=15, private="train[:50%]")
    run = [(first, loading.load(first).digests)]

    # The same file by another name is the same records: what was protected stays so.
    copy = tmp_path / "b.txt"
    copy.write_bytes(path.read_bytes())
    other = replace(first, file=str(copy), private="train[50%:]", public="train[:50%]")
    with pytest.raises(ValueError, match="in an earlier segment of the run"):
        loading.load(other, earlier=run)
    assert len(loading.load(replace(first, file=str(copy)), earlier=run).private)

    # Half of it is other records under the same numbers.
    path.write_text(path.read_text()[: path.stat().st_size // 2])
    shifted = replace(first, private="train[:50%]", public="train[50%:]")
    with pytest.raises(ValueError, match="are not those that the run began with"):
        loading.load(shifted, earlier=run)
    with pytest.raises(ValueError, match=r"data\.name is 'digits', and the run began with 'text'"):
        loading.load(SPLIT, earlier=run)
