"""CIFAR-10 (50,000 private images) from pixels: a small CNN, with views of each image, at ε = 3.

Command: python -m jaxdp.train configs/cifar10_views.py
         (needs the extra [data], and the set: `python -m jaxdp.data prepare cifar10`)
Time:    37 minutes on 2 busy cores
Result:  test accuracy 0.620 (seed 0)

A view is the image moved by up to 4 pixels and mirrored half the time. What was tried on held-out
training images is in docs/accuracy.md. ε does not count this search.
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
    name="cifar10_views",
    data=DataConfig(name="cifar10", augment="crop_flip", views=2),
    model=ModelConfig(name="cnn", widths=(32, 64, 64), activation="relu", norm_group_size=8),
    clipping=ClippingConfig(norm=0.5),
    plan=PlanConfig(epsilon=3.0, delta=1e-5, expected_batch_size=3072.0, steps=300),
    training=TrainingConfig(
        learning_rate=2.0, momentum=0.9, schedule="constant", ema=0.97, microbatch_size=32
    ),
)
