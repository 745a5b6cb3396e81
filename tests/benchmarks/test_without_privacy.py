"""Training a config without privacy."""

import re

import pytest

from benchmarks.runs import without_privacy


@pytest.mark.slow
def test_it_trains_the_config(capsys):
    without_privacy.main(["--model.name=linear", "--plan.steps=20", "--seed=0"])
    printed = capsys.readouterr().out
    assert "digits_cnn without privacy: 20 steps" in printed
    assert float(re.search(r"test accuracy ([\d.]+)", printed)[1]) > 0.8


@pytest.mark.slow
def test_batch_units_are_refused():
    args = ["--clipping.kind=batch", "--clipping.units=8", "--plan.steps=2", "--seed=0"]
    with pytest.raises(SystemExit, match=r"leave out the batch units"):
        without_privacy.main(args)
