"""Options of models that make no sense are refused."""

import pytest

from jaxdp.models.config import ModelConfig


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"name": "lenet", "norm": "batch"}, "model.norm is batch: .* lenet has no such layer"),
        ({"name": "resnet18", "norm": "none"}, "does not train without"),
        ({"name": "resnet18", "norm_group_size": 3}, r"divides every one of the widths \(64,\)"),
        ({"name": "resnet18", "width": 0}, "model.width is 0"),
        ({"name": "transformer", "width": 6, "heads": 4}, "divides model.width = 6"),
    ],
)
def test_models_that_make_no_sense_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        ModelConfig(**options)
