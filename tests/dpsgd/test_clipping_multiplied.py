"""One coefficient for all layers, which are measured in their clipping norms.

What comes through, and its noise (privacy rules 1, 2 and 21).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.dense import from_dense
from helpers.problems import flat64
from helpers.releases import make_plan, releases
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxdp
from jaxdp.dpsgd.clipping import ClippingState

SIZES = {"a": 40_000, "b": 60_000, "c": 90_000}
NORMS = {"a": 0.1, "b": 5.0, "c": 0.7}


def released_stds(plan):
    """Measured standard deviation of the noise on the sum of every layer."""
    params = {name: jnp.zeros(size) for name, size in SIZES.items()}
    (mean,) = releases(plan, jax.random.key(0), 1, params)
    return {name: float(np.std(mean[name])) * plan.divisor for name in SIZES}


@functools.partial(jax.jit, static_argnames="unit")
def contributions(grads, norms, unit="example"):
    """What every row adds to the sum of every layer."""
    clip = jaxdp.clip_multiplied(1.0, unit=unit)
    groups, state = clip.groups(grads), ClippingState(norms)

    def body(_, microbatch):
        weights = clip.clip(groups, state, strict=True).coefficients(microbatch.rows.squared_norms)
        return jnp.where(microbatch.rows.valid, jnp.stack(weights), 0)

    weights = from_dense(grads, unit=unit).fold(body, None)
    return {
        name: jnp.where(weight[:, None] > 0, weight[:, None] * grads[name], 0)
        for name, weight in zip(grads, weights, strict=True)
    }


def layer_norms(rows):
    """`[layers, rows]` in float64."""
    return np.stack([np.linalg.norm(np.asarray(row, np.float64), axis=1) for row in rows.values()])


@pytest.mark.parametrize("adjacency", ["add_remove", "zero_out", "replace_one"])
@pytest.mark.parametrize("unit", ["example", "batch"])
def test_effective_noise_multiplier_of_what_is_released(unit, adjacency):
    clip = jaxdp.clip_multiplied(NORMS, unit=unit)
    stds = released_stds(make_plan(clip, adjacency=adjacency))
    rng = np.random.default_rng(0)
    scales = np.concatenate([np.eye(3), rng.exponential(1, (40, 3)) ** 6])  # one layer alone first
    grads = {
        name: (1e4 * scale * rng.standard_normal((43, 7))).astype(np.float32)
        for name, scale in zip(SIZES, scales.T[:, :, None], strict=True)
    }
    moved = layer_norms(contributions(grads, jnp.array(list(NORMS.values())), unit))
    in_noise = clip.record_factor(adjacency) * moved / np.array(list(stds.values()))[:, None]
    most = np.linalg.norm(in_noise, axis=0).max()
    np.testing.assert_allclose(1 / most, 1.5, rtol=0.01)
    for name, std in stds.items():  # proportional to the clipping norm, without a root of layers
        want = 1.5 * clip.record_factor(adjacency) * NORMS[name]
        np.testing.assert_allclose(std, want, rtol=0.01)


@settings(max_examples=100, deadline=None, database=None)
@given(
    seed=st.integers(0, 10**9),
    exponents=st.tuples(*[st.integers(-12, 18)] * 3),
    odd=st.sampled_from([1.0, 0.0, np.inf, np.nan]),
)
def test_no_contribution_leaves_the_ellipsoid(seed, exponents, odd):
    rng = np.random.default_rng(seed)
    norms = (10.0 ** rng.integers(-12, 6, 3)).astype(np.float32)
    grads = {
        name: (10.0**exponent * rng.standard_normal((1, 5))).astype(np.float32)
        for name, exponent in zip("abc", exponents, strict=True)
    }
    grads["a"][0, 0] *= odd
    moved = layer_norms(contributions(grads, norms))[:, 0]
    assert np.sum(np.square(moved / norms)) <= (1 + 1e-5) ** 2


def test_it_is_scaling_clipping_and_scaling_back():
    rng = np.random.default_rng(0)
    norms, whole = {"w": 0.2, "b": 3.0}, 0.7
    grads = {
        "w": rng.standard_normal((5, 4, 3)).astype(np.float32),
        "b": rng.standard_normal((5, 6)).astype(np.float32),
    }
    like = jax.tree.map(lambda g: g[0], grads)
    times = lambda tree, sign: {h: tree[h] * (whole / norms[h]) ** sign for h in tree}
    flat, clip = jaxdp.clip_individual(whole), jaxdp.clip_multiplied(norms)
    scaled, _ = flat.update(from_dense(times(grads, 1)), flat.init(like))
    for microbatch_size in (None, 2):
        rows = from_dense(grads, microbatch_size=microbatch_size)
        got, _ = clip.update(rows, clip.init(like))
        np.testing.assert_allclose(flat64(got), flat64(times(scaled, -1)), rtol=1e-4)


@pytest.mark.slow
def test_times_the_root_of_layers_it_has_the_noise_of_layerwise_and_clips_no_more():
    root = np.sqrt(len(NORMS))
    apart = jaxdp.clip_layerwise(NORMS)
    together = jaxdp.clip_multiplied({name: root * norm for name, norm in NORMS.items()})
    want, got = released_stds(make_plan(apart)), released_stds(make_plan(together))
    for name in SIZES:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5)
    assert make_plan(apart).epsilon() == make_plan(together).epsilon()

    rng = np.random.default_rng(0)
    rows = {name: rng.standard_normal((200, 4)).astype(np.float32) for name in NORMS}
    for name, g in rows.items():  # every layer is within its clipping norm, many just so
        short = np.minimum(1, rng.uniform(0, 3, (200, 1)))
        g *= 0.999 * short * NORMS[name] / np.linalg.norm(g, axis=1, keepdims=True)
    like = jax.tree.map(lambda g: g[0], rows)
    whole = jax.tree.map(lambda g: g.sum(0), rows)
    for clip in (apart, together):
        total, _ = clip.update(from_dense(rows), clip.init(like))
        np.testing.assert_allclose(flat64(total), flat64(whole), atol=1e-5)
    # But a layer that is long alone shrinks the others with it: (100, 1) in clipping norms.
    one = {"a": np.array([[100.0]], np.float32), "b": np.array([[1.0]], np.float32)}
    clip = jaxdp.clip_multiplied(np.sqrt(2.0).item())
    total, _ = clip.update(from_dense(one), clip.init(jax.tree.map(lambda g: g[0], one)))
    np.testing.assert_allclose([total["a"][0], total["b"][0]], [1.414, 0.01414], rtol=1e-3)


@pytest.mark.parametrize("allocation", ["isotropic", "dimension"])
def test_other_allocations_are_refused_with_the_reason(allocation):
    with pytest.raises(ValueError, match="every group needs noise in proportion to it"):
        jaxdp.privatize(make_plan(jaxdp.clip_multiplied(1.0)), allocation=allocation)


def test_within_means_the_whole_gradient():
    clip = jaxdp.clip_multiplied({"a": 1.0, "b": 1.0})
    tx = jaxdp.privatize(make_plan(clip), key=jax.random.key(0))
    grads = {  # lengths in clipping norms: 1.13, 0.85, 2.06, 0
        "a": np.array([[0.8], [0.6], [0.5], [0.0]], np.float32),
        "b": np.array([[0.8], [0.6], [2.0], [0.0]], np.float32),
    }
    state = tx.init(jax.tree.map(lambda g: g[0], grads))
    assert tx.sums(from_dense(grads), state).diagnostics.clipped == 2


def test_norms_at_the_edge_of_overflow_make_nothing_nan():
    """Of many layers, whose norms are rounded up: a finite square may become an infinite one."""
    params = {f"w{i}": jnp.zeros(()) for i in range(20)}
    tx = jaxdp.privatize(make_plan(jaxdp.clip_multiplied(1.0)), key=jax.random.key(0))
    state = tx.init(params)

    @jax.jit
    def release(size):
        grads = {name: jnp.zeros(4) for name in params} | {"w0": jnp.zeros(4).at[2].set(size)}
        return tx.update(from_dense(grads), state)[0]

    size = np.sqrt(np.finfo(np.float32).max)
    for _ in range(200):
        assert all(np.isfinite(leaf) for leaf in release(size).values()), repr(size)
        size = np.nextafter(size, np.float32(0))
