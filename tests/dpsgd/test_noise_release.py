"""A release is one whole number for every sum, of which the rest is post-processing."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.dense import from_dense
from helpers.releases import PARAMS, make_plan, zero_gradients

import jaxdp
from jaxdp.dpsgd.noise import (
    LARGEST_SUM,
    NoiseGrid,
    check_draws,
    count_std,
    grid_of,
    noise_adder,
    noise_grid,
    noise_stds,
)
from jaxdp.dpsgd.rounded_gaussian import rounded_gaussian

KEY = jnp.asarray([7, 11, 13, 17], jnp.uint32)
SCALES = [22, 24]


def noised(total, std, scale=22, step=0, leaf=0):
    """One leaf's release; `leaf` empty leaves come before it."""
    leaves = [jnp.zeros(0)] * leaf + [jnp.asarray(total)]
    stds = [jnp.float32(1)] * leaf + [jnp.float32(std)]
    return np.asarray(jax.jit(noise_adder(scale))(KEY, jnp.int32(step), stds, leaves)[-1])


def noise(size, scale=22, step=0, leaf=0):
    return np.asarray(rounded_gaussian(KEY, step, leaf, (size,), scale)).astype(np.int64)


def by_hand(total, std, n, scale):
    """The release in NumPy, with the whole number m as an int64."""
    kind = total.dtype.type
    std = kind(np.float32(std))
    with np.errstate(over="ignore"):
        points = np.clip(total * (kind(2.0**scale) / std), -LARGEST_SUM, LARGEST_SUM)
    m = np.rint(points).astype(np.int64) + n
    high, low = m >> 20, m & (2**20 - 1)
    return (high.astype(kind) * kind(2**20) + low.astype(kind)) * (std / kind(2.0**scale))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("std", [1.5e-12, 3e-5, 0.37, 1.0, 2.0, 1234.5, 1e30])
def test_a_release_equals_whole_numbers_by_hand(std, scale):
    rng = np.random.default_rng(0)
    sizes = np.float64(std) * 2.0 ** rng.uniform(-40, 20, 5000)
    total = (rng.choice([-1, 1], 5000) * sizes).astype(np.float32)
    total[:10] = 0
    got = noised(total, std, scale, step=3, leaf=2)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, by_hand(total, std, noise(5000, scale, 3, 2), scale))
    # m by dividing: a float32 has m to 2^-24 of itself, twice rounded.
    points = got.astype(np.float64) / np.float64(np.float32(std)) * 2.0**scale
    assert np.all(np.abs(points - np.rint(points)) <= 2.0**-23 * np.abs(points))


def test_float64_sums_are_released_as_whole_numbers_too():
    n = noise(5000, step=1)
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        total = rng.choice([-1, 1], 5000) * 2.0 ** rng.uniform(-40, 40, 5000)
        got = noised(total, 0.37, step=1)
        np.testing.assert_array_equal(noise(5000, step=1), n)  # the same with x64 as without
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got, by_hand(total, 0.37, n, 22))


def test_sums_that_round_to_one_point_are_released_alike():
    std = np.float32(0.37)
    point = std / 2.0**22
    at = np.arange(-2000, 2000)
    one, other = (noised(((at + off) * point).astype(np.float32), std) for off in (-0.4, 0.4))
    assert one.tobytes() == other.tobytes()
    apart = noised(((at + 0.6) * point).astype(np.float32), std)
    difference = (apart.astype(np.float64) - one) / point
    small = np.abs(one / point) < 2**20
    np.testing.assert_allclose(difference[small], 1, atol=0.2)


def test_the_release_is_a_function_of_the_whole_number_alone():
    """Sums and noise that differ, but add up to one m, give the same bits."""
    n = noise(400)
    for m in (0, 1, -1, 2**20 - 1, 2**20, -(2**20), 5 * 2**20 + 3, 2**23 - 1, 1 - 2**23):
        points = (m - n).astype(np.float64)
        with jax.enable_x64(True):
            got = noised(points, 2.0**22)
        assert set(got.tolist()) == {float(m)}
        assert np.unique(got.view(np.uint64)).size == 1  # not even -0 beside 0
        exact = np.abs(points) <= 2**24  # as float32 sums
        assert exact.sum() > 300
        got = noised(points.astype(np.float32), 2.0**22)
        assert np.unique(got[exact].view(np.uint32)).size == 1


def test_sums_that_are_not_finite_release_nan_and_leave_the_others_alone():
    total = np.zeros(100, np.float32)
    plain = noised(total, 2.0)
    total[[3, 50, 99]] = np.nan, np.inf, -np.inf
    got = noised(total, 2.0)
    bad = ~np.isfinite(total)
    assert np.isnan(got[bad]).all()
    np.testing.assert_array_equal(got[~bad], plain[~bad])
    assert np.isnan(noised(np.zeros(100, np.float32), np.nan)).all()
    assert not np.isfinite(noised(np.ones(100, np.float32), np.inf)).any()


def test_huge_sums_are_clamped_and_noised():
    n = noise(4)
    for dtype in (np.float32, np.float64):
        with jax.enable_x64(dtype == np.float64):
            huge = np.array([1, -1, 1, -1], dtype) * np.array([1e16, 1e16, 3e38, 3e38], dtype)
            got = noised(huge, 1.0)
            want = (np.sign(huge) * 2.0**49 + n).astype(dtype) / dtype(2.0**22)
        np.testing.assert_allclose(got, want, rtol=1e-7 if dtype == np.float32 else 0)
        assert got.dtype == dtype
    # Also a finite sum whose number of points overflows.
    got = noised(np.full(4, 3e38, np.float32), 1.5e-12)
    np.testing.assert_allclose(got, 2.0**27 * 1.5e-12, rtol=1e-5)


@pytest.mark.parametrize("clipping", [jaxdp.clip_individual(1.0), jaxdp.clip_quantile(1.0)])
def test_every_leaf_and_the_counts_have_their_own_numbers(clipping):
    params = {name: jnp.zeros(300) for name in "abc"} | {"d": jnp.zeros((2, 150))}
    plan = make_plan(clipping)
    tx = jaxdp.privatize(plan, key=jax.random.key(0))
    state = tx.init(params)._replace(privatize_step=jnp.int32(1))
    key = jax.random.key_data(state.privatize_key)
    drawn = lambda leaf, shape: np.asarray(rounded_gaussian(key, 1, leaf, shape)) / 2.0**22
    groups = clipping.groups(params)
    std = np.asarray(noise_stds(plan, groups, state.clipping.clipping_norms))[0] / plan.divisor
    sums = tx.sums(zero_gradients(params), state)
    mean, after = tx.release(sums, state)
    for leaf, (name, value) in enumerate(mean.items()):
        np.testing.assert_allclose(value, std * drawn(leaf, value.shape), rtol=1e-6, err_msg=name)
    if clipping.quantile is not None:
        std = count_std(plan) * (1 + plan.rounding_slack) * noise_grid(plan, groups).inflation
        noisy = np.asarray(sums.counts) + std * drawn(4, (1,))
        moved = np.log(after.clipping.clipping_norms / state.clipping.clipping_norms)
        rate = clipping.quantile.learning_rate
        want = -rate * (noisy / plan.divisor + 0.5 - clipping.quantile.target)
        np.testing.assert_allclose(moved, want, rtol=1e-4, atol=1e-6)


def test_the_grid_is_finer_where_rounding_would_cost_more_than_a_percent():
    mechanism = make_plan(noise_multiplier=1.0).mechanism()
    most = (0.01 * 2**22) ** 2  # numbers, at z = 1
    assert grid_of(mechanism, 0.999 * most) == NoiseGrid(22, pytest.approx(1 / 0.99, rel=1e-4))
    assert grid_of(mechanism, 1.001 * most) == NoiseGrid(24, pytest.approx(1 / 0.9975, rel=1e-4))
    assert grid_of(mechanism, 0.99 * 2**48).inflation == pytest.approx(199.5, rel=0.01)
    with pytest.raises(ValueError, match=r"noise multiplier is 1 for .* need more noise"):
        grid_of(mechanism, 2**48)


def test_the_grid_is_for_the_largest_noise_multiplier_of_a_schedule():
    schedule = make_plan(noise_multiplier=lambda step: 3.0 if step == 7 else 0.5)
    largest = make_plan(noise_multiplier=3.0)
    assert grid_of(schedule.mechanism(), 1e6) == grid_of(largest.mechanism(), 1e6)


def test_more_numbers_than_the_plan_has_paid_for_are_refused_in_init_and_in_update():
    tx = jaxdp.privatize(make_plan(num_parameters=4999), key=jax.random.key(0))
    match = r"num_parameters is 4,999, and 5,000 numbers .* num_parameters=5000"
    with pytest.raises(ValueError, match=match):
        tx.init(PARAMS)
    state = tx.init({"a": jnp.zeros(3), "b": jnp.zeros(3)})  # update never depends on init
    with pytest.raises(ValueError, match=match):
        tx.update(zero_gradients(), state)
    jaxdp.privatize(make_plan(num_parameters=5000)).init(PARAMS)
    clipping = jaxdp.clip_quantile(1.0, layer="tensor", count_std=50.0)
    jaxdp.privatize(make_plan(clipping, num_parameters=5002)).init(PARAMS)
    with pytest.raises(ValueError, match=r"5,002 numbers .* with the counts of clip_quantile"):
        jaxdp.privatize(make_plan(clipping, num_parameters=5001)).init(PARAMS)


def test_plans_that_do_not_know_the_number_of_parameters_pay_for_1e11_draws():
    check_draws(make_plan(steps=50), 2 * 10**9)
    with pytest.raises(ValueError, match=r"2,000,000,001 numbers .* 50 steps, more than the 1e"):
        check_draws(make_plan(steps=50), 2 * 10**9 + 1)
    check_draws(make_plan(steps=50, num_parameters=2 * 10**9 + 1), 2 * 10**9 + 1)


def test_sums_that_get_no_noise_are_not_rounded():
    """Plain training may have any number of parameters, too."""
    tx = jaxdp.privatize(make_plan(jaxdp.clip_individual(1.0), 0.0, num_parameters=1))
    grads = {"a": np.full((1, 40, 50), 1e-9, np.float32), "b": np.zeros((1, 3000), np.float32)}
    mean, _ = tx.update(from_dense(grads), tx.init(PARAMS))
    np.testing.assert_allclose(mean["a"], 1e-11, rtol=1e-6)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_a_release_lowers_for_every_platform_without_loops(platform):
    release = lambda key, step, std, total: noise_adder(22)(key, step, [std], [total])
    exported = jax.export.export(jax.jit(release), platforms=[platform])(
        *(jax.ShapeDtypeStruct(*a) for a in [((4,), jnp.uint32), ((), jnp.int32)]),
        *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in [(), (64, 33)]),
    )
    assert "while" not in exported.mlir_module()
    assert "f64" not in exported.mlir_module()


def compiled(shapes, dtype=jnp.float32):
    """The compiled release of `shapes`: scale, noise, divide and cast; and two readers of each."""

    def step(key, number, stds, sums):
        means = noise_adder(22, 256.0, (jnp.dtype(dtype),) * len(shapes))(key, number, stds, sums)
        return [(mean * 2, mean * mean) for mean in means]

    stds = [jax.ShapeDtypeStruct((), jnp.float32)] * len(shapes)
    sums = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(step).lower(KEY, jnp.int32(3), stds, sums).compile()


def fusions_that_draw(program):
    """The texts of those with the rounds of Threefry."""
    bodies = re.findall(r"\n%fused[^\n]*{\n(.*?)\n}", program.as_text(), re.DOTALL)
    return [body for body in bodies if body.count("shift-left") >= 20]


def test_a_leaf_is_drawn_once_in_one_fusion_that_needs_no_memory():
    """Adam reads a mean several times; XLA must not draw the noise again for each."""
    program = compiled([(300, 301), (70_001,)], jnp.bfloat16)
    # The means themselves, at 2 bytes.
    assert program.memory_analysis().temp_size_in_bytes < 2 * (300 * 301 + 70_001) + 10_000
    draws = fusions_that_draw(program)
    assert sum("300,301" in body for body in draws) == 1
    assert sum("70001" in body for body in draws) == 1
    for body in draws:
        root = re.search(r"ROOT [^=]*= (\w+)\[", body)
        assert root.group(1) == "bf16"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")
def test_a_whole_release_writes_into_the_memory_of_the_sums():
    params = {f"layer {i}": jnp.zeros((300, 301)) for i in range(4)}
    privatizer = jaxdp.privatize(make_plan())
    state = privatizer.init(params)
    sums = jax.eval_shape(lambda s: privatizer.sums(zero_gradients(params), s), state)
    release = jax.jit(privatizer.release, donate_argnums=0)
    memory = release.lower(sums, state, params).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.1 * 4 * 300 * 301 * 4


def test_large_leaves_of_one_shape_are_compiled_once():
    """XLA compiles equal fusions once. Here they have equal text, but for names and their order."""
    draws = fusions_that_draw(compiled([(300, 301)] * 12))
    plain = lambda body: re.sub(r", metadata={[^}]*}|%[\w.-]+|(?<=parameter)\(\d+\)", "", body)
    large = ["\n".join(sorted(plain(body).split("\n"))) for body in draws]
    assert len(large) == 12
    assert len(set(large)) <= 2  # the first leaf's has its operands in another order


def test_small_leaves_of_one_size_are_drawn_at_once():
    draws = fusions_that_draw(compiled([(30, 20), (600,), (5, 120), (7,)]))
    assert sum("[3,600]" in body for body in draws) == 1
    assert sum("[7]" in body or "[1,7]" in body for body in draws) == 1


def test_each_of_the_leaves_that_are_drawn_at_once_has_its_own_noise():
    shapes = [(4, 50), (200,), (3,), (2, 4, 25), (200,)]
    dtypes = [jnp.dtype(kind) for kind in ("float32", "bfloat16", *["float32"] * 3)]
    stds = [jnp.float32(x) for x in (1.0, 2.0, 1.0, 3.0, 4.0)]
    sums = [jnp.zeros(shape) for shape in shapes]
    means = jax.jit(noise_adder(22, 1.0, tuple(dtypes)))(KEY, jnp.int32(5), stds, sums)
    for leaf, (mean, shape, std) in enumerate(zip(means, shapes, stds, strict=True)):
        expected = np.asarray(rounded_gaussian(KEY, 5, leaf, shape)) * (float(std) / 2**22)
        assert mean.dtype == dtypes[leaf]
        np.testing.assert_array_equal(mean, jnp.asarray(expected, jnp.float32).astype(mean.dtype))


def test_a_leaf_without_a_finite_std_is_nan_and_its_neighbours_are_not():
    stds = [jnp.float32(x) for x in (1.0, np.nan, np.inf, 1.0)]
    means = jax.jit(noise_adder(22))(KEY, jnp.int32(5), stds, [jnp.zeros(20)] * 4)
    assert [bool(np.all(np.isnan(mean))) for mean in means] == [False, True, True, False]
    assert np.all(np.isfinite(means[0]))
    assert np.all(np.isfinite(means[3]))
