"""The figures of docs/studies/backpack.md."""

import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.runs import backpack
from jaxdp.datasets import Dataset, Format
from jaxdp.models import ModelConfig
from jaxdp.tasks.builtin import make_task

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "studies" / "backpack.md").read_text(encoding="utf-8")
TFDS = ROOT.parent / "shared" / "data" / "tfds"


@pytest.fixture(scope="module")
def stand_in():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (backpack.BATCH, 28, 28, 1), np.uint8)
    rows = images, rng.integers(0, 10, backpack.BATCH, np.int32)
    task = make_task(
        ModelConfig(name="backpack_cnn", activation="relu"),
        Format("image", "class", 10, 33.3, 78.6, ""),
    )
    dataset = Dataset(rows, jax.tree.map(lambda array: array[::-1].copy(), rows))
    params = task.init(jax.random.key(0), dataset.private.zero())
    return backpack.Setup(dataset, task, params)


def test_epsilons_are_those_of_the_page():
    lines = backpack.epsilons(60_000)[2:]
    found = [float(line.split("|")[-2]) for line in lines]
    np.testing.assert_allclose(found, [0.0228, 0.1251, 1.9931, 4.3772], atol=1e-3)
    assert all(line in PAGE for line in lines)


@pytest.mark.slow
def test_norms_from_both_ways_agree(stand_in):
    lines = backpack.individual_gradients(stand_in)[2:]
    assert len(lines) == 8
    for line in lines:
        assert float(line.split("|")[-2]) < 2e-5  # noise for images; MNIST stays below 1e-5
        assert line.rsplit("|", 2)[0] in PAGE  # shapes
    assert "| Conv_1/kernel | (4, 4, 16, 32) | (64, 4, 4, 16, 32) | (64,) |" in lines[2]


@pytest.mark.slow
def test_the_pages_factor_bounds_nothing(stand_in):
    rows = [line.split("|") for line in backpack.wrong_factor(stand_in)[2:]]
    for _, _, norm, right, wrong, _ in rows:
        assert float(right.split()[0]) <= 1
        assert float(wrong.split()[0]) == pytest.approx(min(float(norm), float(norm) ** 2))
    assert float(rows[-1][4].split()[0]) > 1000


@pytest.mark.slow
@pytest.mark.skipif(not TFDS.is_dir(), reason=f"there is no prepared MNIST in {TFDS}")
def test_the_command_prints_the_page(tmp_path, monkeypatch, capsys):
    figure = tmp_path / "plots.png"
    monkeypatch.setattr(sys, "argv", ["backpack", "--dir", str(TFDS), "--figure", str(figure)])
    backpack.main()
    printed = capsys.readouterr().out
    accuracy = lambda text: float(re.search(r"after 201 iterations: (\S+?)\.?\s", text)[1])
    assert accuracy(printed) == pytest.approx(accuracy(PAGE), abs=0.05)
    assert figure.stat().st_size > 10_000
