"""UCI Adult: whether an income is above 50,000 dollars, by logistic regression at ε = 1.

Command: python -m jaxdp.train configs/adult.py --data.file adult.data --data.test-from adult.test
"""

from pathlib import Path

from jaxdp.trainer import (
    ClippingConfig,
    Config,
    DataConfig,
    ModelConfig,
    PlanConfig,
    TrainingConfig,
)

COLUMNS = (
    *("age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation"),
    *("relationship", "race", "sex", "capital-gain", "capital-loss", "hours-per-week"),
    *("native-country", "income"),
)

config = Config(
    name="adult",
    data=DataConfig(
        name="adult",
        file="adult.data",
        test_from="adult.test",
        label="income",
        columns=COLUMNS,
        schema=str(Path(__file__).with_name("adult_schema.toml")),
    ),
    model=ModelConfig(name="linear"),
    clipping=ClippingConfig(norm=0.5),
    plan=PlanConfig(epsilon=1.0, delta=1e-5, expected_batch_size=2048.0, steps=200),
    training=TrainingConfig(learning_rate=2.0, momentum=0.9, schedule="cosine"),
)
