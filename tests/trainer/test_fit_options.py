"""`jaxdp.fit` with its options, one by one."""

import re
from dataclasses import replace

import jax
import numpy as np
import pytest

for module in ("tyro", "sklearn", "safetensors"):
    pytest.importorskip(module)
from helpers import fits  # noqa: E402
from helpers.fits import DATA, PLAN, TASK, fitted, rows  # noqa: E402
from helpers.trees import assert_same  # noqa: E402

import jaxdp  # noqa: E402
from jaxdp import seal  # noqa: E402
from jaxdp.trainer.config import (  # noqa: E402
    ClippingConfig,
)
from jaxdp.trainer.run.record import load_record  # noqa: E402


def test_a_private_run_can_be_sealed(tmp_path, capsys):
    result = fitted(tmp_path / "run")
    assert result.statement.private
    assert seal.main([str(result.folder)]) == 0
    assert jaxdp.load_release(result.folder).statement.secrets == "destroyed"


@pytest.mark.slow
def test_a_seed_is_warned_of(tmp_path, capsys):
    results = [fitted(tmp_path / name, seed=3, plan=replace(PLAN, steps=2)) for name in "ab"]
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("A seed was given: noise and sampling are reproducible: NOT PRIVATE") == 2
    assert_same(*(result.params for result in results))
    assert not results[0].statement.private
    others = [fitted(tmp_path / name, plan=replace(PLAN, steps=2)) for name in "cd"]
    assert not np.array_equal(*(result.params[0]["w"] for result in others))


def test_a_dry_run_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    result = fitted(tmp_path / "run", dry_run=True)
    said = capsys.readouterr().out
    assert re.search(r"Memory on the device: [\d.]+ MiB", said)
    assert "Dry run: nothing was trained, spent or written" in said
    assert (result.folder, result.release, result.statement) == (None, None, None)
    assert (result.scores, result.finished) == ({}, False)
    assert 7.9 < result.epsilon <= 8.0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_plan_that_is_solved_already_is_taken(tmp_path):
    plan = jaxdp.Plan(
        num_examples=200,
        expected_batch_size=32,
        steps=3,
        clipping=jaxdp.clip_layerwise(0.5),
        noise_multiplier=2.0,
        num_parameters=10,
    )
    result = fitted(tmp_path / "run", plan=plan)
    assert result.plan.noise_multiplier == 2.0
    assert result.statement.epsilon["pld"] == pytest.approx(plan.epsilon(3), rel=1e-3)
    # Its own batches were not drawn: it can be used for another run.
    assert fitted(tmp_path / "run", plan=plan).statement.steps == 3


@pytest.mark.slow
def test_a_clipping_with_norms_from_public_rows(tmp_path):
    clipping = ClippingConfig(
        kind="layerwise", norms_from="public", norm=0.5, pretraining_epochs=1, decay=0.9
    )
    data = jaxdp.Dataset(private=rows(200), public=rows(50, seed=4))
    result = fitted(tmp_path / "run", data=data, plan=replace(PLAN, clipping=clipping))
    told = result.statement.mechanisms[0].clipping.clipping_norms
    assert "from 50 public records" in told
    assert "after every epoch of 7 steps" in told
    with pytest.raises(ValueError, match="there are no public records"):
        fitted(tmp_path / "run", plan=replace(PLAN, clipping=clipping))


@pytest.mark.slow
def test_batch_units_of_a_plain_loss(tmp_path):
    plan = replace(PLAN, clipping=jaxdp.clip_batch(1.0), num_units=4, steps=3)
    result = fitted(tmp_path / "run", plan=plan)
    assert result.statement.mechanisms[0].clipping.batch_units == 4


@pytest.mark.slow
def test_the_average_is_released_and_frozen_parameters_stay(tmp_path):
    result = fitted(tmp_path / "run", ema=0.5, frozen=["1"], seed=1)
    first = TASK.init(jax.random.key(0), DATA.private.zero())
    np.testing.assert_array_equal(result.params[1][0], first[1][0])  # zeros
    assert load_record(result.folder).facts.ema == 0.5
    assert result.plan.num_parameters == 8
    last = fitted(tmp_path / "run", frozen=["1"], seed=1)
    assert not np.array_equal(result.params[0]["w"], last.params[0]["w"])
    with pytest.raises(ValueError, match="which no parameter matches"):
        fitted(tmp_path / "run", frozen=["dense"])


def test_a_task_without_scores_or_predict(tmp_path, capsys):
    task = jaxdp.Task(init=fits.init, loss=fits.loss)
    result = fitted(tmp_path / "run", task=task)
    assert (result.scores, result.statement.task.name) == ({}, "custom")
    assert not (result.folder / "private" / "scores.jsonl").exists()
    assert "can't predict by itself: the task has no predict" in capsys.readouterr().out
    with pytest.raises(ValueError, match="which predicts: its task has no predict"):
        result.release.predict(DATA.test.fields)
    alone = fitted(tmp_path / "run", data=jaxdp.Dataset(private=rows(200)))
    assert alone.scores == {}
