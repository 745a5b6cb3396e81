"""Features in the place of images: computed once, each from its own record alone."""

from dataclasses import replace

import jax
import numpy as np
import pytest

import jaxdp
from jaxdp.datasets import DataConfig, cache, load
from jaxdp.datasets.decoding import Split, split_digest
from jaxdp.datasets.features import with_scattering
from jaxdp.datasets.sources import digits

CONFIG = DataConfig(features="scattering")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def made_of(images, labels=None, told=None, mirrored=False, bad=None, cached=False):
    """The features of some images of the digits' format."""
    labels = np.zeros(len(images), np.int32) if labels is None else labels
    split = Split((images, labels), split_digest(len(images), "made"), bad=bad or {}, cached=cached)
    known = replace(digits(), read=lambda name: split)
    return with_scattering(known, mirrored, (told if told is not None else []).append).read("train")


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 17, (count, 8, 8, 1)).astype(np.uint8)


def test_they_are_those_of_the_library():
    split = made_of(images(5), labels=np.arange(5, dtype=np.int32))
    features, labels = split.fields
    assert features.dtype == np.float16
    want = jaxdp.scattering(images(5).astype(np.float32) / 16, normalised=True)
    np.testing.assert_allclose(features, want, rtol=2e-3, atol=2e-3)
    np.testing.assert_array_equal(labels, np.arange(5))


def test_they_are_computed_once():
    told = []
    first, second = (made_of(images(5), told=told) for _ in range(2))
    assert told == ["Computing the scattering features of 5 images, split train (once)"]
    assert first.cached
    assert second.content == first.content
    assert made_of(images(5, seed=1), told=told).content != first.content
    assert made_of(images(5), told=told, mirrored=True).content != first.content
    assert len(told) == 3
    cache.clear()
    assert made_of(images(5)).content == first.content


@pytest.mark.parametrize("count", [3, 513])
def test_no_bit_depends_on_other_records_or_on_the_place(count):
    """So that neighbouring data sets differ in the features of one record only."""
    whole = np.asarray(made_of(images(count)).fields[0])
    without_first = np.asarray(made_of(images(count)[1:]).fields[0])
    np.testing.assert_array_equal(whole[1:], without_first)
    other = images(count)
    other[0] = 16
    np.testing.assert_array_equal(whole[1:], np.asarray(made_of(other).fields[0])[1:])


def test_the_records_stay_the_same_records():
    pixels = digits().read("train")
    features = with_scattering(digits(), False, print).read("train")
    assert features.digest == pixels.digest
    assert features.content != pixels.content


@pytest.mark.parametrize("cached", [False, True])
def test_images_that_are_kept_are_told_where_features_are_not(cached, monkeypatch):
    monkeypatch.setenv("JAXDP_CACHE_GB", "1e-9")
    assert made_of(images(4), cached=cached).cached == cached


def test_bad_rows_stay_bad():
    split = made_of(images(4), bad={2: "it is damaged"})
    assert split.bad == {2: "it is damaged"}
    blank = made_of(np.zeros((2, 8, 8, 1), np.uint8))
    np.testing.assert_array_equal(blank.fields[0], 0)


def test_a_data_set_of_features():
    data, form = load(CONFIG)
    features, _ = data.private.shape_of_one()
    assert features == jax.ShapeDtypeStruct((2, 2, 81), np.float16)
    assert "jaxdp.scattering(images / 16, normalised=True, mirrored=False)" in form.scaling
    assert form.decoding != load(replace(CONFIG, mirrored=True))[1].decoding


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"augment": "crop_flip"}, "data.augment is crop_flip: give none, or leave out"),
    ],
)
def test_errors(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        load(replace(CONFIG, **settings))
    assert "\n" not in str(error.value)


def test_texts_have_no_features(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("All that is written here is for tests. " * 40)
    with pytest.raises(ValueError, match="which is for images, but the data are not"):
        load(DataConfig(file=str(text), window=8, features="scattering"))


def test_unsuitable_sides():
    with pytest.raises(ValueError, match=r"data.features is 'scattering': images has shape"):
        made_of(np.zeros((2, 9, 8, 1), np.uint8))
