"""The noise has the accounted size, however it is spread (privacy rules 2, 3 and 10)."""

import functools

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dp_accounting.pld import privacy_loss_distribution as dp_pld
from helpers.cases import slow
from helpers.problems import flat64
from helpers.releases import FALSE_ALARM, PARAMS, make_plan, releases, zero_gradients
from scipy.stats import chi2, kstest, norm

import jaxdp
from jaxdp.dpsgd import noise_grid, noise_stds, rounded_gaussian_at


@pytest.mark.parametrize("adjacency", ["add_remove", "zero_out", "replace_one"])
def test_noise_has_the_stated_size_and_shape(adjacency):
    plan = make_plan(adjacency=adjacency)
    std = 1.5 * plan.clipping.sensitivity(adjacency) / plan.divisor
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


def test_noise_follows_a_clipping_norm_replaced_in_the_state():
    plan = make_plan(jaxdp.clip_individual(1.0))
    tx = jaxdp.privatize(plan, key=jax.random.key(0))
    state = tx.init(PARAMS)
    small, _ = tx.update(zero_gradients(), state)
    large, _ = tx.update(zero_gradients(), optax.tree.set(state, clipping_norms=jnp.full(1, 4.0)))
    np.testing.assert_allclose(flat64(large), 4 * flat64(small), rtol=1e-5)


def test_the_rounding_slack_is_added_to_the_noise():
    sizes = dict(num_examples=200_000, expected_batch_size=100_000, steps=1)
    plan = make_plan(jaxdp.clip_individual(1.0), 1.0, **sizes)
    assert plan.rounding_slack > 0.02
    groups = plan.clipping.groups(PARAMS)
    std = noise_stds(plan, groups, jnp.ones(1))
    inflation = 1 / (1 - np.sqrt(5000) / 2**22)  # z = 1; rounding to the grid moves 5,000 numbers
    np.testing.assert_allclose(std, (1 + plan.rounding_slack) * inflation, rtol=2e-7)


@pytest.mark.parametrize("allocation", ["proportional", "isotropic", "dimension"])
@pytest.mark.parametrize("bad", [-1.0, 0.0, 1e-25])
def test_noise_is_never_for_less_than_the_smallest_clipping_norm(bad, allocation):
    plan = make_plan(jaxdp.clip_layerwise(1.0))
    groups = plan.clipping.groups(PARAMS)
    for norms in ([bad, bad], [bad, 1.0]):
        norms = np.array(norms, np.float32)
        got = noise_stds(plan, groups, norms, allocation)
        want = noise_stds(plan, groups, np.maximum(norms, np.float32(1e-12)), allocation)
        np.testing.assert_array_equal(got, want)
        assert np.all(got >= 1.5e-12)


@pytest.mark.parametrize("z", [1.5, 2000.0], ids=["coarse", "fine"])
def test_any_part_of_the_noise_can_be_drawn_again(z):
    plan = make_plan(jaxdp.clip_layerwise({"a": 1.0, "b": 5.0}), z)
    tx = jaxdp.privatize(plan, key=jaxdp.secret_key())
    state = tx.init(PARAMS)
    key, groups = jax.random.key_data(state.privatize_key), plan.clipping.groups(PARAMS)
    grid = noise_grid(plan, groups)
    assert grid.scale == (22 if z < 2 else 24)
    for step in range(2):
        stds = noise_stds(plan, groups, state.clipping.clipping_norms, step=step)
        mean, state = tx.update(zero_gradients(), state)
        for leaf, part in enumerate([mean["a"].ravel()[700:1700], mean["b"][1900:]]):
            start = (700, 1900)[leaf]
            elements = jnp.arange(start, start + part.size, dtype=jnp.uint32)
            again = rounded_gaussian_at(key, step, leaf, elements, scale=grid.scale)
            unit = float(stds[groups.of_leaf[leaf]]) / 2**grid.scale / plan.divisor
            points, again = np.asarray(part, np.float64) / unit, np.asarray(again)
            # float32 rounds three times on the way: numbers below 2^20 are still told exactly.
            small = np.abs(again) < 2**20
            assert small.sum() >= 3  # 50 or more are expected; false alarm below 1e-15
            np.testing.assert_array_equal(np.rint(points[small]), again[small])
            np.testing.assert_allclose(points, again, rtol=5e-7)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_keys_of_every_kind_draw_noise(impl):
    runs = [releases(make_plan(), jax.random.key(3, impl=impl), 2) for _ in range(2)]
    np.testing.assert_array_equal(flat64(runs[0]), flat64(runs[1]))
    assert flat64(runs).all()


@pytest.mark.parametrize("allocation", ["proportional", slow("isotropic"), "dimension"])
@pytest.mark.parametrize("adjacency", ["add_remove", slow("replace_one")])
@pytest.mark.parametrize(
    "clipping",
    [
        jaxdp.clip_individual(2.0),
        jaxdp.clip_batch(0.3),
        jaxdp.clip_layerwise({"a": 0.1, "b": 5.0}),
        jaxdp.clip_layerwise({"a": 0.1, "b": 5.0}, unit="batch"),
        jaxdp.clip_quantile(0.5, layer="tensor", count_std=8.0),
        jaxdp.clip_quantile(0.5, unit="batch", count_std=8.0),
    ],
    ids=repr,
)
def test_effective_noise_multiplier_of_what_is_released(clipping, adjacency, allocation):
    """Privacy rule 2, measured: Σ(Δ/std)² over the released gradient groups and counts is 1/z²."""
    params = {"a": jnp.zeros(90_000), "b": jnp.zeros((300, 200))}
    plan = make_plan(clipping, adjacency=adjacency)
    (mean,) = releases(plan, jax.random.key(0), 1, params, allocation=allocation)
    groups = clipping.groups(params)
    factor = clipping.record_factor(adjacency)
    cost = 0.0
    for group, clipping_norm in enumerate(clipping.init(params).clipping_norms):
        own = [
            leaf
            for leaf, g in zip(jax.tree.leaves(mean), groups.of_leaf, strict=True)
            if g == group
        ]
        cost += (factor * float(clipping_norm) / (np.std(flat64(own)) * plan.divisor)) ** 2
    if clipping.quantile is not None:
        cost += len(groups.names) * (factor / 2 / 8.0) ** 2
    # Estimated from 60,000 numbers or more: 1% is over three standard errors.
    np.testing.assert_allclose(cost**-0.5, 1.5, rtol=0.01)


def test_isotropic_and_dimension_aware_noise_have_their_forms():
    params = {"a": jnp.zeros(40_000), "b": jnp.zeros(90_000)}
    deltas, sizes = np.array([0.5, 2.0]), np.array([4e4, 9e4])
    clip = jaxdp.clip_layerwise({"a": 0.5, "b": 2.0})
    want = {
        "proportional": deltas * np.sqrt(2),
        "isotropic": np.full(2, np.hypot(*deltas)),
        "dimension": np.sqrt(np.sum(deltas * np.sqrt(sizes)) * deltas / np.sqrt(sizes)),
    }
    energies = {}
    for allocation, stds in want.items():
        key = jax.random.key(1)
        (mean,) = releases(make_plan(clip), key, 1, params, allocation=allocation)
        got = [100 * np.std(mean[name]) / 1.5 for name in params]
        np.testing.assert_allclose(got, stds, rtol=0.02)
        energies[allocation] = np.sum(sizes * stds**2)
    assert energies["dimension"] == min(energies.values())
    np.testing.assert_allclose(energies["dimension"], np.sum(deltas * np.sqrt(sizes)) ** 2)


def test_a_layerwise_release_loses_as_much_privacy_as_one_gaussian():
    deltas, z = np.array([0.1, 1.0, 5.0]), 1.3
    weights = np.array([1.0, 2.0, 0.5])
    stds = z * weights * np.linalg.norm(deltas / weights)
    make = functools.partial(
        dp_pld.from_gaussian_mechanism,
        value_discretization_interval=1e-4,
        neighboring_relation=dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
    )
    product = make(stds[0], sensitivity=deltas[0])
    for std, delta in zip(stds[1:], deltas[1:], strict=True):
        product = product.compose(make(std, sensitivity=delta))
    one = make(z)
    for delta in (1e-2, 1e-5, 1e-8):
        got, want = product.get_epsilon_for_delta(delta), one.get_epsilon_for_delta(delta)
        np.testing.assert_allclose(got, want, atol=2e-3)


def test_counts_that_cost_more_than_the_noise_multiplier_are_refused():
    clip = jaxdp.clip_quantile(1.0, layer="tensor", count_std=1.0)
    with pytest.raises(ValueError, match=r"cost more than the noise multiplier 1\.5.*1\.06"):
        jaxdp.privatize(make_plan(clip)).init({"a": jnp.zeros(2), "b": jnp.zeros(2)})
    one_unit = jaxdp.clip_quantile(1.0, unit="batch")
    with pytest.raises(ValueError, match="raise count_std"):
        jaxdp.privatize(make_plan(one_unit)).init(jnp.zeros(2))


def test_counts_share_no_noise_with_a_leaf():
    clip = jaxdp.clip_quantile(1.0, learning_rate=1.0, count_std=20.0)
    plan = make_plan(clipping=clip)
    params = {"a": jnp.zeros(1)}  # one number, as there is one count
    leaf, count = [], []
    for seed in range(20):
        tx = jaxdp.privatize(plan, key=jax.random.key(seed))
        state = tx.init(params)
        std = noise_stds(plan, clip.groups(params), state.clipping.clipping_norms)
        mean, state = tx.update(zero_gradients(params), state)
        leaf.append(float((mean["a"] * plan.divisor / std)[0]))
        # C moves by exp(-count/divisor). Four gradients within C count 2 before the noise.
        counted = float(-jnp.log(state.clipping.clipping_norms[0]) * plan.divisor)
        count.append((counted - 2) / 20.0)
    assert np.std(leaf) > 0.4
    assert np.std(count) > 0.4
    # Two Gaussian numbers are that close in less than 1 of 100: four of 20, in 1 of 20,000 runs.
    assert np.sum(np.isclose(leaf, count, rtol=0.01, atol=1e-3)) < 4
