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


def test_epsilon_against_steps_counts_what_was_charged_in_vain(finished):
    found = load_record(finished)
    (only,) = found.spent
    again = replace(found, spent=[only, replace(only, steps=2)], starts=[0, 4])
    steps, spent = figures._epsilon_curve(again)
    assert steps == [0, 1, 2, 3, 4, 4, 5, 6]
    assert spent == sorted(spent)
    assert spent[4] < spent[5]  # two steps after the checkpoint
    assert spent[-1] == pytest.approx(figures.epsilon(again))
