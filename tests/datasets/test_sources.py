"""Sources of records: nothing is lost, and no constant is taken from private records."""

import sys
from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxdp._distribution import DISTRIBUTION
from jaxdp.datasets import loading
from jaxdp.datasets.config import DataConfig


def test_digits_are_split_by_class_and_nothing_is_lost():
    pytest.importorskip("sklearn")
    from sklearn.datasets import load_digits

    dataset, _ = loading.load(DataConfig())
    assert (len(dataset.private), len(dataset.test)) == (1437, 360)
    images, labels = zip(dataset.private.fields, dataset.test.fields, strict=True)
    everything = np.concatenate(images)
    key = lambda images: sorted(image.tobytes() for image in images.astype(np.uint8))
    assert key(everything[..., 0]) == key(load_digits().images)
    classes = [np.bincount(part) / len(part) for part in labels]
    np.testing.assert_allclose(*classes, atol=2e-3)


def test_a_missing_extra_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    cure = rf"digits needs sklearn\.datasets.*pip install '{DISTRIBUTION}\[train\]'"
    with pytest.raises(ValueError, match=cure):
        loading.load(DataConfig())


def test_the_split_of_digits_is_the_same_every_time():
    pytest.importorskip("sklearn")
    first, second = (loading.load(DataConfig())[0].private for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first.fields, second.fields)


def test_the_data_set_has_the_last_windows_for_its_test(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("".join(chr(32 + i % 90) for i in range(1000)))
    config = DataConfig(
        name="text", file=str(file), window=9, private="train[:80]", public="train[80:]"
    )
    dataset, data_format = loading.load(config)
    assert (len(dataset.private), len(dataset.public), len(dataset.test)) == (80, 10, 10)
    np.testing.assert_array_equal(
        np.concatenate(
            [dataset.private.numbers(), dataset.public.numbers(), dataset.test.numbers()]
        ),
        np.arange(100),
    )
    assert data_format.center is None
    with pytest.raises(ValueError, match="window is 4, and the run began with 9"):
        loading.load(replace(config, window=4), earlier=[(config, {})])
