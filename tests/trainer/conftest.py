"""A run that has ended, and what it printed."""

import contextlib
import io

import pytest

SHORT = ["--plan.steps", "6", "--plan.expected-batch-size", "64", "--model.widths", "4"]


@pytest.fixture(scope="session")
def finished_and_said(tmp_path_factory):
    """The folder of a short run, which nobody changes, and what it printed on 80 columns."""
    for module in ("tyro", "sklearn", "safetensors"):
        pytest.importorskip(module)
    from jaxdp import train

    folder = tmp_path_factory.mktemp("train") / "run"
    with contextlib.redirect_stdout(io.StringIO()) as said, pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "80")
        assert train.main([*SHORT, "--output", str(folder)]) == 0
    return folder, said.getvalue()


@pytest.fixture(scope="session")
def finished(finished_and_said):
    return finished_and_said[0]
