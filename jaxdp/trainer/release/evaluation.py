"""Scores of a release: on the test records of its run, or on others of the same data set."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors  # noqa: F401  # for `load_release`: without it the command says so at once

from ...accounting.rounding import shown_delta
from ...datasets import loading
from ...datasets.config import DataConfig
from ...tasks.builtin import make_task
from ...tasks.task import WithStatistics
from .. import options, parsing
from ..config import Config
from ..scoring import make_scorer
from ..unused import check_used
from .parameters import Release, load_release
from .statement import Statement, labelled_epsilons

COMMAND = "python -m jaxdp.evaluate"
IDLE = {"data.augment", "data.placement", "data.test_is_public"}  # the statement tells the last


@dataclass(frozen=True)
class Options:
    """The options of `python -m jaxdp.evaluate`."""

    data: DataConfig


def read_options(args: Sequence[str]) -> tuple[Release, DataConfig]:
    """Reads the command line `RUN [OPTIONS]`; the options overrule the run's own.

    Raises:
      ValueError: if RUN is missing or holds no release, for an option that does not exist or has a
        wrong value, and for one that would do nothing.
    """
    values, runs = options.read(args, Options, COMMAND)
    if len(runs) != 1:
        given = f"{len(runs)} runs are given ({' '.join(runs)})" if runs else "no run is given"
        raise ValueError(f"{given}: give one folder, as {COMMAND} runs/NAME-TIME")
    for name in IDLE & values.keys():
        raise ValueError(
            f"{options.shown(name)} is {values[name]}, and scoring does not use it: leave it out"
        )
    release = load_release(runs[0])
    data = data_options(runs[0], release.statement)
    data = options.replaced(Options(data), values).data
    check_used(Config(data=data), values, "the run")
    return release, data


def data_options(path: str | Path, statement: Statement) -> DataConfig:
    """The options of a run's data; a release without its run says all but the file and folder.

    Args:
      path: the folder of the run, or the `release/` folder in it.
      statement: of the release.

    Raises:
      ValueError: if the settings of the run are damaged.
    """
    for folder in (Path(path), Path(path).parent):
        file = folder / "private" / "config.json"
        if file.is_file():
            return parsing.read_config(file).data
    used = statement.data
    return DataConfig(
        name=used.name,
        private=used.private,
        public=used.public,
        test=used.test or "test",
        window=DataConfig.window if used.window is None else used.window,
        test_is_public=statement.test_is_public,
    )


def score_release(release: Release, data: DataConfig) -> str:
    """Scores a release on the test records of some data, and says what the numbers are worth.

    Args:
      release: from `load_release`.
      data: which records; `data.test` are scored.

    Raises:
      ValueError: if the data can't be loaded, or the model is not for them.
    """
    statement = release.statement
    if data.name == "text" and data.file is None:
        raise ValueError(
            "the data are a text, and a release does not have it: give --data.file TEXT.txt"
        )
    used, model = statement.data, statement.task.model
    if model is None:
        raise ValueError(
            "the model is its owner's, not one of jaxdp: score it with "
            "jaxdp.load_release(...).predict"
        )
    if used.window is not None and data.window != used.window:
        raise ValueError(
            f"data.window is {data.window}, and the model is for windows of {used.window}: leave "
            "the option out"
        )
    dataset, data_format = loading.load(data, print)
    task = make_task(model, data_format)
    variables = (
        release.params
        if release.batch_stats is None
        else WithStatistics(release.params, release.batch_stats)
    )
    scores = make_scorer(task, dataset.test)(variables)
    public = "declared public" if statement.test_is_public else "PRIVATE: so are these numbers"
    if (data.name, data.test) != (used.name, used.test):
        public = "not the run's test records: if they are private, so are these numbers"
    elif used.window is not None:
        public += ", if the file is the run's"  # a release does not hold the file
    label, epsilon = labelled_epsilons(statement)[0]
    private = "" if statement.private else ", but NOT PRIVATE: it was made with a seed"
    lines = [
        f"{data.name}, {data.test}: {len(dataset.test or ())} records, {public}",
        *(f"{name} {score:.4f}" for name, score in scores.items()),
    ]
    if data_format.is_text:
        lines.append(f"perplexity {math.exp(scores['loss']):.3f} a character")
    lines.append(f"ε = {epsilon:g} by {label}, at δ = {shown_delta(statement.delta):g}{private}")
    return "\n".join(lines)
