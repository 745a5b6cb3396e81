"""Sets are prepared without TensorFlow, and hold what TFDS itself would have written."""

import functools
import sys

import numpy as np
import pytest
from helpers.image_archives import accept_checksums, cifar_archive, mnist_archives

from jaxdp.datasets import tfds_prepare
from jaxdp.datasets.tfds import open_images

tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra [data]")
pytest.importorskip("PIL", reason="needs the extra [data]")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def same_records(got, expected):
    """TFDS shuffles, so the records are compared as sets."""
    as_set = lambda images, labels: sorted(
        (image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
    )
    return as_set(*got) == as_set(*expected)


@pytest.mark.parametrize("name", tfds_prepare.NAMES)
def test_prepared_without_tensorflow_and_read_back(name, tmp_path, monkeypatch):
    archives = tmp_path / "archives"
    archives.mkdir()
    made = (cifar_archive if name == "cifar10" else mnist_archives)(archives)
    accept_checksums(monkeypatch, archives)
    folder, told = str(tmp_path / "tfds"), []
    tfds_prepare.prepare(name, folder, archives=str(archives), tell=told.append)
    tfds_prepare.prepare(name, folder, tell=told.append)
    assert "is prepared already" in told[-1]

    found = open_images(name, folder)
    assert found.num_classes == 10
    assert found.sizes == {split: len(labels) for split, (_, labels) in made.items()}
    for split, expected in made.items():
        images, labels = found.read(split)
        assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
        assert same_records((images, labels), expected)
        source = tfds.data_source(name, split=split, data_dir=folder)
        np.testing.assert_array_equal(images[0], source[0]["image"])
    assert "tensorflow" not in sys.modules


def test_what_is_not_prepared_is_prepared_when_it_is_opened(tmp_path, monkeypatch):
    archives = tmp_path / "archives"
    archives.mkdir()
    made = mnist_archives(archives)
    accept_checksums(monkeypatch, archives)
    with_archives = functools.partial(tfds_prepare.prepare, archives=str(archives))
    monkeypatch.setattr(tfds_prepare, "prepare", with_archives)
    found = open_images("mnist", str(tmp_path / "tfds"))
    assert same_records(found.read("test"), made["test"])
