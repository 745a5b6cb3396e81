"""Sampling: who takes part, nothing dropped, one shape (privacy rules 7, 10 and 11)."""

import jax
import numpy as np
import pytest
from helpers.releases import FALSE_ALARM
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, chi2

import jaxdp
from jaxdp.dpsgd import binomial, keys, sampling

KEY = np.array([3, 4], np.uint64)


def make_plan(num_examples=1000, expected_batch_size=100, steps=20):
    return jaxdp.Plan(
        num_examples=num_examples,
        expected_batch_size=expected_batch_size,
        steps=steps,
        clipping=jaxdp.clip_individual(1.0),
        noise_multiplier=1.0,
    )


@pytest.mark.parametrize(
    ("n", "q", "steps"), [(1000, 0.1, 400), (10**7, 1e-6, 10), (10**9, 1e-6, 50), (50, 0.9, 400)]
)
def test_inclusion_probability(n, q, steps):
    sampler = sampling.Sampler("poisson", KEY, n, q * n)
    total = sum(len(sampler.rows(step)) for step in range(steps))
    low, high = binom.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], n * steps, q)
    assert low <= total <= high


def test_records_and_steps_are_independent():
    n, q, steps = 200, 0.3, 500
    sampler = sampling.Sampler("poisson", KEY, n, q * n)
    rows = np.zeros((steps, n))
    for step in range(steps):
        rows[step, sampler.rows(step)] = 1
    centred = (rows - q) / np.sqrt(q * (1 - q))
    for matrix in (centred.T @ centred, centred @ centred.T):
        size = len(matrix)
        pairs = matrix[np.triu_indices(size, 1)] / np.sqrt(rows.size / size)
        statistic = np.sum(pairs**2)
        assert chi2.sf(statistic, len(pairs)) > FALSE_ALARM


def test_everyone_takes_part_at_probability_one():
    everyone = sampling.Sampler("poisson", KEY, 30, 30)
    np.testing.assert_array_equal(everyone.rows(0), np.arange(30))


@pytest.mark.parametrize("kind", ["poisson", "fixed_size", "shuffled", "full_batch"])
def test_one_record_is_sampled(kind):
    assert sampling.Sampler(kind, KEY, 1, 1).rows(3).tolist() == [0]


def test_almost_nobody_is_sampled():
    sampler = sampling.Sampler("poisson", KEY, 10**9, 1e-3)
    assert sum(len(sampler.rows(step)) for step in range(100)) <= 4  # more: probability 8e-8
    assert make_plan(10**9, 1e-3, 100).capacity == 4


@settings(max_examples=50, deadline=None)
@given(n=st.integers(2, 400), share=st.floats(0.001, 1.0), seed=st.integers(0, 2**31 - 1))
def test_no_sampled_record_is_dropped_to_fit_a_shape(n, share, seed):
    p = make_plan(n, max(share * n, 1e-3), 3)
    key = jax.random.key(seed)
    philox = keys.philox_key(key, "sampling")
    for step, (indices, mask) in enumerate(p.batches(key=key)):
        want = sampling.Sampler("poisson", philox, n, p.expected_batch_size).rows(step)
        np.testing.assert_array_equal(indices[mask], want)
        assert len(indices) == len(mask)
        assert len(indices) % p.capacity == 0


def test_a_sample_above_the_capacity_gets_a_larger_shape():
    indices, mask = sampling.pad(np.arange(5, dtype=np.int32), 4, padding=9)
    assert len(indices) == len(mask) == 8
    np.testing.assert_array_equal(indices[mask], np.arange(5))
    assert (indices[~mask] == 9).all()


def test_capacity_holds_all_but_one_of_1e12_runs():
    sizes = [(1437, 256, 150), (60000, 60, 20000), (45000, 64, 35156), (10**9, 4096, 10**6)]
    for n, size, steps in sizes:
        for units in (1, 8):
            capacity = sampling.capacity("poisson", n, size, units, steps)
            overflow = lambda rows: steps * units * binom.sf(rows, n, size / n / units)
            assert overflow(capacity) <= sampling.OVERFLOW_PROBABILITY
            assert overflow(capacity - 1) > sampling.OVERFLOW_PROBABILITY
    assert sampling.capacity("poisson", 30, 30, 1, 5) == 30
    assert sampling.capacity("shuffled", 100, 32, 1, 5) == 32


def other_plan(kind, n, size, steps=40, **changes):
    return jaxdp.Plan(
        num_examples=n,
        expected_batch_size=size,
        steps=steps,
        clipping=jaxdp.clip_individual(1.0),
        noise_multiplier=3.0,
        sampling=kind,
        adjacency="replace_one",
        **changes,
    )


def test_shuffled_epochs_hold_everybody_once():
    batches = list(other_plan("shuffled", 50, 20, steps=7).batches(key=jax.random.key(0)))
    sizes = [int(mask.sum()) for _, mask in batches]
    assert sizes == [20, 20, 10, 20, 20, 10, 20]
    epochs = [
        np.concatenate([indices[mask] for indices, mask in batches[start : start + 3]])
        for start in (0, 3)
    ]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(50))
    assert not np.array_equal(*epochs)


def test_a_shuffled_epoch_goes_on_in_its_own_order_only():
    plan = other_plan("shuffled", 50, 20, steps=7)
    with pytest.raises(ValueError, match="start is 4, inside a shuffled epoch of 3 steps"):
        next(plan.batches(start=4))
    key = jax.random.key(0)
    resumed = next(plan.batches(key=key, start=4))
    np.testing.assert_array_equal(resumed[0], list(plan.batches(key=key))[4][0])
    next(plan.batches(start=3))


def test_fixed_size_batches_are_uniform_and_without_replacement():
    counts = np.zeros(50)
    for indices, mask in other_plan("fixed_size", 50, 20, steps=400).batches(key=jax.random.key(0)):
        assert mask.all()
        assert len(set(indices)) == 20
        counts[indices] += 1
    statistic = np.sum((counts - 160) ** 2 / (160 * 30 / 49))
    assert chi2.sf(statistic, 49) > FALSE_ALARM


def test_a_full_batch_is_everybody_each_time():
    for indices, mask in other_plan("full_batch", 30, 30, steps=2).batches():
        np.testing.assert_array_equal(indices[mask], np.arange(30))


def test_batch_sizes_must_be_whole_unless_poisson():
    with pytest.raises(ValueError, match=r"20\.5.*whole number"):
        other_plan("shuffled", 50, 20.5)


def test_runs_share_no_samples_unless_a_key_is_given():
    runs = [next(make_plan().batches()) for _ in range(2)]
    assert not np.array_equal(runs[0][0], runs[1][0])
    repeats = [list(make_plan().batches(key=jax.random.key(1))) for _ in range(2)]
    for (a, mask_a), (b, mask_b) in zip(*repeats, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(mask_a, mask_b)
    other = next(make_plan().batches(key=jax.random.key(2)))
    assert not np.array_equal(repeats[0][0][0], other[0])


def test_a_batch_depends_on_key_and_step_only():
    key = jax.random.key(5)
    whole = list(make_plan().batches(key=key))
    resumed = list(make_plan().batches(key=key, start=13))
    assert len(whole) == 20
    assert len(resumed) == 7
    np.testing.assert_array_equal(whole[13][0], resumed[0][0])


def test_no_step_has_more_rows_than_the_most():
    for n, size in ((60_000, 1000), (50, 3), (10**9, 4096), (30, 30)):
        law, most = binomial.Binomial(n, size / n), sampling.most_rows("poisson", n, size)
        assert law.invert(2**128 - 1) + 1 == most  # a neighbour may have one more
        log_tail = binom.logsf(most - 1, n, size / n)
        assert most == n + 1 or log_tail < -100 * np.log(2)
    for kind, size in (("shuffled", 32), ("fixed_size", 32), ("full_batch", 100)):
        assert sampling.most_rows(kind, 100, size) == size + 1
