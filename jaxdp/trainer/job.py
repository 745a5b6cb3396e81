"""A job: everything that a run is made of. The command and `fit` make one, `session` does it."""

from dataclasses import dataclass, field
from typing import Literal, get_args

import optax

from ..accounting.mechanism import batches_per_epoch
from ..datasets.config import Placement, require
from ..datasets.dataset import Dataset
from ..dpsgd.plan import Plan
from ..models.config import ModelConfig
from ..tasks.task import Task
from ..types import Allocation, Method, Unit
from .averages import with_average
from .config import (
    CheckpointConfig,
    ClippingConfig,
    Config,
    MeshConfig,
    check_canaries,
    check_ema,
    check_microbatch_size,
    check_run,
)
from .memory_limit import bytes_of
from .plan_settings import PlanSettings
from .release.statement import Preprocessing

PARTS: dict[str, tuple[type, str]] = {
    "task": (Task, "jaxdp.tasks.classifier(model), or a jaxdp.Task"),
    "data": (Dataset, "jaxdp.Dataset(private=(x, y), test=(x_test, y_test))"),
    "optimizer": (optax.GradientTransformation, "an Optax optimizer, as optax.adam(1e-3)"),
}
"""What a user may give of a job: its type, and what to give instead of something else."""

OWN_OPTIMIZER = "its owner's"  # in words for the report


@dataclass(frozen=True)
class RunOptions:
    """How a run is made, whatever is learnt. `fit` says what they mean."""

    name: str = "run"
    output: str | None = None
    numbered: bool = False
    """Whether an output folder that exists already gets a number; else it is an error."""
    resume: str | None = None
    allocation: Allocation = "proportional"
    microbatch_size: int | Literal["auto"] = 256
    memory_limit: int | str | None = None
    method: Method = "auto"
    constant_time: bool = False
    ema: float = 0.0
    frozen: tuple[str, ...] = ()
    evaluations: int = 10
    placement: Placement = "auto"
    mesh: MeshConfig = field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    audit_canaries: int = 0
    seed: int | None = None
    dry_run: bool = False

    def __post_init__(self) -> None:
        check_run(self.name, self.evaluations, self.seed)
        check_ema("ema", self.ema)
        check_canaries("audit_canaries", self.audit_canaries)
        check_microbatch_size("microbatch_size", self.microbatch_size)
        methods = get_args(Method)
        require(self.method in methods, "method", repr(self.method), "one of " + ", ".join(methods))
        if self.memory_limit is not None:
            bytes_of("memory_limit", self.memory_limit)
            if self.microbatch_size != "auto":
                raise ValueError(
                    f"memory_limit is {self.memory_limit} and microbatch_size is "
                    f'{self.microbatch_size}: give microbatch_size="auto", or leave memory_limit '
                    "out"
                )

    @property
    def records_at_once(self) -> int:
        """The microbatch size, where it is a number: `microbatches.resolve` makes it one."""
        assert self.microbatch_size != "auto"
        return self.microbatch_size


@dataclass(frozen=True)
class Job:
    """Everything that a run is made of.

    Attributes:
      task: what is learnt.
      data: the records.
      plan: the privacy numbers.
      optimizer: uses the private gradient, without the moving average of the options.
      options: how the run is made.
      preprocessing: what a built-in model sees of an input; None: it is part of the task.
      model: the options of a built-in model.
      config: the configuration of the command, from which a resume by the command starts.
      optimizer_name: what the optimizer is, for the run's report.
    """

    task: Task
    data: Dataset
    plan: PlanSettings | Plan
    optimizer: optax.GradientTransformation
    options: RunOptions = field(default_factory=RunOptions)
    preprocessing: Preprocessing | None = None
    model: ModelConfig | None = None
    config: Config | None = None
    optimizer_name: str = OWN_OPTIMIZER

    def __post_init__(self) -> None:
        if isinstance(self.plan, Plan) and self.plan.num_examples != len(self.data.private):
            raise ValueError(
                f"the plan is for {self.plan.num_examples:,} records, and the data have "
                f"{len(self.data.private):,} private ones: make the plan for those, or give "
                "jaxdp.PlanSettings"
            )
        if isinstance(self.plan, Plan) and isinstance(self.plan.noise_multiplier, tuple):
            raise ValueError(
                "the plan's noise multiplier is a schedule, and the ledger keeps constant noise "
                "only: give one number"
            )

    @property
    def averaging_optimizer(self) -> optax.GradientTransformation:
        """The optimizer with the moving average behind it, if the options ask for one."""
        return with_average(self.optimizer, self.options.ema)

    @property
    def clipping_options(self) -> ClippingConfig | None:
        """The options of the clipping, if it was given by some."""
        options = self.plan.clipping
        return options if isinstance(options, ClippingConfig) else None

    @property
    def unit(self) -> Unit:
        """Whose gradient is clipped."""
        options = self.plan.clipping
        return options.clipped_unit if isinstance(options, ClippingConfig) else options.unit

    @property
    def steps_per_epoch(self) -> int:
        """The number of steps in an epoch: together they take about N records."""
        return batches_per_epoch(len(self.data.private), self.plan.expected_batch_size)
