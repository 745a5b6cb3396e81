"""Layers with like bounds share one: the best partition, and what it is for."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxdp
from jaxdp.dpsgd.groups import group_leaves


def cost(bounds, groups):
    """Sum over the layers of the squared log of the group's bound over the layer's own."""
    return sum(
        np.log(shared / bounds[layer]) ** 2 for layers, shared in groups.items() for layer in layers
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
    bounds = {f"layer{i}": value for i, value in enumerate(values)}
    count = min(count, len(bounds))
    groups = jaxdp.group_alike(bounds, count)
    assert len(groups) == count
    assert sorted(itertools.chain(*groups)) == sorted(bounds)
    for layers, shared in groups.items():
        assert shared == max(bounds[layer] for layer in layers)
    best = min(
        cost(bounds, {layers: max(bounds[layer] for layer in layers) for layers in chosen})
        for chosen in partitions(list(bounds), count)
    )
    np.testing.assert_allclose(cost(bounds, groups), best, rtol=1e-9, atol=1e-12)


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
    total, _ = clip.update(jaxdp.from_dense(together), clip.init(params))
    np.testing.assert_allclose(np.hypot(*[np.linalg.norm(total[n]) for n in "ac"]), 1, rtol=1e-5)
    assert not total["d"].any()


def test_k_groups_give_the_root_of_k_where_layers_give_the_root_of_l():
    bounds = {f"layer{i}": 1.0 for i in range(16)}
    apart, grouped = (
        jaxdp.clip_layerwise(bounds),
        jaxdp.clip_layerwise(jaxdp.group_alike(bounds, 4)),
    )
    assert apart.sensitivity("add_remove") == pytest.approx(4.0)
    assert grouped.sensitivity("add_remove") == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("bounds", "count", "message"),
    [
        ({"a": 1.0}, 2, "from 1 to 1"),
        ({"a": 1.0, "b": 0.0}, 2, "from 1 to 1"),
        ({"a": 1.0, "b": 2.0}, 0, "num_groups is 0"),
        ({"a": 1.0, "b": 2.0}, 2.0, "num_groups is 2.0: give a whole number"),
        ({"a": np.inf, "b": 2.0}, 1, "only finite"),
        ({"a": -1.0, "b": 2.0}, 1, "clipping norm is -1"),
    ],
)
def test_what_makes_no_sense_is_named(bounds, count, message):
    with pytest.raises(ValueError, match=message):
        jaxdp.group_alike(bounds, count)


def test_a_group_is_named_by_text():
    with pytest.raises(TypeError, match="is no pattern"):
        jaxdp.clip_layerwise({("a", 1): 1.0}).init({"a": np.zeros(2, np.float32)})
