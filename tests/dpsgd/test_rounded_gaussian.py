"""The noise on the device: plain integers give the same numbers, which look Gaussian."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import integer_noise
from helpers.releases import FALSE_ALARM
from scipy.stats import chi2, ks_1samp, norm, poisson

from jaxdp.dpsgd import _noise_tables as noise_tables
from jaxdp.dpsgd.rounded_gaussian import (
    _gaussian_of,
    element_numbers,
    rounded_gaussian,
    rounded_gaussian_at,
)

KEY = np.array([0x8A5CD789, 0x635D2DFF, 0x121FD215, 0x5C472F96], np.uint32)
SCALES = [22, 24]
COMPILED = jax.jit(rounded_gaussian, static_argnums=(2, 3, 4))
OF_BITS = jax.jit(_gaussian_of, static_argnums=1)


def drawn(count, scale=22, step=0, leaf=0, key=KEY):
    """`[count] float64`, in standard deviations."""
    return np.asarray(COMPILED(key, step, leaf, (count,), scale), np.float64) / 2**scale


@pytest.mark.parametrize("scale", SCALES)
def test_equals_plain_integers(scale):
    draws = COMPILED(KEY, 123_456_789, 7, (10, 2000), scale)
    assert draws.dtype == jnp.int32
    key = KEY.tolist()
    want = [integer_noise.draw(key, 123_456_789, 7, i, scale) for i in range(20_000)]
    assert draws.ravel().tolist() == want


@pytest.mark.parametrize("scale", SCALES)
def test_equals_plain_integers_at_every_threshold(scale):
    """One below, at and one above the threshold of every slot, with the least and last position."""
    table, free = noise_tables.tables(scale), 32 - noise_tables.SLOT_BITS[scale]
    blocks = []
    for slot, (high, low) in enumerate(zip(table.high, table.low, strict=True)):
        threshold = (int(high) << 32) | int(low)
        for choice, rest in itertools.product(range(threshold - 1, threshold + 2), (0, 2**32 - 1)):
            if 0 <= choice < 2**64:
                first = (slot << free) | (rest % 2**free)
                blocks.append((first, rest, choice >> 32, choice % 2**32))
    words = [jnp.asarray(word) for word in np.array(blocks, np.uint32).T]
    want = [integer_noise.draw_of(block, scale) for block in blocks]
    assert OF_BITS(words, scale).tolist() == want
    # The farthest draws are in reach of an int32 sum with 2^20.
    assert max(map(abs, want)) < 14 * 2**scale < 2**31 - 2**21


@pytest.mark.parametrize("scale", SCALES)
def test_every_bit_is_used_once(scale):
    """Slot, choice and the uniforms take 128 different bits: single bits give their powers of 2."""
    bits_of_slot = noise_tables.SLOT_BITS[scale]
    whole = [1 << (127 - bit) for bit in range(bits_of_slot, 64)]
    ones = [[(n >> shift) % 2**32 for shift in (96, 64, 32, 0)] for n in (0, *whole)]
    words = [jnp.asarray(word) for word in np.array(ones, np.uint32).T]
    draws = np.asarray(OF_BITS(words, scale))
    want = [u.step * 2**bit for u in noise_tables.KERNELS[scale] for bit in range(u.bits)]
    assert sorted(draws[1:] - draws[0]) == sorted(want)


@pytest.mark.slow
def test_compiled_mapped_and_sharded_numbers_are_the_same():
    shape, leaf = (6, 35), 3
    want = np.asarray(rounded_gaussian(jnp.asarray(KEY), 5, leaf, shape))
    for step in (5, np.int32(5), jnp.int32(5), jnp.uint32(5)):
        np.testing.assert_array_equal(COMPILED(KEY, step, leaf, shape, 22), want)
    steps = jnp.arange(4, 7)
    by_step = jax.vmap(lambda step: rounded_gaussian(jnp.asarray(KEY), step, leaf, shape))(steps)
    np.testing.assert_array_equal(by_step[1], want)
    keys = jnp.stack([jnp.asarray(KEY) ^ jnp.uint32(i) for i in range(2)])
    by_key = jax.vmap(lambda key: rounded_gaussian(key, 5, leaf, shape))(keys)
    np.testing.assert_array_equal(by_key[0], want)
    np.testing.assert_array_equal(by_key[1], COMPILED(keys[1], 5, leaf, shape, 22))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    mapped = jax.jit(
        jax.shard_map(
            lambda key: rounded_gaussian(key, 5, leaf, shape),
            mesh=mesh,
            in_specs=jax.sharding.PartitionSpec(),
            out_specs=jax.sharding.PartitionSpec(),
        )
    )
    np.testing.assert_array_equal(mapped(jnp.asarray(KEY)), want)


@pytest.mark.parametrize("scale", SCALES)
def test_an_index_range_gives_its_part_of_the_leaf(scale):
    whole = np.asarray(COMPILED(KEY, 9, 2, (40, 50), scale)).ravel()
    for first, last in ((0, 1), (1999, 2000), (123, 1456)):
        low = jnp.arange(first, last, dtype=jnp.uint32)
        part = rounded_gaussian_at(jnp.asarray(KEY), 9, 2, low, scale=scale)
        np.testing.assert_array_equal(part, whole[first:last])
    scattered = jnp.asarray([[7, 1033], [500, 7]], jnp.uint32)
    part = rounded_gaussian_at(jnp.asarray(KEY), 9, 2, scattered, scale=scale)
    np.testing.assert_array_equal(part, whole[np.asarray(scattered)])


def test_a_scalar_and_an_empty_leaf_have_noise():
    one = COMPILED(KEY, 1, 0, (), 22)
    assert one.shape == ()
    assert int(one) == integer_noise.draw(KEY.tolist(), 1, 0, 0, 22)
    assert COMPILED(KEY, 1, 0, (0, 3), 22).shape == (0, 3)


@pytest.mark.parametrize(
    "shape", [(), (1,), (7,), (3, 4), (2, 3, 5), (1, 6, 1), (4, 1, 2, 3)], ids=str
)
def test_numbers_of_elements_are_row_major(shape):
    low, high = element_numbers(shape)
    np.testing.assert_array_equal(low.ravel(), np.arange(math.prod(shape)))
    assert not high.any()
    assert low.dtype == high.dtype == jnp.uint32


HUGE = [
    (2**32,),
    (2**16, 2**16),
    (2**16 + 1, 2**16),
    (3, 2**31, 2),
    (5, 2**20, 2**13),
    (2**20, 2**12, 2**20, 2**12),
    (7, 11, 2**32),
    (2**31, 2, 1),
    (2**32, 2**32),
]


@pytest.mark.parametrize("shape", HUGE, ids=str)
def test_no_two_elements_of_a_huge_leaf_share_a_number(shape):
    """The strides of both words are those of a mixed radix, each below 2^32: no two are equal."""
    low, high = strides_of(shape)
    for word in (low, high):
        axes = [i for i in range(len(shape)) if word[i] is not None]
        expected = 1
        for axis in reversed(axes):  # a digit's stride is the product of the digits below it
            assert word[axis] == expected
            expected *= shape[axis]
        assert expected <= 2**32
    for axis in range(len(shape)):  # every axis counts in one of the words
        assert (low[axis] is None) != (high[axis] is None)


def strides_of(shape):
    """What an index of each axis adds to both words, read from the program that counts.

    The program's words are sums of `iota(axis) * stride`; nothing is computed.
    """
    traced = jax.make_jaxpr(lambda: element_numbers(shape))()
    terms, strides = {}, []
    for equation in traced.jaxpr.eqns:
        (out,) = equation.outvars
        inputs = [terms.get(v) if not hasattr(v, "val") else v.val for v in equation.invars]
        match equation.primitive.name:
            case "broadcast_in_dim":
                terms[out] = {} if not isinstance(inputs[0], dict) else inputs[0]
                assert isinstance(inputs[0], dict) or int(inputs[0]) == 0
            case "iota":
                assert equation.params["dtype"] == jnp.uint32
                terms[out] = {equation.params["dimension"]: 1}
            case "mul":
                (term,) = (t for t in inputs if isinstance(t, dict))
                (by,) = (t for t in inputs if not isinstance(t, dict))
                terms[out] = {axis: int(by) * stride for axis, stride in term.items()}
            case "add":
                assert not set(inputs[0]) & set(inputs[1])
                terms[out] = inputs[0] | inputs[1]
            case name:
                raise AssertionError(f"{name} is not in the arithmetic that this test knows")
    for out in traced.jaxpr.outvars:
        strides.append([terms[out].get(axis) for axis in range(len(shape))])
    return strides


@pytest.mark.parametrize("shape", [(2**32 + 1,), (2, 2**33), (2**33, 2), (2**20,) * 4], ids=str)
def test_leaves_that_two_words_cannot_count_are_refused(shape):
    with pytest.raises(ValueError, match="2\\^32"):
        jax.eval_shape(lambda: element_numbers(shape))


def test_step_leaf_and_both_words_of_the_element_are_four_words_of_the_counter():
    key = KEY.tolist()
    for step, leaf, low, high in itertools.product(
        (0, 1, 2**31 - 1), (0, 1, 5000), (0, 1, 2**32 - 1), (0, 1, 2**32 - 1)
    ):
        got = AT(KEY, step, leaf, jnp.uint32(low), jnp.uint32(high))
        assert int(got) == integer_noise.draw(key, step, leaf, (high << 32) + low, 22)


AT = jax.jit(lambda key, step, leaf, low, high: rounded_gaussian_at(key, step, leaf, low, high))
MANY = 4_000_000


@functools.cache
def many(scale):
    return drawn(MANY, scale, step=3, leaf=1)


@pytest.mark.slow
@pytest.mark.parametrize("scale", SCALES)
def test_moments_to_the_sixth(scale):
    x = many(scale)
    moments = {0: 1, 2: 1, 4: 3, 6: 15, 8: 105, 10: 945, 12: 10395}
    for order in range(1, 7):
        mean = moments.get(order, 0)
        std = math.sqrt((moments[2 * order] - mean**2) / MANY)
        # The means of 4 million are Gaussian enough this far out, but for a fat sixth: 20% more.
        limit = 1.2 * norm.isf(FALSE_ALARM / 12)
        assert abs(np.mean(x**order) - mean) <= limit * std, order


@pytest.mark.parametrize("scale", SCALES)
def test_kolmogorov_smirnov_and_cells(scale):
    x = many(scale)
    assert ks_1samp(x, norm.cdf, method="asymp").pvalue > FALSE_ALARM
    # Cells of 1/64 of a deviation, those of the table among them; at least 20 in each.
    edges = np.arange(-240, 241) / 64
    half = 0.5 / 2**scale  # a whole number at the edge belongs to the cell above it
    counts = np.histogram(x, np.concatenate([[-np.inf], edges - half, [np.inf]]))[0]
    expected = MANY * np.diff(norm.cdf([-np.inf, *(edges - half), np.inf]))
    assert expected.min() > 20
    statistic = np.sum((counts - expected) ** 2 / expected)
    assert chi2.sf(statistic, len(counts) - 1) > FALSE_ALARM


@pytest.mark.parametrize("scale", SCALES)
def test_the_low_bits_are_even(scale):
    """Also given the sign, and given the cell's parity: χ² of the low 12 bits."""
    points = np.rint(many(scale) * 2**scale).astype(np.int64)
    for group in (points, points[points >= 0], points[(points >> (scale - 6)) % 2 == 0]):
        counts = np.bincount(group & 0xFFF, minlength=4096)
        expected = len(group) / 4096
        statistic = np.sum((counts - expected) ** 2) / expected
        assert chi2.sf(statistic, 4095) > FALSE_ALARM
        assert chi2.cdf(statistic, 4095) > FALSE_ALARM


def test_elements_leaves_steps_and_keys_are_not_correlated():
    """Sums of products of N pairs of Gaussians have std √N; also of the squares less 1, √(4N)."""
    n = 500_000
    x = drawn(n + 4096, step=3, leaf=1)
    others = [x[lag : n + lag] for lag in (1, 2, 3, 64, 1024, 4096)]
    others += [drawn(n, step=step, leaf=leaf) for step, leaf in ((4, 1), (3, 2), (2, 1), (1, 3))]
    flipped = [KEY ^ np.array([bit, 0, 0, 0], np.uint32) for bit in (1, 2**31)]
    others += [drawn(n, step=3, leaf=1, key=key) for key in flipped]
    limit = norm.isf(FALSE_ALARM / 4 / len(others)) * math.sqrt(n)
    for other in others:
        assert abs(x[:n] @ other) <= limit
        assert abs((x[:n] ** 2 - 1) @ (other**2 - 1)) <= 2.2 * limit  # a tail fatter than Gaussian


@pytest.mark.slow
@pytest.mark.parametrize("scale", SCALES)
def test_tails_are_those_of_a_gaussian(scale):
    """8·10⁷ draws. jax.random.normal fails at 5.3 and beyond. False alarm: 1e-6 for each count."""
    limits, n, calls = (4.5, 5.0, 5.3, 5.6), 2**22, 20

    def counts(step):
        draws = rounded_gaussian(jnp.asarray(KEY), step, 0, (n,), scale)
        beyond = lambda side, limit: jnp.sum(side * draws >= math.ceil(limit * 2**scale))
        return jnp.array([[beyond(side, limit) for limit in limits] for side in (1, -1)])

    counts = jax.jit(counts)
    total = sum(np.asarray(counts(step), np.int64) for step in range(calls))
    for side in total:
        for count, limit in zip(side, limits, strict=True):
            # round(x) >= c means x >= c - ½.
            mean = n * calls * norm.sf((math.ceil(limit * 2**scale) - 0.5) / 2**scale)
            low, high = poisson.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], mean)
            assert low <= count <= high, (limit, count, mean)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_lowers_for_every_platform(platform, scale):
    exported = jax.export.export(
        jax.jit(lambda key, step: rounded_gaussian(key, step, 3, (64, 33), scale)),
        platforms=[platform],
    )(jax.ShapeDtypeStruct((4,), jnp.uint32), jax.ShapeDtypeStruct((), jnp.int32))
    text = exported.mlir_module()
    # No floating point, no 64-bit integers of values, no loop, no call to a library.
    for absent in ("f32", "f64", "while", "custom_call"):
        assert absent not in text, absent
    assert (exported.out_avals[0].shape, exported.out_avals[0].dtype) == ((64, 33), jnp.int32)


def test_wrong_arguments_are_named():
    key, elements = jnp.asarray(KEY), np.arange(5)
    # Elements are counted in int32, too.
    same = [rounded_gaussian_at(key, 0, 0, elements.astype(d)) for d in (np.uint32, np.int32)]
    np.testing.assert_array_equal(*same)
    for wrong in (jax.random.key(0, impl="rbg"), list(KEY), key[:2]):
        with pytest.raises(TypeError, match="give the four uint32 words of the noise key"):
            rounded_gaussian_at(wrong, 0, 0, elements)
    with pytest.raises(TypeError, match="low has dtype float32"):
        rounded_gaussian_at(key, 0, 0, elements.astype(np.float32))
    with pytest.raises(ValueError, match="scale is 20"):
        rounded_gaussian_at(key, 0, 0, elements, scale=20)
