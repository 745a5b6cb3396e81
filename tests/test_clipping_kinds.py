"""Every clipping: its sensitivity, its noise, its state (DESIGN rules 1, 2, 4, 5 and 9)."""

import functools

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dp_accounting.pld import privacy_loss_distribution as dp_pld
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import flat64, loss, random_problem

import jaxdp
from jaxdp.dpsgd.groups import group_leaves

# Gradients of the first are outer products, of the second convolutions, of the third look-ups;
# every record's own numbers decide how large they are.
PARAMS = {
    "dense": {"w": np.zeros((4, 3), np.float32), "b": np.zeros(3, np.float32)},
    "kernel": np.zeros((3, 1, 2), np.float32),
    "table": np.zeros((5, 3), np.float32),
}


def example_loss(params, a, c, x, k, words):
    h = a @ params["dense"]["w"] + params["dense"]["b"]
    y = jax.lax.conv_general_dilated(
        x[None], params["kernel"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )[0]
    return jnp.sum(h * c) + jnp.sum(y * k) + jnp.sum(params["table"][words] * c)


def records(rng, size, scale):
    normal = lambda *shape: (scale * rng.standard_normal((size, *shape))).astype(np.float32)
    words = rng.integers(5, size=(size, 2)).astype(np.int32)
    return normal(2, 4), normal(2, 3), normal(6, 1), normal(6, 2), words


CLIPPINGS = {
    "individual": lambda unit: (jaxdp.clip_individual if unit == "example" else jaxdp.clip_batch)(
        2.0
    ),
    "tensors": lambda unit: jaxdp.clip_layerwise(0.5, unit=unit),
    "patterns": lambda unit: jaxdp.clip_layerwise(
        {"dense": 1.0, "kernel": 3.0, "table": 0.25}, unit=unit
    ),
    "frozen": lambda unit: jaxdp.clip_layerwise({"dense": 1.0, "kernel": 0, "ta*": 0.5}, unit=unit),
    "tuples": lambda unit: jaxdp.clip_layerwise({("kernel", "ta*"): 2.0, "dense": 1.0}, unit=unit),
    "multiplied": lambda unit: jaxdp.clip_multiplied(
        {"dense": 1.0, "kernel": 3.0, "table": 0.25}, unit=unit
    ),
    "normalised": lambda unit: jaxdp.clip_normalised(1.5, unit=unit),
    "quantile": lambda unit: jaxdp.clip_quantile(0.7, layer="module", unit=unit),
}
EXACT = {"individual": 2.0, "tensors": 0.5 * 2, "patterns": np.sqrt(1 + 9 + 1 / 16)}
EXACT |= {"frozen": np.sqrt(1.25), "normalised": 1.5, "quantile": 0.7 * np.sqrt(2)}
EXACT |= {"tuples": np.sqrt(5), "multiplied": 3.0}


def length(kind, vector):
    """Euclidean; for one coefficient with bounds of its own in every layer, measured in those."""
    if kind != "multiplied":
        return np.linalg.norm(vector)
    bounds = {"dense": 1.0, "kernel": 3.0, "table": 0.25}
    spread = {name: jax.tree.map(lambda p: p + bounds[name], PARAMS[name]) for name in PARAMS}
    return 3.0 * np.linalg.norm(vector / flat64(spread))


@functools.cache
def clipped(kind, unit, method):
    """A compiled function from records and mask to the clipped sum as one vector."""
    clip = CLIPPINGS[kind](unit)
    fn = example_loss if unit == "example" else jaxdp.mean_loss(example_loss)
    transform = jaxdp.per_example_grads(fn, method=method, unit=unit)

    @jax.jit
    def total(batch, mask):
        return clip.update(transform(PARAMS, batch, mask), clip.init(PARAMS))[0]

    return lambda batch, mask: flat64(total(batch, mask))


def changed(batch, index, other):
    return tuple(
        np.concatenate([leaf[:index], o[:1], leaf[index + 1 :]])
        for leaf, o in zip(batch, other, strict=True)
    )


@pytest.mark.parametrize("method", ["vmap", "factored"])
@pytest.mark.parametrize("unit", ["example", "batch"])
@pytest.mark.parametrize("kind", CLIPPINGS)
def test_sensitivity_is_what_the_clipping_says(kind, unit, method):
    clip = CLIPPINGS[kind](unit)
    bounds = clip.init(PARAMS).clipping_bounds
    stated = {
        a: float(clip.sensitivity(a, bounds)) for a in ("add_remove", "zero_out", "replace_one")
    }
    factor = 1 if unit == "example" else 2
    np.testing.assert_allclose(stated["add_remove"], factor * EXACT[kind], rtol=1e-6)
    np.testing.assert_allclose(stated["zero_out"], factor * EXACT[kind], rtol=1e-6)
    np.testing.assert_allclose(stated["replace_one"], 2 * EXACT[kind], rtol=1e-6)

    @settings(max_examples=15, deadline=None, database=None)
    @given(
        seed=st.integers(0, 10**9),
        scale=st.sampled_from([1e-3, 0.3, 1.0, 30.0, 1e6]),
        odd=st.sampled_from([0.0, 1e-9, 1.0, 1e3, 1e9, np.inf, np.nan]),
    )
    def never_above(seed, scale, odd):
        rng = np.random.default_rng(seed)
        batch, other = records(rng, 6, scale), records(rng, 1, odd)
        batch = changed(batch, 2, records(rng, 1, odd)) if rng.random() < 0.5 else batch
        mask = rng.random(6) < 0.8
        mask[2] = True
        gone = mask & (np.arange(6) != 2)
        if unit == "batch":  # two units of three records
            split = lambda leaf: leaf.reshape(2, 3, *leaf.shape[1:])
            mask, gone = split(mask), split(gone)
        else:
            split = lambda leaf: leaf
        total = clipped(kind, unit, method)
        before = total(jax.tree.map(split, batch), mask)
        removed = total(jax.tree.map(split, batch), gone)
        replaced = total(jax.tree.map(split, changed(batch, 2, other)), mask)
        slack = 1 + 1e-4  # of the float32 sums themselves
        assert length(kind, before - removed) <= stated["add_remove"] * slack
        assert length(kind, before - replaced) <= stated["replace_one"] * slack

    never_above()


@pytest.mark.parametrize("method", ["vmap", "factored"])
@pytest.mark.parametrize("unit", ["example", "batch"])
@pytest.mark.parametrize("kind", CLIPPINGS)
def test_a_crafted_pair_attains_the_sensitivity(kind, unit, method):
    rng = np.random.default_rng(0)
    up = records(rng, 1, 100.0)
    # Linear in c and k: this record's gradients are -3 times the first one's.
    down = (up[0], -3 * up[1], up[2], -3 * up[3], up[4])
    both = jax.tree.map(lambda a, b: np.concatenate([a, b]), up, down)
    total = clipped(kind, unit, method)
    if unit == "example":
        removed = total(both, np.array([True, True])) - total(both, np.array([False, True]))
        replaced = total(up, np.array([True])) - total(down, np.array([True]))
    else:
        one_unit = jax.tree.map(lambda leaf: leaf[None], both)
        together = total(one_unit, np.array([[True, True]]))
        alone = total(one_unit, np.array([[True, False]]))
        # One record turns its unit's mean round; in an otherwise empty unit it can't.
        removed, replaced = together - alone, together - alone
        empty = total(one_unit, np.array([[False, False]]))
        assert not empty.any()
        np.testing.assert_allclose(length(kind, alone - empty), EXACT[kind], rtol=0.01)
    clip = CLIPPINGS[kind](unit)
    bounds = clip.init(PARAMS).clipping_bounds
    for moved, adjacency in ((removed, "add_remove"), (replaced, "replace_one")):
        np.testing.assert_allclose(
            length(kind, moved), clip.sensitivity(adjacency, bounds), rtol=0.01
        )


def test_frozen_groups_get_neither_gradient_nor_noise():
    plan = make_plan(CLIPPINGS["frozen"]("example"))
    tx = jaxdp.privatize(plan, key=jax.random.key(0))
    batch = records(np.random.default_rng(0), 6, 1.0)
    grads = jaxdp.per_example_grads(example_loss)(PARAMS, batch)
    mean, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
    assert not mean["kernel"].any()
    assert mean["table"].all()


def test_one_group_is_flat_clipping_and_layers_are_clipped_apart():
    p = random_problem(0)
    grads = jaxdp.per_example_grads(loss)(p.params, p.batch)
    result = lambda clip: flat64(clip.update(grads, clip.init(p.params))[0])
    flat = result(jaxdp.clip_individual(0.5))
    np.testing.assert_allclose(result(jaxdp.clip_layerwise({"*": 0.5})), flat, rtol=1e-5)
    dense = grads.materialize()
    norm = lambda g: np.sqrt(np.square(g.reshape(len(g), -1)).sum(1))
    for name, got in (
        jaxdp.clip_layerwise(0.5).update(grads, jaxdp.clip_layerwise(0.5).init(p.params))[0].items()
    ):
        want = np.einsum("b,b...->...", np.minimum(1, 0.5 / norm(dense[name])), dense[name])
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_layerwise_with_all_mass_in_one_layer_and_with_zero_gradients():
    grads = {"a": np.array([[3.0, 4.0], [0.0, 0.0]], np.float32), "b": np.zeros((2, 3), np.float32)}
    clip = jaxdp.clip_layerwise({"a": 1.0, "b": 1.0})
    total, _ = clip.update(jaxdp.from_dense(grads), clip.init(jax.tree.map(lambda g: g[0], grads)))
    np.testing.assert_allclose(total["a"], [0.6, 0.8], rtol=1e-5)
    assert not total["b"].any()


@pytest.mark.parametrize("unit", ["example", "batch"])
def test_normalised_clipping(unit):
    grads = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)
    clip = jaxdp.clip_normalised(2.0, stability=0.1, unit=unit)
    total, _ = clip.update(jaxdp.from_dense(grads, unit=unit), clip.init(grads[0]))
    np.testing.assert_allclose(total, np.array([3.0, 4.0]) * 2 / 5.1, rtol=1e-5)


def make_plan(clipping, noise_multiplier=1.5, **changes):
    numbers = dict(num_examples=1000, expected_batch_size=100, steps=50)
    return jaxdp.Plan(
        clipping=clipping, noise_multiplier=noise_multiplier, **{**numbers, **changes}
    )


@pytest.mark.parametrize("allocation", ["proportional", "isotropic", "dimension"])
@pytest.mark.parametrize("adjacency", ["add_remove", "replace_one"])
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
    """Rule 2, measured: Σ(Δ/std)² over the released gradient groups and counts is 1/z²."""
    params = {"a": jnp.zeros(90_000), "b": jnp.zeros((300, 200))}
    plan = make_plan(clipping, adjacency=adjacency)
    tx = jaxdp.privatize(plan, key=jax.random.key(0), allocation=allocation)
    state = tx.init(params)
    nothing = jaxdp.from_dense(
        jax.tree.map(lambda p: jnp.zeros((1, *p.shape)), params),
        np.zeros(1, bool),
        unit=clipping.unit,
    )
    mean, _ = jax.jit(lambda s: tx.update(nothing, s))(state)
    groups = clipping.groups(params)
    factor = clipping.record_factor(adjacency)
    cost = 0.0
    for group, bound in enumerate(state.clipping.clipping_bounds):
        own = [
            leaf
            for leaf, g in zip(jax.tree.leaves(mean), groups.of_leaf, strict=True)
            if g == group
        ]
        cost += (factor * float(bound) / (np.std(flat64(own)) * plan.divisor)) ** 2
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
        tx = jaxdp.privatize(make_plan(clip), key=jax.random.key(1), allocation=allocation)
        zero = jaxdp.from_dense(jax.tree.map(lambda p: jnp.zeros((1, *p.shape)), params))
        mean, _ = tx.update(zero, tx.init(params))
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


def quantile_run(fraction_below, steps, **options):
    """Bounds of a noiseless run in which a fraction of the gradients is within every bound."""
    options = dict(target=0.0, learning_rate=np.log(2), **options)
    clip = jaxdp.clip_quantile(16.0, **options)
    plan = make_plan(clip, noise_multiplier=0, num_examples=200, expected_batch_size=100)
    tx = jaxdp.privatize(plan)
    small = np.arange(100) < 100 * fraction_below
    grads = np.where(small, 1e-9, 1e9).astype(np.float32)[:, None]
    state = tx.init(grads[0])
    bounds = []
    for _ in range(steps):
        bounds.append(float(state.clipping.clipping_bounds[0]))
        _, state = tx.update(jaxdp.from_dense(grads, microbatch_size=40), state)
    return bounds


def test_quantile_sequences():
    np.testing.assert_allclose(quantile_run(1.0, 4), [16, 8, 4, 2], rtol=1e-5)
    np.testing.assert_allclose(quantile_run(0.0, 4), [16, 16, 16, 16], rtol=1e-5)
    np.testing.assert_allclose(quantile_run(0.5, 3), [16, 16 / 2**0.5, 8], rtol=1e-5)


def test_quantile_counts_leave_out_padding_and_are_noised():
    clip = jaxdp.clip_quantile(1.0, learning_rate=1.0, count_std=10.0)
    plan = make_plan(clip)
    grads = np.array([[0.1], [0.1], [5.0], [np.nan]], np.float32)
    mask = np.array([True, False, True, True])
    tx = jaxdp.privatize(plan, key=jax.random.key(0))
    state = tx.init(grads[0])
    assert tx.sums(jaxdp.from_dense(grads, mask), state).counts[0] == 0.5 - 0.5
    logs = []
    step = jax.jit(lambda s: tx.update(jaxdp.from_dense(grads, mask), s)[1])
    for _ in range(400):
        before = state
        state = step(state)
        logs.append(-np.log(state.clipping.clipping_bounds / before.clipping.clipping_bounds)[0])
        state = state._replace(clipping=before.clipping)
    # b̄ - target = (0 + noise)/100 + ½ - ½: 400 draws of std 0.1.
    assert abs(np.mean(logs)) < 0.1 * 5 / 20
    np.testing.assert_allclose(np.std(logs), 0.1, rtol=0.2)


def test_counts_that_cost_more_than_the_noise_multiplier_are_refused():
    clip = jaxdp.clip_quantile(1.0, layer="tensor", count_std=1.0)
    with pytest.raises(ValueError, match=r"cost more than the noise multiplier 1\.5.*1\.06"):
        jaxdp.privatize(make_plan(clip)).init({"a": jnp.zeros(2), "b": jnp.zeros(2)})
    one_unit = jaxdp.clip_quantile(1.0, unit="batch")
    with pytest.raises(ValueError, match="raise count_std"):
        jaxdp.privatize(make_plan(one_unit)).init(jnp.zeros(2))


def test_schedules_of_bounds_and_of_noise():
    clip = jaxdp.clip_individual(lambda step: 4.0 * 0.5**step)
    plan = make_plan(clip, noise_multiplier=lambda step: 1.0 if step < 2 else 3.0, steps=4)
    assert plan.noise_multiplier == ((1.0, 2), (3.0, 2))
    params = jnp.zeros(100_000)
    tx = jaxdp.privatize(plan, key=jax.random.key(0))
    zero = jaxdp.from_dense(jnp.zeros((1, 100_000)))
    state = tx.init(params)
    step = jax.jit(lambda s: tx.update(zero, s))
    for z, bound in ((1, 4), (1, 2), (3, 1), (3, 0.5)):
        mean, state = step(state)
        np.testing.assert_allclose(100 * np.std(mean), z * bound, rtol=0.02)
    constant = make_plan(jaxdp.clip_individual(1.0), noise_multiplier=1.0, steps=2)
    assert plan.epsilon(steps=2) == pytest.approx(constant.epsilon(), abs=1e-6)
    assert constant.epsilon() < plan.epsilon() < make_plan(clip, 1.0, steps=4).epsilon()
    assert plan.epsilon(steps=6) > plan.epsilon()


def test_batch_clipping_is_accounted_with_twice_its_bound():
    plan = make_plan(jaxdp.clip_batch(0.5), noise_multiplier=2.0)
    tx = jaxdp.privatize(plan, key=jax.random.key(0))
    zero = jaxdp.from_dense(jnp.zeros((1, 200_000)), unit="batch")
    mean, _ = tx.update(zero, tx.init(jnp.zeros(200_000)))
    np.testing.assert_allclose(np.std(mean), 2.0 * 2 * 0.5, rtol=0.01)
    # q is the probability that a record takes part, not divided by the number of units.
    many = make_plan(jaxdp.clip_batch(0.5), noise_multiplier=2.0, num_units=8)
    assert many.epsilon() == plan.epsilon()
    assert (plan.divisor, many.divisor) == (1, 8)


@pytest.mark.parametrize("microbatch_size", [None, 3, 8])
def test_mean_loss_accumulates_the_gradient_of_a_unit(microbatch_size):
    p = random_problem(3, size=8)
    unit_loss = jaxdp.mean_loss(loss, microbatch_size=microbatch_size)
    value, grads = jax.jit(jax.value_and_grad(unit_loss))(p.params, *p.batch, p.mask)
    losses = jax.vmap(loss, (None, 0, 0))
    plain = lambda q: jnp.sum(jnp.where(p.mask, losses(q, *p.batch), 0)) / p.mask.sum()
    want_value, want = jax.value_and_grad(plain)(p.params)
    np.testing.assert_allclose(value, want_value, rtol=1e-5)
    np.testing.assert_allclose(flat64(grads), flat64(want), rtol=1e-4, atol=1e-5)


def test_a_unit_loss_sees_zeros_for_masked_records_and_its_own_mask():
    def unit_loss(params, x, mask):
        # Couples the records: centred by the unit's own mean.
        mean = jnp.sum(x, axis=0) / jnp.sum(mask)
        return jnp.sum(params * jnp.where(mask[:, None], (x - mean) ** 2, 0)) / jnp.sum(mask)

    x = np.random.default_rng(0).standard_normal((3, 4, 2)).astype(np.float32)
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], bool)
    poisoned = np.where(mask[..., None], x, np.nan)
    grads = jaxdp.per_example_grads(unit_loss, unit="batch", microbatch_size=2)
    rows = grads(jnp.ones(2), (poisoned,), mask).materialize()
    want = [np.var(x[0], axis=0), np.var(x[1, :2], axis=0), np.zeros(2)]
    np.testing.assert_allclose(rows, want, rtol=1e-4)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"dense": 1.0, "kernel": 1.0}, "parameters table: every parameter"),
        ({"*": 1.0, "table": 1.0}, r"several patterns.*table \(\*, table\)"),
        ({"dense": 1.0, "kernel": 1.0, "table": 1.0, "conv*": 1.0}, r"conv\* take no parameter"),
        ({("dense", "conv*"): 1.0, "*l*": 1.0}, r"conv\* take no parameter"),
        ({("dense", "table"): 1.0, ("kernel", "ta*"): 2.0}, r"several patterns.*table \(dense \+"),
        ({"*": 0.0}, "freezes all"),
        ({"dense": {"w": 1.0}, "kernel": 1.0, "table": 1.0}, "no prefix"),
        (-1.0, "clipping norm is -1"),
        ({"*": float("nan")}, "clipping norm is nan"),
    ],
)
def test_groups_that_miss_or_overlap_parameters_are_named(bounds, message):
    with pytest.raises(ValueError, match=message):
        jaxdp.clip_layerwise(bounds).init(PARAMS)


def test_groups_by_tensor_module_pattern_and_prefix():
    names = lambda *args: group_leaves(PARAMS, *args).names
    assert names(1.0, "tensor") == ("dense/b", "dense/w", "kernel", "table")
    assert names(1.0, "module") == ("dense", "")
    assert names({("dense", "kernel"): 1.0, "table": 2.0}, None) == ("dense + kernel", "table")
    assert names({"*/w": 1.0, "*/b": 2.0, "kernel": 1.0, "table": 3.0}, None) == (
        "*/b", "*/w", "kernel", "table",
    )  # fmt: skip
    prefix = {"dense": {"w": 1.0, "b": 2.0}, "kernel": 3.0, "table": 4.0}
    groups = group_leaves(PARAMS, prefix, None)
    assert groups.names == ("dense/b", "dense/w", "kernel", "table")
    assert groups.bounds == (2.0, 1.0, 3.0, 4.0)
    assert groups.sizes == (3, 12, 6, 15)


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
        (lambda: jaxdp.clip_quantile(np.inf), "initial_bound is inf"),
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


def test_units_of_gradients_and_clipping_must_agree():
    grads = jaxdp.from_dense(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r'use per_example_grads.*unit="batch"'):
        jaxdp.clip_batch(1.0).update(grads, jaxdp.clip_batch(1.0).init(jnp.ones(3)))


def test_batch_clipping_by_hand():
    """One unit a step, from the plan's batches to the update."""
    p = random_problem(0, size=40)
    plan = jaxdp.Plan(
        num_examples=40,
        expected_batch_size=20,
        steps=3,
        clipping=jaxdp.clip_batch(0.1),
        num_units=4,
        epsilon=8.0,
    )
    tx = optax.chain(jaxdp.privatize(plan), optax.sgd(0.1))
    grads = jaxdp.per_example_grads(jaxdp.mean_loss(loss), unit="batch")

    @jax.jit
    def step(params, state, batch, mask):
        updates, state = tx.update(grads(params, batch, mask), state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.asarray, p.params)
    state = tx.init(params)
    for indices, mask in plan.batches():
        assert indices.shape == mask.shape == (4, plan.capacity)
        params, state = step(params, state, jax.tree.map(lambda leaf: leaf[indices], p.batch), mask)
    assert step._cache_size() == 1
    assert plan.epsilon_spent(state) <= 8.0
