"""Frozen parameters: the named ones and no others."""

import pytest

from jaxdp.trainer.freezing import merge, split

PARAMS = {
    "Conv_0": {"kernel": 1, "bias": 2},
    "Conv_10": {"kernel": 3},
    "Dense_0": {"kernel": 4, "bias": 5},
}


@pytest.mark.parametrize(
    ("patterns", "frozen"),
    [
        ((), {}),
        (("Conv_0",), {"Conv_0": {"kernel": 1, "bias": 2}}),
        (("*/bias",), {"Conv_0": {"bias": 2}, "Dense_0": {"bias": 5}}),
        (("Conv_*", "Dense_0/bias"), {**PARAMS, "Dense_0": {"bias": 5}}),
    ],
)
def test_patterns_take_what_they_name_and_what_lies_below(patterns, frozen):
    trainable, taken = split(PARAMS, patterns)
    assert taken == frozen
    assert merge(trainable, taken) == PARAMS
    count = lambda params: sum(len(layer) for layer in params.values())
    assert count(trainable) + count(taken) == 5


def test_a_pattern_that_takes_nothing_is_refused():
    with pytest.raises(ValueError, match=r"'Conv_1', which no parameter matches: .*Conv_0/kernel"):
        split(PARAMS, ["Conv_1"])


def test_something_must_be_left_to_train():
    with pytest.raises(ValueError, match="nothing is left to train"):
        split(PARAMS, ["*"])
