"""Per-example gradients, norms and clipped sums against a float64 loop over single examples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.dense import from_dense
from helpers.problems import flat64, loss, norms64, oracle_grads, random_problem
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxdp

W, X = jnp.ones((3, 3)), jnp.ones((4, 3))


# Compiled once for all examples that hypothesis draws.
@functools.partial(jax.jit, static_argnames="microbatch_size")
def look(params, batch, microbatch_size):
    grads = jaxdp.per_example_grads(loss, microbatch_size=microbatch_size)(params, batch)
    return grads.materialize(), grads.squared_norms()


@functools.partial(jax.jit, static_argnames="bound")
def clipped_sum(params, batch, mask, bound):
    clip = jaxdp.clip_individual(bound)
    grads = jaxdp.per_example_grads(loss, microbatch_size=4)(params, batch, mask)
    return clip.update(grads, clip.init(params))[0]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), microbatch_size=st.sampled_from([None, 1, 4]))
def test_gradients_and_norms_match_a_float64_loop(seed, microbatch_size):
    p = random_problem(seed)
    expected = oracle_grads(p.params, p.batch)
    dense, squared = look(p.params, p.batch, microbatch_size)
    for got, want in zip(jax.tree.leaves(dense), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())
    np.testing.assert_allclose(np.sqrt(sum(jax.tree.leaves(squared))), norms64(expected), rtol=1e-4)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), bound=st.sampled_from([0.01, 1.0, 30.0]))
def test_clipped_sum_matches_a_float64_loop(seed, bound):
    p = random_problem(seed)
    expected = oracle_grads(p.params, p.batch)
    weights = np.minimum(1, bound / norms64(expected)) * p.mask
    want = jax.tree.map(lambda g: np.einsum("b,b...->...", weights, g), expected)
    got = clipped_sum(p.params, p.batch, p.mask, bound)
    np.testing.assert_allclose(flat64(got), flat64(want), rtol=1e-4, atol=1e-4 * bound)


def test_bfloat16_gradients_have_float32_norms_and_sums():
    rng = np.random.default_rng(0)
    dense = {"w": jnp.asarray(rng.standard_normal((64, 300)), jnp.bfloat16)}
    clip = jaxdp.clip_individual(1.0)
    total, _ = clip.update(from_dense(dense), clip.init(dense))
    assert total["w"].dtype == jnp.float32
    weights = np.minimum(1, 1 / norms64(dense))
    want = weights @ np.asarray(dense["w"], np.float64)
    np.testing.assert_allclose(total["w"], want, rtol=1e-4, atol=1e-5)


def test_from_dense_takes_a_users_own_gradients():
    p = random_problem(9)
    own = jax.vmap(jax.grad(loss), (None, 0, 0))(p.params, *p.batch)
    clip = jaxdp.clip_individual(0.7)
    state = clip.init(p.params)
    want, _ = clip.update(jaxdp.per_example_grads(loss)(p.params, p.batch, p.mask), state)
    for size in (None, 4):
        got, _ = clip.update(from_dense(own, p.mask, microbatch_size=size), state)
        np.testing.assert_allclose(flat64(got), flat64(want), rtol=1e-5, atol=1e-6)


def test_per_example_keys_are_a_batch_leaf():
    def noisy(params, x, key):
        return jnp.sum(params * x * jax.random.bernoulli(key, 0.5, x.shape))

    x = np.ones((5, 30), np.float32)
    keys = jax.random.split(jax.random.key(0), 5)
    grads = jaxdp.per_example_grads(noisy, microbatch_size=2)(jnp.ones(30), (x, keys))
    rows = grads.materialize()
    want = jnp.stack([jax.random.bernoulli(k, 0.5, (30,)) for k in keys])
    np.testing.assert_array_equal(rows, want.astype(np.float32))


def test_the_users_own_error_surfaces():
    def broken(params, x):
        raise RuntimeError("my own bug")

    with pytest.raises(RuntimeError, match="my own bug"):
        jaxdp.per_example_grads(broken)(jnp.ones(3), (np.ones((2, 3)),))


def test_errors_in_the_loss_are_the_users_own():
    class MyError(Exception):
        pass

    def loss(w, x):
        if x.ndim == 1:
            raise MyError("line of mine")
        return jnp.sum(w)

    with pytest.raises(MyError, match="line of mine"):
        jaxdp.per_example_grads(loss)(W, (X,)).materialize()


def test_shape_errors_name_the_users_shapes():
    with pytest.raises(TypeError, match="dot_general requires contracting dimensions"):
        jaxdp.per_example_grads(lambda w, x: jnp.sum(x[:2] @ w))(W, (X,)).materialize()
