"""Feeding: the same batches from the device and from the host, and ready in time."""

import contextlib
import functools
import threading
import time

import jax
import numpy as np
import pytest

from jaxdp.datasets import feeding
from jaxdp.datasets.records import Part, Records
from jaxdp.datasets.rows import ReadFailed, SourceRows

N = 50
IMAGES = np.random.default_rng(0).integers(0, 255, (N, 6, 6, 1), np.uint8)
LABELS = np.arange(N, dtype=np.int32)
IDS = np.arange(N, dtype=np.int32)[::-1] + 100
RECORDS = Records({"image": IMAGES, "label": LABELS}, IDS)
SAMPLES = [
    (np.array([3, 1, 4], np.int32), np.array([True, True, False])),
    (np.array([9, 1, 5], np.int32), np.array([True, True, True])),
]
STEP_KEY = functools.partial(jax.random.fold_in, jax.random.key(0))


def feed(samples, **options):
    return feeding.feed(RECORDS, samples, step_key=STEP_KEY, **options)


def flat(batches):
    """The arrays of batches, with the words of their keys."""
    words = lambda batch: batch._replace(key=jax.random.key_data(batch.key))
    return [jax.device_get((words(batch), mask)) for batch, mask in batches]


@pytest.mark.parametrize("placement", ["device", "host"])
def test_batches_hold_the_rows_that_were_sampled(placement):
    for step, ((batch, mask), (indices, expected)) in enumerate(
        zip(flat(feed(SAMPLES, placement=placement)), SAMPLES, strict=True)
    ):
        np.testing.assert_array_equal(batch.records["image"][mask], IMAGES[indices[mask]])
        np.testing.assert_array_equal(batch.records["label"][mask], indices[mask])
        np.testing.assert_array_equal(batch.ids, IDS[indices])
        np.testing.assert_array_equal(batch.key, jax.random.key_data(STEP_KEY(step)))
        np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("placement", ["device", "host"])
def test_padding_behind_the_last_record_is_no_error(placement):
    sample = (np.array([3, N, N + 7], np.int32), np.array([True, False, False]))
    ((batch, _),) = flat(feed([sample], placement=placement))
    np.testing.assert_array_equal(batch.records["label"], [3, N - 1, N - 1])


def test_what_can_t_be_used_is_taken_out_of_the_sample_that_was_drawn():
    bad = np.zeros(N, bool)
    bad[[1, 4, 9]] = True
    ones = np.ones(3, bool)
    units = np.array([[3, 1, 4], [9, 1, N]], np.int32), np.array([ones, [True, True, False]])
    for placement in ("device", "host"):
        records = Records.of_parts([Part(RECORDS.only_rows(), range(N))], IDS, bad)
        assert records.digest() != RECORDS.digest()
        found = flat(
            feeding.feed(records, [*SAMPLES, units], step_key=STEP_KEY, placement=placement)
        )
        for (batch, mask), left in zip(found, [[3], [5], [[3], []]], strict=True):
            # Padding comes after what is left, as everywhere.
            assert not np.any(~mask[..., :-1] & mask[..., 1:])
            np.testing.assert_array_equal(
                batch.records["label"][mask], np.concatenate([*left], None)
            )
            np.testing.assert_array_equal(
                batch.ids[mask], IDS[np.concatenate([*left], None).astype(int)]
            )
        assert [mask.shape for _, mask in found] == [(3,), (3,), (2, 3)]


def test_what_a_loss_draws_is_the_same_wherever_the_data_are():
    samples = [(indices, np.ones(3, bool)) for indices, _ in SAMPLES]
    first, second = (flat(feed(samples, placement=where)) for where in ("device", "host"))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    # A run that goes on at step 1 sees what it would have seen.
    resumed = flat(feed(samples[1:], start=1))
    jax.tree.map(np.testing.assert_array_equal, resumed, first[1:])
    keys = [
        jax.random.key_data(feeding.record_keys(batch.key, batch.ids)) for batch, _ in feed(SAMPLES)
    ]
    same_record = keys[0][1], keys[1][1]  # at two steps
    assert not np.array_equal(*same_record)
    assert len(np.unique(np.concatenate(keys), axis=0)) == 6


def test_a_record_s_key_depends_on_its_number_alone():
    ids = np.array([[40, 7], [23, 0]])
    keys = feeding.record_keys(STEP_KEY(3), ids)
    assert keys.shape == ids.shape
    own = jax.random.fold_in(STEP_KEY(3), 23)
    np.testing.assert_array_equal(jax.random.key_data(keys[1, 0]), jax.random.key_data(own))


def test_the_next_batch_is_fetched_while_a_step_runs():
    taken = []

    def samples():
        for sample in SAMPLES * 3:
            taken.append(threading.get_ident())
            time.sleep(0.05)
            yield sample

    batches = feeding.Waiting(feed(samples(), placement="host"))
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

    batches = feed(samples(), placement="host")
    next(batches)
    with pytest.raises(RuntimeError, match="no more"):
        next(batches)


def test_what_does_not_fit_stays_on_the_host(monkeypatch):
    assert feeding.resolve("auto", RECORDS) == "device"
    monkeypatch.setattr(feeding, "CPU_BYTES", 10)
    assert feeding.resolve("auto", RECORDS) == "host"
    assert feeding.resolve("device", RECORDS) == "device"


def test_records_in_files_are_read_when_they_are_sampled(monkeypatch, tmp_path):
    np.save(tmp_path / "x.npy", IMAGES)
    records = Records((np.load(tmp_path / "x.npy", mmap_mode="r"), LABELS))
    assert not records.in_memory
    assert feeding.resolve("auto", records) == "device"  # as they are few
    monkeypatch.setattr(feeding, "READ_BYTES", 10)
    assert feeding.resolve("auto", records) == "host"
    assert feeding.resolve("auto", RECORDS) == "device"


def test_what_is_on_the_device_is_no_file_any_more(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((4000, 64), np.float32))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    samples = [(np.arange(8), np.ones(8, bool))] * 3
    batches = feeding.feed(Records(mapped), samples, step_key=STEP_KEY, placement="device")
    next(batches)
    with (tmp_path / "x.npy").open("r+b") as file:
        file.seek(128)
        file.write(np.full((4000, 64), 7, np.float32).tobytes())
    assert [float(batch.records.mean()) for batch, _ in batches] == [1.0, 1.0]


class Asked:
    """A source that notes which rows were asked for, and by which threads."""

    def __init__(self):
        self.rows, self.threads, self.broken = [], set(), frozenset()

    def __len__(self):
        return N

    def __getitems__(self, rows):
        self.rows.append(list(rows))
        self.threads.add(threading.get_ident())
        time.sleep(0.02)
        if self.broken.intersection(rows):
            raise OSError("the disk is gone")
        return IMAGES[rows], LABELS[rows]

    def digest(self):
        return "the same as ever"


def read_by(source):
    form = (jax.ShapeDtypeStruct((6, 6, 1), np.uint8), jax.ShapeDtypeStruct((), np.int32))
    return Records.of_parts([Part(SourceRows(source, "", form, True), range(N))])


def test_sampled_rows_alone_are_read_by_threads_ahead_of_the_step(monkeypatch):
    source = Asked()
    samples = [
        (np.array([i, (7 * i) % N, N]), np.array([True, i % 5 != 0, False])) for i in range(40)
    ]
    asked = [indices[mask].tolist() for indices, mask in samples]
    batches = feeding.feed(read_by(source), samples, step_key=STEP_KEY, placement="host")
    for i, (batch, mask) in enumerate(batches):
        np.testing.assert_array_equal(batch.records[1][mask], asked[i])
        np.testing.assert_array_equal(batch.records[0][mask], IMAGES[asked[i]])
        np.testing.assert_array_equal(batch.records[0][~mask], 0)
        assert len(source.rows) <= i + 1 + feeding.THREADS
    assert sorted(source.rows) == sorted(asked)
    assert len(source.threads) > 1
    source.rows.clear()
    monkeypatch.setattr(feeding, "AHEAD_BYTES", 1)  # large batches: one beside the step's
    batches = feeding.feed(read_by(source), samples, step_key=STEP_KEY, placement="host")
    for i, _ in enumerate(batches):
        assert len(source.rows) <= i + 2
    assert threading.get_ident() not in source.threads


def threads():
    return [one.name for one in threading.enumerate() if one.name.startswith("jaxdp-")]


def ones(count):
    """A sample of a record for every step."""
    return [(np.array([i]), np.array([True])) for i in range(count)]


@pytest.mark.parametrize("records", [RECORDS, read_by(Asked())], ids=["memory", "source"])
@pytest.mark.parametrize("taken", [0, 1, 10])
def test_closed_batches_leave_no_thread(records, taken):
    with contextlib.closing(
        feeding.Waiting(feeding.feed(records, ones(20), step_key=STEP_KEY, placement="host"))
    ) as batches:
        for _ in range(taken):
            next(batches)
        assert bool(threads()) == (taken > 0)
    assert threads() == []
    assert list(batches) == []


def test_batches_that_end_leave_no_thread():
    batches = feeding.feed(read_by(Asked()), ones(9), step_key=STEP_KEY, placement="host")
    assert len(list(batches)) == 9
    assert threads() == []


def test_what_was_not_begun_is_dropped_when_the_batches_are_closed():
    drawn, source = [], Asked()

    def samples():
        for sample in ones(20):
            time.sleep(0.1)
            drawn.append(sample)
            yield sample

    batches = feeding.feed(read_by(source), samples(), step_key=STEP_KEY, placement="host")
    next(batches)
    batches.close()
    assert len(source.rows) <= len(drawn) <= 2
    assert threads() == []


def test_rows_that_can_t_be_read_any_more_stop_the_loop_at_their_step():
    source = Asked()
    source.broken = frozenset([5])
    batches = feeding.feed(read_by(source), ones(N), step_key=STEP_KEY, placement="host")
    assert [int(next(batches)[0].ids[0]) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ReadFailed, match=r"records can't be read \(OSError at test_feeding.py"):
        next(batches)
    assert threads() == []  # so nothing reads on
    assert max(row for rows in source.rows for row in rows) <= 5 + feeding.THREADS
    assert list(batches) == []
