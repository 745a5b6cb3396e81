"""The command `python -m jaxdp.data`."""

import pytest
from helpers.image_archives import prepare_small_mnist

from jaxdp import data

pytest.importorskip("tensorflow_datasets", reason="needs the extra [data]")
pytest.importorskip("PIL", reason="needs the extra [data]")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def test_the_command_prepares_and_reports(tmp_path, monkeypatch, capsys):
    folder = prepare_small_mnist(monkeypatch, tmp_path)
    assert data.main(["prepare", "mnist", "--dir", str(folder)]) == 0
    assert "mnist is ready in" in capsys.readouterr().out
    assert data.main(["prepare", "imagenet2012"]) == 2
    assert "tfds build imagenet2012" in capsys.readouterr().err
