"""MNIST (60,000 private records) by BackPACK's CNN at ε = 3, δ = 1e-5.

Command: python -m jaxdp.train configs/mnist_cnn.py
         (needs the extra [data], and MNIST: `python -m jaxdp.data prepare mnist`)
Time:    TIME
Result:  RESULT
"""

from jaxdp.config import ClippingConfig, Config, DataConfig, ModelConfig, PlanConfig, TrainingConfig

config = Config(
    name="mnist_cnn",
    data=DataConfig(name="mnist"),
    model=ModelConfig(name="backpack_cnn", activation="tanh"),
    clipping=ClippingConfig(norm=0.3),
    plan=PlanConfig(epsilon=3.0, delta=1e-5, expected_batch_size=2048.0, steps=586),
    training=TrainingConfig(learning_rate=2.0, momentum=0.9, schedule="cosine", microbatch_size=64),
)
