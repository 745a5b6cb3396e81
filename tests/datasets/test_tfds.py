"""TFDS without TensorFlow: sets are read, and what is wrong with their files is said."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.image_archives import TEST, TRAIN
from helpers.trainer import start

from jaxdp import train
from jaxdp._distribution import DISTRIBUTION
from jaxdp.datasets import loading
from jaxdp.datasets.config import DataConfig
from jaxdp.datasets.tfds import open_images
from jaxdp.trainer.config import Config, PlanConfig

tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra [data]")
pytest.importorskip("PIL", reason="needs the extra [data]")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

SHARED = Path(__file__).parents[3] / "shared" / "data"
real_data = pytest.mark.skipif(
    not (SHARED / "tfds").is_dir(), reason=f"there is no prepared data in {SHARED / 'tfds'}"
)


def test_images_are_decoded_once(small_mnist):
    told = []
    for _ in range(2):
        open_images("mnist", str(small_mnist), told.append).read("train")
    assert told == ["Decoding the 60 images of mnist/3.0.1, split train (once)"]


def test_the_environment_names_the_folder(small_mnist, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(small_mnist))
    assert open_images("mnist", None).sizes == {"train": TRAIN, "test": TEST}


def test_splits_are_taken_apart(small_mnist):
    config = DataConfig(
        name="mnist", dir=str(small_mnist), private="train[:75%]", public="train[75%:]"
    )
    dataset, data_format = loading.load(config)
    assert (len(dataset.private), len(dataset.public), len(dataset.test)) == (45, 15, 12)
    ids = np.concatenate([dataset.private.ids, dataset.public.ids, dataset.test.ids])
    np.testing.assert_array_equal(ids, np.arange(TRAIN + TEST))
    assert "published" in data_format.scaling
    run = start(Config(data=config, plan=PlanConfig(expected_batch_size=9, delta=1e-3)))
    assert run.plan.num_examples == 45


def record_file(folder, split):
    (file,) = (folder / "mnist" / "3.0.1").glob(f"mnist-{split}*")
    return file


def cut(folder):
    file = record_file(folder, "train")
    file.write_bytes(file.read_bytes()[:70_000])


def flip(folder):
    file = record_file(folder, "train")
    content = bytearray(file.read_bytes())
    content[5000] ^= 255
    file.write_bytes(content)


def empty(folder):
    record_file(folder, "train").write_bytes(b"")


def remove(folder):
    record_file(folder, "train").unlink()


def swap(folder):
    record_file(folder, "train").write_bytes(record_file(folder, "test").read_bytes())


def rename(folder):
    (folder / "fashion_mnist").mkdir()
    (folder / "mnist" / "3.0.1").rename(folder / "fashion_mnist" / "3.0.1")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (cut, "has 0 readable records where dataset_info.json says 60: it is damaged"),
        (flip, "can't be read .*hash mismatch"),
        (empty, "has 0 readable records"),
        (remove, "is missing"),
        (swap, "has 12 readable records where dataset_info.json says 60"),
    ],
)
def test_damaged_files_are_named_before_training(harm, message, small_mnist, capsys, tmp_path):
    harm(small_mnist)
    capsys.readouterr()
    output = tmp_path / "run"
    status = train.main([f"--data.dir={small_mnist}", "--data.name=mnist", f"--output={output}"])
    assert status == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    with pytest.raises(ValueError, match=message):
        open_images("mnist", str(small_mnist)).read("train")
    assert not output.exists()


def test_a_set_under_another_name_is_refused(small_mnist):
    rename(small_mnist)
    with pytest.raises(ValueError, match=r"holds the set 'mnist', by its dataset_info.json"):
        open_images("fashion_mnist", str(small_mnist))


def test_labels_out_of_range_are_refused(small_mnist, monkeypatch):
    found = open_images("mnist", str(small_mnist))
    object.__setattr__(found, "num_classes", 9)
    with pytest.raises(ValueError, match="has label 9: expected 0 to 8"):
        found.read("train")


def test_unknown_sets_are_refused():
    with pytest.raises(ValueError, match="no data set 'cifar01': did you mean 'cifar10'"):
        open_images("cifar01", None)


def test_sets_of_something_else_are_refused(tmp_path):
    class Words(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield from enumerate([{"text": "a"}, {"text": "b"}])

    Words(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    with pytest.raises(ValueError, match="only sets for image classification"):
        open_images("words", str(tmp_path))


@pytest.mark.parametrize("name", ["mnist", "cifar100"])
def test_without_a_network_one_line_says_so(name, tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(ValueError, match=r"no route to host.*check the network") as error:
        open_images(name, str(tmp_path))
    assert len(str(error.value).splitlines()) == 1


def test_what_needs_tensorflow_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *args, **kwargs: io.BytesIO())

    def fails(self, **kwargs):
        raise ImportError("Please install tensorflow")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fails)
    with pytest.raises(ValueError, match=r"takes TensorFlow.*tfds build cifar100 --file_format"):
        open_images("cifar100", str(tmp_path))


def test_a_missing_extra_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "importlib_resources", None)
    with pytest.raises(
        ValueError, match=rf"importlib_resources.*pip install '{DISTRIBUTION}\[data\]'"
    ):
        open_images("mnist", None)


@real_data
@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_the_real_test_sets(name):
    images, labels = open_images(name, str(SHARED / "tfds")).read("test")
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(labels).tolist() == (counts if name == "mnist" else [1000] * 10)
    assert images.shape == (10_000, *((28, 28, 1) if name == "mnist" else (32, 32, 3)))
    published = {"mnist": [0.1307], "cifar10": [0.4914, 0.4822, 0.4465]}[name]
    np.testing.assert_allclose(images.mean((0, 1, 2)) / 255, published, atol=0.005)
