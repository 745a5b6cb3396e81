"""A job: everything that a run is made of. The command and `fit` make one, `session` does it."""

from dataclasses import dataclass, field
from pathlib import Path

import optax

from ..accounting.mechanism import batches_per_epoch
from ..datasets.config import Placement, require
from ..datasets.records import Dataset
from ..dpsgd.plan import Plan
from ..models.config import ModelConfig
from ..tasks.task import Task
from ..types import Allocation, Unit
from .config import CheckpointConfig, ClippingConfig, Config
from .plan_settings import PlanSettings
from .release.statement import Preprocessing


@dataclass(frozen=True)
class Options:
    """How a run is made, whatever is learnt. `fit` says what they mean."""

    name: str = "run"
    output: str | None = None
    numbered: bool = False
    """Whether an output folder that exists already gets a number; else it is an error."""
    resume: str | None = None
    allocation: Allocation = "proportional"
    microbatch_size: int = 256
    constant_time: bool = False
    ema: float = 0.0
    frozen: tuple[str, ...] = ()
    evaluations: int = 10
    placement: Placement = "auto"
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    seed: int | None = None
    dry_run: bool = False

    def __post_init__(self) -> None:
        require(
            bool(self.name) and Path(self.name).name == self.name,
            "name",
            repr(self.name),
            "a name that can be part of a folder's name",
        )
        require(
            isinstance(self.microbatch_size, int) and self.microbatch_size >= 1,
            "microbatch_size",
            self.microbatch_size,
            "a whole number of at least 1: it counts examples",
        )
        require(0 <= self.ema < 1, "ema", self.ema, "a number in [0, 1)")
        require(self.evaluations >= 0, "evaluations", self.evaluations, "0 or more")
        require(self.seed is None or 0 <= self.seed < 2**32, "seed", self.seed, "0 to 4294967295")


@dataclass(frozen=True)
class Job:
    """Everything that a run is made of.

    Attributes:
      task: what is learnt.
      data: the records.
      plan: the privacy numbers.
      optimizer: uses the private gradient.
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
    options: Options = field(default_factory=Options)
    preprocessing: Preprocessing | None = None
    model: ModelConfig | None = None
    config: Config | None = None
    optimizer_name: str = "its owner's"

    def __post_init__(self) -> None:
        if isinstance(self.plan, Plan) and self.plan.num_examples != len(self.data.private):
            raise ValueError(
                f"the plan is for {self.plan.num_examples:,} records, and the data have "
                f"{len(self.data.private):,} private ones: make the plan for those, or give "
                "jaxdp.PlanSettings"
            )
        if isinstance(self.plan, Plan) and self.plan.num_parameters is None:
            raise ValueError(
                "the plan does not say how many numbers get noise: give num_parameters, or "
                "jaxdp.PlanSettings, which finds it"
            )
        if isinstance(self.plan, Plan) and isinstance(self.plan.noise_multiplier, tuple):
            raise ValueError(
                "the plan's noise multiplier is a schedule, and the ledger keeps constant noise "
                "only: give one number"
            )

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
