"""Training a config without privacy."""

import re

import numpy as np
import pytest

from benchmarks.runs import without_privacy
from jaxdp.trainer.parsing import parse


@pytest.mark.slow
def test_it_trains_the_config(capsys):
    without_privacy.main(["--model.name=linear", "--plan.steps=20", "--seed=0"])
    printed = capsys.readouterr().out
    assert "digits_cnn without privacy: 20 steps" in printed
    assert float(re.search(r"test accuracy ([\d.]+)", printed)[1]) > 0.8


@pytest.mark.slow
def test_a_centred_model_gets_the_plain_mean_of_the_first_batch():
    config = parse(["--model.name=linear", "--plan.steps=20", "--seed=0", "--model.centred"])
    run, params, scores, _ = without_privacy.train(config)
    batch, mask = next(iter(run.batches()))
    images = np.asarray(batch.records[0], np.float32)[np.asarray(mask)]
    np.testing.assert_allclose(params["mean"], images.mean(0) / 8 - 1, atol=1e-5)
    assert scores["accuracy"] > 0.8


@pytest.mark.slow
def test_batch_units_are_refused():
    args = ["--clipping.kind=batch", "--clipping.units=8", "--plan.steps=2", "--seed=0"]
    with pytest.raises(SystemExit, match=r"leave out the batch units"):
        without_privacy.main(args)
