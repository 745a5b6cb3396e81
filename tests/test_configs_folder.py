"""The shipped configs load, and their headers give command, time and result."""

from pathlib import Path

import pytest

from jaxdp.trainer.config import Config
from jaxdp.trainer.parsing import load_config

FILES = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_config_loads_and_has_a_header(file):
    assert load_config(str(file)).name == file.stem
    header = file.read_text().split('"""')[1]
    assert f"python -m jaxdp.train configs/{file.name}" in header
    for word in ("Command:", "Time:", "Result:"):
        assert word in header


def test_the_default_run_is_configs_digits_cnn():
    assert load_config(str(FILES[0].parent / "digits_cnn.py")) == Config()
