"""What each clipping does, and which numbers it refuses (privacy rules 2, 4 and 5)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.dense import from_dense
from helpers.problems import flat64, loss, random_problem
from helpers.releases import make_plan, releases

import jaxdp


def test_one_group_is_flat_clipping_and_layers_are_clipped_apart():
    p = random_problem(0)
    grads = jaxdp.per_example_grads(loss)(p.params, p.batch)
    result = lambda clip: flat64(clip.update(grads, clip.init(p.params))[0])
    flat = result(jaxdp.clip_individual(0.5))
    np.testing.assert_allclose(result(jaxdp.clip_layerwise({"*": 0.5})), flat, rtol=1e-5)
    dense = grads.materialize()
    norm = lambda g: np.sqrt(np.square(g.reshape(len(g), -1)).sum(1))
    layered = jaxdp.clip_layerwise(0.5)
    for name, got in layered.update(grads, layered.init(p.params))[0].items():
        want = np.einsum("b,b...->...", np.minimum(1, 0.5 / norm(dense[name])), dense[name])
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_layerwise_with_all_mass_in_one_layer_and_with_zero_gradients():
    grads = {"a": np.array([[3.0, 4.0], [0.0, 0.0]], np.float32), "b": np.zeros((2, 3), np.float32)}
    clip = jaxdp.clip_layerwise({"a": 1.0, "b": 1.0})
    total, _ = clip.update(from_dense(grads), clip.init(jax.tree.map(lambda g: g[0], grads)))
    np.testing.assert_allclose(total["a"], [0.6, 0.8], rtol=1e-5)
    assert not total["b"].any()


@pytest.mark.parametrize("unit", ["example", "batch"])
def test_normalised_clipping(unit):
    grads = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)
    clip = jaxdp.clip_normalised(2.0, stability=0.1, unit=unit)
    total, _ = clip.update(from_dense(grads, unit=unit), clip.init(grads[0]))
    np.testing.assert_allclose(total, np.array([3.0, 4.0]) * 2 / 5.1, rtol=1e-5)


def quantile_run(fraction_below, steps, **options):
    """Clipping norms of a run without noise, where a fraction of the gradients is always within."""
    options = dict(target=0.0, learning_rate=np.log(2), **options)
    clip = jaxdp.clip_quantile(16.0, **options)
    plan = make_plan(clip, noise_multiplier=0, num_examples=200, expected_batch_size=100)
    tx = jaxdp.privatize(plan)
    small = np.arange(100) < 100 * fraction_below
    grads = np.where(small, 1e-9, 1e9).astype(np.float32)[:, None]
    state = tx.init(grads[0])
    norms = []
    for _ in range(steps):
        norms.append(float(state.clipping.clipping_norms[0]))
        _, state = tx.update(from_dense(grads, microbatch_size=40), state)
    return norms


def test_quantile_sequences():
    np.testing.assert_allclose(quantile_run(1.0, 4), [16, 8, 4, 2], rtol=1e-5)
    np.testing.assert_allclose(quantile_run(0.0, 4), [16, 16, 16, 16], rtol=1e-5)
    np.testing.assert_allclose(quantile_run(0.5, 3), [16, 16 / 2**0.5, 8], rtol=1e-5)


def test_quantile_counts_leave_out_padding_and_are_noised():
    clip = jaxdp.clip_quantile(1.0, learning_rate=1.0, count_std=10.0)
    plan = make_plan(clip, steps=400)
    grads = np.array([[0.1], [5.0], [np.nan], [0.1], [0.1]], np.float32)
    mask = np.array([True, True, True, False, False])
    tx = jaxdp.privatize(plan, key=jax.random.key(0))
    state = tx.init(grads[0])
    assert tx.sums(from_dense(grads, mask), state).counts[0] == 0.5 - 0.5
    logs = []
    step = jax.jit(lambda s: tx.update(from_dense(grads, mask), s)[1])
    for _ in range(400):
        before = state
        state = step(state)
        logs.append(-np.log(state.clipping.clipping_norms / before.clipping.clipping_norms)[0])
        state = state._replace(clipping=before.clipping)
    # b̄ - target = (0 + noise)/100 + ½ - ½: 400 draws of std 0.1.
    assert abs(np.mean(logs)) < 0.1 * 5 / 20
    np.testing.assert_allclose(np.std(logs), 0.1, rtol=0.2)


def test_schedules_of_clipping_norms_and_of_noise():
    clip = jaxdp.clip_individual(lambda step: 4.0 * 0.5**step)
    size = dict(num_parameters=100_000)  # else the draws that are paid for depend on the steps
    plan = make_plan(clip, lambda step: 1.0 if step < 2 else 3.0, steps=4, **size)
    assert plan.noise_multiplier == ((1.0, 2), (3.0, 2))
    means = releases(plan, jax.random.key(0), 4, params=jnp.zeros(100_000))
    stds = [1 * 4, 1 * 2, 3 * 1, 3 * 0.5]
    np.testing.assert_allclose(plan.divisor * np.std(means, axis=1), stds, rtol=0.02)
    constant = make_plan(jaxdp.clip_individual(1.0), noise_multiplier=1.0, steps=2, **size)
    assert plan.epsilon(steps=2) == pytest.approx(constant.epsilon(), abs=1e-6)
    assert constant.epsilon() < plan.epsilon() < make_plan(clip, 1.0, steps=4, **size).epsilon()
    assert plan.epsilon(steps=6) > plan.epsilon()


def test_batch_clipping_is_accounted_with_twice_its_clipping_norm():
    plan = make_plan(jaxdp.clip_batch(0.5), noise_multiplier=2.0)
    (mean,) = releases(plan, jax.random.key(0), 1, params=jnp.zeros(200_000))
    np.testing.assert_allclose(np.std(mean), 2.0 * 2 * 0.5, rtol=0.01)
    # q is the probability that a record takes part, not divided by the number of units.
    many = make_plan(jaxdp.clip_batch(0.5), noise_multiplier=2.0, num_units=8)
    assert many.epsilon() == plan.epsilon()
    assert (plan.divisor, many.divisor) == (1, 8)


def test_batch_clipping_by_hand():
    """One unit a step, from the plan's batches to the update."""
    p = random_problem(0, size=40)
    plan = make_plan(
        jaxdp.clip_batch(0.1),
        noise_multiplier=None,
        epsilon=8.0,
        num_examples=40,
        expected_batch_size=20,
        steps=3,
        num_units=4,
    )
    tx = optax.chain(jaxdp.privatize(plan), optax.sgd(0.1))
    grads = jaxdp.per_example_grads(jaxdp.mean_loss(loss), unit="batch")

    @jax.jit
    def step(params, state, batch, mask):
        updates, state = tx.update(grads(params, batch, mask), state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.asarray, p.params)
    state = tx.init(params)
    for batch, mask in plan.batches(*p.batch):
        assert mask.shape == (4, plan.capacity)
        params, state = step(params, state, batch, mask)
    assert step._cache_size() == 1
    assert plan.epsilon_spent(state) <= 8.0


@pytest.mark.parametrize("clipping_norm", [0, -1.0, float("nan"), 1e-13])
def test_a_bad_clipping_norm_is_named(clipping_norm):
    with pytest.raises(ValueError, match=f"clipping norm is {clipping_norm}"):
        jaxdp.clip_individual(clipping_norm)


@pytest.mark.parametrize("clipping_norm", ["1", None, True, jnp.float32(1)])
def test_a_clipping_norm_must_be_a_python_number(clipping_norm):
    with pytest.raises(TypeError, match="give a Python number"):
        jaxdp.clip_individual(clipping_norm)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jaxdp.clip_normalised(1.0, stability=0.0), "stability is 0"),
        (lambda: jaxdp.clip_normalised(1.0, stability=1e-20), "stability is 1e-20"),
        (lambda: jaxdp.clip_layerwise(1.0, layer="tensors"), "layer is 'tensors'"),
        (lambda: jaxdp.clip_layerwise({"*": 1.0}, layer="module"), "leave layer out"),
        (lambda: jaxdp.clip_quantile({"*": 1.0}, layer="tensor"), "leave layer out"),
        (lambda: jaxdp.clip_quantile(target=1.5), "target is 1.5"),
        (lambda: jaxdp.clip_quantile(learning_rate=-1.0), "learning_rate is -1"),
        (lambda: jaxdp.clip_quantile(count_std=0.0), "count_std is 0"),
        (lambda: jaxdp.clip_quantile(np.inf), "initial_clipping_norm is inf"),
        (lambda: jaxdp.clip_layerwise(1.0, unit="unit"), "unit is 'unit'"),
        (lambda: make_plan(jaxdp.clip_individual(1.0), num_units=4), "num_units is 4"),
        (lambda: make_plan(jaxdp.clip_batch(1.0), num_units=0), "num_units is 0"),
        (lambda: make_plan(jaxdp.clip_layerwise({"*": np.inf})), "bounds nothing"),
        (lambda: make_plan(jaxdp.clip_batch(1.0), lambda step: -1.0), "noise_multiplier is -1"),
    ],
)
def test_bad_numbers_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
