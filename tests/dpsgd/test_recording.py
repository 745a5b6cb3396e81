"""A recording is replayed on each JAX: sums agree to rounding, all that is random to the bit."""

import functools

import numpy as np
import pytest
from helpers import recording


@functools.cache
def recorded():
    with np.load(recording.FILE) as file:
        return dict(file)


def agree(found):
    """Compares arrays with those of the recording that have their names."""
    for name, array in found.items():
        old = recorded()[name]
        told = f"{name} is not what was recorded. If it is meant to differ: {recording.COMMAND}"
        assert (array.shape, array.dtype) == (old.shape, old.dtype), told
        if name.endswith(tuple(f"/{what}" for what in recording.ROUNDED)):
            np.testing.assert_allclose(array, old, rtol=1e-5, atol=1e-5, err_msg=told)
        else:
            np.testing.assert_array_equal(array, old, err_msg=told)


@pytest.mark.parametrize("sampling", recording.SAMPLINGS)
def test_the_same_records_are_sampled(sampling):
    agree(recording.of_sampling(sampling))


@pytest.mark.parametrize("clipping", recording.CLIPPINGS)
def test_sums_noise_and_releases_are_the_same(clipping):
    agree(recording.of_clipping(clipping))


def test_noise_and_keys_are_the_same():
    agree(recording.of_key())


def test_the_recording_holds_what_it_should():
    kinds = {name.rpartition("/")[2] for name in recorded()}
    assert kinds == {
        *("indices", "mask", "numbers", "key", "noise alone", "sums", "counts"),
        *("released", "norms"),
    }
    for name in recording.CLIPPINGS:
        for step in range(recording.STEPS):
            sums, noise = (recorded()[f"{name}/{step}/{what}"] for what in ("sums", "noise alone"))
            assert sums.all()
            assert len(np.unique(noise)) == len(sums)
    assert recording.FILE.stat().st_size < 200_000
