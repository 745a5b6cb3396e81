"""Folders of the test itself, a small set that is prepared there, and short chunks."""

import pytest
from helpers.image_archives import prepare_small_mnist

from jaxdp.datasets import _cells


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Tests use neither the user's cache nor the user's prepared sets."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)


@pytest.fixture
def small_mnist(tmp_path, monkeypatch):
    """The folder where a small MNIST is prepared."""
    return prepare_small_mnist(monkeypatch, tmp_path)


@pytest.fixture
def data(tmp_path):
    """An empty folder, which does not hold the cache as well."""
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def short_chunks(monkeypatch):
    """Files are read in several parts."""
    monkeypatch.setattr(_cells, "CHUNK", 3)
