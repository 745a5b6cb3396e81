"""What is decided before the first step: data, plan, model, keys, and where a run goes on."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from . import (
    augmentation,
    averaging,
    checkpoints,
    clipping,
    data,
    feeding,
    freezing,
    models,
    runs,
    segments,
    training,
)
from . import config as configs
from .accounting import Unit
from .plan import Plan
from .privatize import privatize


@dataclass(frozen=True)
class Run:
    """Everything that is decided before the first step."""

    config: configs.Config
    dataset: data.Dataset
    plan: Plan
    model: nn.Module
    state: training.State
    train_step: jax.stages.Wrapped
    saved: segments.SavedSegment
    frozen: freezing.Params  # the parameters that are not trained
    statistics: Callable[[freezing.Params], Any]  # BatchNorm's on public records, or None
    repeats: bool = False  # whether it goes on in the segment that it was stopped in

    def released(self, state: training.State) -> freezing.Params:
        """What is scored and released: averages if there are any, and the frozen parameters."""
        params, (_, optimizer_state) = state
        average = averaging.averaged(optimizer_state)
        return freezing.merge(params if average is None else average, self.frozen)

    def batches(
        self, start: int = 0, end: int | None = None
    ) -> Iterator[tuple[feeding.Batch, np.ndarray]]:
        """Samples the records of every step and brings them to the device."""
        data_config, secrets = self.config.data, self.saved.secrets
        count = (self.plan.steps if end is None else end) - start
        return feeding.feed(
            self.dataset.private,
            itertools.islice(self.plan.batches(secrets.sampling, start), count),
            placement=data_config.placement,
            augment=augmentation.crop_and_flip if data_config.augment == "crop_flip" else None,
            key=secrets.augmentation,
            start=start,
        )


def prepare(
    config: configs.Config,
    tell: Callable[[str], None] = print,
    history: runs.History | None = None,
) -> Run:
    """Loads the data, solves the plan and builds the model.

    Args:
      config: the settings.
      tell: gets a line about what takes long or is not as expected.
      history: of the run to go on with; its budget binds.

    Raises:
      ValueError: for any number or name that makes no sense, before a budget is spent.
    """
    dataset = data.load(config.data, tell)
    if config.data.augment == "crop_flip" and dataset.private.inputs.ndim != 4:
        raise ValueError("data.augment is crop_flip, and the records are no images: choose none")
    delta = config.plan.delta
    if delta is None and history is not None:
        delta = history.ledger.budget.delta
    plan = Plan(
        num_examples=len(dataset.private),
        expected_batch_size=config.plan.expected_batch_size,
        steps=config.plan.steps,
        clipping=make_clipping(config.clipping),
        num_units=config.clipping.units if is_batch(config.clipping) else None,
        epsilon=config.plan.epsilon,
        delta=delta,
        adjacency=config.plan.adjacency,
    )
    if config.model.norm == "batch" and plan.capacity > config.training.microbatch_size:
        tell(
            f"BatchNorm takes a whole unit at once: up to {plan.capacity} records, whatever "
            f"training.microbatch-size = {config.training.microbatch_size} says. More "
            "clipping.units make them smaller."
        )
    fingerprint = segments.make_fingerprint(config, dataset.private, plan)
    if history is None:
        secrets = segments.draw_secrets(config.seed)
        return build(config, dataset, plan, segments.SavedSegment(config, fingerprint, secrets))

    runs.check_budget(history, config, plan)
    saved, frozen = replace(history.last, config=config), None
    if history.newest is not None and config.training.frozen:
        drawn = build(config, dataset, plan, saved).frozen
        _, arrays = checkpoints.split_frozen(history.newest.arrays)
        frozen = checkpoints.from_arrays(arrays, {checkpoints.FROZEN: drawn})[checkpoints.FROZEN]
    run = build(config, dataset, plan, saved, frozen)
    state = runs.restore(history, config, run.state, lambda line: None)
    reason = runs.why_not_free(history, fingerprint, state)
    if reason is None:
        return replace(run, state=state, repeats=True)
    tell(
        f"Steps that were charged stay charged, and a new segment begins, with new secrets: "
        f"{reason}."
    )
    saved = segments.SavedSegment(config, fingerprint, runs.next_secrets(history))
    run = build(config, dataset, plan, saved, frozen)
    return replace(run, state=runs.restore(history, config, run.state, tell))


def build(
    config: configs.Config,
    dataset: data.Dataset,
    plan: Plan,
    saved: segments.SavedSegment,
    frozen: freezing.Params | None = None,
) -> Run:
    """Builds the model and its first state; `frozen` parameters come from a checkpoint, if any."""
    model, unit = models.make_model(config.model, dataset), plan.clipping.unit
    params, drawn = freezing.split(
        models.init_params(model, saved.secrets.init, dataset, unit), config.training.frozen
    )
    frozen = drawn if frozen is None else frozen
    rows = config.training.microbatch_size
    full_loss = (
        models.make_unit_loss(model, dataset, rows)
        if unit == "batch"
        else models.make_loss(model, dataset)
    )
    loss = lambda params, *records: full_loss(freezing.merge(params, frozen), *records)
    privatizer = privatize(plan, key=saved.secrets.noise, allocation=config.clipping.allocation)
    optimizer = training.make_optimizer(config.training, plan.steps)
    return Run(
        config=config,
        dataset=dataset,
        plan=plan,
        model=model,
        state=training.init_state(params, privatizer, optimizer),
        train_step=training.make_train_step(
            loss if frozen else full_loss,
            privatizer,
            optimizer,
            1 if unit == "batch" else rows,
            unit,
        ),
        saved=saved,
        frozen=frozen,
        statistics=models.public_statistics(model, dataset),
    )


def is_batch(config: configs.ClippingConfig) -> bool:
    return config.kind == "batch" or config.unit == "batch"


def make_clipping(config: configs.ClippingConfig) -> clipping.Clipping:
    """Builds the clipping that the config describes."""
    unit: Unit = "batch" if is_batch(config) else "example"
    layer = None if config.layer == "model" else config.layer
    if config.kind == "normalised":
        return clipping.clip_normalised(config.norm, stability=config.stability, unit=unit)
    if config.kind == "quantile":
        return clipping.clip_quantile(
            config.norm,
            target=config.quantile,
            learning_rate=config.quantile_rate,
            count_std=config.count_std,
            layer=layer,
            unit=unit,
        )
    if config.kind == "layerwise" and layer is not None:
        return clipping.clip_layerwise(config.norm, layer=layer, unit=unit)
    return (
        clipping.clip_batch(config.norm)
        if unit == "batch"
        else clipping.clip_individual(config.norm)
    )
