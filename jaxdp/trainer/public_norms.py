"""Clipping norms that change after every epoch: they decay, or follow public records.

The norms depend on public records, on the weights at that moment (which the ledger has paid for)
and on the number of the epoch only. So they cost no privacy, and a resumed run finds the same ones.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..datasets import feeding
from ..datasets.records import Records
from ..dpsgd import processes
from ..dpsgd.clipping import Clipping
from ..dpsgd.clippings import clip_layerwise
from ..dpsgd.devices import held, put
from ..dpsgd.groups import SMALLEST_CLIPPING_NORM, group_alike, path_name
from ..dpsgd.public_data import pretrained_copy, public_norms, scale_norms
from ..types import PyTree
from .clipping_options import NormsOfLayers
from .config import ClippingConfig
from .distributed import first
from .job import Job
from .step import TrainState

Loss = Callable[..., jax.Array]
Measure = Callable[[Any, int], np.ndarray]  # (parameters, epoch) -> norms of the layers
Refresh = Callable[[int, TrainState], TrainState]  # (step, state before it) -> state
LEAST_UNITS = 32  # units of public records whose norms are averaged; records are used again if few
PRETRAINING_BATCH = 64


def make_measure(
    job: Job,
    settings: ClippingConfig,
    public: Records,
    loss: Loss,
    clipping: Clipping,
    shared: PyTree,
) -> Measure:
    """Returns a function that measures the norms of every layer's gradient on public records.

    Args:
      job: the job; units get as many records as private units have on average.
      settings: the options of its clipping.
      public: the public records.
      loss: the loss of an example, or the mean loss of a unit if the clipping clips batch units.
      clipping: its groups are the layers to measure.
      shared: goes to the loss, as in `per_example_grads`.

    Raises:
      ValueError: if there are fewer public records than a unit has.
    """
    if clipping.unit == "example":
        size = min(job.options.records_at_once, len(public))
    else:
        size = max(1, round(job.plan.expected_batch_size / settings.units))
        if size > len(public):
            raise ValueError(
                f"clipping.norms-from is {settings.norms_from}, and data.public has "
                f"{len(public)} records where a unit has {size}: norms of smaller units are "
                "longer. Name more public records, or take smaller batches or more units"
            )

    measure = public_norms(loss, clipping, method=job.options.method)

    def samples(epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if clipping.unit == "example":
            yield from _passes(len(public), size, 1, epoch, keep_rest=True)
            return
        per_pass = len(public) // size
        passes = _passes(len(public), size, -(-LEAST_UNITS // per_pass), epoch)
        for indices, mask in passes:
            yield indices[None], mask[None]

    def layers(params: Any, epoch: int) -> np.ndarray:
        return measure(params, _feed(job, public, samples(epoch), epoch), shared=shared)

    return layers


def first_norms(
    job: Job,
    settings: ClippingConfig,
    public: Records,
    unit_loss: Loss,
    measure: Measure,
    clipping: Clipping,
    params: Any,
    shared: PyTree,
) -> NormsOfLayers:
    """Measures the first clipping norms, with a copy of the model trained on public records.

    Args:
      job: the job.
      settings: the options of its clipping.
      public: the public records.
      unit_loss: the mean loss of some records.
      measure: from `make_measure`.
      clipping: the same as for `make_measure`.
      params: the first parameters of the model; they are not changed.
      shared: goes to the loss.

    Returns:
      `{paths: norm}` for `clip_layerwise`, per layer or per group of layers with similar norms.
    """
    size = min(PRETRAINING_BATCH, len(public))
    epochs = settings.pretraining_epochs
    samples = _passes(len(public), size, epochs, epoch=-1)
    copy = pretrained_copy(
        unit_loss,
        params,
        _feed(job, public, samples, epoch=-1),
        optimizer=optax.adam(settings.pretraining_rate),
        shared=shared,
    )
    values = _scaled(settings, measure(copy, 0), 0)
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    of_leaf = clipping.groups(params).of_leaf
    norms = {
        # Rounded, because people read it in a plan.
        tuple(path for path, own in zip(paths, of_leaf, strict=True) if own == group): float(
            f"{value:.6g}"
        )
        for group, value in enumerate(values)
    }
    if settings.groups is None:
        return norms
    return group_alike(norms, settings.groups)


def layers_apart(config: ClippingConfig) -> Clipping:
    """Makes a clipping whose groups are the layers to measure on public records."""
    if config.layer == "model":
        return clip_layerwise({"*": 1.0}, unit=config.clipped_unit)
    return clip_layerwise(1.0, layer=config.layer, unit=config.clipped_unit)


def make_refresh(job: Job, clipping: Clipping, measure: Measure | None) -> Refresh | None:
    """Returns a function that gives a state the clipping norms of its epoch; None if they stay.

    Args:
      job: the job.
      clipping: the clipping of the plan.
      measure: from `make_measure`; None if the norms do not follow public records.
    """
    settings, epoch_steps = job.clipping_options, job.steps_per_epoch
    if settings is None:
        return None
    follows = measure is not None and settings.refresh
    if not follows and settings.decay == 1:
        return None
    layers = layers_apart(settings)

    def norms(params: PyTree, epoch: int) -> list[float] | None:
        groups = clipping.groups(params)
        if measure is None:
            return [settings.norm * settings.decay**epoch] * len(groups.names)
        try:
            apart = _scaled(settings, measure(params, epoch), epoch)
        except ValueError:  # no public gradient is finite, or all are 0: keep the last norms
            return None
        values = [0.0] * len(groups.names)
        for group, layer in zip(groups.of_leaf, layers.groups(params).of_leaf, strict=True):
            if group is not None:
                values[group] = max(values[group], float(apart[layer]))
        return values

    def refresh(step: int, state: TrainState) -> TrainState:
        params = state.params if measure is None else held(state.params)
        found = first("clipping norms", lambda: norms(params, step // epoch_steps))
        if found is None:
            return state
        values = jnp.asarray(found, jnp.float32)
        if processes.several():
            values = put(values, state.privatize.clipping.clipping_norms.sharding)
        return state.with_clipping_norms(values)

    return refresh


def describe(job: Job) -> str:
    """Where the clipping norms come from, in words for the privacy statement."""
    settings, num_public = job.clipping_options, len(job.data.public or ())
    if job.plan.clipping.kind == "quantile":
        return "follow a quantile of the norms, by noised counts that are part of the mechanism"
    if settings is None:
        return "given beforehand"
    epoch = f"after every epoch of {job.steps_per_epoch} steps"
    if settings.norms_from == "given":
        decays = f", and times {settings.decay:g} {epoch}" if settings.decay < 1 else ""
        return f"given beforehand{decays}"
    rule = "C·e/max e" if settings.norms_from == "public" else "e"
    rule += f", at least {settings.floor:g} of the largest,"
    decays = f", with C times {settings.decay:g} each time" if settings.decay < 1 else ""
    again = f"; again {epoch}, at the weights then" if settings.refresh else ""
    shared = (
        ""
        if settings.groups is None
        else f", the largest in each of {settings.groups} groups of layers whose first norms are "
        "alike"
    )
    return (
        f"{rule} from {num_public:,} public records{shared}: e is a layer's average gradient norm "
        "on them, at first for a copy of the first model that was trained on them for "
        f"{settings.pretraining_epochs} epochs{again}{decays}"
    )


def _scaled(settings: ClippingConfig, norms: np.ndarray, epoch: int) -> np.ndarray:
    largest = None
    if settings.norms_from == "public":
        largest = max(settings.norm * settings.decay**epoch, SMALLEST_CLIPPING_NORM)
    return scale_norms(norms, largest, floor=settings.floor)


def _passes(
    num_records: int, size: int, count: int, epoch: int, *, keep_rest: bool = False
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields batches `(indices, mask)` of public records; the order depends on the epoch only.

    Records that do not fill a batch are left out, or padded with `keep_rest`.
    """
    rng = np.random.Generator(np.random.Philox(key=epoch + 1))
    for _ in range(count):
        order = rng.permutation(num_records).astype(np.int32)
        for start in range(0, num_records, size):
            rows = order[start : start + size]
            if len(rows) == size:
                yield rows, np.ones(size, bool)
            elif keep_rest:
                yield np.pad(rows, (0, size - len(rows))), np.arange(size) < len(rows)


def _feed(job: Job, public: Records, samples: Any, epoch: int) -> Iterator[Any]:
    """Brings public records to the device, each with a key of its own, as private ones have."""
    batches = feeding.feed(
        public,
        samples,
        # No secret: everything here is public.
        step_key=functools.partial(jax.random.fold_in, jax.random.key(epoch + 1)),
        placement=job.options.placement,
    )
    for batch, mask in batches:
        yield (batch.records, feeding.record_keys(batch.key, batch.ids)), mask
