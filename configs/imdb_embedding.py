"""IMDB reviews (25,000 private documents): the mean of word embeddings, from scratch, at ε = 3.

Command: python -m jaxdp.train configs/imdb_embedding.py
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
    name="imdb_embedding",
    data=DataConfig(name="imdb_reviews", tokens="hash", vocabulary=8192, length=256),
    model=ModelConfig(name="embedding", width=16),
    clipping=ClippingConfig(norm=0.1),
    plan=PlanConfig(epsilon=3.0, delta=1e-5, expected_batch_size=2048.0, steps=200),
    training=TrainingConfig(learning_rate=60.0, momentum=0.9, schedule="cosine"),
)
