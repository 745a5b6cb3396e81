"""The forum's program gives the posted norms again, on MNIST where that is prepared."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.runs import forum
from jaxdp.datasets import DataConfig, load

ROOT = Path(__file__).parents[2]
TFDS = ROOT.parent / "shared" / "data" / "tfds"


@pytest.fixture(scope="module")
def mnist():
    pytest.importorskip("importlib_resources", reason="needs the extra data")
    if not (TFDS / "mnist").exists():
        pytest.skip("MNIST is not prepared")
    return load(DataConfig(name="mnist", dir=str(TFDS)))[0].private


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch_size", "low", "high"), [(100, 0.63, 0.66), (8, 7.06, 7.19)], ids=["100", "8"]
)
def test_norms_after_the_noise_are_the_forums(mnist, batch_size, low, high):
    row = forum.noise_needed(batch_size, batch_size / 60_000, len(mnist))
    before, clipped, noised = forum.train(mnist, row, runs=100)
    assert low <= noised.mean <= high
    assert all(noised.low <= posted <= noised.high for posted in noised.posted)
    assert clipped.mean < 1 < before.mean


def test_the_page_shows_what_was_posted():
    page = (ROOT / "docs" / "studies" / "forum.md").read_text(encoding="utf-8")
    for posted in forum.POSTED.values():
        for values in posted.values():
            assert ", ".join(f"{value:.4g}" for value in values) in page
    for size in forum.POSTED:
        row = forum.noise_needed(size, size / 60_000, 60_000)
        assert f"noise multiplier {row.noise_multiplier:g} by RDP" in page
        assert f"/ {size} = {row.noise_norm:.4g}" in page


def test_empty_batches_have_no_mean_gradient():
    norms = np.array([[np.nan, 0.0, 7.0], [1.0, 0.5, 7.2]])
    before, clipped, noised = forum.summarise(norms, {"after noise": (7.1,)})
    assert (before.mean, clipped.mean, noised.mean) == (1.0, 0.25, 7.1)
    assert (before.posted, noised.posted) == ((), (7.1,))
