"""Clippings are values: they are compared, hashed, printed and copied by their settings."""

import copy
import dataclasses
import functools
import itertools
import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.dense import from_dense

import jaxdp

CALLS = [
    "clip_individual(2)",
    "clip_individual(0.1)",
    "clip_individual(0.12345678912345678)",
    "clip_individual(inf)",
    "clip_batch(2)",
    "clip_layerwise(2, layer='tensor', unit='example')",
    "clip_layerwise(2, layer='module', unit='batch')",
    "clip_layerwise({'*': 2}, unit='example')",
    "clip_layerwise({'dense': 1, 'kernel': 0, 'ta*': 0.5}, unit='example')",
    "clip_layerwise({'dense': 1, 'kernel': 0.5, 'ta*': 0}, unit='example')",
    "clip_layerwise({('kernel', 'ta*'): 0.12345678912345678, 'dense': 0.25}, unit='batch')",
    "clip_layerwise({'dense': {'w': 1, 'b': 2}, 'kernel': 3, 'table': 4}, unit='example')",
    "clip_layerwise([0.5, (2.0, 1.0)], unit='example')",
    "clip_multiplied(2, layer='tensor', unit='example')",
    "clip_multiplied({('kernel', 'ta*'): 2, 'dense': 0.25}, unit='batch')",
    "clip_normalised(2, stability=0.01, unit='example')",
    "clip_quantile(2, target=0.5, learning_rate=0.2, count_std=None, layer=None, unit='example')",
    "clip_quantile({('a', 'b'): 2, 'c': 1}, target=0.9, learning_rate=0.30000000000000004, "
    "count_std=8.5, layer=None, unit='batch')",
]
# For each field two calls that differ in it alone.
DIFFER = [
    ("kind", "clip_layerwise(1)", "clip_multiplied(1)"),
    ("clipping_norm", "clip_individual(1)", "clip_individual(1.0000001)"),
    ("clipping_norm", "clip_layerwise({'a': 1, 'b': 2})", "clip_layerwise({'a': 2, 'b': 1})"),
    ("clipping_norm", "clip_layerwise({('a', 'b'): 1})", "clip_layerwise({('b', 'a'): 1})"),
    ("clipping_norm", "clip_layerwise({'a': {'b': 1}})", "clip_layerwise({'a': {'c': 1}})"),
    ("unit", "clip_layerwise(1)", "clip_layerwise(1, unit='batch')"),
    ("layer", "clip_layerwise(1)", "clip_layerwise(1, layer='module')"),
    ("stability", "clip_normalised(1)", "clip_normalised(1, stability=0.02)"),
    ("quantile", "clip_quantile(1)", "clip_quantile(1, target=0.6)"),
    ("quantile", "clip_quantile(1)", "clip_quantile(1, learning_rate=0.3)"),
    ("quantile", "clip_quantile(1)", "clip_quantile(1, count_std=5.0)"),
]


def call(text):
    return eval(text, {**vars(jaxdp), "inf": math.inf})


def halving(step):
    return 4.0 * 0.5**step


def copies(value):
    return copy.copy(value), copy.deepcopy(value), pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("text", CALLS)
def test_equal_calls_make_equal_clippings_that_print_as_the_call(text):
    clip = call(text)
    assert repr(clip) == text
    for twin in (call(text), *copies(clip)):
        assert twin == clip
        assert hash(twin) == hash(clip)
        assert repr(twin) == text


def test_different_calls_make_different_clippings():
    clips = [call(text) for text in CALLS]
    for one, other in itertools.combinations(clips, 2):
        assert one != other
    assert len(set(clips)) == len(clips)
    assert call("clip_individual(2)") != 2


@pytest.mark.parametrize(("field", "one", "other"), DIFFER)
def test_one_other_setting_makes_another_clipping(field, one, other):
    first, second = call(one), call(other)
    settings = [f.name for f in dataclasses.fields(jaxdp.Clipping)]
    assert [n for n in settings if getattr(first, n) != getattr(second, n)] == [field]
    assert first != second
    assert repr(first) != repr(second)


def test_every_setting_is_compared():
    fields = {f.name for f in dataclasses.fields(jaxdp.Clipping)}
    assert {field for field, _, _ in DIFFER} == fields


def test_what_stands_for_a_default_is_equal_to_it():
    assert jaxdp.clip_layerwise(1) == jaxdp.clip_layerwise(1.0, layer="tensor", unit="example")
    assert jaxdp.clip_individual(np.float64(0.3)) == jaxdp.clip_individual(0.3)
    assert repr(jaxdp.clip_individual(np.float64(0.3))) == "clip_individual(0.3)"
    assert jaxdp.clip_layerwise({"a": 1.0, "b": 2.0}) == jaxdp.clip_layerwise({"b": 2, "a": 1})


@pytest.mark.parametrize(
    "make", [jaxdp.clip_individual, lambda norm: jaxdp.clip_layerwise({"a": norm, "b": 1.0})]
)
def test_clippings_with_one_schedule_are_equal(make):
    clip = make(halving)
    for twin in (make(halving), *copies(clip)):
        assert twin == clip
        assert hash(twin) == hash(clip)
    assert clip != make(lambda step: 4.0 * 0.5**step)
    # The text goes into the privacy statement: no address of a function in memory.
    assert "schedule" in repr(clip)
    assert " at 0x" not in repr(clip)


def test_a_clipping_is_frozen_and_refuses_bad_settings():
    clip = jaxdp.clip_normalised(1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        clip.stability = -0.5
    with pytest.raises(ValueError, match="stability is -"):
        dataclasses.replace(clip, stability=-0.5)
    with pytest.raises(ValueError, match="unit is 'unit'"):
        dataclasses.replace(clip, unit="unit")
    with pytest.raises(ValueError, match="unit is 'batch', but clip_individual"):
        dataclasses.replace(jaxdp.clip_individual(1.0), unit="batch")


def test_a_clipping_keeps_its_norms_when_the_caller_changes_the_dict():
    norms = {"a": 1.0, "b": 2.0}
    clip = jaxdp.clip_layerwise(norms)
    norms["a"] = 100.0
    assert clip == jaxdp.clip_layerwise({"a": 1.0, "b": 2.0})
    nested = {"a": {"w": 1.0}, "b": [2.0]}
    clip = jaxdp.clip_layerwise(nested)
    nested["a"]["w"] = nested["b"][0] = 100.0
    assert clip == jaxdp.clip_layerwise({"a": {"w": 1.0}, "b": [2.0]})


def test_equal_clippings_are_one_static_argument():
    @functools.partial(jax.jit, static_argnums=0)
    def clipped(clip, rows):
        return clip.update(from_dense(rows), clip.init(rows[0]))[0]

    rows = jnp.array([[3.0, 4.0]])
    for _ in range(2):
        np.testing.assert_allclose(clipped(jaxdp.clip_individual(1.0), rows), [0.6, 0.8], rtol=1e-5)
    assert clipped._cache_size() == 1
    np.testing.assert_allclose(clipped(jaxdp.clip_individual(2.0), rows), [1.2, 1.6], rtol=1e-5)


def test_optax_takes_a_clipping_as_a_transformation():
    clip, rows = jaxdp.clip_individual(1.0), jnp.array([[3.0, 4.0], [0.0, 0.5]])
    later = optax.inject_hyperparams(optax.sgd)(learning_rate=0.5)
    tx = optax.chain(clip, optax.apply_if_finite(later, 3))
    state = tx.init(rows[0])
    step = jax.jit(lambda s: tx.update(from_dense(rows), s, rows[0]))
    updates, after = step(state)
    np.testing.assert_allclose(updates, [-0.3, -0.65], rtol=1e-5)
    assert after[0] == state[0]
    updates, _ = step(optax.tree.set(after, clipping_norms=jnp.full(1, 0.1)))
    np.testing.assert_allclose(updates, [-0.03, -0.09], rtol=1e-5)
    state = optax.MultiSteps(clip, 2).init(rows[0])
    with pytest.raises(ValueError, match="held lazily"):
        optax.MultiSteps(clip, 2).update(from_dense(rows), state, rows[0])
