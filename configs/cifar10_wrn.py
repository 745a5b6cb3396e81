"""CIFAR-10 (50,000 private records) by WRN-16-4 with 16 views of each image, at ε = 8, on a GPU.

Command: python -m jaxdp.train configs/cifar10_wrn.py
         python -m jaxdp.train configs/cifar10_wrn.py --plan.epsilon 1 --plan.steps 875
         (needs the extra [data], CIFAR-10: `python -m jaxdp.data prepare cifar10`, and a GPU)
Time:    not measured on a GPU
Result:  not measured on a GPU. 20 steps on 512 images with 2 views run on 2 cores, in 40 s after
         compiling

The network and the settings are those of De et al. 2022 (arXiv 2204.13650): batches of 4,096,
learning rate 2 without momentum, clipping norm 1, a moving average of 0.999. They took 2,500 steps
with a noise multiplier of 3 for ε = 8, and 875 with 10 for ε = 1. Here it is 2.576 and 9.121 for
the same ε and steps, by PLD.
"""

from jaxdp.trainer import (
    ClippingConfig,
    Config,
    DataConfig,
    ModelConfig,
    PlanConfig,
    TrainingConfig,
)

config = Config(
    name="cifar10_wrn",
    data=DataConfig(name="cifar10", augment="crop_flip", views=16),
    model=ModelConfig(name="wide_resnet"),
    clipping=ClippingConfig(norm=1.0),
    plan=PlanConfig(epsilon=8.0, delta=1e-5, expected_batch_size=4096.0, steps=2500),
    training=TrainingConfig(
        learning_rate=2.0, momentum=0.0, schedule="constant", ema=0.999, microbatch_size=16
    ),
)
