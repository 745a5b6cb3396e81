"""`jaxdp.fit`: trains any task on any records, with everything that the command does."""

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax
from rich.console import Console

from ..datasets.config import Placement
from ..datasets.dataset import Dataset
from ..dpsgd import processes
from ..dpsgd.devices import held
from ..dpsgd.plan import Plan
from ..tasks.task import Task
from ..types import Allocation, Method, PyTree, Tell
from . import distributed, session
from .config import CheckpointConfig, MeshConfig
from .job import PARTS, Job, RunOptions
from .plan_settings import PlanSettings
from .progress import Progress, check_metrics, make_watchers
from .release.parameters import Release, load_release
from .release.statement import Statement
from .run import canaries, same_data
from .run import resume as resuming
from .scoring import Scores


@dataclass(frozen=True)
class Fitted:
    """What `fit` returns.

    Attributes:
      params: the released parameters, in the form that the task drew them.
      release: the release: it predicts, and may be shared. None after a dry run, and in all
        processes but the first.
      statement: its privacy statement. None where `release` is.
      epsilon: ε that the run has spent, or would spend after a dry run.
      scores: means of the task's scores on the test records. They are private, unless the records
        are public. Empty if there are none, or no step was left to take; and in all processes but
        the first.
      folder: the folder of the run. None where `release` is.
      plan: the numbers that decided privacy.
      finished: whether all steps of the plan were taken that the budget allowed. If not,
        `fit(..., resume=result.folder)` goes on.
    """

    params: PyTree = field(repr=False)
    release: Release | None = field(repr=False)
    statement: Statement | None = field(repr=False)
    epsilon: float
    scores: Scores
    folder: Path | None
    plan: Plan
    finished: bool


def fit(
    task: Task,
    data: Dataset,
    plan: PlanSettings | Plan,
    *,
    optimizer: optax.GradientTransformation,
    output: str | Path | None = None,
    resume: str | Path | None = None,
    name: str = "run",
    allocation: Allocation = "proportional",
    microbatch_size: int | Literal["auto"] = 256,
    memory_limit: int | str | None = None,
    method: Method = "auto",
    constant_time: bool = False,
    ema: float = 0.0,
    frozen: Sequence[str] = (),
    evaluations: int = 10,
    placement: Placement = "auto",
    mesh: MeshConfig | None = None,
    checkpoint_seconds: float = 60.0,
    keep_checkpoints: int = 2,
    callbacks: Sequence[Callable[[Progress], object]] = (),
    metrics: Literal["tensorboard"] | None = None,
    audit_canaries: int = 0,
    seed: int | None = None,
    dry_run: bool = False,
) -> Fitted:
    """Trains a task privately, and writes its release with its privacy statement.

    Every step is entered into the ledger of the run's folder before it is taken. Ctrl-C stops after
    a step; the release is still written, and `resume` goes on.

    After `jax.distributed.initialize()` all processes make one run together, on all their devices.
    Call it in all of them, with the same arguments and data. Process 0 writes the folder.

    Args:
      task: what is learnt: `jaxdp.tasks.classifier(model)`, or a `jaxdp.Task` of your functions.
      data: the records.
      plan: the privacy numbers.
      optimizer: any Optax transformation. It is put behind `privatize`, so that it sees private
        gradients only.
      output: the folder of the run. If it exists, a number is added. None: runs/NAME-TIME.
      resume: the folder of a stopped run, to go on with it. Give the same data; the ledger keeps
        what was spent, and a step is repeated for free only where nothing has changed.
      name: of the run.
      allocation: how the noise is spread over layers that are clipped separately, as in
        `privatize`.
      microbatch_size: number of records that are differentiated at a time. It bounds the memory.
        "auto": as many as fit into `memory_limit`, by an estimate. It is chosen when the run
        begins; a resume with "auto" and the same limit and method takes the same number.
      memory_limit: with microbatch_size="auto": how much temporary memory the gradient may take, as
        "4GB", "500MB" or in bytes. None: half of what is free on the device, or for a CPU on the
        machine.
      method: as in `per_example_grads`; with microbatch_size="auto", "auto" is the fastest that
        fits.
      constant_time: computes padding, too, so that the time of a step does not tell the sampled
        batch size.
      ema: a moving average of the parameters is scored and released, which keeps this share of
        itself at a step. 0: the last parameters are.
      frozen: patterns over the paths of parameters that are not trained, as `encoder/*`.
      evaluations: how often the test records are scored, with the end. 0: only at the end.
      placement: where the records are kept. "auto": on the device if they take at most a quarter
        of it; in several processes on the hosts, and each reads the rows of its own devices.
      mesh: how a step is shared out to the devices, as `jaxdp.trainer.MeshConfig(fsdp=4)`. None:
        each takes a part of the records, and has all parameters.
      checkpoint_seconds: seconds between checkpoints.
      keep_checkpoints: how many to keep, the newest ones.
      callbacks: called after every step with a `Progress`: public facts only. Of several processes,
        the first calls them.
      metrics: "tensorboard" writes the loss, norms and clipped fraction of every step as events
        under private/, for the owner of the data.
      audit_canaries: how many made-up records are added to the private ones, so that
        `jaxdp.audit.audit_run` can measure what the release gives away. Each takes part by a secret
        coin, and all count in N. They are made of the public records, whose fields are mixed;
        without any, of test records that are declared public, whose scores then suffer.
      seed: makes the run reproducible, and so NOT private. None: secret keys from the operating
        system.
      dry_run: shows the plan, a memory estimate and ε, then stops.

    Raises:
      ValueError, TypeError: for anything that is wrong. Nothing is spent then.
      ArithmeticError: if the parameters become NaN or infinite. Nothing is released.
      OSError: if a file can't be written. What was spent stays charged.

    Example:
      >>> result = jaxdp.fit(task, data, plan, optimizer=optax.adam(1e-2))  # doctest: +SKIP
      >>> result.epsilon, result.scores  # doctest: +SKIP
      (2.99, {'accuracy': 0.93, 'loss': 0.31})
    """
    _check(task=task, data=data, plan=plan, optimizer=optimizer)
    _check_lists(callbacks, frozen)
    check_metrics(metrics)
    if resume is not None and output is not None:
        raise ValueError(
            f"output is {output} and resume is {resume}: a run goes on in its own folder, so leave "
            "output out"
        )
    start = time.monotonic()
    options = RunOptions(
        name=name,
        output=None if output is None else str(output),
        numbered=True,
        resume=None if resume is None else str(resume),
        allocation=allocation,
        microbatch_size=microbatch_size,
        memory_limit=memory_limit,
        method=method,
        constant_time=constant_time,
        ema=ema,
        frozen=tuple(frozen),
        evaluations=evaluations,
        placement=placement,
        mesh=MeshConfig() if mesh is None else mesh,
        checkpoint=CheckpointConfig(checkpoint_seconds, keep_checkpoints),
        audit_canaries=audit_canaries,
        seed=seed,
        dry_run=dry_run,
    )

    def prepare(history: resuming.History | None, tell: Tell) -> Job:
        if history is not None:
            same_data.check_made_by_fit(history)
        whole = canaries.with_canaries(data, audit_canaries, "audit_canaries", seed, history, None)
        if history is not None:
            same_data.check_same_data(history, whole)
        return Job(task, whole, plan, optimizer, options)

    # Notebooks say that they take colours, but they show bars that move as many lines.
    console = Console(
        quiet=not processes.is_first(),
        highlight=False,
        markup=False,
        force_jupyter=False,
        force_terminal=sys.stdout.isatty(),
    )
    with (
        distributed.together(),
        session.opened(prepare, options, console) as opened,
    ):
        if dry_run:
            run = opened.run
            return Fitted(
                params=run.released(held(run.state)),
                release=None,
                statement=None,
                epsilon=run.plan.epsilon(),
                scores={},
                folder=None,
                plan=run.plan,
                finished=False,
            )
        if not opened.left:
            return _fitted(opened, {}, finished=True)
        if opened.files is None:
            session.train(opened, console)
            return _fitted(opened, {}, finished=True)
        distributed.on_loss(
            "stopped, what was spent stays charged. To go on, with fewer or more processes: "
            f"jaxdp.fit(..., resume={str(opened.folder)!r})"
        )
        with contextlib.closing(
            make_watchers(opened, callbacks, metrics, console.print)
        ) as watchers:
            trained = session.train(opened, console, watchers.each)
        released = session.release(opened, trained, console)
        scores = session.report(opened, trained, released, start, console)
        if trained.stopped_by is not None:
            console.print(
                f"To go on: jaxdp.fit(..., resume={str(opened.folder)!r})", soft_wrap=True
            )
        return _fitted(opened, scores, finished=trained.stopped_by is None)


def _fitted(opened: session.Opened, scores: Scores, finished: bool) -> Fitted:
    """The result, in all processes: what process 0 has released and says."""
    run, folder, release = opened.run, None, None
    params = like = run.released(run.state)
    if opened.files is not None:
        folder, release = opened.folder, load_release(opened.folder)
        params = release.params_like(like)
    else:
        params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)

    def told() -> tuple[float, bool]:
        assert release is not None
        return release.statement.claimed_epsilon, finished

    epsilon, finished = distributed.first("what was fitted", told)
    return Fitted(
        params=distributed.arrays_from_first("the release", params),
        release=release,
        statement=None if release is None else release.statement,
        epsilon=epsilon,
        scores=scores,
        folder=folder,
        plan=run.plan,
        finished=finished,
    )


def _check(**parts: object) -> None:
    """Raises a TypeError for a part of a wrong type."""
    plan = (PlanSettings | Plan, "jaxdp.PlanSettings(...)")
    wanted: dict[str, tuple[Any, str]] = {**PARTS, "plan": plan}
    for name, part in parts.items():
        kind, cure = wanted[name]
        if not isinstance(part, kind):
            raise TypeError(f"{name} is a {type(part).__name__}: give {cure}")


def _check_lists(callbacks: object, frozen: object) -> None:
    if isinstance(frozen, str):
        raise TypeError(f"frozen is {frozen!r}: give a list of patterns, as [{frozen!r}]")
    if callable(callbacks) or not all(map(callable, callbacks)):  # type: ignore[call-overload]
        raise TypeError(f"callbacks is {callbacks!r}: give a list of functions")
