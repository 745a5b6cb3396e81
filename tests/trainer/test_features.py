"""Runs on scattering features, from the command to the release."""

import json

import numpy as np
import pytest

for module in ("tyro", "safetensors", "sklearn"):
    pytest.importorskip(module)
from helpers.trainer import crash_at, go_on  # noqa: E402

import jaxdp  # noqa: E402
from jaxdp import evaluate, train  # noqa: E402
from jaxdp.audit import run as audit_run  # noqa: E402
from jaxdp.datasets.sources import digits  # noqa: E402

FEATURES = ("--data.features", "scattering", "--model.name", "linear")
PLAN = ("--plan.expected-batch-size", "500", "--plan.steps", "30", "--plan.epsilon", "8")
TUNED = ("--training.learning-rate", "8", "--clipping.norm", "0.1")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def run(folder, *more):
    return train.main([*FEATURES, *PLAN, *TUNED, "--output", str(folder), *more])


def test_a_run_on_features(tmp_path, capsys):
    folder = tmp_path / "run"
    assert run(folder, "--seed", "0") == 0
    said = capsys.readouterr().out
    assert "Computing the scattering features of 1,437 images, split train (once)" in said
    statement = (folder / "release" / "privacy.json").read_text()
    assert "jaxdp.scattering(images / 16, normalised=True, mirrored=False)" in statement
    scores = json.loads((folder / "private" / "results.json").read_text())["scores"]
    assert scores["accuracy"] > 0.85
    # Whoever has the release makes the features of new images by the library.
    images, labels = digits().read("test").fields
    features = jaxdp.scattering(images.astype(np.float32) / 16, normalised=True)
    release = jaxdp.load_release(folder)
    right = release.predict(np.asarray(features))["class"] == labels
    assert np.mean(right) == pytest.approx(scores["accuracy"], abs=0.01)
    with pytest.raises(ValueError, match=r"jaxdp\.scattering\(images / 16, normalised=True"):
        release.predict(images)
    assert evaluate.main([str(folder)]) == 0
    assert f"{scores['accuracy']:.4f}" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_goes_on_with_its_features_only(tmp_path, capsys):
    folder = tmp_path / "run"
    with crash_at(12):
        run(folder, "--checkpoint.every-seconds", "0", "--seed", "0")
    capsys.readouterr()
    assert go_on(folder, "--data.features", "none") == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert go_on(folder) == 0
    segments = json.loads((folder / "release" / "privacy.json").read_text())["mechanisms"]
    assert len(segments) == 1


@pytest.mark.slow
def test_canaries_among_features(tmp_path):
    folder = tmp_path / "run"
    assert run(folder, "--audit.canaries", "40") == 0
    assert audit_run.audit_run(folder).bound.epsilon < 9
