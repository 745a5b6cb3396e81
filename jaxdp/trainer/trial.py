"""Tries what a run uses before its first step: after the last one an error would come too late."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .._distribution import __version__
from ..datasets import cache
from ..datasets.dataset import USES
from ..datasets.records import Records
from ..datasets.rows import shown
from ..tasks.task import SIGNATURES, WrongRecord, inputs_of
from ..types import PyTree
from .job import Job

KEY = jax.eval_shape(lambda: jax.random.key(0, impl="threefry2x32"))  # of a record, as a shape
PACKAGE = str(Path(__file__).parents[1])


def try_task(job: Job, params: PyTree) -> None:
    """Tries the functions of a task on shapes, and checks the records by them.

    Args:
      job: what the run is made of.
      params: all parameters.

    Raises:
      ValueError: in one line, if a function fails or returns something else than it should.
    """
    task, record = job.task, job.data.private.shape_of_one()
    if task.loss is not None:
        loss = tried("loss", task.loss, params, record, KEY)
        if not _is_number(loss):
            raise ValueError(
                f"the task's loss of one record is {shown(loss)}: return one number, as loss.mean()"
            )
    if task.statistics is not None:
        return  # without statistics there are no variables to try
    if task.scores is not None and job.data.test is not None:
        scores = tried("scores", task.scores, params, record)
        if not (isinstance(scores, dict) and all(_is_number(score) for score in scores.values())):
            raise ValueError(
                f"the task's scores are {shown(scores)}: return a dict of numbers for one record, "
                'as {"accuracy": ...}'
            )
    if task.predict is not None:
        prediction = tried("predict", task.predict, params, inputs_of(record))
        if task.check is not None:
            for use in USES:
                records = getattr(job.data, use)
                if records is not None:
                    _check_records(task.check, use, records, prediction)


def tried(name: str, function: Callable[..., Any], *args: PyTree) -> Any:
    """What a function of the task returns, as shapes.

    Raises:
      ValueError: in one line, if it fails. Errors that jaxdp raises in it stay as they are.
    """
    try:
        return jax.eval_shape(function, *args)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        last = frames[-1]
        if last.filename.startswith(PACKAGE) and "raise " in (last.line or ""):
            raise  # jaxdp says what is wrong
        own = [frame for frame in frames if _is_own_code(frame.filename)]
        where = f" at {Path(own[-1].filename).name}, line {own[-1].lineno}" if own else ""
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"the task's {name}({SIGNATURES[name]}) fails{where} for one record, "
            f"{shown(args[min(1, len(args) - 1)])}: {type(error).__name__}: {reason}"
        ) from error


def _is_own_code(file: str) -> bool:
    """Whether a file is neither of jaxdp nor of an installed package."""
    return not file.startswith((PACKAGE, "<")) and "site-packages" not in file


def try_optimizer(job: Job, params: PyTree) -> None:
    """Refuses an optimizer that needs more than a gradient, its state and the parameters."""
    try:
        init, update = job.optimizer.init, job.optimizer.update
        jax.eval_shape(lambda params: update(params, init(params), params), params)
    except TypeError as error:
        raise ValueError(
            f"the optimizer can't be used ({error}): give one that needs the gradient, its state "
            "and the parameters alone, as optax.adam(1e-3)"
        ) from None


def _is_number(score: Any) -> bool:
    return getattr(score, "shape", None) == ()


def _check_records(
    check: Callable[[PyTree, PyTree], WrongRecord | None],
    use: str,
    records: Records,
    prediction: PyTree,
) -> None:
    # A pass over all records takes long where they are in files. jaxdp's own checks do not change.
    module = str(getattr(check, "__module__", ""))
    own = module.startswith("jaxdp.") and not records.in_memory
    fact = f"{__version__} {module} {records.digest()} {shown(prediction)}" if own else ""
    if own and cache.remembers(fact):
        return
    usable = records.good()
    for places, fields in records.chunks():
        good = usable[places.start : places.stop]
        if not good.any():
            continue
        found = check(jax.tree.map(lambda a, good=good: a[good], fields), prediction)
        if found is not None:
            row = places[int(np.flatnonzero(good)[found.row])]
            raise ValueError(f"row {row} of the {use} records: {found.reason}")
    if own:
        cache.remember(fact)
