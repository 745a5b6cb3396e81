"""Prints what the noise of arXiv 2307.11939 guarantees: `python -m benchmarks.paper.privacy`.

Its experiments: CIFAR-10 with 45,000 private records, batches of 64 clipped as one unit, 50
shuffled epochs, noise of standard deviation 2·C·sigma; full-gradient clipping (one clipping norm)
and layerwise clipping (one for every parameter tensor).
"""

from dataclasses import dataclass, replace

from jaxdp import accounting
from jaxdp.accounting.guarantee import NO_PRIVACY

NUM_EXAMPLES, BATCH_SIZE, EPOCHS, DELTA = 45_000, 64, 50, 1e-5


@dataclass(frozen=True)
class Setting:
    model: str
    sigma: float
    tensors: int  # that layerwise clipping clips apart


SETTINGS = [
    Setting("ResNet-18", 0.01875, 62),
    Setting("convnet", 0.5, 10),
    Setting("LeNet", 2.5, 10),
]


@dataclass(frozen=True)
class Guarantee:
    noise_multiplier: float
    mu: float
    epsilon: float  # of all epochs
    step_epsilon: float  # of the first update alone


def guarantee_of(sigma: float, layers: int) -> Guarantee:
    """Returns the privacy of the paper's batch clipping with so many layers clipped apart."""
    z = accounting.paper_noise_multiplier(sigma, "batch", layers, "replace_one", "shuffled")
    run = accounting.Mechanism(
        z,
        steps=EPOCHS * accounting.batches_per_epoch(NUM_EXAMPLES, BATCH_SIZE),
        sampling_probability=BATCH_SIZE / NUM_EXAMPLES,
        sampling="shuffled",
        adjacency="replace_one",
        unit="batch",
        num_examples=NUM_EXAMPLES,
    )
    return Guarantee(
        z,
        accounting.gaussian_mu(run),
        accounting.epsilon(run, DELTA),
        accounting.epsilon(replace(run, steps=1), DELTA),
    )


def in_words(epsilon: float) -> str:
    """Returns how much privacy there is, in a word, at an ε that no run should have."""
    return "none" if epsilon > NO_PRIVACY else "little"


def main() -> None:
    number = lambda x: f"{x:,.0f}" if x > 1000 else f"{x:.4g}"
    print(f"CIFAR-10, N = {NUM_EXAMPLES:,}, {EPOCHS} shuffled epochs, replace-one, δ = {DELTA:g}")
    print("model      σ        layers  z         μ      ε          ε of 1 step  privacy")
    for setting in SETTINGS:
        for layers in (1, setting.tensors):
            found = guarantee_of(setting.sigma, layers)
            print(
                f"{setting.model:9}  {setting.sigma:<7g}  {layers:<6}  "
                f"{found.noise_multiplier:<8.4g}  {number(found.mu):5}  "
                f"{number(found.epsilon):9}  {number(found.step_epsilon):11}  "
                f"{in_words(found.epsilon)}"
            )
    print(f"No privacy: an ε above {NO_PRIVACY:g} lets an attacker be all but certain.")


if __name__ == "__main__":
    main()
