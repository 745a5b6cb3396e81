"""The numbers that figures show."""

from dataclasses import replace

import pytest

for module in ("tyro", "sklearn", "matplotlib"):
    pytest.importorskip(module)
from jaxdp.trainer.release import figures  # noqa: E402
from jaxdp.trainer.run.record import load_record  # noqa: E402


def test_the_report_s_scores_end_with_the_result(finished):
    found = load_record(finished)
    assert [score["step"] for score in found.scores] == [1, 2, 3, 4, 5, 6]
    assert found.scores[-1]["accuracy"] == found.results["scores"]["accuracy"]


@pytest.mark.slow
def test_epsilon_against_steps_counts_what_was_charged_in_vain(finished):
    found = load_record(finished)
    (only,) = found.spent
    again = replace(found, spent=[only, replace(only, steps=2)], starts=[0, 4])
    steps, spent = figures._epsilon_curve(again)
    assert steps == [1, 2, 3, 4, 4, 5, 6]
    assert spent == sorted(spent)
    assert spent[3] < spent[4]  # two steps after the checkpoint
    assert spent[-1] == pytest.approx(figures.epsilon(again))


def test_scores_against_time_begin_with_the_last_start(finished):
    found = load_record(finished)
    lines = [{"step": n, "time": 100.0 + n, "accuracy": n / 10} for n in (1, 2, 3)]
    resumed = replace(found, scores=lines, results={"seconds": 1.5})
    assert figures._seconds(resumed, "accuracy") == [0.5, 1.5]  # step 1 was before the stop
    assert figures._seconds(replace(resumed, results={}), "accuracy") == []


def test_the_score_to_draw_is_no_loss_if_there_is_another(finished):
    found = load_record(finished)
    scored = lambda **scores: replace(found, scores=[{"step": 1, "time": 0.0, **scores}])
    assert figures._score_name([scored(loss=1.0, accuracy=0.5)]) == "accuracy"
    assert figures._score_name([scored(loss=1.0)]) == "loss"
    assert figures._score_name([replace(found, scores=[])]) is None
