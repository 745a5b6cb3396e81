"""Prepares MNIST, Fashion-MNIST, CIFAR-10 and IMDB's reviews for TFDS without TensorFlow.

TFDS's own readers of these sets use TensorFlow to decompress archives and to write PNG. The readers
here do both in Python. They take the same archives and check the same checksums, and the sets that
they prepare have the same name, version, order and records.
"""

import gzip
import io
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..types import Tell
from ._tfds_library import check_reachable, data_folder, first_line, import_tfds, quiet

NAMES = ("mnist", "fashion_mnist", "cifar10", "imdb_reviews")


def prepare(
    name: str, folder: str | None = None, *, archives: str | None = None, tell: Tell = print
) -> Path:
    """Downloads and prepares a set where TFDS looks for it.

    Args:
      name: one of NAMES.
      folder: where TFDS keeps prepared sets. None: TFDS_DATA_DIR, else TFDS's own default.
      archives: a folder with the original archives of this set. None: they are downloaded.
      tell: gets a line about what is done.

    Returns:
      The folder of the prepared set.

    Raises:
      ValueError: if TFDS is not installed, the set is none of NAMES, or its archives can't be
        downloaded or are damaged.
    """
    tfds = import_tfds()
    if name not in NAMES:
        raise ValueError(
            f"{name!r} can't be prepared without TensorFlow: {', '.join(NAMES)} can. On a machine "
            f"that has TensorFlow run `tfds build {name} --file_format=array_record`"
        )
    if archives is not None and not Path(archives).is_dir():
        raise ValueError(f"there is no folder {archives}: name one that holds the archives")
    with quiet():
        builder = _builders()[name](data_dir=data_folder(folder), file_format="array_record")
        prepared, where = builder.is_prepared(), Path(builder.data_path)
    if prepared:
        tell(f"{builder.info.full_name} is prepared already, in {where}")
        return where
    tell(f"Preparing {builder.info.full_name} in {where}")
    # TFDS knows archives by their file names only, and two of these sets use the same names.
    root = where.parents[len(Path(builder.info.full_name).parts) - 1]
    downloads = root / "downloads" / name
    try:
        if archives is None:
            check_reachable(builder.url_infos)
        with quiet():
            builder.download_and_prepare(
                download_dir=downloads,
                download_config=tfds.download.DownloadConfig(manual_dir=archives),
            )
    except Exception as error:
        raise ValueError(
            f"{builder.info.full_name} is not prepared in {where}, and preparing it failed "
            f"({first_line(error)}): check the network, or set TFDS_DATA_DIR (or --data.dir) to a "
            "folder where it is prepared, or download these archives into a folder and run "
            f"`python -m jaxdp.data prepare {name} --archives FOLDER`: "
            f"{', '.join(builder.url_infos)}"
        ) from error
    return where


class IdxReader:
    """Reads the four gzipped IDX files of MNIST and of Fashion-MNIST, which has the same format."""

    URL: str

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        urls = {
            split: [
                f"{self.URL}{prefix}-images-idx3-ubyte.gz",
                f"{self.URL}{prefix}-labels-idx1-ubyte.gz",
            ]
            for split, prefix in (("train", "train"), ("test", "t10k"))
        }
        files = dl_manager.download(urls)
        return {split: self._generate_examples(*files[split]) for split in urls}

    def _generate_examples(self, images: Path, labels: Path) -> Iterator[tuple[int, Any]]:
        pairs = zip(_read_idx(images), _read_idx(labels), strict=True)
        for index, (image, label) in enumerate(pairs):
            yield index, {"image": _png(image), "label": int(label)}


class CifarReader:
    """Reads the archive of CIFAR-10's binary version."""

    _cifar_info: Any
    info: Any

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        source = self._cifar_info
        files: dict[str, bytes] = {}
        with tarfile.open(dl_manager.download(source.url)) as tar:
            for name in [*source.train_files, *source.test_files, *source.label_files]:
                member = tar.extractfile(source.prefix + name)
                assert member is not None, name
                files[name] = member.read()
        join = lambda names: b"".join(files[name] for name in names)
        self.info.features["label"].names = files["batches.meta.txt"].decode().split()
        return {
            "train": self._generate_examples("train_", join(source.train_files)),
            "test": self._generate_examples("test_", join(source.test_files)),
        }

    def _generate_examples(self, prefix: str, data: bytes) -> Iterator[tuple[int, Any]]:
        rows = np.frombuffer(data, np.uint8).reshape(
            -1, 1 + 3 * 32 * 32
        )  # the label, then three colours
        images = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        for index, (image, label) in enumerate(zip(images, rows[:, 0], strict=True)):
            yield index, {"id": f"{prefix}{index:05d}", "image": _png(image), "label": int(label)}


class ReviewsReader:
    """Reads the archive of IMDB's reviews: a text file each, in a folder for every label."""

    URL = "http://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz"

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        archive = dl_manager.download(self.URL)
        folders: dict[str, Mapping[str, str | int]] = {
            "train": {"train/neg": "neg", "train/pos": "pos"},
            "test": {"test/neg": "neg", "test/pos": "pos"},
            "unsupervised": {"train/unsup": -1},  # TFDS's label of records that have none
        }
        return {name: self._generate_examples(archive, folders[name]) for name in folders}

    def _generate_examples(
        self, archive: Path, labels: Mapping[str, str | int]
    ) -> Iterator[tuple[str, Any]]:
        with tarfile.open(archive, "r|gz") as tar:  # as a stream: there are 100,000 files in it
            for member in tar:
                folder = member.name.removeprefix("aclImdb/").rpartition("/")[0]
                if member.isfile() and folder in labels:
                    file = tar.extractfile(member)
                    assert file is not None, member.name
                    # The name is the key by which TFDS shuffles.
                    yield member.name, {"text": file.read().strip(), "label": labels[folder]}


def _builders() -> dict[str, Any]:
    """Returns TFDS's builders with the readers above, by name.

    They are classes in a function because TFDS, their base, may not be installed.
    """
    import tensorflow_datasets
    from tensorflow_datasets.core.registered import skip_registration
    from tensorflow_datasets.image_classification import cifar, mnist

    with skip_registration():  # so that the names stay those of TFDS's own builders

        class Mnist(IdxReader, mnist.MNIST):
            name = "mnist"
            url_infos = mnist.MNIST.url_infos

        class FashionMnist(IdxReader, mnist.FashionMNIST):
            name = "fashion_mnist"
            url_infos = mnist.FashionMNIST.url_infos

        class Cifar10(CifarReader, cifar.Cifar10):
            name = "cifar10"
            url_infos = cifar.Cifar10.url_infos

        imdb: Any = tensorflow_datasets.builder_cls("imdb_reviews")

        class ImdbReviews(ReviewsReader, imdb):
            name = "imdb_reviews"
            url_infos = imdb.url_infos

    return {builder.name: builder for builder in (Mnist, FashionMnist, Cifar10, ImdbReviews)}


def _read_idx(path: Path) -> np.ndarray:
    """Reads a gzipped IDX file: a magic number, the shape, and bytes."""
    data = gzip.decompress(Path(path).read_bytes())
    rank = data[3]
    shape = np.frombuffer(data, ">i4", count=rank, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _png(image: np.ndarray) -> io.BytesIO:
    """Returns a PNG file in memory, at its start."""
    import PIL.Image

    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, format="png")
    return io.BytesIO(file.getvalue())
