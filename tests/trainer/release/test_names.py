"""The names of arrays in a release."""

import numpy as np
import pytest

pytest.importorskip("safetensors")
from helpers.small_releases import Layer

from jaxdp.trainer.release.names import named_leaves


def test_a_name_is_the_path_to_the_array():
    tree = {"Conv_0": {"kernel": 1}, "layers": [Layer(2, 3), (4,)]}
    assert named_leaves(tree) == {
        "Conv_0/kernel": 1,
        "layers/0/weight": 2,
        "layers/0/bias": 3,
        "layers/1/0": 4,
    }


def test_the_order_is_that_of_the_tree():
    assert list(named_leaves(Layer(1, 2))) == ["weight", "bias"]


def test_a_single_array_has_a_name_too():
    assert list(named_leaves(np.zeros(3))) == ["params"]


@pytest.mark.parametrize(
    "tree", [{"a/b": 1, "a": {"b": 2}}, {"": 1}, {"a": {"": 1}}, {"a//b": 1}, {"1": 1, 1: 2}]
)
def test_names_that_are_not_unique_or_empty_are_refused(tree):
    with pytest.raises((ValueError, TypeError)):
        named_leaves(tree)


def test_an_array_that_is_named_like_a_folder_is_refused():
    with pytest.raises(ValueError, match="'a' and 'a/b' can't both be released: rename one"):
        named_leaves([{"a": 1}, {"a/b": 2}][0] | {"a/b": 2})
