"""BackPACK's CNN on MNIST at ε = 3, δ = 1e-5."""

from jaxdp.config import ClippingConfig, Config, DataConfig, ModelConfig, PlanConfig, TrainingConfig

config = Config(
    name="mnist_cnn",
    data=DataConfig(name="mnist"),
    model=ModelConfig(name="backpack_cnn", activation="tanh"),
    clipping=ClippingConfig(norm=0.3),
    plan=PlanConfig(epsilon=3.0, delta=1e-5, expected_batch_size=2048.0, steps=586),
    training=TrainingConfig(
        learning_rate=2.0, momentum=0.9, schedule="cosine", microbatch_size=64
    ),
)
