"""Characters of a text by a small transformer at ε = 8; a record is a window of 65 characters.

Command: python -m jaxdp.train configs/lm_small.py --data.file TEXT.txt
         (here Tiny Shakespeare: 1.1 MB, 15,443 private windows)
Time:    TIME
Result:  RESULT
"""

from jaxdp.config import ClippingConfig, Config, DataConfig, ModelConfig, PlanConfig, TrainingConfig

config = Config(
    name="lm_small",
    data=DataConfig(name="text", window=64),
    model=ModelConfig(name="transformer", width=64, layers=2, heads=4),
    clipping=ClippingConfig(norm=0.1),
    plan=PlanConfig(epsilon=8.0, expected_batch_size=512.0, steps=600),
    training=TrainingConfig(
        optimizer="adam", learning_rate=2e-3, schedule="cosine", microbatch_size=64
    ),
)
