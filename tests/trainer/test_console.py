"""What a run says on the terminal: all numbers that decide privacy, in 80 columns."""

import re

import pytest

for module in ("tyro", "sklearn", "safetensors"):
    pytest.importorskip(module)
from helpers.trainer import ledger_of, write_config  # noqa: E402

from jaxdp import train  # noqa: E402
from jaxdp.accounting.mechanism import paper_noise_multiplier  # noqa: E402
from jaxdp.models.config import ModelConfig  # noqa: E402
from jaxdp.trainer.config import ClippingConfig, Config, PlanConfig  # noqa: E402


def test_plain_lines_where_there_is_no_terminal(finished_and_said):
    _, said = finished_and_said
    lines = said.splitlines()
    *shown, last = lines
    assert max(map(len, shown)) <= 80
    assert last.startswith("When the run is over, destroy its keys: python -m jaxdp.seal ")
    assert "\x1b" not in said
    words = " ".join(said.split())
    for fact in (
        r"Plan: N = 1,437, expected batch size 64 \(sampling probability 0\.04454\), 6 steps, "
        r"noise multiplier \d\.\d+, clipping norm [\d.]+, expected norm of the noise on the mean "
        r"gradient [\d.]+, target ε = 3 at δ = 0\.000337",
        r"private numbers, without noise",
        r"Compiling .* step 1/6 loss \d",
        r"step 6/6",
        r"test accuracy │ 0\.\d{4} on 360 records, declared public",
        r"of the parameters │ moving average, ema 0.9999",
        r"ε by PLD, the claim │ [\d.]+ at δ = 0\.000337",
        r"ε by RDP, a looser bound │ [\d.]+ at δ",
        r"steps │ 6 of 6 ",
        r"wall time",
    ):
        assert re.search(fact, words), fact
    assert len([line for line in lines if line.startswith("step")]) <= 12
    assert "NOT PRIVATE" not in said


@pytest.mark.slow
def test_the_papers_noise_is_told_with_what_it_is_worth(tmp_path, capsys):
    z = paper_noise_multiplier(0.01875, "batch", 1, "replace_one", "shuffled")
    plan = PlanConfig(
        epsilon=None,
        noise_multiplier=z,
        delta=1e-5,
        sampling="shuffled",
        adjacency="replace_one",
        expected_batch_size=64,
        steps=2,
    )
    clipping = ClippingConfig(kind="batch", norm=0.095)
    config = Config(model=ModelConfig(name="linear"), clipping=clipping, plan=plan, seed=1)
    assert train.main([write_config(config, tmp_path), "--output", str(tmp_path / "run")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "noise multiplier 0.01875" in said
    assert said.count("no meaningful privacy") == 2
    ledger = ledger_of(tmp_path / "run")
    # With exactly Gaussian noise, a single release costs about 1,650 (PAPER: μ = 1/0.01875 = 53.3).
    # The noise ends at 13 standard deviations, and a record moves the sum by 53: no ε holds.
    assert ledger.epsilon() == ledger.budget.epsilon == float("inf")
    assert "ε by PLD, the claim │ inf at δ" in said
    assert "μ = 53.33" in said
