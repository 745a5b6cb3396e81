"""The release: noise, divisor, steps, dtypes (privacy rules 3, 5, 7 and 8)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.dense import from_dense
from helpers.problems import flat64, loss, random_problem
from helpers.releases import PARAMS, make_plan, zero_gradients

import jaxdp


def test_the_divisor_is_the_expected_batch_size():
    plan = make_plan(jaxdp.clip_individual(1e6), 0.0, expected_batch_size=10)
    tx = jaxdp.privatize(plan)
    p = random_problem(0, size=8)
    grads = jaxdp.per_example_grads(loss)(p.params, p.batch, np.sort(p.mask)[::-1])
    got, _ = tx.update(grads, tx.init(p.params), p.params)
    total, _ = plan.clipping.update(grads, plan.clipping.init(p.params))
    np.testing.assert_allclose(flat64(got), flat64(total) / 10, rtol=1e-6)


def test_the_divisor_is_the_same_for_every_sample():
    """With the noise taken off, the release is the clipped sum over one constant."""
    plan = make_plan(jaxdp.clip_individual(1.0), noise_multiplier=1.0, expected_batch_size=10)
    tx = jaxdp.privatize(plan, key=jax.random.key(0))
    p = random_problem(0, size=8)
    state = tx.init(p.params)
    grads = jaxdp.per_example_grads(loss)
    release = lambda count: flat64(
        tx.update(grads(p.params, p.batch, np.arange(8) < count), state, p.params)[0]
    )
    noise = release(0)
    for count in (1, 3, 8):
        made = grads(p.params, p.batch, np.arange(8) < count)
        total, _ = plan.clipping.update(made, plan.clipping.init(p.params))
        np.testing.assert_allclose(release(count) - noise, flat64(total) / 10, atol=1e-6)


def test_an_empty_batch_is_a_step_with_noise():
    tx = jaxdp.privatize(make_plan(), key=jax.random.key(0))
    p = random_problem(0)
    grads = jaxdp.per_example_grads(loss)(p.params, p.batch, np.zeros(6, bool))
    state = tx.init(p.params)
    mean, after = tx.update(grads, state, p.params)
    assert np.all(flat64(mean) != 0)
    assert after.privatize_step == state.privatize_step + 1
    assert make_plan().epsilon_spent(after) == make_plan().epsilon(steps=1)


def test_release_wants_sums():
    tx = jaxdp.privatize(make_plan())
    with pytest.raises(TypeError, match="sums"):
        tx.release(PARAMS, tx.init(PARAMS))
    with pytest.raises(TypeError, match="already summed"):
        tx.update(PARAMS, tx.init(PARAMS))
    with pytest.raises(TypeError, match=r"jaxdp\.Plan"):
        jaxdp.privatize(1.0)


def test_clipping_norms_that_changed_between_sums_and_release_release_nothing():
    tx = jaxdp.privatize(make_plan(jaxdp.clip_individual(1.0)), key=jax.random.key(0))
    state = tx.init(PARAMS)
    sums = tx.sums(zero_gradients(), state)
    changed = [optax.tree.set(state, clipping_norms=jnp.full(1, c)) for c in (1e-3, 0.5, 1.5)]
    assert np.isnan(flat64(tx.release(sums, changed[0])[0])).all()
    part = lambda i, state: tx.sums(zero_gradients(), state, part=(i, 2))
    mixed = part(0, changed[0]) + part(1, state)
    assert np.isnan(flat64(tx.release(mixed, state)[0])).all()
    # The norms of the parts average to the state's.
    averaged = part(0, changed[1]) + part(1, changed[2])
    assert np.isnan(flat64(tx.release(averaged, state)[0])).all()
    assert np.isfinite(flat64(tx.release(part(0, state) + part(1, state), state)[0])).all()


def test_clipping_norms_in_the_state_must_have_one_number_per_group():
    tx = jaxdp.privatize(make_plan(jaxdp.clip_layerwise(1.0)))
    state = optax.tree.set(tx.init(PARAMS), clipping_norms=jnp.ones(1))
    with pytest.raises(ValueError, match=r"shape \(1,\): there are 2 groups \(a, b\)"):
        tx.update(zero_gradients(), state)
    # Too small to resolve: raised, so that the noise is not zero.
    tx = jaxdp.privatize(make_plan(), allocation="isotropic")
    tiny = optax.tree.set(tx.init(PARAMS), clipping_norms=jnp.full(1, 1e-25))
    assert flat64(tx.update(zero_gradients(), tiny)[0]).all()


def test_released_gradients_have_the_parameters_dtype():
    params = {"w": jnp.zeros(3, jnp.bfloat16), "v": jnp.zeros(2)}
    grads = from_dense(jax.tree.map(lambda p: jnp.zeros((4, *p.shape), p.dtype), params))
    tx = jaxdp.privatize(make_plan())
    state = tx.init(params)
    mean, _ = tx.update(grads, state, params)
    assert jax.tree.map(lambda m: m.dtype, mean) == jax.tree.map(lambda p: p.dtype, params)
    wide, _ = tx.update(grads, state)
    assert {leaf.dtype for leaf in jax.tree.leaves(wide)} == {jnp.dtype("float32")}


def test_matrix_products_behind_norms_and_sums_run_at_full_precision():
    # On CPUs every precision gives the same numbers, so this reads the program instead.
    def loss(params, x):
        return jnp.sum(jnp.tanh(x @ params))

    tx = jaxdp.privatize(make_plan())
    state = tx.init(jnp.zeros((8, 6)))

    def sums(params, x, method):
        mask = jaxdp.all_rows(len(x))
        grads = jaxdp.per_example_grads(loss, method=method)(params, (x,), mask)
        return tx.sums(grads, state)

    for shape in ((5, 8), (5, 3, 8), (5, 400, 8)):
        for method in ("vmap", "factored"):
            text = str(
                jax.make_jaxpr(sums, static_argnums=2)(jnp.zeros((8, 6)), jnp.ones(shape), method)
            )
            products = text.count("dot_general[")
            # The loss's own product and, under vmap, its gradient's run at the user's precision.
            own = 2
            assert text.count("Precision.HIGHEST") // 2 >= products - own > 0


@pytest.mark.parametrize("key", [None, jax.random.key(0), jax.random.key(2**31 - 1, impl="rbg")])
def test_the_key_is_not_printed(key):
    plan = make_plan()
    tx = jaxdp.privatize(plan, key=key)
    shown = f"Privatizer(plan={plan!r}, allocation='proportional', key_bits={tx.key_bits})"
    assert repr(tx) == str(tx) == shown
    for word in [] if key is None else jax.random.key_data(tx.key).tolist():
        assert str(word) not in repr(tx)


def test_a_privatizer_is_frozen():
    tx = jaxdp.privatize(make_plan())
    with pytest.raises(dataclasses.FrozenInstanceError):
        tx.plan = make_plan(noise_multiplier=0.0)


CLIPPINGS = {
    "flat": (jaxdp.clip_individual(0.5), "proportional"),
    "layerwise": (jaxdp.clip_layerwise({"a": 0.2, "b": 1.0}), "proportional"),
    "isotropic": (jaxdp.clip_layerwise({"a": 0.2, "b": 1.0}), "isotropic"),
    "dimension": (jaxdp.clip_layerwise({"a": 0.2, "b": 1.0}), "dimension"),
    "frozen": (jaxdp.clip_layerwise({"a": 0.0, "b": 1.0}), "proportional"),
    "quantile": (jaxdp.clip_quantile(0.5, count_std=10.0), "proportional"),
    "units": (jaxdp.clip_batch(0.5), "proportional"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CLIPPINGS)
def test_strength_is_of_the_clipped_mean_and_of_the_noise_that_is_added(name):
    clipping, allocation = CLIPPINGS[name]
    plan = make_plan(
        clipping,
        noise_multiplier=lambda step: 1.0 if step == 0 else 2.0,
        expected_batch_size=20,
        num_units=3 if clipping.unit == "batch" else None,
    )
    params = {"a": jnp.zeros((200, 200)), "b": jnp.zeros(30_000)}
    key = jax.random.key(0)
    grads = jax.tree.map(lambda p: jax.random.normal(key, (3, *p.shape)) * 0.01, params)
    tx = jaxdp.privatize(plan, allocation=allocation)
    state = tx.init(params)

    @jax.jit
    def step(grads, state):
        make = lambda: from_dense(grads, unit=clipping.unit)
        clipped, _ = clipping.update(make(), state.clipping)
        return clipped, tx.strength(tx.sums(make(), state), state), tx.update(make(), state, params)

    for _ in range(2):  # the noise follows the schedule, and the clipping norms
        clipped, found, (released, state) = step(grads, state)
        clipped = flat64(clipped) / plan.divisor
        assert found.clipped_mean_norm == pytest.approx(np.linalg.norm(clipped), rel=1e-4)
        noise = np.linalg.norm(flat64(released) - clipped)
        assert found.noise_norm == pytest.approx(noise, rel=0.02)  # of 30,000 numbers or more


def test_without_noise_the_strength_of_the_noise_is_zero():
    plan = make_plan(jaxdp.clip_individual(np.inf), 0)
    tx = jaxdp.privatize(plan)
    state = tx.init(jnp.zeros(2))
    found = tx.strength(tx.sums(from_dense(jnp.ones((1, 2))), state), state)
    assert found.noise_norm == 0
