"""Per-example gradients, norms and clipped sums against a float64 loop over single examples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import flat64, loss, norms64, oracle_grads, random_problem

import jaxdp


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


@pytest.mark.parametrize("method", ["auto", "vmap"])
def test_microbatch_size_changes_nothing(method):
    p = random_problem(3, size=20)
    clip = jaxdp.clip_individual(0.5)
    results = []
    for size in (None, 1, 7, 20, 64):
        transform = jaxdp.per_example_grads(loss, method=method, microbatch_size=size)
        update = jax.jit(
            lambda t=transform: clip.update(t(p.params, p.batch, p.mask), clip.init(p.params))
        )
        results.append(flat64(update()[0]))
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("microbatch_size", [None, 1, 4])
def test_masked_rows_contribute_exactly_zero_whatever_they_hold(microbatch_size):
    p = random_problem(5, size=8)
    mask = np.arange(8) < 5
    clip = jaxdp.clip_individual(1.0)

    @jax.jit
    def clipped(batch):
        transform = jaxdp.per_example_grads(loss, microbatch_size=microbatch_size)
        return clip.update(transform(p.params, batch, mask), clip.init(p.params))[0]

    clean = clipped(p.batch)
    for bad in (np.nan, np.inf, 1e30):
        x, y = p.batch[0].copy(), p.batch[1].copy()
        x[5:], y[5:] = bad, bad
        poisoned = clipped((x, y))
        # `keep` sums in another compiled branch, so equal up to its rounding.
        np.testing.assert_allclose(flat64(poisoned), flat64(clean), rtol=1e-6, atol=1e-7)


def test_a_nonfinite_example_contributes_zero_and_the_others_stay():
    p = random_problem(6, size=4)
    x, y = p.batch
    x = x.copy()
    x[2] = np.nan
    others = np.array([True, True, False, True])
    clip = jaxdp.clip_individual(1.0)
    transform = jaxdp.per_example_grads(loss)
    got = clip.update(transform(p.params, (x, y)), clip.init(p.params))[0]
    want = clip.update(transform(p.params, p.batch, others), clip.init(p.params))[0]
    np.testing.assert_allclose(flat64(got), flat64(want), rtol=1e-6)


def test_batches_of_uneven_size_share_one_trace():
    p = random_problem(7, size=12)
    traces = []

    @jax.jit
    def total(mask):
        traces.append(1)
        clip = jaxdp.clip_individual(1.0)
        transform = jaxdp.per_example_grads(loss, microbatch_size=4)
        return clip.update(transform(p.params, p.batch, mask), clip.init(p.params))[0]

    for count in (0, 1, 5, 12):
        total(np.arange(12) < count)
    assert len(traces) == 1
    assert not flat64(total(np.zeros(12, bool))).any()


def test_bfloat16_gradients_have_float32_norms_and_sums():
    rng = np.random.default_rng(0)
    dense = {"w": jnp.asarray(rng.standard_normal((64, 300)), jnp.bfloat16)}
    clip = jaxdp.clip_individual(1.0)
    total, _ = clip.update(jaxdp.from_dense(dense), clip.init(dense))
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
        got, _ = clip.update(jaxdp.from_dense(own, p.mask, microbatch_size=size), state)
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


x3 = np.ones((4, 3), np.float32)


@pytest.mark.parametrize(
    ("loss_fn", "params", "batch", "message"),
    [
        (lambda p, x: p * x, jnp.ones(3), (x3,), "shape \\(3,\\)"),
        (lambda p, x: jnp.argmax(p * x), jnp.ones(3), (x3,), "int32"),
        (lambda p, x: (jnp.sum(p * x), x), jnp.ones(3), (x3,), "tuple"),
        (lambda p, x: 1.0, {}, (x3,), "nothing to train"),
        (lambda p, x: 1.0, {"n": jnp.arange(3)}, (x3,), "'n'.*int32"),
        (lambda p, x: 1.0, {"n": jnp.ones((0, 3))}, (x3,), r"\(0, 3\)"),
        (lambda p, x: 1.0, jnp.ones(3), (x3, np.ones(5)), r"batch\[0\] has 4, batch\[1\] has 5"),
        (lambda p, x: 1.0, jnp.ones(3), x3, "tuple of the loss's arguments"),
        (lambda p, x: 1.0, jnp.ones(3), (x3, np.float32(1)), "leading axis"),
        (lambda p, x: 1.0, jnp.ones(3), (np.ones((0, 3)),), "0 rows"),
        (
            lambda p, x: 1.0,
            {"params": {"a": jnp.ones(3)}, "batch_stats": {"BatchNorm_0": {"mean": jnp.ones(3)}}},
            (x3,),
            "BatchNorm_0.*GroupNorm",
        ),
    ],
)
def test_bad_input_names_the_value_and_the_cure(loss_fn, params, batch, message):
    with pytest.raises((ValueError, TypeError), match=message):
        jaxdp.per_example_grads(loss_fn)(params, batch)


@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_microbatch_size_must_be_a_whole_number(size):
    with pytest.raises(ValueError, match="microbatch_size"):
        jaxdp.per_example_grads(loss, microbatch_size=size)


def test_unknown_method_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="'vmap'"):
        jaxdp.per_example_grads(loss, method="ghost")


@pytest.mark.parametrize("mask", [np.ones(3, bool), np.ones(6)])
def test_bad_mask(mask):
    p = random_problem(1)
    with pytest.raises(ValueError, match=r"expected \(6,\) and bool"):
        jaxdp.per_example_grads(loss)(p.params, p.batch, mask)


@pytest.mark.parametrize(
    "misuse",
    [
        lambda g: jax.jit(lambda: g)(),
        lambda g: jax.jit(lambda value: 1.0)(g),
        lambda g: 0.5 * g,
        lambda g: g + g,
        lambda g: jnp.sum(g),
        lambda g: np.asarray(g),
        lambda g: jax.tree.map(jnp.negative, g),
    ],
)
def test_per_example_grads_are_no_array_and_no_pytree(misuse):
    p = random_problem(1)
    with pytest.raises(ValueError, match=r"held lazily.*first in the optax\.chain"):
        misuse(jaxdp.per_example_grads(loss)(p.params, p.batch))


def _mixing_backward():
    @jax.custom_batching.custom_vmap
    def mix(x):
        return x

    @mix.def_vmap
    def mix_rule(axis_size, in_batched, x):
        return jnp.broadcast_to(jnp.sum(x, axis=0), x.shape), True

    @jax.custom_vjp
    def f(x):
        return x

    f.defvjp(lambda x: (x, None), lambda _, g: (mix(g),))
    return lambda p, x: jnp.sum(f(p * x) * x)


@pytest.mark.parametrize("method", ["auto", "factored", "vmap"])
@pytest.mark.parametrize("microbatch_size", [None, 1])
def test_losses_that_couple_examples_are_refused(method, microbatch_size):
    callback = lambda p, x: jnp.sum(
        p * jax.pure_callback(lambda v: v, jax.ShapeDtypeStruct((3,), jnp.float32), x)
    )
    for coupled, name in ((_mixing_backward(), "custom_vmap"), (callback, "pure_callback")):
        transform = jaxdp.per_example_grads(coupled, method=method, microbatch_size=microbatch_size)
        with pytest.raises(ValueError, match=f"the loss uses {name}"):
            transform(jnp.ones(3), (x3,)).materialize()
