"""Wrong masks, batches and runs, as users write them: an error, or NaN, and never a number."""

import copy
import pickle
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.cases import slow

import jaxdp

N = 200
X = np.random.default_rng(0).standard_normal((N, 3)).astype(np.float32)
Y = X @ np.array([1.0, -2.0, 0.5], np.float32)


def loss(params, x, y):
    return (x @ params["w"] - y) ** 2


def make_plan(**changes):
    numbers = dict(
        num_examples=N,
        expected_batch_size=20,
        steps=5,
        clipping=jaxdp.clip_individual(1.0),
        noise_multiplier=1.0,
    )
    return jaxdp.Plan(**{**numbers, **changes})


PARAMS = {"w": jnp.zeros(3)}


def made(plan=None, unit="example"):
    """A plan, its transformation with a first state, and the gradients of a batch."""
    plan = make_plan() if plan is None else plan
    tx = jaxdp.privatize(plan)
    mean = jaxdp.mean_loss(loss) if unit == "batch" else loss
    return plan, tx, tx.init(PARAMS), jaxdp.per_example_grads(mean, unit=unit)


def is_nan(gradient):
    return bool(np.isnan(gradient["w"]).all())


def test_a_forgotten_mask_is_an_error():
    plan, tx, state, grads = made()
    indices, _ = next(plan.batches())
    with pytest.raises(IndexError):  # padding is no record's number
        X[indices]
    rows = plan.take((X, Y), indices)
    with pytest.raises(ValueError, match="made without a mask, so padding rows would count"):
        tx.update(grads(PARAMS, rows), state)
    dense = jaxdp.from_dense({"w": jnp.ones((4, 3))}, None, like=PARAMS)
    with pytest.raises(ValueError, match="made without a mask"):
        tx.update(dense, state)


def test_an_inverted_mask_is_an_error_and_inside_jit_nan():
    plan, tx, state, grads = made()
    batch, mask = next(plan.batches(X, Y))
    assert not mask.all()
    with pytest.raises(ValueError, match="is the mask inverted"):
        tx.update(grads(PARAMS, batch, ~mask), state)
    step = jax.jit(lambda mask: tx.update(grads(PARAMS, batch, mask), state)[0])
    assert is_nan(step(~mask))
    assert not is_nan(step(mask))
    assert not is_nan(step(np.zeros_like(mask)))  # an empty sample is a step


def test_the_mask_of_other_rows_is_nan_in_every_batch_unit():
    plan = make_plan(clipping=jaxdp.clip_batch(1.0), num_units=4)
    plan, tx, state, grads = made(plan, "batch")
    batch, mask = next(plan.batches(X, Y, key=jax.random.key(0)))
    step = jax.jit(lambda mask: tx.update(grads(PARAMS, batch, mask), state)[0])
    assert not is_nan(step(mask))
    for unit in range(4):
        swapped = mask.copy()
        swapped[unit] = ~swapped[unit]
        assert is_nan(step(swapped))
    with pytest.raises(ValueError, match="False for a row before one for which it is True"):
        tx.update(grads(PARAMS, batch, mask[:, ::-1]), state)


def test_a_full_batch_says_that_it_has_no_padding():
    plan = make_plan(sampling="full_batch", expected_batch_size=N)
    _, tx, state, grads = made(plan)
    gradient, _ = tx.update(grads(PARAMS, (X, Y), jaxdp.all_rows(N)), state)
    assert not is_nan(gradient)


def test_rows_are_taken_from_the_plans_own_records_only():
    plan = make_plan()
    with pytest.raises(ValueError, match=r"\(199, 3\), and the plan is for 200 records"):
        plan.batches(X[:-1], Y[:-1])
    indices, mask = next(plan.batches())
    with pytest.raises(ValueError, match=r"\(199,\), and the plan is for 200 records"):
        plan.take({"x": X, "y": Y[:-1]}, indices)
    for wrong in (indices + 1, indices - 1000):
        with pytest.raises(ValueError, match="records are counted from 0 to 199"):
            plan.take(X, wrong)
    for arrays in (X, jnp.asarray(X)):
        rows = plan.take(arrays, indices)
        np.testing.assert_array_equal(rows[mask], X[indices[mask]])
        # Padding is no record: with the mask of another step, none counts twice.
        assert not np.asarray(rows)[~mask].any()
    with pytest.raises(ValueError, match="indices have dtype bool"):
        plan.take(X, mask)
    with pytest.raises(ValueError, match="record 7 is in indices twice"):
        plan.take(X, np.array([7, 3, 7, N, N]))
    for wrong in (-3, 1.5, True):
        with pytest.raises(ValueError, match="it is the number of a step, from 0"):
            plan.batches(start=wrong)
    with pytest.raises(ValueError, match="a key as key=key"):
        plan.batches(jax.random.key(0))  # a key goes in as key=


def test_batches_hold_the_records_and_their_mask():
    key = jax.random.key(0)
    both = zip(make_plan().batches(X, Y, key=key), make_plan().batches(key=key), strict=True)
    for ((x, y), mask), (indices, same) in both:
        np.testing.assert_array_equal(mask, same)
        assert (indices[~mask] == N).all()
        np.testing.assert_array_equal(x[mask], X[indices[mask]])
        np.testing.assert_array_equal(y[mask], Y[indices[mask]])


def test_steps_beyond_the_plan_release_nan():
    plan, tx, state, grads = made()
    step = jax.jit(lambda batch, mask, state: tx.update(grads(PARAMS, batch, mask), state))
    releases = []
    for batch, mask in make_plan(steps=7).batches(X, Y):
        gradient, state = step(batch, mask, state)
        releases.append(is_nan(gradient))
    assert releases == [False] * 5 + [True] * 2
    assert plan.epsilon_spent(state) > plan.epsilon()


def test_a_second_run_on_one_plan_warns():
    plan, key = make_plan(), jax.random.key(0)
    assert len(list(plan.batches())) == 5
    with pytest.warns(UserWarning, match=r"called again: that is a second run on the same records"):
        plan.batches()
    with pytest.warns(UserWarning, match="a second run"):
        plan.batches(key=key)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan.batches(key=key)  # the same run again
        plan.batches(key=jax.random.key(1), start=3)  # a resume
        for other in (copy.copy(plan), pickle.loads(pickle.dumps(plan)), make_plan()):
            assert other == plan
            other.batches()
        without_noise = make_plan(noise_multiplier=0)
        without_noise.batches()
        without_noise.batches()


@pytest.mark.parametrize(
    ("clip", "method"),
    [
        (jaxdp.clip_individual, "auto"),
        slow(jaxdp.clip_layerwise, "auto"),
        (jaxdp.clip_individual, "two_pass"),
        (jaxdp.clip_layerwise, "two_pass"),
    ],
)
def test_the_program_of_constant_time_does_not_look_at_the_records(clip, method):
    """No loop whose length, and no branch whose choice, depends on the batch."""
    plan = make_plan(clipping=clip(1.0))
    tx = jaxdp.privatize(plan)
    state = tx.init(PARAMS)
    batch, mask = next(plan.batches(X, Y))

    def sums(constant_time):
        grads = jaxdp.per_example_grads(
            loss, method=method, microbatch_size=4, constant_time=constant_time
        )
        return lambda x, y, mask: tx.sums(grads(PARAMS, (x, y), mask), state).gradient["w"]

    text = lambda constant: str(jax.make_jaxpr(sums(constant))(*batch, mask))
    assert "while[" in text(False)
    assert "cond[" in text(False)
    assert "while[" not in text(True)
    assert "cond[" not in text(True)
    np.testing.assert_allclose(sums(True)(*batch, mask), sums(False)(*batch, mask), rtol=1e-6)
    batch[0][0] = np.inf  # and it contributes nothing, still
    np.testing.assert_allclose(sums(True)(*batch, mask), sums(False)(*batch, mask), rtol=1e-6)


def test_several_processes_that_do_not_know_each_other_draw_no_keys(monkeypatch):
    plan, tx = make_plan(), jaxdp.privatize(make_plan())
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for draw in (plan.batches, lambda: tx.init(PARAMS), jaxdp.secret_key):
        with pytest.raises(ValueError, match=r"2 processes, .* jax\.distributed\.initialize"):
            draw()
