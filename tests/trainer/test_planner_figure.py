"""The planner's figure: a file in the format that its ending names."""

import pytest

import jaxdp

pytest.importorskip("matplotlib")
from jaxdp.trainer.planner_figure import draw


@pytest.mark.parametrize(
    ("ending", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_the_ending_says_the_format(tmp_path, ending, start):
    table = jaxdp.plan_noise(
        num_examples=1437,
        num_parameters=650,
        batch_sizes=[64, 719],
        epsilon=3.0,
        epochs=2,
        sampling="shuffled",
        adjacency="zero_out",
    )
    path = tmp_path / f"noise.{ending}"
    draw(table, path)
    assert path.read_bytes().startswith(start)
