"""The experiments of `benchmarks.paper.clippings`: the cells of every table and their options."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxdp.accounting import batches_per_epoch, paper_noise_multiplier
from jaxdp.types import Unit

from .privacy import BATCH_SIZE, SETTINGS

Args = tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """One cell of a table: its row, its column and the options of its runs."""

    row: str
    column: str
    rate: str  # the learning rate
    args: Args


@dataclass(frozen=True)
class Experiment:
    cases: list[Case]
    shows_privacy: bool = False  # its table has z, μ and ε as columns
    tuning: Args = ()  # splits for tuning, without the test records; (): nothing is tuned
    tuned_at: str | None = None  # the column whose tuned rates serve all; None: all are tuned
    seeds: tuple[int, ...] = (0, 1, 2)

    def tuned(self) -> list[Case]:
        """Returns the cells whose learning rate is chosen on the splits for tuning."""
        return [case for case in self.cases if self.tuned_at in (None, case.column)]


IC, FGC, LC, ALC, MF = (
    "IC, GroupNorm",
    "BC, BatchNorm, FGC",
    "BC, BatchNorm, LC",
    "BC, BatchNorm, ALC",
    "BC, BatchNorm, MF",
)
BATCH = ("--model.norm=batch", "--clipping.unit=batch")
PUBLIC = "--clipping.norms-from=public"
METHODS: dict[str, Args] = {
    IC: ("--model.norm=group", "--clipping.kind=individual"),
    FGC: (*BATCH, "--clipping.kind=batch"),
    LC: (*BATCH, "--clipping.kind=layerwise"),
    ALC: (*BATCH, "--clipping.kind=layerwise", PUBLIC),
    MF: (*BATCH, "--clipping.kind=multiplied", PUBLIC),
}


def used_by(method: str, options: Args) -> Args:
    """Returns the options without those that would do nothing, which are refused."""
    idle = "--clipping.units" if method == IC else "--model.norm-group-size"
    return tuple(option for option in options if not option.startswith(idle))


def equal_epsilon(data: Args, rates: Mapping[str, str], *epsilons: int) -> list[Case]:
    """Returns cells of methods, in rows, against ε, in columns."""
    return [
        Case(
            method,
            f"ε = {epsilon}",
            rate,
            (*used_by(method, data), *METHODS[method], f"--plan.epsilon={epsilon}"),
        )
        for method, rate in rates.items()
        for epsilon in epsilons
    ]


def varied(
    data: Args, rows: Mapping[str, Args], columns: Mapping[str, Args], rates: str
) -> list[Case]:
    """Returns cells of options against other options; `rates` lists the table row by row."""
    cells = [(row, column) for row in rows for column in columns]
    return [
        Case(row, column, rate, (*data, *rows[row], *columns[column]))
        for (row, column), rate in zip(cells, rates.split(), strict=True)
    ]


# Many units, as the noise on the update is 2·z·C / their number: see docs/guides/clipping.md.
DIGITS = (
    *("--data.private=train[:1200]", "--data.public=train[1200:]", "--clipping.units=256"),
    *("--plan.expected-batch-size=600", "--plan.steps=100"),
)
DIGITS_TUNING = ("--data.private=train[:1000]", "--data.test=train[1000:1200]")
MNIST = (
    *("--data.name=mnist", "--data.private=train[:55000]", "--data.public=train[55000:]"),
    *("--model.widths", "16", "32"),
    *("--plan.expected-batch-size=512", "--plan.steps=100", "--plan.delta=1e-5"),
    "--clipping.units=128",
)

# The paper's run, smaller: with its σ, its C and learning rate, and their decay.
PAPER_CONFIG = str(Path(__file__).parents[2] / "configs" / "cifar10_resnet18_bc_alc.py")
PAPER_EPOCHS, PAPER_EPOCH_STEPS = 10, batches_per_epoch(10_000, BATCH_SIZE)
GROUP_SIZE = "--model.norm-group-size=8"
SMALL_CIFAR = (
    *("--data.private=train[5000:15000]", "--data.public=train[:5000]"),
    "--model.width=16",
)
PAPER = (
    *(PAPER_CONFIG, *SMALL_CIFAR, f"--evaluations={PAPER_EPOCHS}"),
    f"--plan.steps={PAPER_EPOCHS * PAPER_EPOCH_STEPS}",
    # All of them: they replace those of the config.
    *("--training.schedule-options", "init_value", "1", "peak_value", "1", "warmup_steps", "0"),
    *("transition_steps", str(PAPER_EPOCH_STEPS), "decay_rate", "0.9", "staircase", "1"),
)
INDIVIDUAL = ("--clipping.unit=example", "--model.norm=group", GROUP_SIZE)
ONE_NORM = ("--clipping.kind=individual", "--clipping.norms-from=given")


def paper_case(row: str, unit: Unit, layers: int, *args: str, rate: str = "0.025") -> Case:
    """Returns a run with the paper's σ, and so many layers clipped apart."""
    z = paper_noise_multiplier(SETTINGS[0].sigma, unit, layers, "replace_one", "shuffled")
    return Case(row, "", rate, (*PAPER, *args, f"--plan.noise-multiplier={z!r}"))


SMALL = "units of 2.3 records on average"

EXPERIMENTS = {
    "paper": Experiment(
        [
            paper_case(ALC, "batch", 62),
            paper_case(f"{ALC}, η = 0.25", "batch", 62, rate="0.25"),
            paper_case(FGC, "batch", 1, "--clipping.kind=batch", "--clipping.norms-from=given"),
            paper_case("IC, GroupNorm, ALC", "example", 62, *INDIVIDUAL),
            paper_case("IC, GroupNorm, FGC", "example", 1, *INDIVIDUAL, *ONE_NORM),
            paper_case("IC, GroupNorm, FGC, η = 1", "example", 1, *INDIVIDUAL, *ONE_NORM, rate="1"),
        ],
        shows_privacy=True,
        seeds=(0,),
    ),
    "digits": Experiment(
        equal_epsilon(DIGITS, {IC: "3", FGC: "0.3", LC: "0.1", ALC: "0.3", MF: "1"}, 1, 3, 8),
        tuning=DIGITS_TUNING,
        tuned_at="ε = 3",
    ),
    "mnist": Experiment(
        equal_epsilon(MNIST, {IC: "10", FGC: "1", LC: "0.3", ALC: "0.3", MF: "0.3"}, 1, 3, 8),
        tuning=("--data.private=train[:45000]", "--data.test=train[45000:55000]"),
        tuned_at="ε = 3",
    ),
    "cifar10": Experiment(
        equal_epsilon(
            (
                *("--data.name=cifar10", *SMALL_CIFAR, GROUP_SIZE, "--model.name=resnet18"),
                *("--plan.expected-batch-size=256", "--plan.steps=40", "--plan.delta=1e-5"),
                "--clipping.units=64",
            ),
            {IC: "3", FGC: "0.1", ALC: "0.03"},
            3,
        ),
        tuning=("--data.private=train[5000:14000]", "--data.test=train[14000:15000]"),
        seeds=(0,),
    ),
    # The questions that the paper leaves open, on digits at ε = 3.
    "batch-size": Experiment(
        [
            Case(
                row,
                f"{size} records, {steps} steps",
                rate,
                (
                    *(*DIGITS, *METHODS[ALC], f"--clipping.units={units}"),
                    *(f"--plan.expected-batch-size={size}", f"--plan.steps={steps}"),
                ),
            )
            for size, steps, rows in (
                (75, 800, {"one unit": (1, "0.01"), "16 units": (16, "0.01"), SMALL: (32, "0.03")}),
                (
                    200,
                    300,
                    {"one unit": (1, "0.003"), "16 units": (16, "0.03"), SMALL: (85, "0.1")},
                ),
                # Not one unit: its norm is measured on 600 public records, and there are 237.
                (600, 100, {"16 units": (16, "0.1"), SMALL: (256, "0.3")}),
            )
            for row, (units, rate) in rows.items()
        ],
        tuning=DIGITS_TUNING,
    ),
    "multiplication": Experiment(
        varied(
            DIGITS,
            {"MF": METHODS[MF], "ALC": METHODS[ALC]},
            {f"floor {f}": (f"--clipping.floor={f}",) for f in ("0.01", "0.1", "0.3", "1")},
            "1 1 0.3 0.3  0.3 0.3 0.3 0.1",
        ),
        tuning=DIGITS_TUNING,
    ),
    "groups": Experiment(
        [
            Case(row, f"K = {k}", "0.3", (*DIGITS, *METHODS[ALC], *args, f"--clipping.groups={k}"))
            for row, args, groups in (
                ("ALC", (), (1, 2, 3, 4, 6)),
                # With one group there is nothing to share.
                ("ALC, noise by dimension", ("--clipping.allocation=dimension",), (2, 3, 4, 6)),
            )
            for k in groups
        ],
    ),
    "time": Experiment(
        varied(
            DIGITS,
            {
                "first norms kept": (*METHODS[ALC], "--clipping.no-refresh"),
                "measured every epoch": METHODS[ALC],
                "and C falls by 1% an epoch": (*METHODS[ALC], "--clipping.decay=0.99"),
                "and C falls by 5% an epoch": (*METHODS[ALC], "--clipping.decay=0.95"),
                "the measured norms themselves (AN)": (
                    *METHODS[LC],
                    "--clipping.norms-from=public_norms",
                ),
            },
            {f"ε = {e}": (f"--plan.epsilon={e}",) for e in (1, 3, 8)},
            "0.3 0.3 0.3  0.3 0.3 0.3  0.3 0.3 0.3  1 1 1  0.03 0.03 0.03",
        ),
        tuning=DIGITS_TUNING,
        tuned_at="ε = 3",
    ),
}
