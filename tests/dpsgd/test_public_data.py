"""Clipping norms from public data: what is measured, and what it becomes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.dense import from_dense
from helpers.problems import loss, norms64, oracle_grads, random_problem

import jaxdp

P = random_problem(0, size=12)


def layer_norms(rows):
    """`{layer: [rows]}` in float64."""
    return {name: norms64({name: row}) for name, row in rows.items()}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["auto", "two_pass", "vmap"])
def test_norms_of_examples_are_averaged_layer_by_layer(method):
    clip = jaxdp.clip_layerwise(1.0)
    measure = jaxdp.public_norms(loss, clip, method=method, microbatch_size=2)
    x, y = P.batch
    mask = np.arange(8) < 5
    got = measure(P.params, [((x[:4], y[:4]), None), ((x[4:], y[4:]), mask)])
    want = layer_norms(oracle_grads(P.params, P.batch))
    names = clip.groups(P.params).names
    np.testing.assert_allclose(got, [want[n][:9].mean() for n in names], rtol=1e-4)


def test_norms_of_units_are_those_of_their_mean_gradient():
    clip = jaxdp.clip_multiplied({("kernel", "scale"): 1.0, "w": 2.0, "b": 0}, unit="batch")
    measure = jaxdp.public_norms(jaxdp.mean_loss(loss), clip)
    units = jax.tree.map(lambda leaf: leaf.reshape(3, 4, *leaf.shape[1:]), P.batch)
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], bool)
    got = measure(P.params, [(units, mask)])
    rows = oracle_grads(P.params, P.batch)
    means = [jax.tree.map(lambda g: g[part].mean(0), rows) for part in (slice(4), slice(4, 6))]
    norm = lambda mean, *names: np.sqrt(sum(np.sum(mean[n] ** 2) for n in names))
    want = [np.mean([norm(m, *names) for m in means]) for names in (("kernel", "scale"), ("w",))]
    assert clip.groups(P.params).names == ("kernel + scale", "w")  # b is frozen
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_clipping_norms_are_shares_of_the_largest_or_the_norms_with_a_floor():
    norms = np.array([2.0, 0.5, 0.0], np.float32)
    np.testing.assert_allclose(jaxdp.scale_norms(norms, 0.1, floor=0.05), [0.1, 0.025, 0.005])
    np.testing.assert_allclose(jaxdp.scale_norms(norms, floor=0.05), [2.0, 0.5, 0.1])
    assert jaxdp.scale_norms(norms, 0.1).dtype == np.float32


@pytest.mark.parametrize(
    ("norms", "options", "message"),
    [
        ([1.0, np.nan], {}, "finite"),
        ([0.0, 0.0], {}, "not all 0"),
        ([1.0], {"clipping_norm": -1.0}, "clipping_norm is -1"),
        ([1.0], {"floor": 0.0}, "floor is 0"),
    ],
)
def test_what_gives_no_clipping_norms_is_named(norms, options, message):
    with pytest.raises(ValueError, match=message):
        jaxdp.scale_norms(np.array(norms), **options)


def test_gradients_that_are_not_finite_are_left_out():
    measure = jaxdp.public_norms(lambda w, x: jnp.sum(w * x), jaxdp.clip_layerwise(1.0))
    x = np.array([[3.0, 4.0], [np.inf, 0.0], [0.0, 1.0]], np.float32)
    np.testing.assert_allclose(measure(jnp.ones(2), [((x,), None)]), [3.0], rtol=1e-5)
    with pytest.raises(ValueError, match="no public gradient is finite"):
        measure(jnp.ones(2), [((x[1:2],), None)])


def test_the_copy_is_trained_and_the_original_is_not():
    params = jax.tree.map(jnp.asarray, P.params)
    before = jax.tree.map(np.array, params)
    unit_loss = jaxdp.mean_loss(loss)
    mask = np.ones(12, bool)
    copy = jaxdp.pretrained_copy(
        unit_loss, params, [(P.batch, mask)] * 20, optimizer=optax.adam(0.05)
    )
    jax.tree.map(np.testing.assert_array_equal, params, before)
    assert unit_loss(copy, *P.batch, mask) < 0.5 * unit_loss(params, *P.batch, mask)


def test_refreshed_clipping_norms_move_the_noise_and_keep_the_noise_multiplier():
    """By hand, as the documentation shows it: no step is compiled again."""
    clip = jaxdp.clip_layerwise(1.0)
    plan = jaxdp.Plan(
        num_examples=1000, expected_batch_size=100, steps=9, clipping=clip, noise_multiplier=1.5
    )
    params = {"a": jnp.zeros(40_000), "b": jnp.zeros(60_000)}
    tx = jaxdp.privatize(plan, key=jax.random.key(0))
    measure = jaxdp.public_norms(lambda p, x: p["a"][0] * x + 4 * p["b"][0] * x, clip)
    public = [((np.array([0.5, 1.5], np.float32),), None)]
    nothing = from_dense(jax.tree.map(lambda p: p[None], params), np.zeros(1, bool))
    step = jax.jit(lambda state: tx.update(nothing, state))
    state = tx.init(params)
    for epoch in range(3):
        clipping_norms = jaxdp.scale_norms(measure(params, public), 0.2 * 0.9**epoch)
        np.testing.assert_allclose(
            clipping_norms, 0.2 * 0.9**epoch * np.array([0.25, 1]), rtol=1e-4
        )
        state = optax.tree.set(state, clipping_norms=jnp.asarray(clipping_norms))
        mean, state = step(state)
        stds = np.array([100 * np.std(mean[name]) for name in params])
        np.testing.assert_allclose(np.sum((clipping_norms / stds) ** 2) ** -0.5, 1.5, rtol=0.01)
    assert step._cache_size() == 1
