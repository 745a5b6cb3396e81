"""The clipped sum's sensitivity is what the clipping says (DESIGN rules 1, 3, 6 and 9)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import flat64, loss, norms64, oracle_grads, random_problem

import jaxdp

NASTY = st.sampled_from([0.0, 1e-30, 1e-20, 1.0, 1e10, 1e18, 1e25, np.inf, np.nan])


def contributions64(grads, bound):
    """What every example adds: the float32 coefficients times the float32 gradients, in float64."""
    weights = np.asarray(coefficients(grads, bound), np.float64)
    rows = np.concatenate(
        [np.asarray(g, np.float64).reshape(len(g), -1) for g in jax.tree.leaves(grads)], axis=1
    )
    rows = np.where(weights[:, None] > 0, rows, 0)  # a zero coefficient leaves nothing of NaN
    return weights[:, None] * rows


@functools.partial(jax.jit, static_argnames="bound")
def coefficients(grads, bound):
    clip = jaxdp.clip_individual(bound)
    groups, state = clip.groups(grads), clip.init(grads)

    def body(_, microbatch):
        return jnp.where(microbatch.valid, clip.weigh(microbatch, groups, state)[0][0], 0)

    return jaxdp.from_dense(grads).fold(body, None)


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 10**9),
    scale=NASTY,
    odd_one=NASTY,
    bound=st.sampled_from([1e-12, 1e-3, 1.0, 1e6]),
)
def test_no_example_contributes_more_than_the_bound(seed, scale, odd_one, bound):
    rng = np.random.default_rng(seed)
    grads = {
        "a": (scale * rng.standard_normal((4, 30))).astype(np.float32),
        "b": rng.standard_normal((4, 2, 3)).astype(np.float32),
    }
    grads["a"][1, rng.integers(30)] = odd_one
    moved = np.linalg.norm(contributions64(grads, bound), axis=1)
    assert np.isfinite(moved).all()
    # Adding or removing a record moves the exact sum by its own contribution.
    assert moved.max() <= bound * (1 + 1e-5)


@jax.jit
def clipped_to_one(params, batch, mask):
    clip = jaxdp.clip_individual(1.0)
    grads = jaxdp.per_example_grads(loss, microbatch_size=4)(params, batch, mask)
    return clip.update(grads, clip.init(params))[0]


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 10**9), bad=NASTY, index=st.integers(0, 5))
def test_removing_an_example_moves_the_sum_by_at_most_the_bound(seed, bad, index):
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
            jaxdp.from_dense(grads, mask, microbatch_size=microbatch_size), clip.init(grads)
        )[0]
    )
    everyone = flat64(total(np.ones(size, bool)))
    for index in rng.integers(size, size=40):
        gap = np.linalg.norm(everyone - flat64(total(np.arange(size) != index)))
        assert gap <= 1 + plan.rounding_slack


@pytest.mark.parametrize(("count", "microbatch_size"), [(4096, 1), (16384, 64), (16384, None)])
def test_later_roundings_do_not_add_up(count, microbatch_size):
    # One record more or less moves the binade in which all the later, small ones are rounded.
    bound, size = 1.0, 2 * count + 1
    low = np.spacing(np.float32(0.5 * count)) / 2  # one ulp below that sum
    grads = np.full((size, 1), 0.5, np.float32)
    grads[count] = 0.9
    grads[count + 1 :] = -0.75 * low
    clip = jaxdp.clip_individual(bound)
    total = jax.jit(
        lambda mask: clip.update(
            jaxdp.from_dense(grads, mask, microbatch_size=microbatch_size), clip.init(grads[0])
        )[0]
    )
    gap = total(np.ones(size, bool)) - total(np.arange(size) != count)
    slack = 1e-5 + 4 * size * 2.0**-24
    assert abs(float(gap[0])) <= 0.9 + slack


def test_norms_of_large_leaves_are_not_rounded_down():
    # A running float32 sum would stop growing at 2^24 equal squares.
    grads = np.full((1, 2**25), 0.1, np.float32)
    squared = jaxdp.from_dense(grads).squared_norms()
    exact = np.sum(np.square(grads, dtype=np.float64))
    assert exact <= squared[0] <= exact * (1 + 1e-5)


def test_small_gradients_are_left_whole_and_large_ones_reach_the_bound():
    p = random_problem(2)
    rows = oracle_grads(p.params, p.batch)
    norms = norms64(rows)
    bound = float(np.median(norms))
    moved = np.linalg.norm(
        contributions64(jax.tree.map(lambda g: g.astype(np.float32), rows), bound), axis=1
    )
    np.testing.assert_allclose(moved, np.minimum(norms, bound), rtol=1e-4)


def test_infinite_bound_is_the_plain_sum():
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


@pytest.mark.parametrize("bound", [0, -1.0, float("nan"), 1e-13])
def test_a_bad_bound_names_the_value(bound):
    with pytest.raises(ValueError, match=f"clipping norm is {bound}"):
        jaxdp.clip_individual(bound)


@pytest.mark.parametrize("bound", ["1", None, True, jnp.float32(1)])
def test_a_bound_must_be_a_python_number(bound):
    with pytest.raises(TypeError, match="give a Python number"):
        jaxdp.clip_individual(bound)


def test_clipping_refuses_gradients_that_are_already_averaged():
    clip = jaxdp.clip_individual(1.0)
    with pytest.raises(TypeError, match="already summed or averaged"):
        clip.update({"w": jnp.ones(3)}, clip.init(jnp.ones(3)))
