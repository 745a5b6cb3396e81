"""The release: noise, divisor, steps, keys, and what may stand around it in an Optax chain."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import flat64, loss, random_problem
from scipy.stats import chi2, kstest, norm

import jaxdp
from jaxdp.dpsgd import keys
from jaxdp.dpsgd.noise import noise_stds

FALSE_ALARM = 1e-6  # of each statistical test here; keys are fixed, so a pass stays a pass
PARAMS = {"a": jnp.zeros((40, 50)), "b": jnp.zeros(3000)}


def make_plan(bound=2.0, noise_multiplier=1.5, expected_batch_size=10, **changes):
    return jaxdp.Plan(
        num_examples=100,
        expected_batch_size=expected_batch_size,
        steps=50,
        clipping=jaxdp.clip_individual(bound),
        noise_multiplier=noise_multiplier,
        **changes,
    )


def zero_gradients(size=4):
    return jaxdp.from_dense(jax.tree.map(lambda p: jnp.zeros((size, *p.shape)), PARAMS))


def releases(plan, key, steps):
    """The released means of the first steps for gradients that are all zero: noise alone."""
    tx = jaxdp.privatize(plan, key=key)
    state = tx.init(PARAMS)
    step = jax.jit(lambda s: tx.update(zero_gradients(), s))
    out = []
    for _ in range(steps):
        mean, state = step(state)
        out.append(mean)
    return out


@pytest.mark.parametrize("adjacency", ["add_remove", "zero_out", "replace_one"])
def test_noise_has_the_stated_size_and_shape(adjacency):
    plan = make_plan(adjacency=adjacency)
    std = 1.5 * plan.clipping.sensitivity(adjacency) / 10
    noise = np.concatenate([flat64(mean) for mean in releases(plan, jax.random.key(0), 10)])
    n = noise.size
    assert abs(noise.mean()) <= norm.isf(FALSE_ALARM / 2) * std / np.sqrt(n)
    low, high = chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], n)
    # The stated slack raises the noise, so the upper end moves with it.
    assert low <= np.sum((noise / std) ** 2) <= high * (1 + plan.rounding_slack) ** 2
    assert kstest(noise / std, "norm").pvalue > FALSE_ALARM


def test_noise_is_independent_across_leaves_steps_and_runs():
    draws = [
        np.asarray(leaf).ravel()[:2000]
        for seed in range(3)
        for mean in releases(make_plan(), jax.random.key(seed), 3)
        for leaf in jax.tree.leaves(mean)
    ]
    correlations = np.corrcoef(draws)[np.triu_indices(len(draws), 1)]
    assert chi2.sf(2000 * np.sum(correlations**2), len(correlations)) > FALSE_ALARM
    assert np.abs(correlations).max() <= norm.isf(FALSE_ALARM / 2 / len(correlations)) / np.sqrt(
        2000
    )


def test_runs_without_a_seed_share_no_noise_and_seeded_runs_repeat():
    tx = jaxdp.privatize(make_plan())
    first, second = (jax.random.key_data(tx.init(PARAMS).privatize_key) for _ in range(2))
    assert not np.array_equal(first, second)
    runs = [releases(make_plan(), jax.random.key(7), 2) for _ in range(2)]
    np.testing.assert_array_equal(flat64(runs[0]), flat64(runs[1]))


def test_the_noise_key_is_not_the_given_key_itself():
    # A user who also initialises the model from this key must not publish the noise by it.
    key = jax.random.key(0)
    state = jaxdp.privatize(make_plan(), key=key).init(PARAMS)
    assert not np.array_equal(jax.random.key_data(state.privatize_key), jax.random.key_data(key))


def test_the_divisor_is_the_expected_batch_size():
    plan = make_plan(bound=1e6, noise_multiplier=0.0, expected_batch_size=10)
    tx = jaxdp.privatize(plan)
    p = random_problem(0, size=8)
    grads = jaxdp.per_example_grads(loss)(p.params, p.batch, p.mask)
    got, _ = tx.update(grads, tx.init(p.params), p.params)
    total, _ = plan.clipping.update(grads, plan.clipping.init(p.params))
    np.testing.assert_allclose(flat64(got), flat64(total) / 10, rtol=1e-6)


def test_an_empty_batch_is_a_step_with_noise():
    tx = jaxdp.privatize(make_plan(), key=jax.random.key(0))
    p = random_problem(0)
    grads = jaxdp.per_example_grads(loss)(p.params, p.batch, np.zeros(6, bool))
    state = tx.init(p.params)
    mean, after = tx.update(grads, state, p.params)
    assert np.all(flat64(mean) != 0)
    assert after.privatize_step == state.privatize_step + 1
    assert make_plan().epsilon_spent(after) == make_plan().epsilon(steps=1)


def test_noise_follows_a_bound_replaced_in_the_state():
    plan = make_plan(bound=1.0)
    tx = jaxdp.privatize(plan, key=jax.random.key(0))
    state = tx.init(PARAMS)
    small, _ = tx.update(zero_gradients(), state)
    large, _ = tx.update(zero_gradients(), optax.tree.set(state, clipping_bounds=jnp.full(1, 4.0)))
    np.testing.assert_allclose(flat64(large), 4 * flat64(small), rtol=1e-5)


def test_sums_of_parts_add_up_to_the_batch():
    p = random_problem(1, size=10)
    tx = jaxdp.privatize(make_plan(bound=0.5), key=jax.random.key(0))
    state = tx.init(p.params)
    transform = jaxdp.per_example_grads(loss)
    whole = tx.sums(transform(p.params, p.batch, p.mask), state)
    part = lambda rows: tx.sums(
        transform(p.params, jax.tree.map(lambda leaf: leaf[rows], p.batch), p.mask[rows]), state
    )
    parts = part(slice(0, 4)) + part(slice(4, 10))
    facts = lambda sums: flat64((sums.gradient, sums.counts, sums.diagnostics))
    np.testing.assert_allclose(facts(parts), facts(whole), rtol=1e-4, atol=1e-5)
    released, _ = tx.release(parts, state, p.params)
    updated, _ = tx.update(transform(p.params, p.batch, p.mask), state, p.params)
    np.testing.assert_allclose(flat64(released), flat64(updated), rtol=1e-4, atol=1e-5)


def test_diagnostics_describe_the_batch():
    grads = jnp.array([[3.0, 4.0], [0.3, 0.4], [jnp.inf, 0.0], [30.0, 40.0]])
    mask = np.array([True, True, True, False])
    tx = jaxdp.privatize(make_plan(bound=1.0))
    found = tx.sums(jaxdp.from_dense(grads, mask), tx.init(grads[0])).diagnostics
    assert (found.count, found.clipped, found.nonfinite) == (3, 1, 1)
    edges = jaxdp.NORM_BIN_EDGES
    occupied = np.flatnonzero(found.norm_histogram)
    assert [edges[i - 1] < want <= edges[i] for i, want in zip(occupied, (0.5, 5.0), strict=True)]


CLIPPINGS = {
    "flat": (jaxdp.clip_individual(0.5), "proportional"),
    "layerwise": (jaxdp.clip_layerwise({"a": 0.2, "b": 1.0}), "proportional"),
    "isotropic": (jaxdp.clip_layerwise({"a": 0.2, "b": 1.0}), "isotropic"),
    "dimension": (jaxdp.clip_layerwise({"a": 0.2, "b": 1.0}), "dimension"),
    "frozen": (jaxdp.clip_layerwise({"a": 0.0, "b": 1.0}), "proportional"),
    "quantile": (jaxdp.clip_quantile(0.5, count_std=10.0), "proportional"),
    "units": (jaxdp.clip_batch(0.5), "proportional"),
}


@pytest.mark.parametrize("name", CLIPPINGS)
def test_strength_is_of_the_clipped_mean_and_of_the_noise_that_is_added(name):
    clipping, allocation = CLIPPINGS[name]
    plan = jaxdp.Plan(
        num_examples=1000,
        expected_batch_size=20,
        steps=10,
        clipping=clipping,
        num_units=3 if clipping.unit == "batch" else None,
        noise_multiplier=lambda step: 1.0 if step == 0 else 2.0,
    )
    params = {"a": jnp.zeros((200, 200)), "b": jnp.zeros(30_000)}
    key = jax.random.key(0)
    grads = jax.tree.map(lambda p: jax.random.normal(key, (3, *p.shape)) * 0.01, params)
    tx = jaxdp.privatize(plan, allocation=allocation)
    state = tx.init(params)

    @jax.jit
    def step(grads, state):
        make = lambda: jaxdp.from_dense(grads, unit=clipping.unit)
        clipped, _ = clipping.update(make(), state.clipping)
        return clipped, tx.strength(tx.sums(make(), state), state), tx.update(make(), state, params)

    for _ in range(2):  # the noise follows the schedule, and the bounds
        clipped, found, (released, state) = step(grads, state)
        clipped = flat64(clipped) / plan.divisor
        assert found.clipped_mean_norm == pytest.approx(np.linalg.norm(clipped), rel=1e-4)
        noise = np.linalg.norm(flat64(released) - clipped)
        assert found.noise_norm == pytest.approx(noise, rel=0.02)  # of 30,000 numbers or more


def test_without_noise_the_strength_of_the_noise_is_zero():
    plan = make_plan(bound=np.inf, noise_multiplier=0)
    tx = jaxdp.privatize(plan)
    state = tx.init(jnp.zeros(2))
    found = tx.strength(tx.sums(jaxdp.from_dense(jnp.ones((1, 2))), state), state)
    assert found.noise_norm == 0


def test_no_clipping_and_no_noise_is_plain_training():
    p = random_problem(2, size=10)
    plan = make_plan(bound=np.inf, noise_multiplier=0)
    chains = {
        "private": optax.chain(jaxdp.privatize(plan), optax.adam(1e-2)),
        "plain": optax.adam(1e-2),
    }
    mean = lambda q: jnp.mean(jax.vmap(loss, (None, 0, 0))(q, *p.batch))
    results = []
    for name, tx in chains.items():
        lazy = jaxdp.per_example_grads(loss, microbatch_size=5)
        grads = (lambda q: lazy(q, p.batch)) if name == "private" else jax.grad(mean)

        @jax.jit
        def step(params, state, tx=tx, grads=grads):
            updates, state = tx.update(grads(params), state, params)
            return optax.apply_updates(params, updates), state

        params, state = p.params, tx.init(p.params)
        for _ in range(20):
            params, state = step(params, state)
        results.append(flat64(params))
    np.testing.assert_allclose(*results, rtol=1e-3, atol=1e-4)


def test_released_gradients_have_the_parameters_dtype():
    params = {"w": jnp.zeros(3, jnp.bfloat16), "v": jnp.zeros(2)}
    grads = jaxdp.from_dense(jax.tree.map(lambda p: jnp.zeros((4, *p.shape), p.dtype), params))
    tx = jaxdp.privatize(make_plan())
    state = tx.init(params)
    mean, _ = tx.update(grads, state, params)
    assert jax.tree.map(lambda m: m.dtype, mean) == jax.tree.map(lambda p: p.dtype, params)
    wide, _ = tx.update(grads, state)
    assert {leaf.dtype for leaf in jax.tree.leaves(wide)} == {jnp.dtype("float32")}


def test_a_donated_state_leaves_the_transformation_usable():
    key = jax.random.key(0)
    tx = jaxdp.privatize(make_plan(), key=key)
    step = jax.jit(lambda s: tx.update(zero_gradients(), s)[1], donate_argnums=0)
    for _ in range(2):
        step(step(tx.init(PARAMS)))
    jax.random.key_data(key)


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
    with pytest.raises((TypeError, ValueError, AttributeError)):
        tx.update(zero_gradients(), tx.init(PARAMS), PARAMS)


@pytest.mark.parametrize("name", AROUND)
def test_what_mixes_examples_around_privatize_fails_loudly(name):
    tx = AROUND[name](jaxdp.privatize(make_plan()))
    with pytest.raises((TypeError, ValueError, AttributeError)):
        tx.update(zero_gradients(), tx.init(PARAMS), PARAMS)


def test_bounds_and_noise_can_not_be_injected():
    with pytest.raises(TypeError, match="can't be injected"):
        optax.inject_hyperparams(jaxdp.clip_individual)(bound=1.0).init(PARAMS)


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


def test_apply_if_finite_does_not_rewind_the_noise():
    plan = make_plan()
    refusing = optax.apply_if_finite(optax.scale(float("nan")), 10)
    tx = optax.chain(jaxdp.privatize(plan, key=jax.random.key(0)), refusing)
    state = tx.init(PARAMS)
    for _ in range(3):
        _, state = tx.update(zero_gradients(), state, PARAMS)
    assert state[0].privatize_step == 3


def test_init_refuses_to_make_its_secret_a_constant_of_jit_or_vmap():
    tx = jaxdp.privatize(make_plan())
    for traced in (lambda: jax.jit(tx.init)(PARAMS), lambda: jax.vmap(tx.init)(PARAMS_OF_TWO)):
        with pytest.raises(ValueError, match="Call init outside"):
            traced()


PARAMS_OF_TWO = jax.tree.map(lambda p: jnp.stack([p, p]), PARAMS)


def test_vmapped_members_never_share_noise():
    plan = make_plan()
    tx = jaxdp.privatize(plan)
    one = tx.init(PARAMS)
    grads = lambda p: jaxdp.from_dense(jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), p))
    shared = jax.vmap(jax.jit(lambda p, s: tx.update(grads(p), s, p)[0]), (0, None))
    with pytest.raises(ValueError, match="share their noise"):
        shared(PARAMS_OF_TWO, one)
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), one, tx.init(PARAMS))
    own = jax.vmap(jax.jit(lambda p, s: tx.update(grads(p), s, p)[0]))
    a, b = (flat64(jax.tree.map(lambda m: m[i], own(PARAMS_OF_TWO, states))) for i in range(2))
    assert abs(np.corrcoef(a, b)[0, 1]) <= norm.isf(FALSE_ALARM / 2) / np.sqrt(a.size)


def test_release_wants_sums():
    tx = jaxdp.privatize(make_plan())
    with pytest.raises(TypeError, match="sums"):
        tx.release(PARAMS, tx.init(PARAMS))
    with pytest.raises(TypeError, match="already summed"):
        tx.update(PARAMS, tx.init(PARAMS))
    with pytest.raises(TypeError, match=r"jaxdp\.Plan"):
        jaxdp.privatize(1.0)


def test_bounds_that_changed_between_sums_and_release_release_nothing():
    tx = jaxdp.privatize(make_plan(bound=1.0), key=jax.random.key(0))
    state = tx.init(PARAMS)
    sums = tx.sums(zero_gradients(), state)
    lowered = optax.tree.set(state, clipping_bounds=jnp.full(1, 1e-3))
    assert np.isnan(flat64(tx.release(sums, lowered)[0])).all()
    mixed = sums + tx.sums(zero_gradients(), lowered)
    assert np.isnan(flat64(tx.release(mixed, state)[0])).all()
    assert np.isfinite(flat64(tx.release(sums + sums, state)[0])).all()


def test_bounds_in_the_state_must_have_one_number_per_group():
    plan = make_plan()
    layered = jaxdp.Plan(
        num_examples=100,
        expected_batch_size=10,
        steps=5,
        clipping=jaxdp.clip_layerwise(1.0),
        noise_multiplier=1.0,
    )
    tx = jaxdp.privatize(layered)
    state = optax.tree.set(tx.init(PARAMS), clipping_bounds=jnp.ones(1))
    with pytest.raises(ValueError, match=r"shape \(1,\): there are 2 groups \(a, b\)"):
        tx.update(zero_gradients(), state)
    # Too small to resolve: raised, so that the noise is not zero.
    tx = jaxdp.privatize(plan, allocation="isotropic")
    tiny = optax.tree.set(tx.init(PARAMS), clipping_bounds=jnp.full(1, 1e-25))
    assert flat64(tx.update(zero_gradients(), tiny)[0]).all()


def test_init_shares_no_key_between_vmapped_members():
    given = jaxdp.privatize(make_plan(), key=jax.random.key(0))
    drawn = jaxdp.privatize(make_plan())
    shared = [
        lambda: jax.vmap(given.init)(PARAMS_OF_TWO),
        lambda: jax.vmap(jax.jit(given.init))(PARAMS_OF_TWO),
        lambda: jax.vmap(lambda _: given.init(PARAMS))(jnp.arange(2)),
        lambda: jax.vmap(lambda _: drawn.init(PARAMS))(jnp.arange(2)),
        lambda: jax.jit(lambda: drawn.init(PARAMS))(),
    ]
    for attempt in shared:
        with pytest.raises(ValueError, match=r"Call init outside|made outside"):
            attempt()
    own = jax.vmap(lambda key, p: jaxdp.privatize(make_plan(), key=key).init(p))(
        jax.random.split(jax.random.key(1), 2), PARAMS_OF_TWO
    )
    assert not np.array_equal(*jax.random.key_data(own.privatize_key))
    jax.jit(given.init)(PARAMS)  # one run, whose key is given


def test_noise_and_other_streams_of_one_key_are_apart():
    key = jax.random.key(0)
    state = jaxdp.privatize(make_plan(), key=key).init(PARAMS)
    names = ("noise", "init", "augmentation", "sampling", "units")
    streams = {name: jax.random.key_data(keys.stream(key, name)).tobytes() for name in names}
    assert len(set(streams.values())) == len(names)
    assert jax.random.key_data(state.privatize_key).tobytes() == streams["noise"]
    philox = {name: keys.philox_key(key, name).tobytes() for name in names}
    assert len(set(philox.values())) == len(names)


def test_the_rounding_slack_is_added_to_the_noise():
    plan = jaxdp.Plan(
        num_examples=200_000,
        expected_batch_size=100_000,
        steps=1,
        clipping=jaxdp.clip_individual(1.0),
        noise_multiplier=1.0,
    )
    assert plan.rounding_slack > 0.02
    groups = plan.clipping.groups(PARAMS)
    std = noise_stds(plan, groups, jnp.ones(1))
    np.testing.assert_allclose(std, 1 + plan.rounding_slack, rtol=1e-6)


def test_matrix_products_behind_norms_and_sums_run_at_full_precision():
    # On CPUs every precision gives the same numbers, so this reads the program instead.
    def loss(params, x):
        return jnp.sum(jnp.tanh(x @ params))

    tx = jaxdp.privatize(make_plan())
    state = tx.init(jnp.zeros((8, 6)))

    def sums(params, x, method):
        grads = jaxdp.per_example_grads(loss, method=method)(params, (x,))
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


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_keys_of_every_kind_draw_noise(impl):
    runs = [releases(make_plan(), jax.random.key(3, impl=impl), 2) for _ in range(2)]
    np.testing.assert_array_equal(flat64(runs[0]), flat64(runs[1]))
    assert flat64(runs).all()
    assert str(jax.random.key_impl(jaxdp.secret_key())) == "threefry2x32"


def test_the_reason_comes_with_a_missing_attribute_too():
    tx = optax.chain(optax.clip_by_global_norm(1.0), jaxdp.privatize(make_plan()))
    with pytest.raises(AttributeError, match=r"held lazily.*first in the optax\.chain"):
        tx.update(zero_gradients(), tx.init(PARAMS), PARAMS)
