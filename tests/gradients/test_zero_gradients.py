"""Gradients that are always zero are found, and no others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdp
from jaxdp.gradients import zero_gradients

X = jnp.ones(4)


def dead(loss, params, *example):
    return jaxdp.explain(loss, params, example).without_gradient


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def test_what_cancels_is_found_and_what_is_unused_is_told_elsewhere():
    params = {"a": jnp.ones(4), "b": jnp.ones(4), "c": jnp.ones(4), "d": jnp.ones(4)}
    loss = lambda p, x: jnp.sum((p["a"] - p["a"]) * x + jax.lax.stop_gradient(p["b"]) + p["c"] * x)
    explained = jaxdp.explain(loss, params, (X,))
    assert explained.without_gradient == ("['a']", "['b']")
    assert {leaf.leaf for leaf in explained.leaves if leaf.form == "zero"} == {"['b']", "['d']"}
    assert "The gradient of ['a'] and ['b'] is exactly zero" in explained.warning


def test_many_are_counted():
    params = {name: jnp.ones(4) for name in "abcdef"}
    loss = lambda p, x: sum(jnp.sum(x - x * leaf / leaf) * 0 for leaf in p.values())
    text = jaxdp.explain(loss, params, (X,)).warning
    assert "gradient of ['a'], ['b'], ['c'] and of 3 more is exactly zero" in text


@pytest.mark.parametrize(
    "loss",
    [
        lambda p, x: jnp.sum(p["scale"] * jnp.tanh(x @ p["w"])),  # scale is zero: ReZero, LoRA
        lambda p, x: jnp.sum(jax.nn.relu(x @ p["w"])[:1] * (1 + p["scale"])),  # one unit
        lambda p, x: jax.nn.relu(1 - jnp.sum(x @ p["w"] * (1 + p["scale"]))),  # hinge
        lambda p, x: jnp.sum(jnp.tanh(1e4 * (x @ p["w"])) * (1 + p["scale"])),  # saturated
        lambda p, x: jnp.sum(jnp.log(x @ p["w"]) * p["scale"]),  # NaN
    ],
)
def test_gradients_that_are_zero_sometimes_are_not_told(loss):
    params = {"w": jnp.zeros((4, 3)), "scale": jnp.zeros(())}
    for given in (params, jax.tree.map(lambda leaf: shape(*leaf.shape), params)):
        assert dead(loss, given, X) == dead(loss, given, shape(4)) == ()


def test_whole_numbers_may_mean_something():
    masked = lambda w, x, tokens: jnp.sum(jnp.where(tokens == 103, jnp.sin(x * w), 0))
    special = jnp.array([5, 103, 7, 103])
    assert dead(masked, jnp.ones(4), X, special) == ()
    assert dead(masked, jnp.ones(4), X, shape(4, dtype=jnp.int32)) == ()  # made up: not judged
    assert dead(masked, jnp.ones(4), X, jnp.zeros(4, int)) == ("params",)
    table = lambda w, tokens, use: jnp.sum(jnp.where(use, jnp.take(w, tokens, axis=0)[:, 0], 0))
    ints, bools = shape(5, dtype=jnp.uint8), shape(5, dtype=bool)
    assert dead(table, jnp.ones((9, 3)), ints, bools) == ()
    away = lambda w, x, length: jnp.sum(
        jnp.where(jnp.arange(4) < length, w["a"] * x, 0) + 0 * w["b"]
    )
    params = {"a": jnp.ones(4), "b": jnp.ones(4)}
    assert dead(away, params, X, shape(dtype=jnp.int32)) == ("['b']",)


def test_keys_are_random():
    loss = lambda w, x, key: jnp.sum(jax.random.bernoulli(key, 0.5, (4,)) * w * x)
    key = jax.random.key(0)
    assert (
        dead(loss, jnp.ones(4), X, key) == dead(loss, jnp.ones(4), X, shape(dtype=key.dtype)) == ()
    )
    kept = lambda w, x, key: jnp.sum((w - w) * x) + 0 * jax.random.uniform(key)
    assert dead(kept, jnp.ones(4), X, key) == ("params",)


def test_branches_that_are_not_taken_are_not_judged():
    rare = lambda p, x: jax.lax.cond(x[0] > 9, lambda: jnp.sum(p["a"]), lambda: jnp.sum(p["b"]))
    assert dead(rare, {"a": jnp.ones(4), "b": jnp.ones(4)}, X) == ()


def test_floats_of_the_example_are_never_looked_at():
    loss = lambda w, x: jnp.sum(jnp.where(x == 7, w, 0))
    assert dead(loss, jnp.ones(4), jnp.full(4, 7.0)) == ("params",)


def test_where_it_cannot_be_tried_nothing_is_said(monkeypatch):
    loss = lambda w, x: jnp.sum((w - w) * x)
    assert dead(loss, jnp.ones(4), X) == ("params",)
    found = []
    traced = jax.make_jaxpr(lambda w: found.append(dead(loss, w, X) + dead(loss, X, X)))(X)
    assert found == [()]
    assert traced.eqns == []  # nothing was left in the program that asked
    with monkeypatch.context() as patch:
        patch.setattr(zero_gradients, "_MOST_NUMBERS", 3)
        assert dead(loss, jnp.ones(4), X) == ()

    def fails(*args):
        raise RuntimeError("no memory")

    monkeypatch.setattr(zero_gradients, "_perturbed", fails)
    assert dead(loss, jnp.ones(4), X) == ()


def test_parameters_stay_where_they_are():
    w = np.ones(4, np.float32)
    dead(lambda w, x: jnp.sum(w * x), w, X)
    np.testing.assert_array_equal(w, 1)
