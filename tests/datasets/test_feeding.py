"""Feeding: the same batches from the device and from the host, and ready in time."""

import functools
import threading
import time

import jax
import numpy as np
import pytest

from jaxdp.datasets import feeding
from jaxdp.datasets.records import Records

N = 50
RECORDS = Records(
    np.random.default_rng(0).integers(0, 255, (N, 6, 6, 1), np.uint8),
    np.arange(N, dtype=np.int32),
    np.arange(N, dtype=np.int32)[::-1] + 100,
)
SAMPLES = [
    (np.array([3, 1, 4], np.int32), np.array([True, True, False])),
    (np.array([9, 1, 5], np.int32), np.array([True, True, True])),
]
STEP_KEY = functools.partial(jax.random.fold_in, jax.random.key(0))


def flat(batches):
    return [jax.device_get((batch, mask)) for batch, mask in batches]


@pytest.mark.parametrize("placement", ["device", "host"])
def test_batches_hold_the_rows_that_were_sampled(placement):
    for ((x, y), mask), (indices, expected) in zip(
        flat(feeding.feed(RECORDS, SAMPLES, placement=placement)), SAMPLES, strict=True
    ):
        np.testing.assert_array_equal(x, RECORDS.inputs[indices])
        np.testing.assert_array_equal(y, indices)
        np.testing.assert_array_equal(mask, expected)


def test_augmentation_is_the_same_wherever_the_data_are():
    def noisy(key, x):
        return x + jax.random.uniform(key, x.shape)

    first, second = (
        flat(feeding.feed(RECORDS, SAMPLES, placement=where, augment=noisy, step_key=STEP_KEY))
        for where in ("device", "host")
    )
    jax.tree.map(np.testing.assert_array_equal, first, second)
    (x, _), _ = first[0]
    (later, _), _ = first[1]
    assert not np.array_equal(x[1] - RECORDS.inputs[1], later[1] - RECORDS.inputs[1])
    # A run that goes on at step 1 sees what it would have seen.
    resumed = flat(feeding.feed(RECORDS, SAMPLES[1:], augment=noisy, step_key=STEP_KEY, start=1))
    np.testing.assert_array_equal(resumed[0][0][0], later)


def test_an_augmentation_wants_keys():
    with pytest.raises(ValueError, match="without keys"):
        feeding.feed(RECORDS, SAMPLES, augment=lambda key, x: x)


def test_the_next_batch_is_fetched_while_a_step_runs():
    taken = []

    def samples():
        for sample in SAMPLES * 3:
            taken.append(threading.get_ident())
            time.sleep(0.05)
            yield sample

    batches = feeding.Waiting(feeding.feed(RECORDS, samples(), placement="host"))
    next(batches)
    for _ in range(5):
        time.sleep(0.15)  # a step
        waited = batches.seconds
        next(batches)
        assert batches.seconds - waited < 0.05
    assert threading.get_ident() not in taken
    assert list(batches) == []


def test_a_failure_in_the_thread_reaches_the_loop():
    def samples():
        yield SAMPLES[0]
        raise RuntimeError("no more")

    batches = feeding.feed(RECORDS, samples(), placement="host")
    next(batches)
    with pytest.raises(RuntimeError, match="no more"):
        next(batches)


def test_what_does_not_fit_stays_on_the_host(monkeypatch):
    assert feeding.resolve("auto", RECORDS) == "device"
    monkeypatch.setattr(feeding, "CPU_BYTES", 10)
    assert feeding.resolve("auto", RECORDS) == "host"
    assert feeding.resolve("device", RECORDS) == "device"
