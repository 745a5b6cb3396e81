"""Scores on the way: at evenly spread steps, without any effect on the run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.regression import Problem

from jaxdp.datasets import records as records_module
from jaxdp.datasets.records import Part, Records
from jaxdp.datasets.rows import ArrayRows
from jaxdp.tasks.task import Task
from jaxdp.trainer.loop import Visitor
from jaxdp.trainer.scoring import PeriodicScores, evenly, make_scorer


def task(scores):
    return Task(init=lambda key, record: {}, loss=lambda *_: 0.0, scores=scores)


@pytest.mark.parametrize("at_a_time", [3, 500])
def test_scores_are_means_over_all_records(monkeypatch, at_a_time):
    monkeypatch.setattr(records_module, "ROWS_AT_A_TIME", at_a_time)
    x = np.random.default_rng(0).normal(size=(10, 2)).astype("f4")
    records = Records({"x": x, "y": np.arange(10) % 2})
    score = make_scorer(
        task(lambda p, r: {"right": r["x"][0] > p, "size": jnp.sum(r["x"] ** 2)}), records
    )
    for threshold in (0.0, 0.5):
        found = score(jnp.float32(threshold))
        assert found["right"] == pytest.approx(np.mean(x[:, 0] > threshold))
        assert found["size"] == pytest.approx(np.mean(np.sum(x**2, axis=1)), rel=1e-5)


def test_records_that_can_t_be_used_are_not_scored():
    x = np.arange(6, dtype=np.float32)
    records = Records.of_parts([Part(ArrayRows(x), range(6))], bad=x >= 4)
    assert make_scorer(task(lambda p, r: {"size": r}), records)({}) == {"size": 1.5}


def test_without_records_or_scores_there_are_none(tmp_path):
    records = Records(np.zeros((3, 2), "f4"))
    assert make_scorer(task(None), records)({}) == {}
    assert make_scorer(task(lambda p, r: {"a": jnp.sum(r)}), None)({}) == {}
    path = tmp_path / "scores.jsonl"
    PeriodicScores(lambda state: {}, path, print).visit(2, None)
    assert not path.exists()


def test_scores_on_the_way_change_nothing(tmp_path):
    seen = []

    def score(state):
        seen.append(float(state.params["b"]))
        return {"accuracy": 0.5, "loss": seen[-1]}

    def run(visitors):
        problem = Problem(key=jax.random.key(1), sampling_key=jax.random.key(1))
        return problem.run(visitors=visitors)

    path = tmp_path / "scores.jsonl"
    scored = run([Visitor(evenly(12, 5), PeriodicScores(score, path, print).visit)])
    jax.tree.map(np.testing.assert_array_equal, scored, run([]))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 5, 7, 10]  # and after the last, by the command
    assert [line["loss"] for line in lines] == seen
    assert len(set(seen)) == 4


def test_scores_that_fail_do_not_stop_the_run(tmp_path):
    def fails(state):
        raise RuntimeError("RESOURCE_EXHAUSTED: no memory\nmore")

    told = []
    scores = PeriodicScores(fails, tmp_path / "scores.jsonl", told.append)
    problem = Problem()
    problem.run(visitors=[Visitor(evenly(12, 5), scores.visit)])
    assert problem.payment.count == 12
    assert told == [
        "The test records can't be scored while the run trains: RESOURCE_EXHAUSTED: no memory"
    ]


@pytest.mark.parametrize("times", [0, 1, 12, 50])
def test_scores_are_at_most_one_a_step_and_not_the_last(times):
    due = [step for step in range(14) if evenly(12, times)(step)]
    assert due == (list(range(1, 12)) if times >= 12 else [])
