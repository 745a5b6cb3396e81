"""Scores of a release: on the test records of its run, or on others of the same data set."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import safetensors  # noqa: F401  # for `load_release`: without it the command says so at once

from ...accounting.rounding import shown_delta
from ...datasets import loading
from ...datasets.config import DataConfig
from ...datasets.records import Records
from ...datasets.sources import Format
from ...dpsgd.discrete_laplace import discrete_laplace_std
from ...tasks.builtin import make_task
from ...tasks.task import variables_of
from .. import command_line, parsing
from ..columns import folded
from ..config import Config
from ..scoring import counted, make_scorer
from ..unused import check_used
from . import confusion, score_ledger
from .claims import preprocessing_of
from .markdown import labelled_epsilons
from .parameters import Release, load_release
from .statement import Statement

COMMAND = "python -m jaxdp.evaluate"
FILES = ("file", "folder", "test_from", "split_by", "labels", "schema", "columns")
"""Options that decide which records there are."""
IDLE = {"data.augment", "data.views", "data.placement"}
GIVES = {
    "text": "--data.file TEXT.txt",
    "table": "--data.file TABLE.csv --data.schema SCHEMA.toml --data.label COLUMN",
    "folder": "--data.folder FOLDER",
}
PAYING = ("ledger", "epsilon", "budget")


@dataclass(frozen=True)
class Options:
    """The options of `python -m jaxdp.evaluate`."""

    data: DataConfig
    confusion: bool = False
    ledger: Path | None = None
    epsilon: float | None = None
    budget: float | None = None


class Request(NamedTuple):
    """What is asked for.

    Attributes:
      release: to score.
      options: with all of the data's, from the run where they are not given.
      run_data: the options of the run's own data.
      declared: whether the user declares the test records public; None: nothing is said.
    """

    release: Release
    options: Options
    run_data: DataConfig
    declared: bool | None


def read_options(args: Sequence[str]) -> Request:
    """Reads the command line `RUN [OPTIONS]`; the options overrule the run's own.

    Raises:
      ValueError: if RUN is missing or holds no release, for an option that does not exist or has a
        wrong value, and for one that would do nothing.
    """
    values, runs = command_line.read(args, Options, COMMAND)
    if len(runs) != 1:
        given = f"{len(runs)} runs are given ({' '.join(runs)})" if runs else "no run is given"
        raise ValueError(f"{given}: give one folder, as {COMMAND} runs/NAME-TIME")
    classwise = values.get("confusion", False)
    idle = IDLE if classwise else IDLE | {"data.test_is_public"}  # the statement tells it
    for name in idle & values.keys():
        raise ValueError(
            f"{command_line.shown(name)} is {values[name]}, and scoring does not use it: leave it "
            "out"
        )
    for name in PAYING:
        if name in values and not classwise:
            raise ValueError(
                f"{name} is {values[name]}, but it is for --confusion, which is not given: leave "
                "it out"
            )
    release = load_release(runs[0])
    if release.statement.data.source == "given":
        raise ValueError(
            f"the records {release.statement.data.name!r} are their owner's, and the command can't "
            "load them: score them by jaxdp.load_release(...).predict"
        )
    run_data = data_options(runs[0], release.statement)
    made = command_line.replaced(Options(run_data), values)
    check_used(Config(data=made.data), values, "the run")
    return Request(release, made, run_data, values.get("data.test_is_public"))


def evaluate(request: Request, width: int) -> str:
    """Does what is asked for, and says what the numbers are worth.

    Raises:
      ValueError: if the data can't be loaded, or the model is not for them; and for private records
        that can't be paid for.
    """
    if not request.options.confusion:
        return _scored(request)
    pay = _payment(request.options, _are_public(request))
    data = request.options.data
    test = _load(request)[0]
    classes = confusion.num_classes(request.release, test)
    if pay is None:
        found = confusion.count(request.release, test, classes, each_alone=False)
        told = [f"{data.name}, {data.test}: {counted(test)}, declared public"]
    else:
        found, paid = _noisy(request, test, classes, pay)
        told = [f"{data.name}, {data.test}: PRIVATE records, with noise", *paid]
    return "\n".join(
        [
            *(line for text in told for line in folded(text, width)),
            f"accuracy {confusion.shown(found.accuracy)}",
            "",
            *confusion.class_table(found),
            "",
            "Columns are the predicted classes:",
            *confusion.matrix_table(found, width),
            "",
            _training(request.release.statement),
        ]
    )


class Payment(NamedTuple):
    """How an evaluation of private records is paid for."""

    ledger: Path
    epsilon: Fraction
    budget: Fraction | None


def _payment(made: Options, public: bool) -> Payment | None:
    """How the options pay; None for public records, which cost nothing."""
    if public:
        for name in PAYING:
            if getattr(made, name) is not None:
                raise ValueError(
                    f"{name} is {getattr(made, name)}, and the test records were declared public, "
                    "so that they cost nothing: leave it out"
                )
        return None
    if made.ledger is None or made.epsilon is None:
        missing = "no ledger" if made.ledger is None else "no epsilon"
        raise ValueError(
            f"the test records are not declared public, and {missing} is given: give --ledger FILE "
            "--epsilon E, which adds noise and pays for it; or, if they are other records than the "
            "run's and public, --data.test-is-public"
        )
    epsilon = score_ledger.as_fraction("epsilon", made.epsilon)
    budget = None if made.budget is None else score_ledger.as_fraction("budget", made.budget)
    return Payment(made.ledger, epsilon, budget)


def _noisy(
    request: Request, test: Records, classes: int, pay: Payment
) -> tuple[confusion.Confusion, list[str]]:
    """The noisy matrix of private records, and what it cost."""
    name = request.options.data.name
    try:
        with score_ledger.opened(pay.ledger, name, pay.epsilon, pay.budget) as book:
            exact = confusion.count(request.release, test, classes, each_alone=True)
            book.charge(pay.epsilon)  # before the noise is drawn
            return exact.with_noise(pay.epsilon), _paid(book, pay, classes)
    except OSError as error:
        raise ValueError(
            f"{pay.ledger} can't be written to ({error.strerror}): nothing is told about the "
            "records. Make room for it, in a place that you may write to"
        ) from None


def _paid(book: score_ledger.ScoreLedger, pay: Payment, classes: int) -> list[str]:
    epsilon, spent, budget, left = map(
        score_ledger.as_decimal, (pay.epsilon, book.spent, book.budget, book.left)
    )
    std = discrete_laplace_std(pay.epsilon)
    return [
        f"ε = {epsilon} for one of these records, added or removed. {book.path}: {spent} of "
        f"{budget} spent, {left} left",
        f"Noise: standard deviation {std:.3g} in each number of the matrix, "
        f"{std * math.sqrt(classes):.3g} in the sum of a row or column. The scores are of these "
        "sums; below 0 is shown as 0.",
    ]


def _are_public(request: Request) -> bool:
    """Whether the test records were declared public: by the run, or, for others, by the user."""
    if not _are_the_run_s(request):
        return bool(request.declared)
    by_run = request.release.statement.test_is_public
    if request.declared and not by_run:
        raise ValueError(
            "data.test-is-public is True, and the run did not declare its test records public: "
            "leave it out"
        )
    return by_run if request.declared is None else request.declared


def _are_the_run_s(request: Request) -> bool:
    """Whether the test records are those of the run, as far as names can tell."""
    used, run, now = request.release.statement.data, request.run_data, request.options.data
    return (now.name, now.test) == (used.name, used.test) and all(
        getattr(now, option) == getattr(run, option) for option in FILES
    )


def _load(request: Request) -> tuple[Records, Format]:
    """Loads the test records, decoded as those of the release were.

    Raises:
      ValueError: if they can't be loaded, are protected, or are decoded in another way.
    """
    now, run, made = request.options.data, request.run_data, request.release.statement
    other = any(getattr(now, option) != getattr(run, option) for option in FILES)
    if other:  # nothing of it was a record of the run
        now = replace(now, private=now.test or now.private, public=None, test=None)
    dataset, found = loading.load(now, print, () if other else _protected(request))
    before, after = made.preprocessing, preprocessing_of(found)
    if before is not None and before.decoding != after.decoding:
        raise ValueError(
            "the records are decoded in another way than those that the model was trained on: give "
            "the same schema, label, tokens, vocabulary, length, size, channels, features and "
            "mirrored as then"
        )
    test = dataset.private if other else dataset.test
    if test is None:
        raise ValueError("data.test is None: name the records to score, as --data.test test")
    return test, found


def _protected(request: Request) -> list[loading.Earlier]:
    """What the run used its records for: none that it protects is scored as a test record."""
    run, now = request.run_data, request.options.data
    earlier = [
        replace(run, private=use.private, public=use.public, test=use.test or run.test)
        for use in request.release.statement.earlier_data
    ]
    # Of files of one's own, the name is what their owner calls them.
    return [(use, {}) for use in (run, *earlier) if use.name == now.name or now.kind in GIVES]


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
        skip_bad=used.bad_rows == "left_out",
        test_is_public=statement.test_is_public,
    )


def _scored(request: Request) -> str:
    """Scores a release on test records, and says what the numbers are worth."""
    data, statement = request.options.data, request.release.statement
    used, model = statement.data, statement.task.model
    if used.source in GIVES and used.source != data.kind:
        raise ValueError(
            f"the data are a {used.source}, and a release does not have it: give "
            f"{GIVES[used.source]}"
        )
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
    test, data_format = _load(request)
    task = make_task(model, data_format)
    variables = variables_of(request.release.params, request.release.batch_stats)
    scores = make_scorer(task, test)(variables)
    public = "declared public" if statement.test_is_public else "PRIVATE: so are these numbers"
    if not _are_the_run_s(request):
        public = "not the run's test records: if they are private, so are these numbers"
    lines = [
        f"{data.name}, {data.test}: {counted(test)}, {public}",
        *(f"{name} {score:.4f}" for name, score in scores.items()),
    ]
    if data_format.target == "tokens":
        lines.append(f"perplexity {math.exp(scores['loss']):.3f} a character")
    return "\n".join([*lines, _training(statement)])


def _training(statement: Statement) -> str:
    """What the training has promised."""
    label, epsilon = labelled_epsilons(statement)[0]
    private = "" if statement.private else ", but NOT PRIVATE: it was made with a seed"
    return f"ε = {epsilon:g} by {label}, at δ = {shown_delta(statement.delta):g}{private}"
