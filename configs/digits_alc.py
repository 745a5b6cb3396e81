"""Handwritten digits (scikit-learn's, 1,221 private records), adaptive layerwise clipping.

Command: python -m jaxdp.train configs/digits_alc.py
Time:    ?
Result:  ?

216 training records are taken for public: they set the clipping norm of every layer.
"""

from jaxdp.config import ClippingConfig, Config, DataConfig, PlanConfig, TrainingConfig

config = Config(
    name="digits_alc",
    data=DataConfig(private="train[:85%]", public="train[85%:]"),
    clipping=ClippingConfig(kind="layerwise", bounds="public", norm=0.3, decay=0.99),
    plan=PlanConfig(expected_batch_size=611.0),
    training=TrainingConfig(learning_rate=2.3),
)
