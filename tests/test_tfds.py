"""TFDS without TensorFlow: preparing, reading, and saying what is wrong with the files."""

import functools
import gzip
import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from jaxdp import train
from jaxdp.datasets import loading, tfds_prepare
from jaxdp.datasets.config import DataConfig
from jaxdp.datasets.tfds import open_images
from jaxdp.trainer import setup
from jaxdp.trainer.config import Config, PlanConfig

tfds = pytest.importorskip("tensorflow_datasets", reason="needs pip install 'jaxdp[data]'")
pytest.importorskip("PIL", reason="needs pip install 'jaxdp[data]'")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

SHARED = Path(__file__).parents[2] / "shared" / "data"
real_data = pytest.mark.skipif(
    not (SHARED / "tfds").is_dir(), reason=f"there is no prepared data in {SHARED / 'tfds'}"
)
TRAIN, TEST = 60, 12


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)


def idx(array):
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    return gzip.compress(head + array.tobytes())


def mnist_archives(folder, labels=10):
    """The four files of a small MNIST; returns images and labels by split."""
    rng = np.random.default_rng(0)
    made = {}
    for split, prefix, size in (("train", "train", TRAIN), ("test", "t10k", TEST)):
        images = rng.integers(0, 256, (size, 28, 28), np.uint8)
        made[split] = images, rng.integers(0, labels, size, np.uint8)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(idx(images))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(idx(made[split][1]))
    return made


def cifar_archive(folder):
    """The archive of a small CIFAR-10; returns images and labels by split."""
    rng = np.random.default_rng(0)
    files = {f"data_batch_{k}.bin": 6 for k in range(1, 6)} | {"test_batch.bin": 4}
    rows = {name: rng.integers(0, 256, (size, 3073), np.uint8) for name, size in files.items()}
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as tar:
        names = "\n".join(f"class{k}" for k in range(10)) + "\n"
        for array in rows.values():
            array[:, 0] %= 10
        contents = {name: array.tobytes() for name, array in rows.items()}
        for name, content in (contents | {"batches.meta.txt": names.encode()}).items():
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    train = np.concatenate([rows[name] for name in sorted(rows) if name != "test_batch.bin"])
    unpack = lambda r: (r[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), r[:, 0])
    return {"train": unpack(train), "test": unpack(rows["test_batch.bin"])}


@pytest.fixture
def accept_checksums(monkeypatch):
    """Lets builders take archives that are not the published ones."""
    from tensorflow_datasets.core.download import checksums

    original = tfds_prepare._builders

    def builders(folder):
        made = original()
        for builder in made.values():
            builder.url_infos = {
                url: checksums.UrlInfo(
                    **{
                        field: getattr(checksums.compute_url_info(folder / info.filename), field)
                        for field in ("size", "checksum")
                    },
                    filename=info.filename,
                )
                for url, info in builder.url_infos.items()
                if (folder / info.filename).exists()
            }
        return made

    return lambda folder: monkeypatch.setattr(tfds_prepare, "_builders", lambda: builders(folder))


@pytest.fixture
def small_mnist(tmp_path, accept_checksums):
    """A function that prepares a small MNIST and returns its folder."""

    def make(labels=10):
        archives = tmp_path / "archives"
        archives.mkdir()
        mnist_archives(archives, labels)
        accept_checksums(archives)
        folder = tmp_path / "tfds"
        tfds_prepare.prepare("mnist", str(folder), archives=str(archives), tell=lambda line: None)
        return folder

    return make


def same_records(got, expected):
    """TFDS shuffles, so the records are compared as sets."""
    as_set = lambda images, labels: sorted(
        (image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
    )
    return as_set(*got) == as_set(*expected)


@pytest.mark.parametrize("name", tfds_prepare.NAMES)
def test_prepared_without_tensorflow_and_read_back(name, tmp_path, accept_checksums):
    archives = tmp_path / "archives"
    archives.mkdir()
    made = (cifar_archive if name == "cifar10" else mnist_archives)(archives)
    accept_checksums(archives)
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


def test_what_is_not_prepared_is_prepared_when_it_is_opened(
    tmp_path, accept_checksums, monkeypatch
):
    archives = tmp_path / "archives"
    archives.mkdir()
    made = mnist_archives(archives)
    accept_checksums(archives)
    with_archives = functools.partial(tfds_prepare.prepare, archives=str(archives))
    monkeypatch.setattr(tfds_prepare, "prepare", with_archives)
    found = open_images("mnist", str(tmp_path / "tfds"))
    assert same_records(found.read("test"), made["test"])


def test_images_are_decoded_once(small_mnist):
    folder, told = small_mnist(), []
    for _ in range(2):
        open_images("mnist", str(folder), told.append).read("train")
    assert told == ["Decoding the 60 images of mnist/3.0.1, split train (once)"]


def test_the_environment_names_the_folder(small_mnist, monkeypatch):
    folder = small_mnist()
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    assert open_images("mnist", None).sizes == {"train": TRAIN, "test": TEST}


def test_splits_are_taken_apart(small_mnist):
    config = DataConfig(
        name="mnist", dir=str(small_mnist()), private="train[:75%]", public="train[75%:]"
    )
    dataset = loading.load(config)
    assert (len(dataset.private), len(dataset.public), len(dataset.test)) == (45, 15, 12)
    ids = np.concatenate([dataset.private.ids, dataset.public.ids, dataset.test.ids])
    np.testing.assert_array_equal(ids, np.arange(TRAIN + TEST))
    assert "published" in dataset.scaling
    run = setup.prepare(
        Config(data=config, plan=PlanConfig(expected_batch_size=9, delta=1e-3)), lambda line: None
    )
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
    folder = small_mnist()
    harm(folder)
    capsys.readouterr()
    output = tmp_path / "run"
    status = train.main([f"--data.dir={folder}", "--data.name=mnist", f"--output={output}"])
    assert status == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    with pytest.raises(ValueError, match=message):
        open_images("mnist", str(folder)).read("train")
    assert not output.exists()


def test_a_set_under_another_name_is_refused(small_mnist):
    folder = small_mnist()
    rename(folder)
    with pytest.raises(ValueError, match=r"holds the set 'mnist', by its dataset_info.json"):
        open_images("fashion_mnist", str(folder))


def test_labels_out_of_range_are_refused(small_mnist, monkeypatch):
    folder = small_mnist()
    found = open_images("mnist", str(folder))
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
    with pytest.raises(ValueError, match=r"importlib_resources.*pip install 'jaxdp\[data\]'"):
        open_images("mnist", None)


def test_the_command_prepares_and_reports(small_mnist, capsys):
    folder = small_mnist()
    assert tfds_prepare.main(["prepare", "mnist", "--dir", str(folder)]) == 0
    assert "mnist is ready in" in capsys.readouterr().out
    assert tfds_prepare.main(["prepare", "imagenet2012"]) == 2
    assert "tfds build imagenet2012" in capsys.readouterr().err


@real_data
@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_the_real_test_sets(name):
    images, labels = open_images(name, str(SHARED / "tfds")).read("test")
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(labels).tolist() == (counts if name == "mnist" else [1000] * 10)
    assert images.shape == (10_000, *((28, 28, 1) if name == "mnist" else (32, 32, 3)))
    published = {"mnist": [0.1307], "cifar10": [0.4914, 0.4822, 0.4465]}[name]
    np.testing.assert_allclose(images.mean((0, 1, 2)) / 255, published, atol=0.005)
