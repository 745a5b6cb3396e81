"""Brings the records of each step to the device."""

import functools
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import jax
import numpy as np

from .augmentation import record_keys
from .config import Placement
from .records import Records

Augment = Callable[[jax.Array, jax.Array], jax.Array]  # (key, input) -> input

StepKey = Callable[[int], jax.Array]  # number of the step -> JAX key

Sample = tuple[np.ndarray, np.ndarray]  # the indices of records, and a mask: False is padding

Batch = tuple[jax.Array, jax.Array]  # inputs and labels, each with one row per index

DEVICE_SHARE = 0.25  # the share of the device's memory that "auto" gives to the records

CPU_BYTES = 4 * 2**30  # instead of that share, where a device does not tell its memory


def feed(
    records: Records,
    samples: Iterable[Sample],
    *,
    placement: Placement = "auto",
    augment: Augment | None = None,
    step_key: StepKey | None = None,
    start: int = 0,
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Turns indices and masks into batches on the device and masks, one for each step.

    Args:
      records: the records that the indices number.
      samples: indices and masks of the same shape, from `plan.batches()`.
      placement: "device" keeps all records on the device. "host" keeps them in the host's memory,
        and a thread fetches the next batch while a step runs. "auto" chooses by their size.
      augment: changes one input. Its key depends on the step's key and the record's id.
      step_key: gives the JAX key of a step, for `augment` alone.
      start: number of the first step.

    Raises:
      ValueError: for `augment` without `step_key`.
    """
    prepare = _preparation(augment, step_key)
    if resolve(placement, records) == "device":
        return _from_device(records, samples, prepare, start)
    return _from_host(records, samples, prepare, start)


def resolve(placement: Placement, records: Records) -> Literal["device", "host"]:
    """Returns where the records are kept. "auto" goes by the memory of the first device."""
    if placement != "auto":
        return placement
    memory = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    limit = CPU_BYTES if memory is None else DEVICE_SHARE * memory
    return "device" if records.inputs.nbytes + records.labels.nbytes <= limit else "host"


class Waiting:
    """Passes batches on, and adds up in `seconds` how long it waited for them."""

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


def _preparation(augment: Augment | None, step_key: StepKey | None) -> Prepare | None:
    if augment is None:
        return None
    if step_key is None:
        raise ValueError("an augmentation was given without keys: pass step_key, for it alone")
    return lambda inputs, ids, step: _augmented(augment, step_key(step), inputs, ids)


# These two are compiled once, however many feeds there are.
@functools.partial(jax.jit, static_argnums=0)
def _augmented(
    augment: Augment, step_key: jax.Array, inputs: jax.Array, ids: jax.Array
) -> jax.Array:
    flat = inputs.reshape(-1, *inputs.shape[ids.ndim :])  # with batch units, ids have two axes
    keys = record_keys(step_key, ids.reshape(-1))
    return jax.vmap(augment)(keys, flat).reshape(inputs.shape)


@jax.jit
def _rows(arrays: tuple[jax.Array, ...], indices: jax.Array) -> tuple[jax.Array, ...]:
    # Padding has an index behind the last record; its rows are masked, whatever they hold.
    return tuple(array.at[indices].get(mode="clip") for array in arrays)


def _from_device(
    records: Records,
    samples: Iterable[Sample],
    prepare: Prepare | None,
    start: int,
) -> Iterator[tuple[Batch, np.ndarray]]:
    on_device = jax.device_put((records.inputs, records.labels, records.numbers()))
    for step, (indices, mask) in enumerate(samples, start):
        inputs, labels, ids = _rows(on_device, indices)
        yield (prepare(inputs, ids, step) if prepare else inputs, labels), mask


def _from_host(
    records: Records,
    samples: Iterable[Sample],
    prepare: Prepare | None,
    start: int,
) -> Iterator[tuple[Batch, np.ndarray]]:
    numbered = enumerate(samples, start)
    ids = records.numbers()

    def fetch() -> tuple[Batch, np.ndarray] | None:
        for step, (indices, mask) in numbered:
            indices = np.minimum(indices, len(ids) - 1)  # padding is masked, whatever it holds
            rows = (records.inputs[indices], records.labels[indices], ids[indices])
            inputs, labels, numbers = jax.device_put(rows)
            return (prepare(inputs, numbers, step) if prepare else inputs, labels), mask
        return None

    with ThreadPoolExecutor(1, thread_name_prefix="jaxdp-feed") as thread:
        ready = thread.submit(fetch)
        while (batch := ready.result()) is not None:
            ready = thread.submit(fetch)
            yield batch
