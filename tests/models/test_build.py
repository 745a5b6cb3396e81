"""Built-in models: each for the records that it is made for."""

import jax
import pytest
from helpers.small_dataset import SMALL_FORMAT

from jaxdp.datasets.sources import Format
from jaxdp.models import make_model
from jaxdp.models.build import IMAGE_MODELS
from jaxdp.models.config import ModelConfig

TEXT = Format("tokens", "tokens", 97, None, None, "", 97)
MIXED = Format("mixed", "class", 2, 0.0, 1.0, "", 97)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        (
            "cnn",
            TEXT,
            "model.name is cnn, but the data are a text: choose --model.name transformer",
        ),
        ("transformer", SMALL_FORMAT, "transformer, but the data are images: .* cnn"),
        ("linear", MIXED, "are numbers with documents: give a task of your own"),
    ],
)
def test_models_of_the_other_kind_are_refused(name, data, says):
    with pytest.raises(ValueError, match=says):
        make_model(ModelConfig(name=name), data)


def test_tokens_have_no_mean():
    documents = Format("tokens", "class", 2, None, None, "", 97)
    with pytest.raises(ValueError, match=r"model\.centred is True, and tokens have no mean"):
        make_model(ModelConfig("embedding", centred=True), documents)


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_every_model_of_images_has_an_output_for_every_class(name):
    model = make_model(ModelConfig(name=name), SMALL_FORMAT)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), "float32")
    logits, _ = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x), images)
    assert logits.shape == (2, 10)
