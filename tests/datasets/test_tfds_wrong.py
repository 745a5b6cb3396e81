"""What is wrong with a set of TFDS is one line, which tells no value of a record."""

import io
import json
import sys

import numpy as np
import pytest
from helpers.tfds_sets import (
    CANARY,
    IMAGE,
    LABEL,
    TEXT,
    assert_tells_nothing,
    drawn,
    opened,
    pixels,
    png,
    prepare,
    tfds,
)

from jaxdp._distribution import DISTRIBUTION

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


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
