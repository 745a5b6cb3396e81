"""The experiments on clippings: every cell of their tables is a run that the trainer accepts."""

from pathlib import Path

import pytest

from benchmarks.paper.cases import EXPERIMENTS
from benchmarks.paper.clippings import RATES, trainings, tunings
from jaxdp.trainer.parsing import parse

ROOT = Path("runs")
TUNED = [name for name, experiment in EXPERIMENTS.items() if experiment.tuning]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_run_parses_and_has_a_folder_of_its_own(name):
    runs = trainings(ROOT, name)
    assert len({folder for folder, _, _ in runs}) == len(runs)
    configs = [parse(args) for _, args, seed in runs if seed == 0]
    assert len({repr(config) for config in configs}) == len(configs)


@pytest.mark.parametrize("name", TUNED)
def test_tuning_scores_no_test_records(name):
    runs = tunings(ROOT, name, RATES[:1])
    assert len({folder for folder, _, _ in runs}) == len(runs)
    assert all(parse(args).data.test.startswith("train[") for _, args, _ in runs)
