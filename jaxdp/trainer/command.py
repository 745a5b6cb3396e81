"""The command `python -m jaxdp.train`, from its configuration to its exit status."""

import sys
import time
from contextlib import ExitStack
from typing import NamedTuple

from rich.console import Console

from ..datasets import loading
from ..datasets.augmentation import AUGMENTATIONS
from ..datasets.dataset import Dataset
from ..datasets.rows import ReadFailed
from ..datasets.sources import Format
from ..dpsgd import processes
from ..tasks.builtin import make_task
from ..tasks.task import Task
from ..types import Tell
from . import loop, session
from .config import Config
from .config_file import Own, load_own
from .config_text import as_python
from .distributed import failed, on_loss
from .job import OWN_OPTIMIZER, Job, RunOptions
from .optimizer import make_optimizer
from .plan_settings import PlanSettings
from .release.claims import preprocessing_of
from .run import canaries, resume, same_data


def train(config: Config) -> int:
    """Trains, writes the release, and only then scores it.

    Args:
      config: the settings; `config.resume` names a run to go on with.

    Returns:
      The exit status of the command: 0 if all went well, 1 after a failure that may have spent
      budget, 2 for wrong options, 130 if it was interrupted before the first step, 128 + signal
      if it was stopped.
    """
    if config.config_only:
        print(as_python(config) if processes.is_first() else "", end="")
        return 0
    start = time.monotonic()
    console = Console(highlight=False, markup=False, quiet=not processes.is_first())
    with ExitStack() as stack:
        try:
            options = make_options(config)
            prepare = lambda history, tell: make_job(config, tell, history)
            opened = stack.enter_context(session.opened(prepare, options, console))
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return failed(2, error)
        except KeyboardInterrupt:
            console.print("Interrupted before the first step: nothing was spent or written.")
            return failed(130, "interrupted")
        if not opened.left:
            return 0
        where = "RUN" if opened.files is None else opened.folder
        if opened.files is not None:
            on_loss(
                "stopped, what was spent stays charged. To go on, with fewer or more processes: "
                f"python -m jaxdp.train --resume {where}"
            )
        try:
            trained = session.train(opened, console)
            if opened.files is None:
                return 0
            released = session.release(opened, trained, console)
            session.report(opened, trained, released, start, console)
        except ReadFailed as error:
            print(
                f"error: {error}: stopped, what was spent stays charged. To go on: python -m "
                f"jaxdp.train --resume {where}",
                file=sys.stderr,
            )
            return failed(1, error)
        except loop.NotFinite as error:
            cure = "Try a lower training.learning-rate: --resume goes on from the last checkpoint"
            print(f"error: {error}: nothing is released. {cure}", file=sys.stderr)
            return failed(1, error)
        except OSError as error:
            print(
                f"error: {error}: stopped, what was spent stays charged. Make the folder {where} "
                f"writable with room on its disk, then: python -m jaxdp.train --resume {where}",
                file=sys.stderr,
            )
            return failed(1, error)
        if trained.stopped_by is None:
            return 0
        console.print(f"To go on: python -m jaxdp.train --resume {opened.folder}", soft_wrap=True)
        return 128 + trained.stopped_by  # as a shell reports it: 130 for Ctrl-C, 143 for SIGTERM


def make_options(config: Config) -> RunOptions:
    """The part of a configuration that says how the run is made, whatever is learnt."""
    training = config.training
    return RunOptions(
        name=config.name,
        output=config.output,
        resume=config.resume,
        allocation=config.clipping.allocation,
        microbatch_size=training.microbatch_size,
        memory_limit=training.memory_limit,
        method=training.method,
        constant_time=training.constant_time,
        ema=training.ema,
        frozen=training.frozen,
        evaluations=config.evaluations,
        placement=config.data.placement,
        mesh=config.mesh,
        checkpoint=config.checkpoint,
        audit_canaries=config.audit.canaries,
        seed=config.seed,
        dry_run=config.dry_run,
    )


class Parts(NamedTuple):
    """What a configuration names.

    Attributes:
      task: what is learnt.
      data: the records, without canaries.
      data_format: what the records are; None: they are their owner's.
      own: what the config file defines itself.
    """

    task: Task
    data: Dataset
    data_format: Format | None
    own: Own


def load_parts(
    config: Config, tell: Tell = lambda line: None, history: resume.History | None = None
) -> Parts:
    """Loads the data and builds the task that a configuration names. As `make_job`."""
    own = load_own(config.own)
    data, data_format = own.data, None
    if data is None:
        earlier = () if history is None else same_data.earlier_data(history)
        data, data_format = loading.load(config.data, tell, earlier)
    task = own.task
    if task is None:
        assert data_format is not None  # who gives data gives a task, too (`load_own`)
        augment = AUGMENTATIONS[config.data.augment]
        task = make_task(
            config.model, data_format, augment, config.data.views, config.training.compute_dtype
        )
    return Parts(task, data, data_format, own)


def make_job(
    config: Config, tell: Tell = lambda line: None, history: resume.History | None = None
) -> Job:
    """Loads the data and builds the task that a configuration names.

    Args:
      config: the configuration.
      tell: gets a line about everything that takes long.
      history: of the run that goes on; its records must be the same.

    Raises:
      ValueError: for any name or number that makes no sense.
    """
    parts = load_parts(config, tell, history)
    own, data_format = parts.own, parts.data_format
    data = canaries.with_canaries(
        parts.data, config.audit.canaries, "audit.canaries", config.seed, history, data_format
    )
    if history is not None and own.data is not None:
        same_data.check_same_data(history, data)
    settings, training = config.plan, config.training
    return Job(
        task=parts.task,
        data=data,
        plan=PlanSettings(
            expected_batch_size=settings.expected_batch_size,
            steps=settings.steps,
            clipping=config.clipping,
            epsilon=settings.epsilon,
            noise_multiplier=settings.noise_multiplier,
            delta=settings.delta,
            sampling=settings.sampling,
            adjacency=settings.adjacency,
        ),
        optimizer=own.optimizer or make_optimizer(training, settings.steps),
        options=make_options(config),
        preprocessing=None if own.task or data_format is None else preprocessing_of(data_format),
        model=None if own.task else config.model,
        config=config,
        optimizer_name=(
            OWN_OPTIMIZER if own.optimizer else f"{training.optimizer} {training.learning_rate:g}"
        ),
    )
