"""The trainer's time is measured on a run that it trains as the command does."""

import pytest

from benchmarks.runs import overhead
from jaxdp.trainer.command import make_job
from jaxdp.trainer.parsing import parse
from jaxdp.trainer.setup import start_run


@pytest.mark.slow
def test_every_turn_trains_and_writes_a_checkpoint(monkeypatch):
    monkeypatch.setattr(overhead, "TURNS", 1)
    args = ["--model.name=linear", "--plan.steps=4", "--evaluations=2", "--seed=0"]
    facts = overhead.measure(start_run(make_job(parse(args))))
    assert (facts["steps of a turn"], facts["evaluations of a turn"]) == (4, 1)
    assert facts["checkpoints of the turns"][0] >= 1
    assert facts["wall"]["trainer's step, ms"] > facts["wall"]["bare step, ms"] > 0
