"""Config files that define a task, data or an optimizer of their own."""

import json
import re

import pytest

for module in ("tyro", "safetensors", "flax"):
    pytest.importorskip(module)
import jaxdp  # noqa: E402
from jaxdp import train  # noqa: E402
from jaxdp.trainer import parsing  # noqa: E402

HEAD = """
import flax.linen as nn, numpy as np, optax
import jaxdp
from jaxdp.trainer import Config, DataConfig, ModelConfig, PlanConfig, TrainingConfig
"""
PARTS = {
    "config": "Config(plan=PlanConfig(steps=2, expected_batch_size=30))",
    "task": "jaxdp.tasks.classifier(nn.Dense(3))",
    "data": "jaxdp.Dataset((np.ones((100, 4), np.float32), np.zeros(100, int)), name='visits')",
    "optimizer": "optax.adam(1e-2)",
}


def write(folder, **changes):
    """A config file with all parts, but for those that change; None leaves one out."""
    file = folder / "mine.py"
    parts = {name: code for name, code in {**PARTS, **changes}.items() if code is not None}
    file.write_text(HEAD + "".join(f"{name} = {code}\n" for name, code in parts.items()))
    return str(file)


@pytest.mark.slow
def test_its_parts_are_trained_and_a_resume_finds_them_again(tmp_path, capsys):
    file, run = write(tmp_path), tmp_path / "run"
    assert train.main([file, "--output", str(run)]) == 0
    release = jaxdp.load_release(run)
    assert release.params["kernel"].shape == (4, 3)
    assert (release.statement.data.name, release.statement.task.model) == ("visits", None)
    saved = json.loads((run / "private" / "segment-1.json").read_text())
    assert saved["facts"]["optimizer"] == "its owner's"
    assert train.main([file, "--resume", str(run)]) == 0
    assert "All steps were taken" in capsys.readouterr().out


@pytest.mark.slow
def test_a_task_without_scores_may_learn_from_a_text(tmp_path, capsys):
    text, run = tmp_path / "a.txt", tmp_path / "run"
    text.write_text("to be or not to be, " * 50)
    code = {
        "task": "jaxdp.Task(lambda key, record: np.zeros(4, np.float32), "
        "lambda params, record, key: (params * record[0][:4]).sum())",
        "config": f"Config(data=DataConfig('text', file={str(text)!r}, window=8), "
        "plan=PlanConfig(steps=2, expected_batch_size=20))",
        "data": None,
    }
    assert train.main([write(tmp_path, **code), "--output", str(run)]) == 0
    assert "perplexity" not in capsys.readouterr().out
    assert jaxdp.load_release(run).params["params"].shape == (4,)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"task": "nn.Dense(3)"}, "sets task to a Dense: give jaxdp.tasks.classifier(model)"),
        ({"data": "np.ones(3)"}, "sets data to a ndarray: give jaxdp.Dataset(private="),
        ({"optimizer": "'adam'"}, "sets optimizer to a str: give an Optax optimizer, as"),
        ({"task": None}, "defines data, and no task for them: give a task too"),
    ],
)
def test_parts_of_wrong_types_are_refused_in_one_line(tmp_path, changes, says):
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        parsing.parse([write(tmp_path, **changes)])
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "option",
    [
        "--model.name linear",
        "--data.augment crop_flip",
        "--data.private train[:50%]",
        "--training.learning-rate 1",
        "--training.schedule-options end_value 1",
    ],
)
def test_options_that_its_parts_make_idle_are_refused(tmp_path, option):
    data = None if "augment" in option else PARTS["data"]
    with pytest.raises(ValueError, match=rf"^{option.split()[0][2:]} is .* but it is for .*own is"):
        parsing.parse([write(tmp_path, data=data), *option.split()])
