"""The configurations that come with the project fit their data sets and models."""

from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.stand_ins import stand_in

from jaxdp.datasets.augmentation import AUGMENTATIONS
from jaxdp.models import make_model
from jaxdp.tasks.builtin import make_task
from jaxdp.trainer import Config
from jaxdp.trainer.parsing import load_config

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_models_fit_their_data(path):
    config = load_config(str(path))
    assert config.name == path.stem
    records, data_format = stand_in(config)
    task = make_task(config.model, data_format, AUGMENTATIONS[config.data.augment])
    key, one = jax.random.key(0), jax.tree.map(lambda rows: rows[0], records)
    params = jax.eval_shape(lambda key: task.init(key, one), key)
    if config.clipping.clipped_unit == "batch" and task.unit_loss is not None:
        keys = jax.random.split(key, 2)
        value = jax.eval_shape(task.unit_loss, params, records, keys, np.ones(2, bool))
    else:
        value = jax.eval_shape(task.loss, params, one, key)
    assert (value.shape, value.dtype) == ((), np.float32)
    if config.model.name == "backpack_cnn":
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 26_010


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_headers_say_what_to_run_and_what_to_expect(path):
    header = path.read_text().split('"""')[1]
    for part in (f"Command: python -m jaxdp.train configs/{path.name}", "Time: ", "Result: "):
        assert part in header, part


def test_the_default_run_is_configs_digits_cnn():
    assert load_config(str(CONFIGS[0].parent / "digits_cnn.py")) == Config()


@pytest.mark.slow
def test_a_language_model_sees_the_past_only():
    config = load_config(str(CONFIGS[[path.stem for path in CONFIGS].index("lm_small")]))
    (inputs, _), data_format = stand_in(config)
    model = make_model(config.model, data_format)
    x = np.asarray(inputs[:1], np.int32)
    params = jax.jit(model.init)(jax.random.key(0), x)["params"]
    changed = x.copy()
    changed[0, 40] = (x[0, 40] + 1) % 97
    first, second = (model.apply({"params": params}, tokens) for tokens in (x, changed))
    np.testing.assert_array_equal(first[0, :40], second[0, :40])
    assert not np.array_equal(first[0, 40], second[0, 40])


def test_models_and_data_of_different_kinds_are_refused():
    config = load_config(str(CONFIGS[[path.stem for path in CONFIGS].index("lm_small")]))
    _, text = stand_in(config)
    with pytest.raises(ValueError, match=r"the data are a text: choose --model.name transformer"):
        make_model(type(config.model)(name="cnn"), text)


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [path for path in CONFIGS if path.stem.startswith("digits")], ids=lambda path: path.stem
)
def test_two_steps_of_every_config_of_the_digits_run(path, tmp_path):
    pytest.importorskip("tyro")
    from jaxdp import load_release, train

    folder = tmp_path / "run"
    assert train.main([str(path), "--plan.steps", "2", "--output", str(folder)]) == 0
    assert load_release(folder).statement.steps == 2
