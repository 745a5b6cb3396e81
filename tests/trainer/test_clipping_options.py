"""The clipping that the options make: the one that the library's function makes."""

import pytest

import jaxdp
from jaxdp.trainer.clipping_options import make_clipping, units_at_a_time
from jaxdp.trainer.config import ClippingConfig

NORMS = {("a/kernel",): 0.5, ("a/bias", "b/bias"): 0.2}


@pytest.mark.parametrize(
    ("options", "norms", "expected"),
    [
        (dict(), None, jaxdp.clip_individual(0.3)),
        (dict(kind="batch", units=4), None, jaxdp.clip_batch(0.3)),
        (dict(kind="layerwise"), None, jaxdp.clip_layerwise(0.3, layer="tensor")),
        (
            dict(kind="layerwise", layer="module", unit="batch"),
            None,
            jaxdp.clip_layerwise(0.3, layer="module", unit="batch"),
        ),
        (dict(kind="layerwise", layer="model"), None, jaxdp.clip_individual(0.3)),
        (dict(kind="multiplied"), None, jaxdp.clip_individual(0.3)),
        (dict(kind="multiplied", unit="batch"), None, jaxdp.clip_batch(0.3)),
        (dict(kind="layerwise", norms_from="public"), NORMS, jaxdp.clip_layerwise(NORMS)),
        (
            dict(kind="multiplied", norms_from="public_norms", unit="batch"),
            NORMS,
            jaxdp.clip_multiplied(NORMS, unit="batch"),
        ),
        (
            dict(kind="normalised", stability=0.1),
            None,
            jaxdp.clip_normalised(0.3, stability=0.1),
        ),
        (
            dict(kind="quantile", quantile=0.7, quantile_rate=0.1, count_std=5.0, layer="model"),
            None,
            jaxdp.clip_quantile(0.3, target=0.7, learning_rate=0.1, count_std=5.0),
        ),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_every_kind_is_the_library_s(options, norms, expected):
    assert make_clipping(ClippingConfig(**options), norms) == expected


@pytest.mark.parametrize(("microbatch", "at_a_time"), [(256, 256 // 160), (1000, 6), (8, 1)])
def test_a_microbatch_counts_records_in_units_too(microbatch, at_a_time):
    numbers = dict(num_examples=10_000, expected_batch_size=500, steps=3, noise_multiplier=1.0)
    plan = jaxdp.Plan(**numbers, clipping=jaxdp.clip_individual(1.0))
    assert units_at_a_time(microbatch, plan) == microbatch
    plan = jaxdp.Plan(**numbers, clipping=jaxdp.clip_batch(1.0), num_units=4)
    assert units_at_a_time(microbatch, plan) == max(1, microbatch // plan.capacity)
