"""The figures of docs/guides/sharp-edges.md."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jaxdp
from jaxdp.accounting import round_up

ROOT = Path(__file__).parents[2]
PAGE = " ".join((ROOT / "docs" / "guides" / "sharp-edges.md").read_text().split())


def make_plan(**changes):
    numbers = dict(num_examples=1437, expected_batch_size=256, steps=150)
    return jaxdp.Plan(**{**numbers, "clipping": jaxdp.clip_individual(1.0), **changes})


def test_padding_that_counts():
    # The clipping alone takes rows without a mask: one record in place of all padding.
    padding = make_plan(noise_multiplier=1.0).capacity - 256
    rows = jnp.full((padding, 1), 100.0)
    clip = jaxdp.clip_individual(1.0)
    total, _ = clip.update(jaxdp.from_dense(rows, None, like=rows[0]), clip.init(rows[0]))
    assert float(total[0]) == pytest.approx(padding, rel=1e-4)
    assert f"stands in for padding moves the sum by {padding} C" in PAGE


def test_three_times_the_steps():
    plan = make_plan(epsilon=1.0)
    assert f"three times the steps: ε = {round_up(plan.epsilon(450), 3):g} instead of 1" in PAGE


def test_batches_of_shuffled_data():
    z = make_plan(epsilon=1.0).noise_multiplier
    shuffled = make_plan(noise_multiplier=z, sampling="shuffled", adjacency="zero_out")
    cost = round_up(shuffled.epsilon(), 3)
    assert f"150 batches of 256 of them cost ε = {cost:g}" in PAGE


def test_a_mean_gradient():
    # Every row of the layer is taken for an example, and one record may turn all of them round.
    width = 16
    clip, row = jaxdp.clip_individual(1.0), jnp.ones(width)
    total = lambda g: clip.update(jaxdp.from_dense(g, None, like=row), clip.init(row))[0]
    aligned = jnp.ones((width, width))
    moved = np.linalg.norm(total(aligned) - total(-aligned))
    assert moved == pytest.approx(2 * width, rel=1e-4)
    assert f"for a square layer of width {width}, one record moves the sum by {2 * width} C" in PAGE
