"""The rows of docs/accuracy.md: their configs, other options at some ε, and what there is to beat.

A row's runs are `python -m jaxdp.train configs/CONFIG.py --plan.epsilon E --seed S` with its
options. Options have the names of the command line, without the hyphens at the front.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

Value = str | float | bool | tuple[str | float, ...]
Options = Mapping[str, Value]

SEEDS = (0, 1, 2)

TRAMER = "Tramèr and Boneh 2021"  # arXiv 2011.11660
BAO = "Bao and Bindschaedler 2024"  # arXiv 2508.15141
DE = "De et al. 2022, by Bao and Bindschaedler"  # arXiv 2204.13650, as replicated in 2508.15141


class Published(NamedTuple):
    """A published test accuracy at an ε."""

    epsilon: float
    accuracy: float
    source: str


@dataclass(frozen=True)
class Row:
    """A config at several ε.

    Attributes:
      name: for the command line and the folder of its results.
      set: the data set: rows of the same set share a panel of the figure.
      method: what is trained, in a few words.
      config: the file in configs/, without .py.
      options: of all its runs, besides those of the config.
      at: further options of the private runs at an ε.
      epsilons: at which it is trained.
      seeds: with which it is trained: one where three take more than half an hour.
      plain: further options of the run without privacy. It has the options of the private runs at
        `plain_at`.
      plain_at: see `plain`.
      theirs: what is to be beaten; the figure also shows those at other ε.
      within: instead, how far the accuracy may be below that without privacy at `plain_at`.
    """

    name: str
    set: str
    method: str
    config: str
    options: Options = field(default_factory=dict)
    at: Mapping[float, Options] = field(default_factory=dict)
    epsilons: Sequence[float] = (1, 2, 3, 8)
    seeds: Sequence[int] = SEEDS
    plain: Options = field(default_factory=dict)
    plain_at: float = 3
    theirs: Sequence[Published] = ()
    within: float | None = None

    def private_options(self, epsilon: float) -> dict[str, Value]:
        """Returns the options of its runs at an ε."""
        return {**self.options, **self.at.get(epsilon, {})}

    def plain_options(self) -> dict[str, Value]:
        """Returns the options of its run without privacy."""
        return {**self.private_options(self.plain_at), **self.plain}

    def within_at(self, epsilon: float) -> float | None:
        """Returns how far the accuracy at an ε may be below that without privacy."""
        return self.within if epsilon == self.plain_at else None

    def to_beat(self, epsilon: float) -> Published | None:
        """Returns the published accuracy at an ε, if there is one."""
        return next((p for p in self.theirs if p.epsilon == epsilon), None)


ROWS = {
    row.name: row
    for row in (
        Row(
            name="fashion_mnist_scattering",
            set="Fashion-MNIST",
            method="scattering, linear",
            config="fashion_mnist_scattering",
            theirs=[Published(3, 0.897, TRAMER)],
        ),
        Row(
            name="mnist_scattering",
            set="MNIST",
            method="scattering, linear",
            config="mnist_scattering",
            theirs=[Published(1, 0.968, BAO), Published(3, 0.987, TRAMER)],
        ),
        Row(
            name="cifar10_scattering",
            set="CIFAR-10",
            method="scattering, CNN",
            config="cifar10_scattering",
            at={1: {"training.learning-rate": 2}, 8: {"training.learning-rate": 8}},
            seeds=(0,),
            theirs=[
                Published(1, 0.609, BAO),
                Published(2, 0.670, BAO),
                Published(3, 0.693, TRAMER),
                Published(4, 0.697, BAO),
                Published(8, 0.724, BAO),
            ],
        ),
        Row(
            name="cifar10_scattering_linear",
            set="CIFAR-10",
            method="scattering, linear",
            config="cifar10_scattering",
            # A linear layer has no widths and no activation: here are the defaults again.
            options={
                "model.name": "linear",
                "model.widths": 16,
                "model.activation": "tanh",
                "training.ema": 0.95,
            },
            theirs=[Published(3, 0.670, TRAMER)],
        ),
        Row(
            name="cifar10_views",
            set="CIFAR-10",
            method="pixels, CNN, views",
            config="cifar10_views",
            epsilons=(3,),
            seeds=(0,),
            theirs=[Published(3, 0.59, TRAMER)],
        ),
        Row(
            name="cifar10_wrn",
            set="CIFAR-10",
            method="pixels, WRN-16-4 (GPU)",
            config="cifar10_wrn",
            at={1: {"plan.steps": 875}},
            epsilons=(1, 8),
            plain_at=8,
            seeds=(0,),
            theirs=[
                Published(1, 0.568, DE),
                Published(2, 0.629, DE),
                Published(4, 0.695, DE),
                Published(8, 0.787, DE),
            ],
        ),
        Row(
            name="imdb",
            set="IMDB reviews",
            method="embeddings from scratch",
            config="imdb",
            plain={"training.optimizer": "adam", "training.learning-rate": 0.01},
            theirs=[Published(1, 0.665, BAO), Published(3, 0.721, BAO)],
        ),
        Row(
            name="adult",
            set="Adult",
            method="logistic regression",
            config="adult",
            plain_at=1,
            within=0.005,
        ),
    )
}
