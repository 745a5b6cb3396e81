"""Runs that crashed after step 4 of 8, and one that did not."""

import shutil

import pytest


@pytest.fixture(scope="session")
def runs():
    """The helpers of these tests, where the extra is installed."""
    for module in ("tyro", "sklearn", "safetensors"):
        pytest.importorskip(module)
    from helpers import trainer

    return trainer


@pytest.fixture(scope="session")
def reference(runs, tmp_path_factory):
    """A seeded run that was never stopped; nobody changes it."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    assert runs.train.main([*runs.SHORT, "--seed", "1", "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def seeded_original(runs, tmp_path_factory):
    return runs.stopped_run(tmp_path_factory.mktemp("seeded") / "run", "--seed", "1")


@pytest.fixture(scope="session")
def secret_original(runs, tmp_path_factory):
    return runs.stopped_run(tmp_path_factory.mktemp("secret") / "run")


@pytest.fixture
def seeded(seeded_original, tmp_path):
    """A run with a seed that crashed after step 4 of 8."""
    return shutil.copytree(seeded_original, tmp_path / "run")


@pytest.fixture
def secret(secret_original, tmp_path):
    """The same without a seed."""
    return shutil.copytree(secret_original, tmp_path / "run")
