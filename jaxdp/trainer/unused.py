"""Refuses options that would do nothing, because another option makes them idle."""

import dataclasses
from collections.abc import Callable, Container
from typing import Any, NamedTuple

from ..datasets.config import DataConfig
from ..models.config import ModelConfig
from .command_line import shown
from .config import Config
from .config_file import defines


class Rule(NamedTuple):
    """When some options are used.

    Attributes:
      options: dotted names of fields.
      used: whether a configuration uses them.
      need: what they are for, in words.
      but: the option that decides, whose value is told.
    """

    options: tuple[str, ...]
    used: Callable[[Config], bool]
    need: str
    but: str


def _separate(c: Config) -> bool:
    """Whether layers are clipped on their own or by norms of their own."""
    kind = c.clipping.kind
    return kind in ("layerwise", "quantile") or (
        kind == "multiplied" and c.clipping.norms_from != "given"
    )


def _without(part: str) -> Callable[[Config], bool]:
    """Whether a configuration has no part of its own of that name."""
    return lambda c: not defines(c.own, part)


def _data(options: tuple[str, ...], need: str, *kinds: str) -> Rule:
    """Options of the data that are for some kinds of data."""
    return Rule(
        tuple(f"data.{name}" for name in options),
        lambda c: c.data.kind in kinds,
        need,
        "data.name",
    )


def _names(section: Any, name: str) -> tuple[str, ...]:
    return tuple(f"{name}.{field.name}" for field in dataclasses.fields(section))


_OPTIMIZER = (
    *("optimizer", "optimizer_options", "learning_rate", "momentum"),
    *("schedule", "schedule_options"),
)

RULES = (
    Rule(
        (*_names(ModelConfig, "model"), "data.augment", "data.views", "training.compute_dtype"),
        _without("task"),
        "a model of jaxdp",
        "own",
    ),
    Rule(
        tuple(n for n in _names(DataConfig, "data") if n != "data.placement"),
        _without("data"),
        "a data set by name",
        "own",
    ),
    Rule(
        tuple(f"training.{n}" for n in _OPTIMIZER),
        _without("optimizer"),
        "an optimizer by name",
        "own",
    ),
    _data(("window",), "the text of a language model, --data.file NAME.txt", "text"),
    _data(("label", "schema", "columns", "split_by"), "tables, --data.file NAME.csv", "table"),
    _data(("labels", "classes"), "images, --data.folder NAME", "folder"),
    _data(("size", "channels"), "images without a fixed shape", "folder", "tfds"),
    _data(("test_from",), "tables and folders", "table", "folder"),
    _data(("skip_bad",), "tables, folders and sets of TFDS", "table", "folder", "tfds"),
    _data(
        ("tokens", "vocabulary", "length"), "documents in tables and sets of TFDS", "table", "tfds"
    ),
    _data(("dir",), "sets of TFDS", "tfds"),
    _data(("augment", "views", "features"), "images", "digits", "folder", "tfds"),
    Rule(
        ("data.vocabulary",),
        lambda c: c.data.tokens == "hash",
        "tokens by a hash",
        "data.tokens",
    ),
    Rule(("data.classes",), lambda c: c.data.labels is not None, "a file of labels", "data.labels"),
    Rule(
        ("model.widths",),
        lambda c: c.model.name in ("cnn", "mlp", "scattering_cnn"),
        "the cnn, the mlp and the scattering_cnn",
        "model.name",
    ),
    Rule(
        ("data.mirrored",),
        lambda c: c.data.features == "scattering",
        "features",
        "data.features",
    ),
    Rule(
        ("model.norm", "model.norm_group_size"),
        lambda c: c.model.name in ("cnn", "resnet18"),
        "the cnn and the resnet18",
        "model.name",
    ),
    Rule(
        ("model.norm_group_size",),
        lambda c: c.model.norm == "group",
        "GroupNorm",
        "model.norm",
    ),
    Rule(
        ("model.activation",),
        lambda c: c.model.name in ("cnn", "mlp", "lenet", "backpack_cnn", "scattering_cnn"),
        "the cnn, the mlp, the lenet, the backpack_cnn and the scattering_cnn",
        "model.name",
    ),
    Rule(
        ("model.width",),
        lambda c: c.model.name in ("transformer", "embedding", "resnet18", "wide_resnet"),
        "the transformer, the embedding, the resnet18 and the wide_resnet",
        "model.name",
    ),
    Rule(
        ("model.layers",),
        lambda c: c.model.name in ("transformer", "wide_resnet"),
        "the transformer and the wide_resnet",
        "model.name",
    ),
    Rule(
        ("model.heads",),
        lambda c: c.model.name == "transformer",
        "the transformer",
        "model.name",
    ),
    Rule(
        ("clipping.norm",),
        lambda c: c.clipping.norms_from != "public_norms",
        "norms that are given or scaled to C",
        "clipping.norms_from",
    ),
    Rule(
        ("clipping.layer",),
        _separate,
        "kind layerwise or quantile, or multiplied with norms-from public",
        "clipping.kind",
    ),
    Rule(
        ("clipping.allocation",),
        lambda c: c.clipping.kind in ("layerwise", "quantile"),
        "layers that are clipped separately, by kind layerwise or quantile",
        "clipping.kind",
    ),
    Rule(
        ("clipping.allocation",),
        lambda c: c.clipping.layer != "model",
        "layers that are clipped separately",
        "clipping.layer",
    ),
    Rule(
        (
            "clipping.refresh",
            "clipping.floor",
            "clipping.pretraining_epochs",
            "clipping.pretraining_rate",
        ),
        lambda c: c.clipping.norms_from != "given",
        "norms from public data",
        "clipping.norms_from",
    ),
    Rule(
        ("clipping.pretraining_rate",),
        lambda c: c.clipping.pretraining_epochs > 0,
        "training a copy of the model on public data",
        "clipping.pretraining_epochs",
    ),
    Rule(
        ("clipping.units",),
        lambda c: c.clipping.clipped_unit == "batch",
        "batch units, by clipping.kind batch or clipping.unit batch",
        "clipping.kind",
    ),
    Rule(
        ("clipping.stability",),
        lambda c: c.clipping.kind == "normalised",
        "kind normalised",
        "clipping.kind",
    ),
    Rule(
        ("clipping.quantile", "clipping.quantile_rate", "clipping.count_std"),
        lambda c: c.clipping.kind == "quantile",
        "kind quantile",
        "clipping.kind",
    ),
    Rule(
        ("training.momentum",),
        lambda c: c.training.optimizer == "sgd",
        "sgd (other optimizers take training.optimizer-options)",
        "training.optimizer",
    ),
    Rule(
        ("training.schedule_options",),
        lambda c: c.training.schedule not in ("cosine", "constant"),
        "schedules of Optax",
        "training.schedule",
    ),
    Rule(
        ("training.memory_limit",),
        lambda c: c.training.microbatch_size == "auto",
        "--training.microbatch-size auto",
        "training.microbatch_size",
    ),
    Rule(("output",), lambda c: c.resume is None, "a new run", "resume"),
)


def check_used(config: Config, given: Container[str] = (), source: str | None = None) -> None:
    """Refuses options that are not at their default and do nothing.

    Args:
      config: all options.
      given: names of those on the command line.
      source: what has set the others, if it is not the command line; for the message.

    Raises:
      ValueError: for the first such option, with its value and how to leave it out.
    """
    default = Config()
    for rule in RULES:
        if rule.used(config):
            continue
        for name in rule.options:
            value = _value(config, name)
            if value == _value(default, name):
                continue
            cure = "leave it out"
            if source is not None and name not in given:
                cure = f"{source} sets it, so give {_as_option(name, _value(default, name))} too"
            raise ValueError(
                f"{shown(name)} is {_told(value)}, but it is for {rule.need}, and "
                f"{shown(rule.but)} is {_told(_value(config, rule.but))}: {cure}"
            )


def _value(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


def _as_option(name: str, value: Any) -> str:
    """The option that gives a value."""
    if isinstance(value, bool):
        return f"--{shown(name)}={str(value).lower()}"
    words = value if isinstance(value, tuple) else [*value] if isinstance(value, dict) else [value]
    return " ".join([f"--{shown(name)}", *map(str, words)])


def _told(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    if isinstance(value, dict):
        return " ".join(f"{key} {number}" for key, number in value.items())
    return str(value)
