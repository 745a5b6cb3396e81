"""Wrong arguments of `jaxdp.fit`: one line that names the cure, before anything is written."""

from dataclasses import replace

import optax
import pytest

for module in ("tyro", "sklearn", "safetensors"):
    pytest.importorskip(module)
from helpers import fits  # noqa: E402
from helpers.fits import PLAN, fitted, rows  # noqa: E402

import jaxdp  # noqa: E402

WRONG = {
    "task": (dict(task=fits.loss), TypeError, "task is a function: give jaxdp.tasks.classifier"),
    "data": (dict(data=(rows(9), None)), TypeError, r"data is a tuple: give jaxdp\.Dataset\("),
    "plan": (dict(plan=3.0), TypeError, r"plan is a float: give jaxdp\.PlanSettings"),
    "optimizer": (dict(optimizer=optax.sgd), TypeError, "optimizer is a function: give an Optax"),
    "metrics": (dict(metrics="csv"), ValueError, "metrics is 'csv': give 'tensorboard' or None"),
    "microbatch": (dict(microbatch_size=0), ValueError, "microbatch_size is 0: give a whole"),
    "ema": (dict(ema=1.0), ValueError, r"ema is 1\.0: give a number in \[0, 1\)"),
    "evaluations": (dict(evaluations=-1), ValueError, "evaluations is -1: give 0 or more"),
    "seed": (dict(seed=-1), ValueError, "seed is -1: give 0 to 4294967295"),
    "name": (dict(name="a/b"), ValueError, "name is 'a/b': give a name that can be part"),
    "no run": (dict(resume="nowhere"), ValueError, "there is no run in nowhere"),
    "records": (
        dict(
            plan=jaxdp.Plan(
                num_examples=100,
                expected_batch_size=10,
                steps=3,
                clipping=jaxdp.clip_individual(1.0),
                noise_multiplier=1.0,
            )
        ),
        ValueError,
        "the plan is for 100 records, and the data have 200 private ones",
    ),
    "no noise": (
        dict(plan=replace(PLAN, epsilon=None, noise_multiplier=0.0)),
        ValueError,
        "for which no ε holds",
    ),
    "loss": (
        dict(task=jaxdp.Task(init=fits.init, loss=lambda p, r, key: p[0]["w"])),
        ValueError,
        "return one number",
    ),
}


@pytest.mark.parametrize(("options", "error", "says"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_refused_before_anything_is_written(
    tmp_path, monkeypatch, options, error, says
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=says) as raised:
        fitted(**options)
    assert len(str(raised.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
