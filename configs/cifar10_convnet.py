"""CIFAR-10 (50,000 private records) by a small CNN at ε = 3 (or 8), δ = 1e-5.

Command: python -m jaxdp.train configs/cifar10_convnet.py
         python -m jaxdp.train configs/cifar10_convnet.py --plan.epsilon 8
         (needs the extra [data], and CIFAR-10: `python -m jaxdp.data prepare cifar10`)
Time:    TIME
Result:  RESULT
"""

from jaxdp.config import ClippingConfig, Config, DataConfig, ModelConfig, PlanConfig, TrainingConfig

config = Config(
    name="cifar10_convnet",
    data=DataConfig(name="cifar10"),
    model=ModelConfig(name="cnn", widths=(32, 64, 64), norm_group_size=8),
    clipping=ClippingConfig(norm=0.5),
    plan=PlanConfig(epsilon=3.0, delta=1e-5, expected_batch_size=1000.0, steps=400),
    training=TrainingConfig(learning_rate=1.5, momentum=0.9, schedule="cosine", microbatch_size=64),
)
