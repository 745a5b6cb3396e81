"""TFDS without TensorFlow: sets are read, and what is wrong with their files is said."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.image_archives import TEST, TRAIN

from jaxdp._distribution import DISTRIBUTION
from jaxdp.datasets.config import DataConfig
from jaxdp.datasets.tfds import open_tfds
from jaxdp.datasets.tokens import make_tokens

tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra [data]")
Image = pytest.importorskip("PIL.Image", reason="needs the extra [data]")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

SHARED = Path(__file__).parents[3] / "shared" / "data"
real_data = pytest.mark.skipif(
    not (SHARED / "tfds").is_dir(), reason=f"there is no prepared data in {SHARED / 'tfds'}"
)
CANARY = "xylocanary"  # what a private record holds
LABEL = tfds.features.ClassLabel(num_classes=3)
IMAGE = tfds.features.Image(shape=(4, 5, 3))
TEXT = tfds.features.Text()


def opened(name, folder=None, tell=lambda line: None, **settings):
    config = DataConfig(name=name, dir=None if folder is None else str(folder), **settings)
    return open_tfds(config, tell)


def pixels(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape or (4, 5, 3), np.uint8)


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def drawn(*args):
    """An image as TFDS takes it without TensorFlow: a file that is read once."""
    return io.BytesIO(png(pixels(*args)))


def prepare(folder, features, records, declared=None, supervised_keys=None):
    """Prepares the set `own`, whose features.json declares other features than were written."""

    class Own(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=supervised_keys,
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            return {"train": enumerate(records)}

        def _generate_examples(self):
            raise NotImplementedError

    builder = Own(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
    if declared is not None:
        tfds.features.FeaturesDict(features | declared).save_config(builder.data_path)
    return folder


def test_images_are_decoded_once(small_mnist):
    told = []
    for _ in range(2):
        opened("mnist", small_mnist, told.append).read("train")
    assert told == ["Decoding the 60 images of mnist/3.0.1, split train (once)"]


def test_the_environment_names_the_folder(small_mnist, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(small_mnist))
    assert opened("mnist").sizes == {"train": TRAIN, "test": TEST}


def test_constants_are_published_or_of_the_format(small_mnist, tmp_path):
    found = opened("mnist", small_mnist).format
    assert "published" in found.scaling
    np.testing.assert_allclose((found.center, found.scale), [[33.3285], [78.5655]])
    records = [{"image": drawn(0), "label": 0}]
    found = opened("own", prepare(tmp_path, {"image": IMAGE, "label": LABEL}, records)).format
    assert (found.center, found.scale, found.outputs) == (127.5, 127.5, 3)
    assert "range of the file format" in found.scaling


def test_splits_are_taken_apart(small_mnist):
    from helpers.trainer import start

    from jaxdp.datasets import loading
    from jaxdp.trainer.config import Config, PlanConfig

    config = DataConfig(
        name="mnist", dir=str(small_mnist), private="train[:75%]", public="train[75%:]"
    )
    dataset, data_format = loading.load(config)
    assert (len(dataset.private), len(dataset.public), len(dataset.test)) == (45, 15, 12)
    ids = np.concatenate([r.numbers() for r in (dataset.private, dataset.public, dataset.test)])
    np.testing.assert_array_equal(ids, np.arange(TRAIN + TEST))
    assert "published" in data_format.scaling
    run = start(Config(data=config, plan=PlanConfig(expected_batch_size=9, delta=1e-3)))
    assert run.plan.num_examples == 45


def test_images_of_no_declared_shape_are_brought_to_one(tmp_path):
    shapes = [(9, 7, 3), (30, 4), (5, 6, 3)]  # the second is grey
    images = [pixels(i, *shape) for i, shape in enumerate(shapes)]
    records = [{"image": io.BytesIO(png(image)), "label": i} for i, image in enumerate(images)]
    prepare(tmp_path, {"image": tfds.features.Image(), "label": LABEL}, records)
    found = opened("own", tmp_path, size=(5, 6))
    got, labels = found.read("train").fields
    assert labels.tolist() == [0, 1, 2]
    for row, image in enumerate(images):
        colours = Image.fromarray(image).convert("RGB")
        resized = colours.resize((6, 5), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(got[row], np.asarray(resized))
    assert "5 x 6 pixels" in found.format.scaling
    assert opened("own", tmp_path, size=(3, 3)).read("train").fields[0].shape == (3, 3, 3, 3)


def test_texts_become_tokens(tmp_path):
    texts = ["The cat sat.", "", "a café " * 99]
    records = [{"text": text, "label": i} for i, text in enumerate(texts)]
    prepare(tmp_path, {"text": TEXT, "label": LABEL}, records)
    told = []
    for kind, vocabulary in (("hash", 500), ("bytes", 257)):
        settings = {"tokens": kind, "vocabulary": 500, "length": 9}
        found = opened("own", tmp_path, told.append, **settings)
        tokens, labels = found.read("train").fields
        assert (tokens.dtype, labels.tolist()) == (np.int32, [0, 1, 2])
        np.testing.assert_array_equal(tokens, make_tokens(kind, 500, 9).encode(texts))
        assert (found.format.inputs, found.format.target) == ("tokens", "class")
        assert (found.format.vocabulary, found.format.outputs) == (vocabulary, 3)
        assert found.format.center is found.format.scale is None
        assert "9 tokens" in found.format.scaling
    assert told == ["Decoding the 3 documents of own/1.0.0, split train (once)"] * 2


def test_all_records_are_read_some_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxdp.datasets.tfds.at_a_time", lambda size: 3)
    records = [{"image": drawn(i), "label": i % 3} for i in range(8)]
    prepare(tmp_path, {"image": IMAGE, "label": LABEL}, records)
    images, labels = opened("own", tmp_path).read("train").fields
    np.testing.assert_array_equal(images, [pixels(i) for i in range(8)])
    assert labels.tolist() == [record["label"] for record in records]


def test_supervised_keys_say_what_is_predicted_from_what(tmp_path):
    features = {"image": IMAGE, "text": TEXT, "label": LABEL, "other": LABEL}
    records = [{"image": drawn(0), "text": "a", "label": 0, "other": 2}]
    prepare(tmp_path, features, records, supervised_keys=("text", "other"))
    tokens, labels = opened("own", tmp_path, tokens="bytes", length=2).read("train").fields
    assert (tokens.tolist(), labels.tolist()) == ([[98, 0]], [2])


def wrong_label(label):
    good, bad = ({"text": CANARY, "label": i} for i in (0, label))
    features = {"text": TEXT, "label": tfds.features.ClassLabel(num_classes=9999)}
    return features, [good, bad], {"label": LABEL}


def wrong_image(content):
    """A text that was written where the set declares an image."""
    records = [{"image": png(pixels(0)), "label": 0}, {"image": content, "label": 1}]
    return {"image": TEXT, "label": LABEL}, records, {"image": IMAGE}


def undeclared(content):
    features, records, _ = wrong_image(content)
    return features, records, {"image": tfds.features.Image()}


def missing_label():
    features = {"text": TEXT, "label": tfds.features.Tensor(shape=(None,), dtype=np.int64)}
    records = [{"text": CANARY, "label": [0]}, {"text": CANARY, "label": []}]
    return features, records, {"label": LABEL}


BAD_RECORDS = {
    "large label": (lambda: wrong_label(8765), "its label is not one of 0 to 2. Delete"),
    "no label": (lambda: wrong_label(-1), "its label is not one of 0 to 2. Delete"),
    "two fields": (missing_label, "it can't be decoded. Delete"),
    "no image": (lambda: wrong_image(CANARY.encode()), "it can't be decoded. Delete"),
    "empty": (lambda: wrong_image(b""), "it can't be decoded. Delete"),
    "cut": (lambda: wrong_image(png(pixels(1))[:70]), "it can't be decoded. Delete"),
    "other shape": (lambda: wrong_image(png(pixels(1, 5, 4, 3))), "not the shape .4, 5, 3. of"),
    "no file": (lambda: undeclared(CANARY.encode()), "no PNG or JPEG, or damaged"),
    "cut file": (lambda: undeclared(png(pixels(1))[:70]), "damaged or cut short"),
    "no bytes": (lambda: undeclared(b""), "the file is empty"),
    "other encoding": (
        lambda: (
            {"text": TEXT, "label": LABEL},
            [{"text": t, "label": 1} for t in (b"fine", f"{CANARY}é".encode("latin-1"))],
            None,
        ),
        "the text is not UTF-8: prepare the set again",
    ),
}


@pytest.mark.parametrize("kind", BAD_RECORDS)
def test_bad_records_are_named(kind, tmp_path):
    make, message = BAD_RECORDS[kind]
    prepare(tmp_path, *make())
    with pytest.raises(ValueError, match=f"^own/1.0.0, split train, row 1: .*{message}") as error:
        opened("own", tmp_path).read("train")
    assert_tells_nothing(error.value)
    found = opened("own", tmp_path, skip_bad=True).read("train")
    assert list(found.bad) == [1]
    inputs, labels = found.fields
    assert len(found) == 2
    assert (inputs[1].max(), labels[1]) == (0, 0)
    assert inputs[0].max() > 0


SETS_OF_SOMETHING_ELSE = {
    "no label": ({"text": TEXT}, {"text": "a"}, "has the images .., the texts .'text'. and"),
    "no input": ({"label": LABEL}, {"label": 0}, "only sets with one image or one text and"),
    "two texts": ({"a": TEXT, "b": TEXT, "label": LABEL}, {"a": "", "b": "", "label": 0}, "one te"),
    "two labels": ({"a": LABEL, "b": LABEL, "t": TEXT}, {"a": 0, "b": 0, "t": ""}, "only sets"),
    "image and text": (
        {"image": IMAGE, "text": TEXT, "label": LABEL},
        {"image": drawn(0), "text": "", "label": 0},
        "has the images .'image'., the texts .'text'. and the class labels .'label'.",
    ),
}


@pytest.mark.parametrize("kind", SETS_OF_SOMETHING_ELSE)
def test_sets_of_something_else_are_refused(kind, tmp_path):
    features, record, message = SETS_OF_SOMETHING_ELSE[kind]
    prepare(tmp_path, features, [record])
    with pytest.raises(ValueError, match=message) as error:
        opened("own", tmp_path)
    assert_tells_nothing(error.value)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        (
            {"text": tfds.features.Image(shape=(4, 5, 1), dtype=np.uint16)},
            "has images of uint16, and only those in bytes can be used",
        ),
        ({"label": tfds.features.ClassLabel()}, "does not say how many classes there are"),
    ],
)
def test_sets_of_other_numbers_are_refused(declared, message, tmp_path):
    prepare(tmp_path, {"text": TEXT, "label": LABEL}, [{"text": CANARY, "label": 1}], declared)
    with pytest.raises(ValueError, match=message) as error:
        opened("own", tmp_path)
    assert_tells_nothing(error.value)


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


@pytest.mark.parametrize("skip_bad", [False, True])
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
def test_damaged_files_are_named(harm, message, skip_bad, small_mnist):
    harm(small_mnist)
    with pytest.raises(ValueError, match=message) as error:
        opened("mnist", small_mnist, skip_bad=skip_bad).read("train")
    assert len(str(error.value).splitlines()) == 1


def test_damaged_files_are_named_before_training(small_mnist, capsys, tmp_path):
    from jaxdp import train

    flip(small_mnist)
    capsys.readouterr()
    output = tmp_path / "run"
    status = train.main([f"--data.dir={small_mnist}", "--data.name=mnist", f"--output={output}"])
    assert status == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    assert not output.exists()


def test_a_set_under_another_name_is_refused(small_mnist):
    rename(small_mnist)
    with pytest.raises(ValueError, match=r"holds the set 'mnist', by its dataset_info.json"):
        opened("fashion_mnist", small_mnist)


def test_other_file_formats_are_refused(small_mnist):
    file = small_mnist / "mnist" / "3.0.1" / "dataset_info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match=r"as tfrecord, which only TensorFlow reads.*convert_form"):
        opened("mnist", small_mnist)


def test_an_empty_split_is_refused(small_mnist):
    file = small_mnist / "mnist" / "3.0.1" / "dataset_info.json"
    described = json.loads(file.read_text())
    for split in described["splits"]:
        split["shardLengths"] = ["0"]
    file.write_text(json.dumps(described))
    with pytest.raises(ValueError, match="the split 'train' is empty: choose another one"):
        opened("mnist", small_mnist).read("train")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar01", "no data set 'cifar01': did you mean 'cifar10'"),
        ("my.csv", "for a file of your own give --data.file my.csv"),
        ("data/my.parquet", "for a file of your own give --data.file data/my.parquet"),
        ("/", "for a folder of images give --data.folder /"),
        ("qqqqqqqqqqqqq", "give digits, or a set of TFDS"),
        ("mnist:1.2.3", "'mnist:1.2.3' can't be opened: "),
    ],
)
def test_unknown_sets_are_refused(name, message):
    with pytest.raises(ValueError, match=message) as error:
        opened(name)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["mnist", "cifar100"])
def test_without_a_network_one_line_says_so(name, tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(ValueError, match=r"no route to host.*check the network") as error:
        opened(name, tmp_path)
    assert len(str(error.value).splitlines()) == 1


def test_what_needs_tensorflow_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *args, **kwargs: io.BytesIO())

    def fails(self, **kwargs):
        raise ImportError("Please install tensorflow")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fails)
    with pytest.raises(ValueError, match=r"takes TensorFlow.*tfds build cifar100 --file_format"):
        opened("cifar100", tmp_path)


def test_a_missing_extra_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "importlib_resources", None)
    with pytest.raises(
        ValueError, match=rf"importlib_resources.*pip install '{DISTRIBUTION}\[data\]'"
    ):
        opened("mnist")


@real_data
@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_the_real_test_sets(name):
    images, labels = opened(name, SHARED / "tfds").read("test").fields
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(labels).tolist() == (counts if name == "mnist" else [1000] * 10)
    assert images.shape == (10_000, *((28, 28, 1) if name == "mnist" else (32, 32, 3)))
    published = {"mnist": [0.1307], "cifar10": [0.4914, 0.4822, 0.4465]}[name]
    np.testing.assert_allclose(images.mean((0, 1, 2)) / 255, published, atol=0.005)


@real_data
def test_the_real_reviews():
    tokens, labels = opened("imdb_reviews", SHARED / "tfds", length=64).read("test").fields
    assert np.bincount(labels).tolist() == [12500, 12500]
    assert (tokens.shape, tokens.min(), tokens.max()) == ((25_000, 64), 0, 16383)
    source = tfds.data_source("imdb_reviews", split="test", data_dir=SHARED / "tfds")
    records = source.__getitems__(range(20))
    encode = make_tokens("hash", 16384, 64).encode
    np.testing.assert_array_equal(tokens[:20], encode([r["text"].decode() for r in records]))
    assert labels[:20].tolist() == [record["label"] for record in records]


def assert_tells_nothing(error):
    assert len(str(error).splitlines()) == 1
    for value in (CANARY, "8765", "-1"):
        assert value not in str(error)
