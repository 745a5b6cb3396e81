"""Every clipping: one record moves the clipped sum as far as it says (privacy rules 1, 6 and 9)."""

import functools

import jax
import numpy as np
import pytest
from helpers.cases import slow, some
from helpers.dense import from_dense
from helpers.layers import LAYERS, layers_loss, layers_records
from helpers.problems import flat64
from helpers.releases import make_plan
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxdp

CLIPPINGS = {
    "individual": lambda unit: (jaxdp.clip_individual if unit == "example" else jaxdp.clip_batch)(
        2.0
    ),
    "tensors": lambda unit: jaxdp.clip_layerwise(0.5, unit=unit),
    "patterns": lambda unit: jaxdp.clip_layerwise(
        {"dense": 1.0, "kernel": 3.0, "table": 0.25}, unit=unit
    ),
    "frozen": lambda unit: jaxdp.clip_layerwise({"dense": 1.0, "kernel": 0, "ta*": 0.5}, unit=unit),
    "tuples": lambda unit: jaxdp.clip_layerwise({("kernel", "ta*"): 2.0, "dense": 1.0}, unit=unit),
    "multiplied": lambda unit: jaxdp.clip_multiplied(
        {"dense": 1.0, "kernel": 3.0, "table": 0.25}, unit=unit
    ),
    "normalised": lambda unit: jaxdp.clip_normalised(1.5, unit=unit),
    "quantile": lambda unit: jaxdp.clip_quantile(0.7, layer="module", unit=unit),
}
EXACT = {"individual": 2.0, "tensors": 0.5 * 2, "patterns": np.sqrt(1 + 9 + 1 / 16)}
EXACT |= {"frozen": np.sqrt(1.25), "normalised": 1.5, "quantile": 0.7 * np.sqrt(2)}
EXACT |= {"tuples": np.sqrt(5), "multiplied": 3.0}


def length(kind, vector):
    """Euclidean; for one coefficient with a clipping norm for every layer, measured in those."""
    if kind != "multiplied":
        return np.linalg.norm(vector)
    norms = {"dense": 1.0, "kernel": 3.0, "table": 0.25}
    spread = {name: jax.tree.map(lambda p: p + norms[name], LAYERS[name]) for name in LAYERS}
    return 3.0 * np.linalg.norm(vector / flat64(spread))


@functools.cache
def clipped(kind, unit, method):
    """A compiled function from records and mask to the clipped sum as one vector."""
    clip = CLIPPINGS[kind](unit)
    fn = layers_loss if unit == "example" else jaxdp.mean_loss(layers_loss)
    transform = jaxdp.per_example_grads(fn, method=method, unit=unit)

    @jax.jit
    def total(batch, mask):
        return clip.update(transform(LAYERS, batch, mask), clip.init(LAYERS))[0]

    return lambda batch, mask: flat64(total(batch, mask))


def changed(batch, index, other):
    return tuple(
        np.concatenate([leaf[:index], o[:1], leaf[index + 1 :]])
        for leaf, o in zip(batch, other, strict=True)
    )


# Clipping reads the gradients' norms alone, whichever form they are held in.
METHODS = ["factored", slow("vmap")]
KINDS = some(
    [(kind, unit) for kind in CLIPPINGS for unit in ("example", "batch")],
    [(kind, "example") for kind in CLIPPINGS] + [("individual", "batch"), ("quantile", "batch")],
)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("kind", "unit"), KINDS)
def test_sensitivity_is_what_the_clipping_says(kind, unit, method):
    clip = CLIPPINGS[kind](unit)
    norms = clip.init(LAYERS).clipping_norms
    stated = {
        a: float(clip.sensitivity(a, norms)) for a in ("add_remove", "zero_out", "replace_one")
    }
    factor = 1 if unit == "example" else 2
    np.testing.assert_allclose(stated["add_remove"], factor * EXACT[kind], rtol=1e-6)
    np.testing.assert_allclose(stated["zero_out"], factor * EXACT[kind], rtol=1e-6)
    np.testing.assert_allclose(stated["replace_one"], 2 * EXACT[kind], rtol=1e-6)

    @settings(max_examples=15, deadline=None, database=None)
    @given(
        seed=st.integers(0, 10**9),
        scale=st.sampled_from([1e-3, 0.3, 1.0, 30.0, 1e6]),
        odd=st.sampled_from([0.0, 1e-9, 1.0, 1e3, 1e9, np.inf, np.nan]),
    )
    def never_above(seed, scale, odd):
        rng = np.random.default_rng(seed)
        batch, other = layers_records(rng, 6, scale), layers_records(rng, 1, odd)
        batch = changed(batch, 2, layers_records(rng, 1, odd)) if rng.random() < 0.5 else batch
        mask = rng.random(6) < 0.8
        mask[2] = True
        gone = mask & (np.arange(6) != 2)
        if unit == "batch":  # two units of three records
            split = lambda leaf: leaf.reshape(2, 3, *leaf.shape[1:])
            mask, gone = split(mask), split(gone)
        else:
            split = lambda leaf: leaf
        total = clipped(kind, unit, method)
        before = total(jax.tree.map(split, batch), mask)
        removed = total(jax.tree.map(split, batch), gone)
        replaced = total(jax.tree.map(split, changed(batch, 2, other)), mask)
        slack = 1 + 1e-4  # of the float32 sums themselves
        assert length(kind, before - removed) <= stated["add_remove"] * slack
        assert length(kind, before - replaced) <= stated["replace_one"] * slack

    never_above()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("kind", "unit"), KINDS)
def test_a_crafted_pair_attains_the_sensitivity(kind, unit, method):
    rng = np.random.default_rng(0)
    up = layers_records(rng, 1, 100.0)
    # Linear in c and k: this record's gradients are -3 times the first one's.
    down = (up[0], -3 * up[1], up[2], -3 * up[3], up[4])
    both = jax.tree.map(lambda a, b: np.concatenate([a, b]), up, down)
    total = clipped(kind, unit, method)
    if unit == "example":
        removed = total(both, np.array([True, True])) - total(both, np.array([False, True]))
        replaced = total(up, np.array([True])) - total(down, np.array([True]))
    else:
        one_unit = jax.tree.map(lambda leaf: leaf[None], both)
        together = total(one_unit, np.array([[True, True]]))
        alone = total(one_unit, np.array([[True, False]]))
        # One record turns its unit's mean round; in an otherwise empty unit it can't.
        removed, replaced = together - alone, together - alone
        empty = total(one_unit, np.array([[False, False]]))
        assert not empty.any()
        np.testing.assert_allclose(length(kind, alone - empty), EXACT[kind], rtol=0.01)
    clip = CLIPPINGS[kind](unit)
    norms = clip.init(LAYERS).clipping_norms
    for moved, adjacency in ((removed, "add_remove"), (replaced, "replace_one")):
        np.testing.assert_allclose(
            length(kind, moved), clip.sensitivity(adjacency, norms), rtol=0.01
        )


@pytest.mark.slow
def test_frozen_groups_get_neither_gradient_nor_noise():
    plan = make_plan(CLIPPINGS["frozen"]("example"))
    tx = jaxdp.privatize(plan, key=jax.random.key(0))
    batch = layers_records(np.random.default_rng(0), 6, 1.0)
    grads = jaxdp.per_example_grads(layers_loss)(LAYERS, batch, jaxdp.all_rows(6))
    mean, _ = tx.update(grads, tx.init(LAYERS), LAYERS)
    assert not mean["kernel"].any()
    assert mean["table"].all()


@pytest.mark.parametrize("unit", ["example", "batch"])
def test_the_sign_of_a_frozen_groups_zeros_tells_nothing(unit):
    """A sum of zeros times negative numbers is -0."""
    tx = jaxdp.privatize(make_plan(jaxdp.clip_layerwise({"a": 0.0, "b": 1.0}, unit=unit)))
    for sign in (-1, 1):
        grads = {"a": np.full((1, 4), sign, np.float32), "b": np.ones((1, 2), np.float32)}
        mean, _ = tx.update(
            from_dense(grads, unit=unit), tx.init(jax.tree.map(lambda g: g[0], grads))
        )
        assert not np.signbit(mean["a"]).any()


def test_a_frozen_groups_sum_is_zero():
    """Its norm is in no clipping norm, so nothing would bound it."""
    clip = jaxdp.clip_layerwise({"a": 0.0, "b": 1.0})
    grads = {"a": np.full((3, 4), 1e6, np.float32), "b": np.ones((3, 2), np.float32)}
    total, _ = clip.update(from_dense(grads), clip.init(jax.tree.map(lambda g: g[0], grads)))
    assert not total["a"].any()
    assert total["b"].all()
