"""Frozen parameters: the named ones and no others."""

from typing import NamedTuple

import jax
import pytest

from jaxdp.trainer.freezing import merge, split

PARAMS = {
    "Conv_0": {"kernel": 1, "bias": 2},
    "Conv_10": {"kernel": 3},
    "Dense_0": {"kernel": 4, "bias": 5},
}


class Layer(NamedTuple):
    kernel: int
    bias: int


@pytest.mark.parametrize(
    ("patterns", "frozen"),
    [
        ((), set()),
        (("Conv_0",), {1, 2}),
        (("*/bias",), {2, 5}),
        (("Conv_*", "Dense_0/bias"), {1, 2, 3, 5}),
    ],
)
def test_patterns_take_what_they_name_and_what_lies_below(patterns, frozen):
    trainable, taken = split(PARAMS, patterns)
    assert set(jax.tree.leaves(taken)) == frozen
    assert set(jax.tree.leaves(trainable)) == {1, 2, 3, 4, 5} - frozen
    assert merge(trainable, taken) == PARAMS
    assert merge(trainable, None, taken, None) == PARAMS
    # Each has None where the other has an array, so that paths stay as they are.
    is_none = lambda leaf: leaf is None
    parts = [jax.tree.flatten(part, is_leaf=is_none) for part in (trainable, taken)]
    assert parts[0][1] == parts[1][1] == jax.tree.structure(PARAMS)
    assert all((a is None) != (b is None) for a, b in zip(parts[0][0], parts[1][0], strict=True))


@pytest.mark.parametrize(
    ("tree", "pattern", "frozen"),
    [
        ([Layer(1, 2), Layer(3, 4)], "1", {3, 4}),
        ([Layer(1, 2), Layer(3, 4)], "*/bias", {2, 4}),
        ((1, {"deep": (2, 3)}), "1/deep/0", {2}),
        ({"a": 1, "none": None, "b": 2}, "a", {1}),
    ],
)
def test_any_tree_is_taken_apart(tree, pattern, frozen):
    trainable, taken = split(tree, [pattern])
    assert set(jax.tree.leaves(taken)) == frozen
    assert merge(trainable, taken) == tree
    assert type(merge(trainable, taken)) is type(tree)


def test_a_pattern_that_takes_nothing_is_refused():
    with pytest.raises(ValueError, match=r"'Conv_1', which no parameter matches: .*Conv_0/kernel"):
        split(PARAMS, ["Conv_1"])


def test_something_must_be_left_to_train():
    with pytest.raises(ValueError, match="nothing is left to train"):
        split(PARAMS, ["*"])
