"""Runs with several views of each record: they resume bit for bit, and count records as before."""

import json

import pytest

for module in ("tyro", "safetensors", "sklearn"):
    pytest.importorskip(module)
from helpers.trainer import SHORT, assert_same_run, crash_at, go_on  # noqa: E402

from jaxdp import train  # noqa: E402

VIEWS = ("--data.augment", "crop_flip", "--data.views", "3", "--seed", "0")


def started(folder, *options):
    return train.main([*SHORT, "--output", str(folder), *options])


@pytest.mark.slow
def test_a_run_with_views_goes_on_bit_for_bit(tmp_path):
    whole, stopped, one = (tmp_path / name for name in ("whole", "stopped", "one"))
    assert started(whole, *VIEWS) == 0
    with crash_at(5):
        started(stopped, *VIEWS)
    assert go_on(stopped) == 0
    assert_same_run(whole, stopped)
    # One view: other gradients of the same records at the same ε.
    assert started(one, *VIEWS[:2], *VIEWS[4:]) == 0
    examples, epsilons, losses = zip(*map(facts, (whole, one)), strict=True)
    assert examples[0] == examples[1]
    assert epsilons[0] == epsilons[1]
    assert losses[0] != losses[1]


def facts(folder):
    lines = (folder / "private" / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    statement = json.loads((folder / "release" / "privacy.json").read_text())
    return (
        [line["examples"] for line in metrics],
        statement["epsilon"],
        [line["loss"] for line in metrics],
    )
