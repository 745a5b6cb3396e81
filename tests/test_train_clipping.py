"""Every clipping through the trainer, from the config to the statement."""

import json

import pytest
from trainer import write_config

from jaxdp import train
from jaxdp.models.config import ModelConfig
from jaxdp.trainer import setup
from jaxdp.trainer.config import ClippingConfig, Config, PlanConfig


@pytest.mark.parametrize(
    ("clipping", "words"),
    [
        (ClippingConfig(kind="layerwise", norm=0.1, allocation="dimension"), "for each of"),
        (ClippingConfig(kind="layerwise", layer="module", unit="batch", units=8), "8 unit"),
        (ClippingConfig(kind="normalised"), "normalised"),
        (ClippingConfig(kind="quantile", layer="model"), "quantile"),
        (ClippingConfig(kind="batch", units=16), "16 unit"),
    ],
    ids=lambda value: value.kind if isinstance(value, ClippingConfig) else "",
)
def test_every_clipping_trains_and_is_stated(clipping, words, tmp_path, capsys):
    model = ModelConfig(widths=(2,), norm="none")  # two layers compile faster than three
    config = Config(clipping=clipping, model=model, plan=PlanConfig(steps=3))
    run = setup.prepare(config)
    plan = run.plan
    args = [write_config(config, tmp_path), "--output", str(tmp_path / "run")]
    assert train.main(args) == 0
    assert words in " ".join(capsys.readouterr().out.split())
    stated = json.loads((tmp_path / "run" / "release" / "privacy.json").read_text())
    assert stated["clipping"] == repr(plan.clipping)
    assert stated["noise_multiplier"] == plan.noise_multiplier
    assert stated["epsilon"]["pld"] <= 3.0
    factor = 2 if plan.num_units else 1
    groups = plan.clipping.groups(run.state[0])
    want = factor * clipping.norm * len(groups.names) ** 0.5
    assert stated["sensitivity_at_first_step"] == pytest.approx(want, rel=1e-5)
    assert stated["batch_units"] == plan.num_units


def test_a_unit_is_no_individual():
    with pytest.raises(ValueError, match=r'clipping\.unit is batch: give kind "batch"'):
        ClippingConfig(unit="batch")
