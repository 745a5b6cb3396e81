"""Brings the records of each step to the device."""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, Protocol

import jax
import numpy as np

from ..types import PyTree
from .config import Placement
from .records import Records

StepKey = Callable[[int], jax.Array]  # number of the step -> JAX key

Sample = tuple[np.ndarray, np.ndarray]  # the indices of records, and a mask: False is padding

DEVICE_SHARE = 0.25  # the share of the device's memory that "auto" gives to the records

CPU_BYTES = 4 * 2**30  # instead of that share, where a device does not tell its memory

READ_BYTES = 256 * 2**20  # the most, for records that are not in memory yet

THREADS = 4  # that read batches ahead of the step

AHEAD_BYTES = 256 * 2**20  # of batches that are read ahead, if more than one


class Dealer(Protocol):
    """Deals the rows of a batch out to several devices (`dpsgd.devices.Layout`)."""

    def order(self, array: np.ndarray, padding: Any) -> np.ndarray:
        """Puts rows into the order in which the devices have them, with rows of padding."""

    def own_rows(self, count: int) -> np.ndarray:
        """Which of so many rows the devices of this process have."""

    def from_own_rows(self, own: PyTree, count: int) -> PyTree:
        """A batch of `count` rows on its devices, made of those of this process."""

    def spread(self, tree: PyTree) -> PyTree:
        """Arrays that every device has."""


class Batch(NamedTuple):
    """The records of a step, as arrays on the device, or as shapes."""

    records: PyTree  # arrays with one row for each index
    ids: Any  # int32, like the indices: the records' numbers in the whole data set
    key: Any  # a JAX key for what the loss draws at this step


def feed(
    records: Records,
    samples: Iterable[Sample],
    *,
    step_key: StepKey,
    placement: Placement = "auto",
    start: int = 0,
    dealer: Dealer | None = None,
) -> Generator[tuple[Batch, np.ndarray], None, None]:
    """Turns indices and masks into batches on the device and masks, one for each step.

    Its threads end with it. Where a loop may end before the batches, close it: it is a generator.

    Args:
      records: the records that the indices number.
      samples: indices and masks of the same shape, from `plan.batches()`.
      step_key: gives the JAX key of a step, for what the loss draws alone.
      placement: "device" keeps all records on the device. "host" keeps them where they are, in
        memory or in files, and threads fetch the next batches while a step runs: they read the
        sampled records alone. "auto" chooses by their size.
      start: number of the first step.
      dealer: deals the rows of each batch out to several devices; None: there is one.

    Raises:
      ReadFailed: for records that can't be read any more, or have changed.
    """
    if records.bad is not None:
        samples = (without_bad(records.bad, *sample) for sample in samples)
    if dealer is not None:
        behind = len(records)  # the index of padding, which is no record's
        samples = ((dealer.order(i, behind), dealer.order(m, False)) for i, m in samples)
    if resolve(placement, records) == "device":
        return _from_device(records, samples, step_key, start, dealer)
    return _from_host(records, samples, step_key, start, dealer)


def without_bad(
    bad: np.ndarray, indices: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Takes records that can't be used out of a sample, and lets the padding begin earlier.

    The sample was drawn among all N records, as if these could be used. So it does not depend on
    which can be.

    Args:
      bad: `[N] bool`.
      indices, mask: of a sample. The last axis is the places of a batch or unit.
    """
    keep = mask & ~bad[np.minimum(indices, len(bad) - 1)]
    order = np.argsort(~keep, axis=-1, kind="stable")
    return (
        np.take_along_axis(indices, order, axis=-1),
        np.take_along_axis(keep, order, axis=-1),
    )


def record_keys(step_key: jax.Array, ids: jax.Array) -> jax.Array:
    """Returns one key per record, of the shape of `ids`.

    A record's key depends neither on its place in the batch nor on the other records.

    Args:
      step_key: the JAX key of the step.
      ids: the ids of the records (`Records.numbers`), of any shape.
    """
    keys = jax.vmap(lambda id_: jax.random.fold_in(step_key, id_))(ids.reshape(-1))
    return keys.reshape(ids.shape)


def resolve(placement: Placement, records: Records) -> Literal["device", "host"]:
    """Returns where the records are kept. "auto" goes by the memory of the first device.

    In several processes, "auto" lets each read the rows of its own devices.
    """
    if placement != "auto":
        return placement
    if jax.process_count() > 1:
        return "host"
    memory = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    limit = CPU_BYTES if memory is None else DEVICE_SHARE * memory
    if not records.in_memory:
        limit = min(limit, READ_BYTES)
    return "device" if records.nbytes <= limit else "host"


class Waiting:
    """Passes batches on, and adds up in `seconds` how long it waited for them."""

    def __init__(self, batches: Generator[Any, None, None]) -> None:
        self.seconds = 0.0
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        start = time.monotonic()
        try:
            return next(self._batches)
        finally:
            self.seconds += time.monotonic() - start

    def close(self) -> None:
        """Ends the threads that fetch batches ahead."""
        self._batches.close()


@jax.jit  # compiled once, however many feeds there are
def _rows(arrays: PyTree, indices: jax.Array) -> PyTree:
    # Padding has an index behind the last record; its rows are masked, whatever they hold.
    return jax.tree.map(lambda array: array.at[indices].get(mode="clip"), arrays)


def _from_device(
    records: Records,
    samples: Iterable[Sample],
    step_key: StepKey,
    start: int,
    dealer: Dealer | None,
) -> Generator[tuple[Batch, np.ndarray], None, None]:
    fields = records.fields
    if not records.in_memory:  # a CPU would use the mapped file itself, whatever is written to it
        fields = jax.tree.map(np.array, fields)
    everything = (fields, records.numbers())
    on_device = jax.device_put(everything) if dealer is None else dealer.spread(everything)
    for step, sample in enumerate(samples, start):
        indices, mask = _on_devices(_own(sample, dealer), len(sample[0]), dealer)
        fields, ids = _rows(on_device, indices)
        yield Batch(fields, ids, step_key(step)), mask


def _from_host(
    records: Records,
    samples: Iterable[Sample],
    step_key: StepKey,
    start: int,
    dealer: Dealer | None,
) -> Generator[tuple[Batch, np.ndarray], None, None]:
    numbered, ids = enumerate(samples, start), records.numbers()
    # What is in memory is fetched by one thread: it is as fast, and disturbs the step less.
    threads = 1 if records.in_memory else THREADS
    sampler = ThreadPoolExecutor(1, thread_name_prefix="jaxdp-sample")  # draws in their order
    readers = ThreadPoolExecutor(threads, thread_name_prefix="jaxdp-read")

    def read(found: tuple[int, Sample] | None) -> tuple[Batch, np.ndarray] | None:
        if found is None:
            return None
        step, sample = found
        indices, mask = _own(sample, dealer)
        rows = np.minimum(indices, len(records) - 1)  # padding is masked, whatever it holds
        fields = _taken(records, rows) if records.in_memory else _read(records, indices, mask)
        fields, numbers, mask = _on_devices((fields, ids[rows], mask), len(sample[0]), dealer)
        return Batch(fields, numbers, step_key(step)), mask

    def submit() -> Future[tuple[Batch, np.ndarray] | None]:
        if records.in_memory:
            return readers.submit(lambda: read(next(numbered, None)))
        drawn = sampler.submit(next, numbered, None)
        return readers.submit(lambda: read(drawn.result()))

    try:
        ready = deque([submit()])
        while (batch := ready.popleft().result()) is not None:
            size = sum(leaf.nbytes for leaf in jax.tree.leaves(batch[0].records))
            ahead = max(1, min(threads, AHEAD_BYTES // max(1, size)))
            while len(ready) < ahead:
                ready.append(submit())
            yield batch
    finally:  # at the end, after a failure, and where the loop closes it
        sampler.shutdown(cancel_futures=True)  # so that readers don't wait for it
        readers.shutdown(cancel_futures=True)


def _own(sample: Sample, dealer: Dealer | None) -> Sample:
    """The part of a sample that this process brings to its devices."""
    if dealer is None:
        return sample
    own = dealer.own_rows(len(sample[0]))
    return sample[0][own], sample[1][own]


def _on_devices(own: PyTree, count: int, dealer: Dealer | None) -> PyTree:
    return jax.device_put(own) if dealer is None else dealer.from_own_rows(own, count)


def _taken(records: Records, rows: np.ndarray) -> PyTree:
    taken = records.take(rows.reshape(-1))
    return jax.tree.map(lambda array: array.reshape(*rows.shape, *array.shape[1:]), taken)


def _read(records: Records, indices: np.ndarray, mask: np.ndarray) -> PyTree:
    """The sampled records alone, and zeros where there is padding."""
    rows = records.take(indices[mask])

    def placed(array: np.ndarray) -> np.ndarray:
        whole = np.zeros((*indices.shape, *array.shape[1:]), array.dtype)
        whole[mask] = array
        return whole

    return jax.tree.map(placed, rows)
