"""TFDS without TensorFlow: images and texts are read as TFDS has them."""

import io
from pathlib import Path

import numpy as np
import pytest
from helpers.image_archives import TEST, TRAIN
from helpers.tfds_sets import IMAGE, LABEL, TEXT, Image, drawn, opened, pixels, png, prepare, tfds

from jaxdp.datasets.config import DataConfig
from jaxdp.datasets.tfds import is_published
from jaxdp.datasets.tokens import make_tokens

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

SHARED = Path(__file__).parents[3] / "shared" / "data"
real_data = pytest.mark.skipif(
    not (SHARED / "tfds").is_dir(), reason=f"there is no prepared data in {SHARED / 'tfds'}"
)


def test_images_are_decoded_once(small_mnist):
    told = []
    for _ in range(2):
        opened("mnist", small_mnist, told.append).read("train")
    assert told == ["Decoding the 60 images of mnist/3.0.1, split train (once)"]


def test_sets_of_ones_own_are_not_published(small_mnist, tmp_path):
    assert opened("mnist", small_mnist).published
    records = [{"image": drawn(0), "label": 0}]
    assert not opened("own", prepare(tmp_path, {"image": IMAGE, "label": LABEL}, records)).published


def test_a_builder_of_ones_own_is_not_published():
    class OurVisits(tfds.core.GeneratorBasedBuilder):  # TFDS lists it with its own
        VERSION = tfds.core.Version("1.0.0")
        _info = _split_generators = _generate_examples = None

    assert "our_visits" in tfds.list_builders(with_community_datasets=False)
    assert not is_published(tfds, "our_visits")
    assert is_published(tfds, "mnist")


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


@pytest.mark.slow
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


@pytest.mark.slow
@real_data
@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_the_real_test_sets(name):
    images, labels = opened(name, SHARED / "tfds").read("test").fields
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(labels).tolist() == (counts if name == "mnist" else [1000] * 10)
    assert images.shape == (10_000, *((28, 28, 1) if name == "mnist" else (32, 32, 3)))
    published = {"mnist": [0.1307], "cifar10": [0.4914, 0.4822, 0.4465]}[name]
    np.testing.assert_allclose(images.mean((0, 1, 2)) / 255, published, atol=0.005)


@pytest.mark.slow
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
