"""Canaries are made of public facts alone, and those that are out are in no batch."""

import itertools
import re
from dataclasses import replace

import jax
import numpy as np
import pytest
from helpers.small_dataset import SMALL_FORMAT, small_dataset

import jaxdp
from jaxdp.datasets import rows as rows_module
from jaxdp.datasets.canaries import add_canaries
from jaxdp.datasets.dataset import Dataset
from jaxdp.datasets.feeding import feed
from jaxdp.datasets.records import Records
from jaxdp.datasets.sources import Format

KEYS = np.array([1, 2], np.uint64), np.array([3, 4], np.uint64)
PLAIN = dict(center=None, scale=None, scaling="")


def with_canaries(data, count=50, data_format=None, keys=KEYS):
    return add_canaries(data, count, *keys, data_format)


def of_form(inputs, target, data_format):
    """Canaries of a format beside three private records of zeros."""
    return with_canaries(Dataset((inputs, target)), 4000, data_format).canaries.fields


def test_images_and_classes_are_random_within_the_declared_range():
    data = with_canaries(small_dataset(), 4000, replace(SMALL_FORMAT, center=8.0))
    images, labels = data.canaries.fields
    assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
    assert (images.min(), images.max()) == (0, 16)
    assert np.all(np.abs(np.bincount(images.reshape(-1)) / images.size - 1 / 17) < 0.003)
    assert np.all(np.abs(np.bincount(labels, minlength=10) / 4000 - 0.1) < 0.03)


def test_other_formats():
    numbers = Format("features", "number", 1, (0.0, 5.0), (1.0, 2.0), "", None, 10.0, 3.0)
    x, y = of_form(np.zeros((3, 2), np.float32), np.zeros(3, np.float32), numbers)
    assert np.allclose(x.min(0), [-1, 3], atol=0.01)
    assert np.allclose(x.max(0), [1, 7], atol=0.01)
    assert np.allclose([y.min(), y.max()], [7, 13], atol=0.01)

    documents = Format("tokens", "class", 3, vocabulary=5, **PLAIN)
    x, y = of_form(np.zeros((3, 6), np.int32), np.zeros(3, np.int32), documents)
    assert set(np.unique(x)) == {1, 2, 3, 4}  # 0 is padding
    assert set(np.unique(y)) == {0, 1, 2}

    text = Format("tokens", "tokens", 5, vocabulary=5, **PLAIN)
    x, y = of_form(np.zeros((3, 6), np.uint8), np.zeros((3, 6), np.int32), text)
    assert np.array_equal(x[:, 1:], y[:, :-1])  # each target is the token after its input
    assert set(np.unique(x)) == {0, 1, 2, 3, 4}

    mixed = Format("mixed", "class", 2, 0.0, 1.0, "", 5)
    rows = {"features": np.zeros((3, 2), np.float32), "tokens": np.zeros((3, 6), np.int32)}
    x, _ = of_form(rows, np.zeros(3, np.int32), mixed)
    assert np.all(np.abs(x["features"]) <= 1)
    assert set(np.unique(x["tokens"])) == {1, 2, 3, 4}


def own(**options):
    """Private rows that are negative, and others that are not: x and y of one row are equal."""
    public = np.arange(40)
    rows = lambda values: {"x": np.float32(values)[:, None] * np.ones(3, np.float32), "y": values}
    return Dataset(rows(np.arange(-30, 0)), **{name: rows(public) for name in options})


def test_own_records_give_canaries_of_mixed_public_fields():
    fields = with_canaries(own(public=True), 500).canaries.fields
    x, y = fields["x"][:, 0], fields["y"]
    assert min(x.min(), y.min()) >= 0  # nothing of a private record
    assert len(np.unique(x)) == len(np.unique(y)) == 40
    assert len(np.unique(x[:40])) == len(np.unique(y[:40])) == 40  # each once before any again
    assert 0 < np.mean(x == y) < 0.1  # an input with the label of another one


def test_test_records_are_taken_only_if_they_are_public():
    cure = "canaries can't be made of private records, and no others are known: give public ones"
    with pytest.raises(ValueError, match=re.escape(cure)):
        with_canaries(own())
    with pytest.raises(ValueError, match=re.escape(cure)):
        with_canaries(own(test=True))
    declared = own(test=True)
    declared.test_is_public = True
    assert with_canaries(declared).canaries.fields["y"].min() >= 0


def test_they_count_and_keep_the_numbers_after_all_others():
    data = own(public=True)
    whole = with_canaries(data)
    assert len(whole.private) == 30 + 50
    assert whole.real is data.private
    assert data.canaries is None
    assert len(data.private) == 30
    assert np.array_equal(whole.private.numbers(), [*range(30), *range(40, 90)])
    assert np.array_equal(whole.private.bad, [*[False] * 30, *~whole.canaries.included])
    assert np.array_equal(whole.private.fields["y"][30:], whole.canaries.fields["y"])
    assert whole.private.fields["x"].dtype == np.float32


def test_keys_decide_records_and_coins_apart():
    first = with_canaries(own(public=True))
    assert with_canaries(own(public=True)).private.digest() == first.private.digest()
    for i in (0, 1):
        keys = list(KEYS)
        keys[i] = np.array([9, 9], np.uint64)
        other = with_canaries(own(public=True), keys=keys).canaries
        same_rows = np.array_equal(other.fields["x"], first.canaries.fields["x"])
        same_coins = np.array_equal(other.included, first.canaries.included)
        assert (same_rows, same_coins) == (i == 1, i == 0)
        assert other.digest != first.canaries.digest


def test_coins_are_fair_and_independent():
    """Each figure is off by more than 5 standard deviations in one of 1e6 draws."""
    coins = with_canaries(own(public=True), 10_000).canaries.included.astype(float)
    assert abs(coins.mean() - 0.5) < 5 * 0.005
    assert abs(np.mean(coins[1:] * coins[:-1]) - 0.25) < 5 * 0.0045


def test_bad_rows_stay_bad():
    whole = own(public=True).private
    bad = np.arange(30) < 3
    marked = Records.of_parts(whole._parts, whole.numbers(), bad)
    data = own(public=True)
    data.private = marked
    assert np.array_equal(with_canaries(data).private.bad[:30], bad)


class ByRow:
    """Rows that are read one by one."""

    def __init__(self, fields):
        self.fields = fields

    def __len__(self):
        return len(self.fields["y"])

    def __getitem__(self, row):
        return jax.tree.map(lambda array: array[row], self.fields)


@pytest.mark.parametrize("read", [False, True])
@pytest.mark.parametrize("units", [None, 2])
def test_excluded_canaries_are_in_no_batch(monkeypatch, tmp_path, read, units):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(rows_module, "MEMORY_BYTES", 10)
    data = own(public=True)
    if read:
        fields = data.private.fields
        data = Dataset(ByRow(fields), public=data.public)
        assert not data.private.in_memory
    data = with_canaries(data)
    out = data.private.numbers()[data.private.bad]
    assert 10 < len(out) < 40
    clipping = jaxdp.clip_individual(1.0) if units is None else jaxdp.clip_batch(1.0)
    plan = jaxdp.Plan(
        num_examples=len(data.private),
        expected_batch_size=40,
        steps=30,
        clipping=clipping,
        num_units=units,
        noise_multiplier=1.0,
    )
    key = jax.random.key(0)
    drawn = itertools.islice(plan.batches(key=key), 30)
    batches = feed(data.private, drawn, step_key=lambda step: key)
    seen = []
    whole = itertools.islice(plan.batches(key=key), 30)
    for (batch, mask), (indices, before) in zip(batches, whole, strict=True):
        assert np.all(mask[..., :-1] >= mask[..., 1:])  # padding comes last
        seen.append(np.asarray(batch.ids)[mask])
        # They were drawn among all, and nothing else is left out.
        assert mask.sum() == np.sum(before & ~data.private.bad[np.minimum(indices, 79)])
    seen = np.concatenate(seen)
    assert not np.isin(out, seen).any()
    assert set(seen) == set(data.private.numbers()) - set(out)


def test_numbers_have_32_bits():
    data = own(public=True)
    data.private = Records.of_parts(
        data.private._parts, np.arange(2**31 - 40, 2**31 - 10, dtype=np.int32)
    )
    with pytest.raises(ValueError, match="50 canaries are too many"):
        with_canaries(data)
