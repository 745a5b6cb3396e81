"""A clipped contribution is never longer than the clipping norm (privacy rules 1, 3, 6 and 9)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.dense import from_dense
from helpers.problems import flat64, loss, norms64, oracle_grads, random_problem
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxdp
from jaxdp.dpsgd.clipping import ClippingState

NASTY = st.sampled_from([0.0, 1e-30, 1e-20, 1.0, 1e10, 1e18, 1e25, np.inf, np.nan])


def contributions64(grads, clipping_norm):
    """What every example adds: the float32 coefficients times the float32 gradients, in float64."""
    weights = np.asarray(coefficients(grads, clipping_norm), np.float64)
    rows = np.concatenate(
        [np.asarray(g, np.float64).reshape(len(g), -1) for g in jax.tree.leaves(grads)], axis=1
    )
    rows = np.where(weights[:, None] > 0, rows, 0)  # a zero coefficient leaves nothing of NaN
    return weights[:, None] * rows


@functools.partial(jax.jit, static_argnames="clipping_norm")
def coefficients(grads, clipping_norm):
    clip = jaxdp.clip_individual(clipping_norm)
    groups, state = clip.groups(grads), clip.init(grads)

    def body(_, microbatch):
        weigh = clip.clip(groups, state, strict=True).coefficients
        return jnp.where(microbatch.rows.valid, weigh(microbatch.rows.squared_norms)[0], 0)

    return from_dense(grads).fold(body, None)


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 10**9),
    scale=NASTY,
    odd_one=NASTY,
    clipping_norm=st.sampled_from([1e-12, 1e-3, 1.0, 1e6]),
)
def test_no_example_contributes_more_than_the_clipping_norm(seed, scale, odd_one, clipping_norm):
    rng = np.random.default_rng(seed)
    grads = {
        "a": (scale * rng.standard_normal((4, 30))).astype(np.float32),
        "b": rng.standard_normal((4, 2, 3)).astype(np.float32),
    }
    grads["a"][1, rng.integers(30)] = odd_one
    moved = np.linalg.norm(contributions64(grads, clipping_norm), axis=1)
    assert np.isfinite(moved).all()
    # Adding or removing a record moves the exact sum by its own contribution.
    assert moved.max() <= clipping_norm * (1 + 1e-5)


@jax.jit
def clipped_to_one(params, batch, mask):
    clip = jaxdp.clip_individual(1.0)
    grads = jaxdp.per_example_grads(loss, microbatch_size=4)(params, batch, mask)
    return clip.update(grads, clip.init(params))[0]


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 10**9), bad=NASTY, index=st.integers(0, 5))
def test_removing_an_example_moves_the_sum_by_at_most_the_clipping_norm(seed, bad, index):
    p = random_problem(seed)
    x = p.batch[0].copy()
    x[index, 0] = bad
    everyone = clipped_to_one(p.params, (x, p.batch[1]), np.ones(6, bool))
    others = clipped_to_one(p.params, (x, p.batch[1]), np.arange(6) != index)
    assert np.linalg.norm(flat64(everyone) - flat64(others)) <= 1 + 1e-5


@pytest.mark.parametrize(("size", "microbatch_size"), [(256, None), (4096, 64), (4096, None)])
def test_float32_sums_of_aligned_examples_stay_within_the_stated_slack(size, microbatch_size):
    # The worst case for rounding: every clipped gradient points the same way, sums reach B·C.
    rng = np.random.default_rng(0)
    direction = rng.standard_normal(50).astype(np.float32)
    grads = direction * rng.uniform(1, 9, (size, 1)).astype(np.float32)
    plan = jaxdp.Plan(
        num_examples=2 * size,
        expected_batch_size=size,
        steps=1,
        clipping=jaxdp.clip_individual(1.0),
        noise_multiplier=1.0,
    )
    clip = plan.clipping
    total = jax.jit(
        lambda mask: clip.update(
            from_dense(grads, mask, microbatch_size=microbatch_size), clip.init(grads)
        )[0]
    )
    everyone = flat64(total(np.ones(size, bool)))
    for index in rng.integers(size, size=40):
        gap = np.linalg.norm(everyone - flat64(total(np.arange(size) != index)))
        assert gap <= 1 + plan.rounding_slack


@pytest.mark.parametrize(("count", "microbatch_size"), [(4096, 1), (16384, 64), (16384, None)])
def test_later_roundings_do_not_add_up(count, microbatch_size):
    # One record more or less moves the binade in which all the later, small ones are rounded.
    size = 2 * count + 1
    low = np.spacing(np.float32(0.5 * count)) / 2  # one ulp below that sum
    grads = np.full((size, 1), 0.5, np.float32)
    grads[count] = 0.9
    grads[count + 1 :] = -0.75 * low
    clip = jaxdp.clip_individual(1.0)
    total = jax.jit(
        lambda mask: clip.update(
            from_dense(grads, mask, microbatch_size=microbatch_size), clip.init(grads[0])
        )[0]
    )
    gap = total(np.ones(size, bool)) - total(np.arange(size) != count)
    slack = 1e-5 + 4 * size * 2.0**-24
    assert abs(float(gap[0])) <= 0.9 + slack


def test_norms_of_large_leaves_are_not_rounded_down():
    # A running float32 sum would stop growing at 2^24 equal squares.
    grads = np.full((1, 2**25), 0.1, np.float32)
    squared = from_dense(grads).squared_norms()
    exact = np.sum(np.square(grads, dtype=np.float64))
    assert exact <= squared[0] <= exact * (1 + 1e-5)
    # The first lanes of a reduction don't grow by squares as small as these.
    grads = np.full((1, 2**10), 2.0**-12.5, np.float32)
    grads[0, 0] = 1
    assert np.sum(np.square(grads, dtype=np.float64)) <= from_dense(grads).squared_norms()[0]


def test_the_norm_of_many_leaves_is_not_rounded_down():
    """Every square but the first is too small to change a float32 sum that has it."""
    squares = [np.float32(1)] + [np.float32(2.0**-25)] * 3000
    params = [jnp.zeros(())] * len(squares)
    clip = jaxdp.clip_individual(0.5)
    told = clip.clip(clip.groups(params), clip.init(params), strict=True)
    coefficient = np.float64(told.coefficients([jnp.full(1, s) for s in squares])[0][0])
    assert coefficient * np.sqrt(np.sum(squares, dtype=np.float64)) <= 0.5 * (1 + 1e-5)


def test_small_gradients_are_left_whole_and_large_ones_reach_the_clipping_norm():
    p = random_problem(2)
    rows = oracle_grads(p.params, p.batch)
    norms = norms64(rows)
    clipping_norm = float(np.median(norms))
    moved = np.linalg.norm(
        contributions64(jax.tree.map(lambda g: g.astype(np.float32), rows), clipping_norm), axis=1
    )
    np.testing.assert_allclose(moved, np.minimum(norms, clipping_norm), rtol=1e-4)


def test_an_infinite_clipping_norm_gives_the_plain_sum():
    p = random_problem(4)
    clip = jaxdp.clip_individual(np.inf)
    got, _ = clip.update(jaxdp.per_example_grads(loss)(p.params, p.batch), clip.init(p.params))
    plain = jax.grad(lambda q: jnp.sum(jax.vmap(loss, (None, 0, 0))(q, *p.batch)))(p.params)
    np.testing.assert_allclose(flat64(got), flat64(plain), rtol=1e-4, atol=1e-4)


def test_sensitivity_under_each_adjacency():
    clip = jaxdp.clip_individual(3.0)
    assert clip.sensitivity("add_remove") == 3
    assert clip.sensitivity("zero_out") == 3
    assert clip.sensitivity("replace_one") == 6
    batch = jaxdp.clip_batch(3.0)
    assert {batch.sensitivity(a) for a in ("add_remove", "zero_out", "replace_one")} == {6}


def test_clipping_refuses_gradients_that_are_already_averaged():
    clip = jaxdp.clip_individual(1.0)
    with pytest.raises(TypeError, match="already summed or averaged"):
        clip.update({"w": jnp.ones(3)}, clip.init(jnp.ones(3)))


def test_units_of_gradients_and_clipping_must_agree():
    grads = from_dense(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r'use per_example_grads.*unit="batch"'):
        jaxdp.clip_batch(1.0).update(grads, jaxdp.clip_batch(1.0).init(jnp.ones(3)))


def test_clipping_norms_in_the_state_are_checked_when_gradients_are_weighed():
    clip, params = jaxdp.clip_layerwise(1.0), {"a": jnp.ones(2), "b": jnp.ones(2)}
    rows = from_dense(jax.tree.map(lambda p: 5 * p[None], params))
    with pytest.raises(ValueError, match=r"shape \(1,\): there are 2 groups \(a, b\)"):
        clip.update(rows, ClippingState(jnp.ones(1)))
    for bad in (-1.0, 0.0, 1e-25):  # the noise is for at least 1e-12
        total, _ = clip.update(rows, ClippingState(jnp.full(2, bad)))
        norms = [np.linalg.norm(leaf) for leaf in total.values()]
        np.testing.assert_allclose(norms, [1e-12, 1e-12], rtol=1e-5)
