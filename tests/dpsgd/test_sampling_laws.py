"""The laws of the sampled sets, by enumeration, and memory that does not grow with N (rule 11)."""

import itertools
import math
import tracemalloc

import jax
import numpy as np
import pytest
from helpers.releases import FALSE_ALARM
from scipy.stats import binom, chi2

import jaxdp
from jaxdp.dpsgd import philox, sampling

KEYS = [np.random.Philox(key=[9, 9], counter=[0, 0, 0, i]).random_raw(2) for i in range(20)]
STEPS = 400


def drawn_sets(kind, n, size):
    """How often every set was drawn, over many keys and steps: `[2^n]`, a bit for every row."""
    counts = np.zeros(2**n)
    for key in KEYS:
        sampler = sampling.Sampler(kind, key, n, size)
        for step in range(STEPS):
            rows = sampler.rows(step)
            assert np.all(np.diff(rows) > 0)
            counts[np.sum(2 ** rows.astype(int))] += 1
    return counts


def assert_drawn_from(counts, probabilities):
    """χ², where cells of less than five expected draws are taken together."""
    expected = counts.sum() * probabilities
    few = expected < 5
    assert np.all(counts[expected == 0] == 0)
    expected = np.append(expected[~few], expected[few].sum())
    counts = np.append(counts[~few], counts[few].sum())
    used = expected > 0
    statistic = np.sum((counts - expected)[used] ** 2 / expected[used])
    assert chi2.sf(statistic, max(used.sum() - 1, 1)) > FALSE_ALARM


@pytest.mark.parametrize("q", [0.15, 0.5, 0.8])
@pytest.mark.parametrize("n", range(1, 7))
def test_every_inclusion_set_is_as_probable_as_by_independent_records(n, q):
    sizes = np.array([bin(i).count("1") for i in range(2**n)])
    assert_drawn_from(drawn_sets("poisson", n, q * n), q**sizes * (1 - q) ** (n - sizes))


@pytest.mark.parametrize("sparse", [0, sampling.SPARSE])
@pytest.mark.parametrize(("n", "size"), [(4, 1), (5, 2), (6, 3), (6, 5), (5, 5)])
def test_all_sets_of_a_size_are_equally_probable(monkeypatch, n, size, sparse):
    monkeypatch.setattr(sampling, "SPARSE", sparse)  # 0: rows are sorted, never marked
    of_size = np.array([bin(i).count("1") == size for i in range(2**n)])
    assert_drawn_from(drawn_sets("fixed_size", n, size), of_size / math.comb(n, size))


def test_rows_are_included_equally_often():
    n, q, steps = 3000, 0.02, 3000
    sampler = sampling.Sampler("poisson", KEYS[0], n, q * n)
    counts = np.bincount(np.concatenate([sampler.rows(s) for s in range(steps)]), minlength=n)
    # Counts are independent binomials: their squares add up to χ² with n degrees of freedom.
    assert chi2.sf(np.sum((counts - steps * q) ** 2 / (steps * q * (1 - q))), n) > FALSE_ALARM


@pytest.mark.parametrize("n", [20, 90])  # rows are marked; rows are sorted
def test_pairs_are_included_equally_often(n):
    sampler = sampling.Sampler("fixed_size", KEYS[1], n, 2)
    counts = np.zeros((n, n))
    for step in range(100 * n):
        counts[tuple(sampler.rows(step))] += 1
    pairs = counts[np.triu_indices(n, 1)]
    assert pairs.sum() == 100 * n
    assert_drawn_from(pairs, np.full(len(pairs), 1 / len(pairs)))


def test_pairs_of_neighbouring_rows_are_included_with_q_squared():
    n, q, steps = 2000, 0.05, 4000
    sampler = sampling.Sampler("poisson", KEYS[2], n, q * n)
    together = np.zeros((2, 2))
    for step in range(steps):
        included = np.zeros(n, int)
        included[sampler.rows(step)] = 1
        together += np.histogram2d(included[::2], included[1::2], bins=2, range=[(0, 1)] * 2)[0]
    law = np.array([1 - q, q])
    assert_drawn_from(together.ravel(), np.outer(law, law).ravel())


def test_the_number_of_sampled_rows_is_binomial():
    n, size, steps = 10**8, 60, 10_000
    sampler = sampling.Sampler("poisson", KEYS[3], n, size)
    counts = np.bincount([len(sampler.rows(step)) for step in range(steps)], minlength=200)
    assert_drawn_from(counts, binom.pmf(np.arange(200), n, size / n))


def test_rows_are_uniform_over_a_large_range():
    n, steps = 10**9, 50
    sampler = sampling.Sampler("poisson", KEYS[4], n, 4096)
    rows = np.concatenate([sampler.rows(step) for step in range(steps)])
    for cells in (64, 61):  # by place, and by the lowest digits
        where = rows.astype(np.int64) * cells // n if cells == 64 else rows % cells
        sizes = np.full(cells, 1 / cells)
        assert_drawn_from(np.bincount(where, minlength=cells), sizes)


def test_distinct_rows_are_distinct_and_as_many_as_asked():
    words = philox.stream(KEYS[0], 0)
    for n, count in itertools.product((1, 2, 50, 1000, 10**6), (0, 1, 2, 25, 26, 49, 50, 999)):
        if count <= n:
            rows = sampling.distinct_rows(words, n, count)
            assert len(rows) == count
            assert np.all(np.diff(rows) > 0)
            assert count == 0 or 0 <= rows[0] <= rows[-1] < n


def make_plan(num_examples, kind="poisson", size=4096, **changes):
    return jaxdp.Plan(
        num_examples=num_examples,
        expected_batch_size=size,
        steps=1000,
        noise_multiplier=3.0,
        sampling=kind,
        adjacency="replace_one",
        **{"clipping": jaxdp.clip_individual(1.0), **changes},
    )


@pytest.mark.parametrize("kind", ["poisson", "fixed_size", "shuffled"])
def test_memory_does_not_grow_with_the_number_of_records(kind):
    units = {"clipping": jaxdp.clip_batch(1.0), "num_units": 64}
    plans = [make_plan(10**9, kind, **changes) for changes in ({}, units)]
    for plan in plans:
        tracemalloc.start()
        try:
            batches = plan.batches(key=jax.random.key(0))
            sizes = [int(next(batches)[1].sum()) for _ in range(3)]
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 10 * 2**20  # of N marks: 1 GB. The tables of a permutation have √N words
        assert all(3500 < size < 4700 for size in sizes)


@pytest.mark.parametrize(
    ("num_examples", "dtype"),
    [(10**9, np.int32), (2**31 - 1, np.int32), (2**31, np.int64), (10**12, np.int64)],
)
@pytest.mark.parametrize("kind", ["poisson", "fixed_size", "shuffled"])
def test_rows_of_any_number_of_records(num_examples, dtype, kind):
    plan = make_plan(num_examples, kind, size=100)
    batches = plan.batches(key=jax.random.key(1))
    rows = []
    for _ in range(5):
        indices, mask = next(batches)
        assert indices.dtype == dtype
        assert len(indices) == plan.capacity
        rows.append(indices[mask])
    again = next(plan.batches(key=jax.random.key(1), start=3))
    np.testing.assert_array_equal(again[0][again[1]], rows[3])
    rows = np.concatenate(rows)
    assert rows.min() >= 0
    assert 0.9 * num_examples < rows.max() < num_examples
