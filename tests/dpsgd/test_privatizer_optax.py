"""What may stand before, around and after `privatize` in an Optax chain (privacy rule 3)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.problems import flat64, loss, random_problem
from helpers.releases import PARAMS, make_plan, zero_gradients

import jaxdp

# What stands before or around privatize and would mix or rescale examples.
BEFORE = {
    "scale": optax.scale(2.0),
    "clip": optax.clip(1.0),
    "clip_by_global_norm": optax.clip_by_global_norm(1.0),
    "per_example_clip": optax.contrib.differentially_private_aggregate(1.0, 1.0, key=0),
    "ema": optax.ema(0.9),
    "trace": optax.trace(0.9),
    "scale_by_adam": optax.scale_by_adam(),
    "adam": optax.adam(1e-3),
    "add_noise": optax.add_noise(0.1, 0.5, key=0),
    "weight_decay": optax.add_decayed_weights(0.1),
    "zero_nans": optax.zero_nans(),
    "centralize": optax.centralize(),
    "set_to_zero": optax.set_to_zero(),
    "apply_every": optax.apply_every(2),
    "masked": optax.masked(optax.scale(2.0), lambda p: jax.tree.map(lambda _: True, p)),
    "freeze": optax.transforms.freeze({"a": True, "b": False}),
    "schedule": optax.scale_by_schedule(lambda step: 0.5),
    "normalize": optax.normalize_by_update_norm(),
}
AROUND = {
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "masked": lambda tx: optax.masked(tx, {"a": True, "b": False}),
    "partition": lambda tx: optax.partition({"x": tx, "y": optax.sgd(1.0)}, {"a": "x", "b": "y"}),
    "flatten": optax.flatten,
    "skip": lambda tx: optax.conditionally_transform(
        optax.scale(2.0), lambda step, **extra: step >= 0
    ),
}


@pytest.mark.parametrize("name", BEFORE)
def test_what_rescales_examples_before_privatize_fails_loudly(name):
    tx = optax.chain(BEFORE[name], jaxdp.privatize(make_plan()))
    state = tx.init(PARAMS)
    with pytest.raises((TypeError, ValueError, AttributeError)):
        tx.update(zero_gradients(), state, PARAMS)


def test_the_reason_comes_with_a_missing_attribute_too():
    tx = optax.chain(optax.clip_by_global_norm(1.0), jaxdp.privatize(make_plan()))
    with pytest.raises(AttributeError, match=r"held lazily.*first in the optax\.chain"):
        tx.update(zero_gradients(), tx.init(PARAMS), PARAMS)


@pytest.mark.parametrize("name", AROUND)
def test_what_mixes_examples_around_privatize_fails_loudly(name):
    tx = AROUND[name](jaxdp.privatize(make_plan()))
    state = tx.init(PARAMS)
    with pytest.raises((TypeError, ValueError, AttributeError)):
        tx.update(zero_gradients(), state, PARAMS)


def test_clipping_norms_can_not_be_injected():
    with pytest.raises(TypeError, match="can't be injected"):
        optax.inject_hyperparams(jaxdp.clip_individual)(clipping_norm=1.0).init(PARAMS)


AFTER = {
    "masked": lambda: optax.masked(optax.sgd(0.1), {"a": True, "b": False}),
    "partition": lambda: optax.partition(
        {"x": optax.sgd(0.1), "y": optax.set_to_zero()}, {"a": "x", "b": "y"}
    ),
    "ema": lambda: optax.ema(0.9),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.sgd)(learning_rate=0.1),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.sgd(0.1), 3),
    "MultiSteps": lambda: optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation(),
    "adamw": lambda: optax.adamw(1e-3),
}


@pytest.mark.parametrize("name", AFTER)
def test_optax_works_after_privatize(name):
    plan = make_plan()
    tx = optax.chain(jaxdp.privatize(plan, key=jax.random.key(0)), AFTER[name]())
    step = jax.jit(lambda s: tx.update(zero_gradients(), s, PARAMS))
    state = tx.init(PARAMS)
    for _ in range(4):
        updates, state = step(state)
    assert np.isfinite(flat64(updates)).all()
    assert plan.epsilon_spent(state) == plan.epsilon(steps=4)


CHAINS = {
    "nested": lambda tx: optax.chain(optax.chain(tx, optax.scale(2.0)), optax.sgd(0.1)),
    "named": lambda tx: optax.named_chain(("private", tx), ("later", optax.adam(0.1))),
    "extra_args": lambda tx: optax.chain(tx, optax.sgd(0.1), optax.contrib.reduce_on_plateau()),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHAINS)
def test_chains_of_every_form_take_privatize_and_hand_on_their_arguments(name):
    plan = make_plan()
    tx = optax.with_extra_args_support(CHAINS[name](jaxdp.privatize(plan, key=jax.random.key(0))))
    step = jax.jit(lambda s: tx.update(zero_gradients(), s, PARAMS, value=jnp.float32(1)))
    state = tx.init(PARAMS)
    for _ in range(2):
        updates, state = step(state)
    assert flat64(updates).all()
    assert plan.epsilon_spent(state) == plan.epsilon(steps=2)


def test_apply_if_finite_does_not_rewind_the_noise():
    plan = make_plan()
    refusing = optax.apply_if_finite(optax.scale(float("nan")), 10)
    tx = optax.chain(jaxdp.privatize(plan, key=jax.random.key(0)), refusing)
    state = tx.init(PARAMS)
    for _ in range(3):
        _, state = tx.update(zero_gradients(), state, PARAMS)
    assert state[0].privatize_step == 3


def test_no_clipping_and_no_noise_is_plain_training():
    p = random_problem(2, size=10)
    plan = make_plan(jaxdp.clip_individual(np.inf), 0, expected_batch_size=10)
    chains = {
        "private": optax.chain(jaxdp.privatize(plan), optax.adam(1e-2)),
        "plain": optax.adam(1e-2),
    }
    mean = lambda q: jnp.mean(jax.vmap(loss, (None, 0, 0))(q, *p.batch))
    results = []
    for name, tx in chains.items():
        lazy = jaxdp.per_example_grads(loss, microbatch_size=5)
        grads = (
            (lambda q: lazy(q, p.batch, jaxdp.all_rows(10)))
            if name == "private"
            else jax.grad(mean)
        )

        @jax.jit
        def step(params, state, tx=tx, grads=grads):
            updates, state = tx.update(grads(params), state, params)
            return optax.apply_updates(params, updates), state

        params, state = p.params, tx.init(p.params)
        for _ in range(20):
            params, state = step(params, state)
        results.append(flat64(params))
    np.testing.assert_allclose(*results, rtol=1e-3, atol=1e-4)


def test_a_donated_state_leaves_the_transformation_usable():
    key = jax.random.key(0)
    tx = jaxdp.privatize(make_plan(), key=key)
    step = jax.jit(lambda s: tx.update(zero_gradients(), s)[1], donate_argnums=0)
    for _ in range(2):
        step(step(tx.init(PARAMS)))
    jax.random.key_data(key)
