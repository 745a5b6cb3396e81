"""Every clipping through the trainer, from the config to the statement."""

import pytest

for module in ("tyro", "sklearn", "safetensors"):
    pytest.importorskip(module)
from helpers.cases import slow  # noqa: E402
from helpers.trainer import start, write_config  # noqa: E402

import jaxdp  # noqa: E402
from jaxdp import train  # noqa: E402
from jaxdp.models.config import ModelConfig  # noqa: E402
from jaxdp.trainer.config import ClippingConfig, Config, PlanConfig  # noqa: E402


@pytest.mark.parametrize(
    ("clipping", "words"),
    [
        slow(ClippingConfig(kind="layerwise", norm=0.1, allocation="dimension"), "for each of"),
        slow(ClippingConfig(kind="layerwise", layer="module", unit="batch", units=8), "8 unit"),
        slow(ClippingConfig(kind="normalised"), "normalised"),
        (ClippingConfig(kind="quantile", layer="model"), "quantile"),
        slow(ClippingConfig(kind="batch", units=16), "16 unit"),
    ],
    ids=lambda value: value.kind if isinstance(value, ClippingConfig) else "",
)
@pytest.mark.slow
def test_every_clipping_trains_and_is_stated(clipping, words, tmp_path, capsys):
    model = ModelConfig(widths=(2,), norm="none")  # two layers compile faster than three
    config = Config(clipping=clipping, model=model, plan=PlanConfig(steps=3))
    run = start(config)
    plan = run.plan
    args = [write_config(config, tmp_path), "--output", str(tmp_path / "run")]
    assert train.main(args) == 0
    assert words in " ".join(capsys.readouterr().out.split())
    statement = jaxdp.load_release(tmp_path / "run").statement
    (stated,) = statement.mechanisms
    assert stated.clipping.call == repr(plan.clipping)
    assert stated.noise_multiplier == plan.noise_multiplier
    assert statement.epsilon["pld"] <= 3.0
    factor = 2 if plan.num_units else 1
    groups = plan.clipping.groups(run.state.params)
    want = factor * clipping.norm * len(groups.names) ** 0.5
    assert stated.clipping.sensitivity_at_first_step == pytest.approx(want, rel=1e-5)
    assert stated.clipping.batch_units == plan.num_units
