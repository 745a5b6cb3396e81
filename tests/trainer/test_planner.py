"""The noise planner: what a config file says of a run, and what it can't say."""

import pytest

for module in ("tyro", "rich", "matplotlib", "flax", "sklearn"):
    pytest.importorskip(module)
import jaxdp  # noqa: E402
from jaxdp import plan  # noqa: E402
from jaxdp.trainer import planner  # noqa: E402

CONFIG = """
from jaxdp.trainer import ClippingConfig, Config, ModelConfig, PlanConfig
config = Config(
    model=ModelConfig(name="linear"),
    clipping=ClippingConfig(kind="layerwise", norm=0.5),
    plan=PlanConfig(epsilon=2.0, expected_batch_size=700.0, steps=30),
)
"""


def config_file(folder, old: str = "", new: str = "") -> str:
    path = folder / "config.py"
    path.write_text(CONFIG.replace(old, new))
    return str(path)


def test_a_config_file_sets_what_is_not_given(tmp_path):
    path = config_file(tmp_path)
    assert planner.parse([path]).batch_sizes == (44, 88, 175, 350, 700, 1400, 1437)
    found = planner.solve(planner.parse([path, "--batch-sizes", "700"]))
    assert (found.num_examples, found.num_parameters) == (1437, 650)
    assert (found.epsilon, found.unit) == (2.0, "example")
    assert found.clipping_norm == pytest.approx(0.5 * 2**0.5)  # kernel and bias
    (row,) = found.rows
    assert row.steps == 30
    solved = jaxdp.Plan(
        num_examples=1437,
        expected_batch_size=700,
        steps=30,
        epsilon=2.0,
        clipping=jaxdp.clip_layerwise(0.5),
        num_parameters=650,
    )
    assert row.noise_multiplier == solved.noise_multiplier
    changed = planner.parse([path, "--steps", "9", "--epsilon", "1"])
    assert (changed.epsilon, changed.steps, changed.epochs) == (1.0, 9, None)


def test_what_is_assumed_of_a_moving_norm_is_said(tmp_path, capsys):
    planner.from_config(config_file(tmp_path, "layerwise", "quantile"))
    assert "clipping norm of the first step" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("norm=0.5", 'norm=0.5, allocation="dimension"', "clipping.allocation is 'dimension'"),
        ("norm=0.5", 'norm=0.5, norms_from="public"', "clipping.norms-from is 'public'"),
        ("epsilon=2.0", 'epsilon=2.0, sampling="shuffled"', "another sampling than Poisson"),
        ("epsilon=2.0", "epsilon=None, noise_multiplier=1.0", "gives a noise multiplier"),
    ],
)
def test_what_the_planner_does_not_know_is_refused(tmp_path, capsys, old, new, says):
    assert plan.main([config_file(tmp_path, old, new)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
