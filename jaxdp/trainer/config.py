"""The configuration of a training run: typed, frozen, and the one place for all defaults."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..datasets.config import DataConfig, require
from ..models.config import ModelConfig
from ..types import Adjacency, Sampling, Unit


@dataclass(frozen=True)
class ClippingConfig:
    """How gradients are clipped."""

    kind: Literal["individual", "layerwise", "multiplied", "normalised", "quantile", "batch"] = (
        "individual"
    )
    """individual: each example's gradient.
    layerwise: each layer of it.
    multiplied: all layers by one factor, measured in their norms.
    normalised: all to nearly the same norm.
    quantile: the norm follows the gradients'.
    batch: the batch's mean gradient."""

    norm: float = 0.3
    """Clipping norm C: what is clipped is scaled down to at most this length.
    With layerwise: each layer; with quantile: at the first step.
    With public norms: that of the layer with the largest gradient."""

    layer: Literal["model", "module", "tensor"] = "tensor"
    """What layerwise, multiplied and quantile take for a layer; model: all parameters as one."""

    norms_from: Literal["given", "public", "public_norms"] = "given"
    """Where the clipping norms of layerwise and multiplied come from.
    given: norm, for each layer.
    public: norm · e / max e, with e the layer's average gradient norm on data.public.
    public_norms: e."""

    groups: int | None = None
    """With public norms: into how many groups layers with like norms are sorted.
    A group is clipped as one, to the largest of its norms; None: every layer is on its own."""

    refresh: bool = True
    """With public norms: measure them again after every epoch, at the weights then."""

    decay: float = 1.0
    """What the norm C is multiplied by after every epoch."""

    floor: float = 0.01
    """With public norms: no layer's norm is less than this share of the largest."""

    pretraining_epochs: int = 5
    """With public norms: for how long a copy of the first model is trained on data.public.
    The first norms are measured there; its training has no noise."""

    pretraining_rate: float = 0.001
    """Learning rate of that training, by Adam."""

    unit: Unit = "example"
    """What is clipped: every example's gradient, or the mean gradient of a batch unit.
    Kind batch always clips batch units."""

    units: int = 1
    """With batch units: into how many of them the records of a step are sorted."""

    allocation: Literal["proportional", "isotropic", "dimension"] = "proportional"
    """How layers share the noise: as their norms, all alike, or as norm over root of size."""

    stability: float = 0.01
    """Of normalised: gradients much shorter than this stay short."""

    quantile: float = 0.5
    """Of quantile: the share of gradients to leave whole."""

    quantile_rate: float = 0.2
    """Of quantile: how fast its norm moves."""

    count_std: float | None = None
    """Of quantile: noise on the count, in records; None: a twentieth of the batch."""

    @property
    def clipped_unit(self) -> Unit:
        """What is clipped: a batch unit for kind "batch", else `unit`."""
        return "batch" if self.kind == "batch" else self.unit

    def __post_init__(self) -> None:
        require(
            self.kind != "individual" or self.unit == "example",
            "clipping.unit",
            self.unit,
            'kind "batch" to clip the mean gradient of a unit',
        )
        require(self.units >= 1, "clipping.units", self.units, "a whole number of at least 1")
        require(
            self.norms_from == "given" or self.kind in ("layerwise", "multiplied"),
            "clipping.norms-from",
            self.norms_from,
            'kind "layerwise" or "multiplied": other kinds have one norm for all layers',
        )
        require(
            self.groups is None or (self.norms_from != "given" and self.groups >= 1),
            "clipping.groups",
            self.groups,
            "a whole number of at least 1, with public norms: given ones are all alike",
        )
        require(
            0 < self.decay <= 1 and (self.decay == 1 or self.kind != "quantile"),
            "clipping.decay",
            self.decay,
            "a number above 0 and at most 1; with quantile 1, its norm follows the gradients",
        )
        require(
            self.decay == 1
            or self.norms_from == "given"
            or (self.norms_from == "public" and self.refresh),
            "clipping.decay",
            self.decay,
            "1 with norms that have no C (public_norms) or are not refreshed",
        )
        require(0 < self.floor <= 1, "clipping.floor", self.floor, "a share above 0, at most 1")
        require(
            self.pretraining_epochs >= 0,
            "clipping.pretraining-epochs",
            self.pretraining_epochs,
            "0 or more",
        )
        require(
            self.pretraining_rate > 0 and math.isfinite(self.pretraining_rate),
            "clipping.pretraining-rate",
            self.pretraining_rate,
            "a number above 0",
        )
        require(
            self.kind != "multiplied" or self.allocation == "proportional",
            "clipping.allocation",
            self.allocation,
            'proportional with kind "multiplied": no layer can do with less noise',
        )


@dataclass(frozen=True)
class PlanConfig:
    """The privacy budget and how it is spent."""

    epsilon: float | None = 3.0
    """Target ε: the noise is chosen so that the whole run spends at most this much.
    None: the noise multiplier is given instead, and its ε is what the run may spend."""

    noise_multiplier: float | None = None
    """z, the noise's standard deviation over the sensitivity, where epsilon is None."""

    delta: float | None = None
    """δ, below 1/N; None stands for N^-1.1 with N the number of private records."""

    expected_batch_size: float = 719.0
    """Records in a step on average.
    With Poisson sampling each takes part with probability this / N."""

    sampling: Sampling = "poisson"
    """poisson: every record on its own.
    shuffled: epochs, without amplification of privacy.
    fixed_size: so many records, anew every step.
    full_batch: all records."""

    steps: int = 100
    """Number of updates."""

    adjacency: Adjacency = "add_remove"
    """Which neighbouring data sets the guarantee compares.
    add_remove: one record is added or removed.
    zero_out: it is replaced by an empty one.
    replace_one: it is replaced by any other."""

    def __post_init__(self) -> None:
        require(
            (self.epsilon is None) != (self.noise_multiplier is None),
            "plan.noise-multiplier",
            self.noise_multiplier,
            f"exactly one of it and plan.epsilon, which is {self.epsilon}, as --plan.epsilon None "
            "--plan.noise-multiplier 1.0",
        )


@dataclass(frozen=True)
class TrainingConfig:
    """How the private gradients are used."""

    optimizer: str = "sgd"
    """sgd: with momentum. Else any of Optax's that takes a learning rate: adam, adamw, lamb, ..."""

    optimizer_options: dict[str, float] = field(default_factory=dict)
    """Other arguments of the optimizer, by Optax's names: b1 0.8 weight_decay 0.01."""

    learning_rate: float = 2.3
    """Step size; with sgd, about 1 / clipping norm is a good start."""

    momentum: float = 0.9
    """Momentum of sgd."""

    schedule: str = "cosine"
    """What the learning rate is multiplied by.
    cosine: falls to a tenth over the run.
    constant: 1.
    Else one of Optax's, without its ending _schedule: warmup_cosine_decay, linear, ..."""

    schedule_options: dict[str, float] = field(default_factory=dict)
    """Arguments of the schedule, by Optax's names: init_value 0 peak_value 1 warmup_steps 9."""

    ema: float = 0.9999
    """Share that a moving average of the parameters keeps at step t; (1 + t)/(10 + t) if less.
    The average is what is scored and released, for no ε.
    0: the last parameters are scored and released."""

    frozen: tuple[str, ...] = ()
    """Parameters to leave as they were drawn: patterns over paths, as Conv_0 or */bias."""

    microbatch_size: int = 256
    """Examples differentiated at a time: bounds the memory, changes nothing else."""

    def __post_init__(self) -> None:
        require(
            self.learning_rate > 0 and math.isfinite(self.learning_rate),
            "training.learning-rate",
            self.learning_rate,
            "a number above 0",
        )
        require(0 <= self.ema < 1, "training.ema", self.ema, "a number in [0, 1)")
        require(0 <= self.momentum < 1, "training.momentum", self.momentum, "a number in [0, 1)")
        require(
            self.microbatch_size >= 1,
            "training.microbatch-size",
            self.microbatch_size,
            "a whole number of at least 1: it counts examples",
        )


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written, and how many are kept."""

    every_seconds: float = 60.0
    """Time between checkpoints; there is one at the end of a run, too."""

    keep: int = 2
    """How many to keep: the newest."""

    def __post_init__(self) -> None:
        require(
            self.every_seconds >= 0, "checkpoint.every-seconds", self.every_seconds, "0 or more"
        )
        require(self.keep >= 1, "checkpoint.keep", self.keep, "at least 1")


@dataclass(frozen=True)
class Config:
    """All options of a run."""

    data: DataConfig = field(default_factory=DataConfig)
    """What is learnt from."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """What is learnt."""
    clipping: ClippingConfig = field(default_factory=ClippingConfig)
    """What one example can do."""
    plan: PlanConfig = field(default_factory=PlanConfig)
    """The privacy budget and how it is spent."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How the private gradients are used."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """What a run that is stopped can go on from."""

    name: str = "digits_cnn"
    """Name of the run, used for its folder."""

    output: str | None = None
    """Folder to write, which must not exist yet; None stands for runs/NAME-TIME."""

    resume: str | None = None
    """Folder of a run to go on with: its own settings are then the defaults of all options."""

    evaluations: int = 10
    """How often the test records are scored on the way, for the report.
    0: only at the end. It changes nothing that is trained or released."""

    seed: int | None = None
    """Makes the run reproducible, and so NOT private. None: secret keys from the system."""

    dry_run: bool = False
    """Print the plan, a memory estimate and ε, and stop."""

    def __post_init__(self) -> None:
        require(self.evaluations >= 0, "evaluations", self.evaluations, "0 or more")
        require(self.seed is None or 0 <= self.seed < 2**32, "seed", self.seed, "0 to 4294967295")
        require(
            bool(self.name) and Path(self.name).name == self.name,
            "name",
            repr(self.name),
            "a name that can be part of a folder's name",
        )
