"""Sets are prepared without TensorFlow, and hold what TFDS itself would have written."""

import functools
import sys
import tarfile

import numpy as np
import pytest
from helpers.image_archives import (
    accept_checksums,
    cifar_archive,
    mnist_archives,
    reviews_archive,
)

from jaxdp.datasets import tfds_prepare
from jaxdp.datasets.config import DataConfig
from jaxdp.datasets.tfds import open_tfds

tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra [data]")
pytest.importorskip("PIL", reason="needs the extra [data]")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

IMAGES = {"mnist": mnist_archives, "fashion_mnist": mnist_archives, "cifar10": cifar_archive}


@pytest.fixture
def archives(tmp_path):
    (tmp_path / "archives").mkdir()
    return tmp_path / "archives"


def same_records(got, expected):
    """TFDS shuffles, so the records are compared as sets."""
    as_set = lambda images, labels: sorted(
        (image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
    )
    return as_set(*got) == as_set(*expected)


def test_every_set_is_tested():
    assert {*tfds_prepare.NAMES} == {*IMAGES, "imdb_reviews"}


@pytest.mark.parametrize("name", IMAGES)
def test_prepared_without_tensorflow_and_read_back(name, archives, tmp_path, monkeypatch):
    made = IMAGES[name](archives)
    accept_checksums(monkeypatch, archives)
    folder, told = str(tmp_path / "tfds"), []
    tfds_prepare.prepare(name, folder, archives=str(archives), tell=told.append)
    tfds_prepare.prepare(name, folder, tell=told.append)
    assert "is prepared already" in told[-1]

    found = open_tfds(DataConfig(name=name, dir=folder), told.append)
    assert found.format.outputs == 10
    assert found.sizes == {split: len(labels) for split, (_, labels) in made.items()}
    for split, expected in made.items():
        images, labels = found.read(split).fields
        assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
        assert same_records((images, labels), expected)
        source = tfds.data_source(name, split=split, data_dir=folder)
        np.testing.assert_array_equal(images[0], source[0]["image"])
    assert "tensorflow" not in sys.modules


def test_reviews_are_prepared_without_tensorflow(archives, tmp_path, monkeypatch):
    made = reviews_archive(archives)
    accept_checksums(monkeypatch, archives)
    folder, told = tmp_path / "tfds", []
    where = tfds_prepare.prepare("imdb_reviews", str(folder), archives=str(archives))
    assert where == folder / "imdb_reviews" / "plain_text" / "1.0.0"
    assert {path.name for path in folder.iterdir()} == {"imdb_reviews", "downloads"}
    for split, (texts, labels) in made.items():
        source = tfds.data_source("imdb_reviews", split=split, data_dir=folder)
        found = [(record["text"], int(record["label"])) for record in source]
        assert sorted(found) == sorted(zip(texts, labels, strict=True))
    config = DataConfig(name="imdb_reviews", dir=str(folder), tokens="bytes", length=20)
    tokens, labels = open_tfds(config, told.append).read("train").fields
    texts = [bytes(row[row > 0] - 1) for row in tokens.astype(np.uint8)]
    assert sorted(zip(texts, labels.tolist(), strict=True)) == sorted(
        zip(*made["train"], strict=True)
    )
    assert "tensorflow" not in sys.modules


def test_reviews_have_the_keys_and_order_of_tfds(archives):
    """TFDS shuffles by the key, so that equal keys are the same order."""
    reviews_archive(archives)
    archive = archives / "aclImdb_v1.tar.gz"

    class Downloads:
        def download(self, url):
            assert url in theirs.url_infos
            return archive

    def files():
        with tarfile.open(archive) as tar:
            for member in tar:
                yield member.name, tar.extractfile(member)

    theirs = tfds.builder_cls("imdb_reviews")
    ours = tfds_prepare.ReviewsReader()._split_generators(Downloads())
    of_tfds = functools.partial(theirs._generate_examples, None)
    for split, expected in {
        "train": of_tfds(files(), "aclImdb/train"),
        "test": of_tfds(files(), "aclImdb/test"),
        "unsupervised": of_tfds(files(), "aclImdb/train", labeled=False),
    }.items():
        assert list(ours[split]) == list(expected)


def test_what_is_not_prepared_is_prepared_when_it_is_opened(archives, tmp_path, monkeypatch):
    made = mnist_archives(archives)
    accept_checksums(monkeypatch, archives)
    with_archives = functools.partial(tfds_prepare.prepare, archives=str(archives))
    monkeypatch.setattr(tfds_prepare, "prepare", with_archives)
    found = open_tfds(DataConfig(name="mnist", dir=str(tmp_path / "tfds")), print)
    assert same_records(found.read("test").fields, made["test"])


def test_a_damaged_archive_is_one_line(archives, tmp_path, monkeypatch):
    reviews_archive(archives)
    archive = archives / "aclImdb_v1.tar.gz"
    archive.write_bytes(archive.read_bytes()[:-60])
    accept_checksums(monkeypatch, archives)
    with pytest.raises(ValueError, match="preparing it failed") as error:
        tfds_prepare.prepare("imdb_reviews", str(tmp_path / "tfds"), archives=str(archives))
    assert len(str(error.value).splitlines()) == 1
