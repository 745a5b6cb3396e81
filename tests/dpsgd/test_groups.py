"""Groups of layers: by pattern, module or prefix, and those with like clipping norms."""

import itertools

import jax
import numpy as np
import pytest
from helpers.dense import from_dense
from helpers.layers import LAYERS
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxdp
from jaxdp.dpsgd.groups import group_leaves


def test_groups_by_tensor_module_pattern_and_prefix():
    names = lambda *args: group_leaves(LAYERS, *args).names
    assert names(1.0, "tensor") == ("dense/b", "dense/w", "kernel", "table")
    assert names(1.0, "module") == ("dense", "")
    assert names({("dense", "kernel"): 1.0, "table": 2.0}, None) == ("dense + kernel", "table")
    assert names({"*/w": 1.0, "*/b": 2.0, "kernel": 1.0, "table": 3.0}, None) == (
        "*/b", "*/w", "kernel", "table",
    )  # fmt: skip
    prefix = {"dense": {"w": 1.0, "b": 2.0}, "kernel": 3.0, "table": 4.0}
    groups = group_leaves(LAYERS, prefix, None)
    assert groups.names == ("dense/b", "dense/w", "kernel", "table")
    assert groups.clipping_norms == (2.0, 1.0, 3.0, 4.0)
    assert groups.sizes == (3, 12, 6, 15)


@pytest.mark.parametrize(
    ("norms", "message"),
    [
        ({"dense": 1.0, "kernel": 1.0}, "parameters table: every parameter"),
        ({"*": 1.0, "table": 1.0}, r"several patterns.*table \(\*, table\)"),
        ({"dense": 1.0, "kernel": 1.0, "table": 1.0, "conv*": 1.0}, r"conv\* take no parameter"),
        ({("dense", "conv*"): 1.0, "*l*": 1.0}, r"conv\* take no parameter"),
        ({("dense", "table"): 1.0, ("kernel", "ta*"): 2.0}, r"several patterns.*table \(dense \+"),
        ({"*": 0.0}, "freezes all"),
        ({"dense": {"w": 1.0}, "kernel": 1.0, "table": 1.0}, "not a prefix"),
        (-1.0, "clipping norm is -1"),
        ({"*": float("nan")}, "clipping norm is nan"),
    ],
)
def test_groups_that_miss_or_overlap_parameters_are_named(norms, message):
    with pytest.raises(ValueError, match=message):
        jaxdp.clip_layerwise(norms).init(LAYERS)


def test_a_group_is_named_by_text():
    with pytest.raises(TypeError, match="is not a pattern"):
        jaxdp.clip_layerwise({("a", 1): 1.0}).init({"a": np.zeros(2, np.float32)})


def cost(norms, groups):
    """Sum over the layers of the squared log of the group's clipping norm over the layer's own."""
    return sum(
        np.log(shared / norms[layer]) ** 2 for layers, shared in groups.items() for layer in layers
    )


def partitions(layers, count):
    """Every way to sort the layers into so many groups."""
    for labels in itertools.product(range(count), repeat=len(layers)):
        if len(set(labels)) == count:
            yield [
                tuple(layer for layer, own in zip(layers, labels, strict=True) if own == label)
                for label in range(count)
            ]


@settings(max_examples=40, deadline=None, database=None)
@given(
    values=st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=6),
    count=st.integers(1, 6),
)
def test_no_other_partition_is_better(values, count):
    norms = {f"layer{i}": value for i, value in enumerate(values)}
    count = min(count, len(norms))
    groups = jaxdp.group_alike(norms, count)
    assert len(groups) == count
    assert sorted(itertools.chain(*groups)) == sorted(norms)
    for layers, shared in groups.items():
        assert shared == max(norms[layer] for layer in layers)
    best = min(
        cost(norms, {layers: max(norms[layer] for layer in layers) for layers in chosen})
        for chosen in partitions(list(norms), count)
    )
    np.testing.assert_allclose(cost(norms, groups), best, rtol=1e-9, atol=1e-12)


def test_groups_go_into_a_clipping_and_frozen_layers_stay_frozen():
    params = {name: np.zeros(3, np.float32) for name in "abcd"}
    groups = jaxdp.group_alike({"a": 1.0, "b": 0.01, "c": 0.9, "d": 0.0}, 2)
    assert groups == {("b",): 0.01, ("a", "c"): 1.0, ("d",): 0.0}
    clip = jaxdp.clip_layerwise(groups)
    np.testing.assert_allclose(clip.sensitivity("add_remove"), np.hypot(1.0, 0.01))
    found = group_leaves(params, groups, None)
    assert found.names == ("a + c", "b")
    assert found.of_leaf == (0, 1, 0, None)
    together = jax.tree.map(lambda p: p[None] + 10.0, params)
    total, _ = clip.update(from_dense(together), clip.init(params))
    np.testing.assert_allclose(np.hypot(*[np.linalg.norm(total[n]) for n in "ac"]), 1, rtol=1e-5)
    assert not total["d"].any()


def test_k_groups_give_the_root_of_k_where_layers_give_the_root_of_l():
    norms = {f"layer{i}": 1.0 for i in range(16)}
    apart, grouped = (
        jaxdp.clip_layerwise(norms),
        jaxdp.clip_layerwise(jaxdp.group_alike(norms, 4)),
    )
    assert apart.sensitivity("add_remove") == pytest.approx(4.0)
    assert grouped.sensitivity("add_remove") == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("norms", "count", "message"),
    [
        ({"a": 1.0}, 2, "from 1 to 1"),
        ({"a": 1.0, "b": 0.0}, 2, "from 1 to 1"),
        ({"a": 1.0, "b": 2.0}, 0, "num_groups is 0"),
        ({"a": 1.0, "b": 2.0}, 2.0, "num_groups is 2.0: give a whole number"),
        ({"a": np.inf, "b": 2.0}, 1, "only finite"),
        ({"a": -1.0, "b": 2.0}, 1, "clipping norm is -1"),
    ],
)
def test_what_makes_no_sense_is_named(norms, count, message):
    with pytest.raises(ValueError, match=message):
        jaxdp.group_alike(norms, count)
