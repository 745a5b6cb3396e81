"""A config file that is damaged anywhere: one line that names the file, or settings that fit."""

from pathlib import Path

import pytest
from helpers.damage import damages, examples, one_line
from hypothesis import given

import jaxdp
from jaxdp.trainer import Config
from jaxdp.trainer.parsing import load_config

SHIPPED = Path(jaxdp.__file__).parents[1] / "configs" / "digits_cnn.py"


@pytest.mark.filterwarnings("ignore")  # Python's own, about what is in the file
@examples
def test_a_damaged_config_file(tmp_path, examples):
    path = tmp_path / "mine.py"
    text = SHIPPED.read_bytes()
    code = text[text.rindex(b'"""') + 3 :]  # without the text at its beginning

    @examples
    @given(damages(code))
    def damaged(data):
        path.write_bytes(data)
        config = one_line(load_config, str(path))
        assert config is None or isinstance(config, Config)

    damaged()
