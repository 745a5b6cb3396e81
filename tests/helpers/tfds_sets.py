"""Small sets of TFDS that a test makes, and how they are opened."""

import io
import re

import numpy as np
import pytest

from jaxdp.datasets.config import DataConfig
from jaxdp.datasets.tfds import open_tfds

tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra [data]")
Image = pytest.importorskip("PIL.Image", reason="needs the extra [data]")

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


def assert_tells_nothing(error):
    assert len(str(error).splitlines()) == 1
    message = re.sub(r"/\S+", "", str(error))  # the folder's path has numbers of its own
    for value in (CANARY, "8765", "-1"):
        assert value not in message
