"""How the records of a step's batch get to the device."""

import functools
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import jax
import numpy as np

from .augmentation import record_keys
from .records import Records

Placement = Literal["auto", "device", "host"]

Augment = Callable[[jax.Array, jax.Array], jax.Array]  # (key, input) -> input

Batch = tuple[jax.Array, jax.Array]  # inputs and labels, each with one row per index

DEVICE_SHARE = 0.25  # of a device's memory that "auto" gives to the data

CPU_BYTES = 4 * 2**30  # the same for a device that does not tell how much it has


def feed(
    records: Records,
    samples: Iterable[tuple[np.ndarray, np.ndarray]],
    *,
    placement: Placement = "auto",
    augment: Augment | None = None,
    key: jax.Array | None = None,
    start: int = 0,
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Turns the samples of a run, indices and mask, into batches on the device and masks.

    Args:
      records: what the indices point into.
      samples: from `plan.batches()`.
      placement: "device" keeps all records there; "host" keeps them in the host's memory, and a
        thread fetches the next batch while a step runs; "auto" chooses by their size.
      augment: changes one input, given a key that depends on `key`, the step and the record's id.
      key: for `augment`.
      start: number of the first step.
    """
    if resolve(placement, records) == "device":
        return _from_device(records, samples, _preparation(augment, key), start)
    return _from_host(records, samples, _preparation(augment, key), start)


def resolve(placement: Placement, records: Records) -> Literal["device", "host"]:
    """What "auto" means for these records on the first device."""
    if placement != "auto":
        return placement
    memory = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    limit = CPU_BYTES if memory is None else DEVICE_SHARE * memory
    return "device" if records.inputs.nbytes + records.labels.nbytes <= limit else "host"


class Waiting:
    """Passes batches on and adds up the seconds that were spent waiting for them."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.seconds = 0.0
        self._batches = iter(batches)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        start = time.monotonic()
        try:
            return next(self._batches)
        finally:
            self.seconds += time.monotonic() - start


Prepare = Callable[[jax.Array, jax.Array, int], jax.Array]  # (inputs, ids, step) -> inputs


def _preparation(augment: Augment | None, key: jax.Array | None) -> Prepare | None:
    if augment is None:
        return None
    if key is None:
        raise ValueError("an augmentation was given without a key: pass one, from its own stream")
    return functools.partial(_augmented, augment, key)


# Both are compiled once, however many feeds there are.
@functools.partial(jax.jit, static_argnums=0)
def _augmented(
    augment: Augment, key: jax.Array, inputs: jax.Array, ids: jax.Array, step: jax.Array
) -> jax.Array:
    flat = inputs.reshape(-1, *inputs.shape[ids.ndim :])  # batch units have two leading axes
    keys = record_keys(key, step, ids.reshape(-1))
    return jax.vmap(augment)(keys, flat).reshape(inputs.shape)


@jax.jit
def _rows(arrays: tuple[jax.Array, ...], indices: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(array[indices] for array in arrays)


def _from_device(
    records: Records,
    samples: Iterable[tuple[np.ndarray, np.ndarray]],
    prepare: Prepare | None,
    start: int,
) -> Iterator[tuple[Batch, np.ndarray]]:
    on_device = jax.device_put((records.inputs, records.labels, records.numbers()))
    for step, (indices, mask) in enumerate(samples, start):
        inputs, labels, ids = _rows(on_device, indices)
        yield (prepare(inputs, ids, step) if prepare else inputs, labels), mask


def _from_host(
    records: Records,
    samples: Iterable[tuple[np.ndarray, np.ndarray]],
    prepare: Prepare | None,
    start: int,
) -> Iterator[tuple[Batch, np.ndarray]]:
    numbered = enumerate(samples, start)
    ids = records.numbers()

    def fetch() -> tuple[Batch, np.ndarray] | None:
        for step, (indices, mask) in numbered:
            rows = (records.inputs[indices], records.labels[indices], ids[indices])
            inputs, labels, numbers = jax.device_put(rows)
            return (prepare(inputs, numbers, step) if prepare else inputs, labels), mask
        return None

    with ThreadPoolExecutor(1, thread_name_prefix="jaxdp-feed") as thread:
        ready = thread.submit(fetch)
        while (batch := ready.result()) is not None:
            ready = thread.submit(fetch)
            yield batch
