"""The configuration of a training run by the command: typed, frozen, with all its defaults."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..datasets.config import DataConfig, require
from ..models.config import ModelConfig
from ..types import (
    Adjacency,
    Allocation,
    ClippingKind,
    ComputeDtype,
    Method,
    Sampling,
    Unit,
)
from .memory_limit import bytes_of


@dataclass(frozen=True)
class ClippingConfig:
    """How gradients are clipped."""

    kind: ClippingKind = "individual"
    """What is clipped, and how.
    individual: each example's gradient.
    layerwise: each layer of the gradient on its own.
    multiplied: all layers by one factor, with a norm for each layer.
    normalised: every gradient is scaled to nearly the same norm.
    quantile: each layer on its own; C follows a quantile of the gradient norms.
    batch: the mean gradient of each batch unit."""

    norm: float = 0.3
    """Clipping norm C: longer gradients are scaled down to this length.
    With layerwise and multiplied: C of each layer. With quantile: C at the first step.
    With norms-from public: C of the layer with the largest gradient."""

    layer: Literal["model", "module", "tensor"] = "tensor"
    """What a layer is, for layerwise, multiplied and quantile.
    model: all parameters as one.
    module: the tensors of one module.
    tensor: every tensor on its own."""

    norms_from: Literal["given", "public", "public_norms"] = "given"
    """Where the clipping norms of layerwise and multiplied come from.
    given: the option norm, for each layer.
    public: norm · e / max e, with e the average norm of the layer's gradient on data.public.
    public_norms: e itself."""

    groups: int | None = None
    """With norms from public data: the number of groups; layers with similar norms share one.
    A group is clipped as one, to the largest of its norms. None: every layer is on its own."""

    refresh: bool = True
    """With norms from public data: measure them again after every epoch."""

    decay: float = 1.0
    """C is multiplied by this number after every epoch."""

    floor: float = 0.01
    """With norms from public data: no layer's norm is below this share of the largest."""

    pretraining_epochs: int = 5
    """With norms from public data: epochs for which a copy of the model is trained on data.public.
    The first norms are measured on this copy. It is trained without noise."""

    pretraining_rate: float = 0.001
    """Learning rate (of Adam) for training the copy of pretraining-epochs."""

    unit: Unit = "example"
    """What is clipped: every example's gradient, or the mean gradient of a batch unit.
    Kind batch always clips batch units."""

    units: int = 1
    """The number of batch units into which the records of a step are sorted."""

    allocation: Allocation = "proportional"
    """How the noise is spread over layers that are clipped separately.
    proportional: in proportion to the layer's C.
    isotropic: the same for all.
    dimension: std squared in proportion to C / root of the layer's size."""

    stability: float = 0.01
    """With normalised: gradients that are much shorter than this stay short."""

    quantile: float = 0.5
    """With quantile: the share of gradients that should not be clipped."""

    quantile_rate: float = 0.2
    """With quantile: how fast C moves (the learning rate of log C)."""

    count_std: float | None = None
    """With quantile: standard deviation of the noise on each count, in records (or batch units).
    None: a twentieth of the expected batch size (or of the number of units)."""

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
            "a number above 0 and at most 1; with kind quantile 1, because C follows the gradients",
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
    None: give noise-multiplier instead; the run may spend the ε that this noise costs."""

    noise_multiplier: float | None = None
    """z, the noise's standard deviation over the sensitivity; only if epsilon is None."""

    delta: float | None = None
    """δ, below 1/N, where N is the number of private records. None: N^-1.1."""

    expected_batch_size: float = 719.0
    """Number of records in a step, on average.
    With Poisson sampling, each record takes part with probability (this number) / N."""

    sampling: Sampling = "poisson"
    """How the records of a step are chosen.
    poisson: every record on its own, with the same probability.
    shuffled: epochs in random order, without amplification of privacy.
    fixed_size: a new batch of fixed size for every step.
    full_batch: all records."""

    steps: int = 100
    """Number of updates."""

    adjacency: Adjacency = "add_remove"
    """Which neighbouring data sets the guarantee compares.
    add_remove: one record is added or removed.
    zero_out: one record is replaced by an empty one.
    replace_one: one record is replaced by any other."""

    def __post_init__(self) -> None:
        whole = isinstance(self.steps, int) and self.steps >= 1
        require(whole, "plan.steps", repr(self.steps), "a whole number of at least 1")
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
    """sgd (with momentum), or any optimizer of Optax with a learning rate: adam, lamb, ..."""

    optimizer_options: dict[str, float] = field(default_factory=dict)
    """Other arguments of the optimizer, by Optax's names, such as: b1 0.8 weight_decay 0.01."""

    learning_rate: float = 2.3
    """Step size; with sgd, about 1 / clipping norm is a good start."""

    momentum: float = 0.9
    """Momentum of sgd."""

    schedule: str = "cosine"
    """How the learning rate changes: it is multiplied by this schedule.
    cosine: falls from 1 to a tenth over the run.
    constant: 1.
    Or a schedule of Optax, without its ending _schedule: warmup_cosine_decay, linear, ..."""

    schedule_options: dict[str, float] = field(default_factory=dict)
    """Arguments of the schedule, by Optax's names, such as: init_value 0 peak_value 1."""

    ema: float = 0.9999
    """A moving average of the parameters is scored and released; it costs no ε.
    At step t it keeps this share of itself, or (1 + t)/(10 + t) if that is less.
    0: no average; the last parameters are scored and released."""

    frozen: tuple[str, ...] = ()
    """Parameters that are not trained: patterns over their paths, such as Conv_0 or */bias."""

    microbatch_size: int | Literal["auto"] = 256
    """Number of examples that are differentiated at a time.
    It bounds the memory and changes nothing else.
    auto: as many as fit into memory-limit, by an estimate."""

    memory_limit: int | str | None = None
    """With microbatch-size auto: how much temporary memory the gradient may take, as 4GB or 500MB.
    None: half of what is free when the run begins."""

    method: Method = "auto"
    """How gradients are computed.
    auto: each layer's as factors or as an array; with microbatch-size auto, all but factored.
    factored: as factors wherever there is a rule.
    two_pass: once for the norms, once for the sum: the memory of plain training, but slower.
    vmap: every example on its own."""

    compute_dtype: ComputeDtype = "float32"
    """What the model computes in, in the loss.
    bfloat16: with parameters and inputs rounded to it: accelerators multiply them fastest.
    Parameters, norms, sums, noise, updates and scores are float32."""

    constant_time: bool = False
    """Computes padding, too, so that the time of a step does not tell the sampled batch size.
    For runs that somebody may watch."""

    def __post_init__(self) -> None:
        require(
            self.learning_rate > 0 and math.isfinite(self.learning_rate),
            "training.learning-rate",
            self.learning_rate,
            "a number above 0",
        )
        require(0 <= self.momentum < 1, "training.momentum", self.momentum, "a number in [0, 1)")
        check_ema("training.ema", self.ema)
        check_microbatch_size("training.microbatch-size", self.microbatch_size)
        if self.memory_limit is not None:
            bytes_of("training.memory-limit", self.memory_limit)


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written, and how many are kept."""

    every_seconds: float = 60.0
    """Seconds between checkpoints. One more is written at the end of a run."""

    keep: int = 2
    """How many checkpoints to keep: the newest ones."""

    def __post_init__(self) -> None:
        require(
            self.every_seconds >= 0, "checkpoint.every-seconds", self.every_seconds, "0 or more"
        )
        require(self.keep >= 1, "checkpoint.keep", self.keep, "at least 1")


@dataclass(frozen=True)
class AuditConfig:
    """What an audit of the run needs."""

    canaries: int = 0
    """How many made-up records are added to the private ones, for `python -m jaxdp.audit`.
    Each takes part by a secret coin, and all count in N."""

    def __post_init__(self) -> None:
        check_canaries("audit.canaries", self.canaries)


@dataclass(frozen=True)
class MeshConfig:
    """How a step is shared out to several devices."""

    data: int = -1
    """The number of devices that have records and parameters of their own.
    -1: all that are left."""

    fsdp: int = 1
    """The number of devices that have records of their own, and share the parameters.
    Each keeps a part of every large one, of the optimizer's state and of the noise."""

    model: int = 1
    """The number of devices that have the same records, and share every large product.
    Each keeps a part of every large parameter."""

    def __post_init__(self) -> None:
        require(self.data == -1 or self.data >= 1, "mesh.data", self.data, "1 or more, or -1")
        for name, count in (("fsdp", self.fsdp), ("model", self.model)):
            whole = isinstance(count, int) and not isinstance(count, bool)
            require(whole and count >= 1, f"mesh.{name}", repr(count), "a whole number from 1 on")


@dataclass(frozen=True)
class DistributedConfig:
    """How several processes find each other: one on each host, or for each GPU."""

    coordinator: str | None = None
    """HOST:PORT of process 0, with a port that is free.
    None: there is one process, or the launcher tells (SLURM, a TPU pod)."""

    processes: int | None = None
    """The number of processes. All get the same options, but for the next one."""

    process: int | None = None
    """The number of this process, from 0. Process 0 has the run's folder and the console."""

    def __post_init__(self) -> None:
        given = [self.coordinator, self.processes, self.process]
        if given == [None] * 3:
            return
        for name, value in zip(("coordinator", "processes", "process"), given, strict=True):
            if value is None:
                raise ValueError(
                    f"distributed.{name} is missing: give all three, --distributed.coordinator "
                    "HOST:PORT --distributed.processes N --distributed.process I"
                )
        assert self.processes is not None
        assert self.process is not None
        assert self.coordinator is not None
        host, _, port = self.coordinator.rpartition(":")
        known = bool(host) and port.isdigit()
        require(known, "distributed.coordinator", self.coordinator, "HOST:PORT, as node1:1234")
        require(self.processes >= 1, "distributed.processes", self.processes, "1 or more")
        require(
            0 <= self.process < self.processes,
            "distributed.process",
            self.process,
            f"a number from 0 to {self.processes - 1}",
        )


@dataclass(frozen=True)
class Config:
    """All options of a run."""

    data: DataConfig = field(default_factory=DataConfig)
    """The data: what is trained on and scored."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The model that is trained."""
    clipping: ClippingConfig = field(default_factory=ClippingConfig)
    """How gradients are clipped."""
    plan: PlanConfig = field(default_factory=PlanConfig)
    """The privacy budget and how it is spent."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How the private gradients are used."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """When checkpoints are written, so that a stopped run can go on."""

    audit: AuditConfig = field(default_factory=AuditConfig)
    """What an audit of the run needs."""

    mesh: MeshConfig = field(default_factory=MeshConfig)
    """How a step is shared out to several devices. By default each takes a part of the records."""

    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    """Several processes that make one run together. Options of the command line alone."""

    name: str = "digits_cnn"
    """Name of the run, used for its folder. With other data, the default is that of the data."""

    output: str | None = None
    """Folder to write; it must not exist yet. None: runs/NAME-TIME."""

    resume: str | None = None
    """Folder of a stopped run, to go on with it. Its settings become the defaults."""

    evaluations: int = 10
    """How often the test records are scored during training, for the report.
    0: only at the end. This changes nothing that is trained or released."""

    seed: int | None = None
    """Makes the run reproducible, and so NOT private.
    None: secret keys from the operating system."""

    dry_run: bool = False
    """Print the plan, a memory estimate and ε, then stop."""

    config_only: bool = False
    """Print all options as a config file that repeats the run, then stop."""

    own: str | None = None
    """A Python file that defines a task, data or an optimizer of its own.
    A config file that does so sets it to itself."""

    def __post_init__(self) -> None:
        if self.name == "digits_cnn" and self.data.kind != "digits":
            object.__setattr__(self, "name", re.sub(r"[^\w.-]", "-", self.data.name))
        check_run(self.name, self.evaluations, self.seed)


def check_run(name: str, evaluations: int, seed: int | None) -> None:
    """Checks what the command and `fit` call by the same names. Raises a ValueError."""
    require(
        bool(name) and Path(name).name == name,
        "name",
        repr(name),
        "a name that can be part of a folder's name",
    )
    require(evaluations >= 0, "evaluations", evaluations, "0 or more")
    require(seed is None or 0 <= seed < 2**32, "seed", seed, "0 to 4294967295")


FEWEST_CANARIES = 20  # of fewer, no guesses prove anything


def check_canaries(option: str, canaries: int) -> None:
    require(
        type(canaries) is int and (canaries == 0 or canaries >= FEWEST_CANARIES),
        option,
        repr(canaries),
        f"{FEWEST_CANARIES} or more (1,000 say something), or 0 for none",
    )


def check_ema(option: str, ema: float) -> None:
    require(0 <= ema < 1, option, ema, "a number in [0, 1)")


def check_microbatch_size(option: str, size: int | str) -> None:
    whole = isinstance(size, int) and size >= 1
    expected = "a whole number of at least 1, which counts examples, or auto"
    require(whole or size == "auto", option, size, expected)
