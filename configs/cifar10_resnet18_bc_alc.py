"""The paper's CIFAR-10 run: ResNet-18 with BatchNorm, batch clipping, adaptive layerwise clipping.

Command: python -m jaxdp.train configs/cifar10_resnet18_bc_alc.py
         (needs the extra [data], CIFAR-10: `python -m jaxdp.data prepare cifar10`, and a GPU; on a
         CPU take the smaller `python -m benchmarks.paper.clippings run paper`)
Time:    not measured on a GPU
Result:  not measured; docs/studies/clipping-paper.md has that of the smaller one: width 16, 10,000
         images, 10 epochs

Its σ = 0.01875 is NO PRIVACY. With a clipping norm for each of 62 tensors, ε would be above 4
million at δ = 1e-5 with exactly Gaussian noise. jaxdp's noise ends at 13 deviations: ε is infinite.
σ, C, batch size, learning rate and epochs are those in the code of arXiv 2307.11939; the learning
rate and C are multiplied by 0.9 after every epoch.
"""

from jaxdp.accounting import batches_per_epoch, paper_noise_multiplier
from jaxdp.trainer import (
    ClippingConfig,
    Config,
    DataConfig,
    ModelConfig,
    PlanConfig,
    TrainingConfig,
)

SIGMA, TENSORS, EPOCHS, BATCH_SIZE = 0.01875, 62, 50, 64
EPOCH_STEPS = batches_per_epoch(45_000, BATCH_SIZE)

config = Config(
    name="cifar10_resnet18_bc_alc",
    data=DataConfig(
        name="cifar10", private="train[5000:]", public="train[:5000]", augment="crop_flip"
    ),
    model=ModelConfig(name="resnet18", norm="batch"),
    clipping=ClippingConfig(
        kind="layerwise", unit="batch", norms_from="public", norm=0.095, decay=0.9
    ),
    plan=PlanConfig(
        epsilon=None,
        noise_multiplier=paper_noise_multiplier(SIGMA, "batch", TENSORS, "replace_one", "shuffled"),
        delta=1e-5,
        expected_batch_size=BATCH_SIZE,
        sampling="shuffled",
        adjacency="replace_one",
        steps=EPOCHS * EPOCH_STEPS,
    ),
    training=TrainingConfig(
        learning_rate=0.025,
        momentum=0.0,
        # Times 0.9 after every epoch: Optax's warm-up schedule, without a warm-up.
        schedule="warmup_exponential_decay",
        schedule_options={
            "init_value": 1,
            "peak_value": 1,
            "warmup_steps": 0,
            "transition_steps": EPOCH_STEPS,
            "decay_rate": 0.9,
            "staircase": 1,
        },
        ema=0.0,
    ),
    evaluations=EPOCHS,
)
