"""Batch units: a record's unit is its own, uniform and independent (privacy rule 4)."""

import jax
import numpy as np
import pytest
from helpers.releases import FALSE_ALARM, make_plan
from scipy.stats import chi2

import jaxdp
from jaxdp.dpsgd import keys, sampling

KEY = np.array([3, 4], np.uint64)


def test_a_records_unit_is_its_own_affair():
    m, n = 8, 500
    whole = sampling.assign_units(KEY, 3, np.arange(n), m)
    # Another record more or less, or other records sampled, leaves everybody's unit as it was.
    more = sampling.assign_units(KEY, 3, np.arange(n + 1), m)
    np.testing.assert_array_equal(more[:n], whole)
    rng = np.random.default_rng(0)
    some = np.flatnonzero(rng.random(n) < 0.5).astype(np.int32)
    shuffled = rng.permutation(some)
    placed = []
    for order in (some, shuffled):
        np.testing.assert_array_equal(sampling.assign_units(KEY, 3, order, m), whole[order])
        units, mask = sampling.pad_units(order, whole[order], m, 10, 10**6)
        placed.append([set(row[keep]) for row, keep in zip(units, mask, strict=True)])
    assert placed[0] == placed[1]
    assert placed[0] == [set(some[whole[some] == unit]) for unit in range(m)]


def test_units_are_uniform_and_drawn_anew_each_step():
    m, n, steps = 8, 1000, 50
    drawn = np.stack([sampling.assign_units(KEY, step, np.arange(n), m) for step in range(steps)])
    counts = np.bincount(drawn.ravel(), minlength=m)
    expected = n * steps / m
    assert chi2.sf(np.sum((counts - expected) ** 2 / expected), m - 1) > FALSE_ALARM
    same = np.mean(drawn[:-1] == drawn[1:])
    assert abs(same - 1 / m) < 5 * np.sqrt(1 / m / (n * steps))


def test_units_do_not_follow_from_who_is_sampled():
    # Units drawn with the sampling key would be read from the bits that decided who is in.
    plan = jaxdp.Plan(
        num_examples=4000,
        expected_batch_size=2000,
        steps=1,
        clipping=jaxdp.clip_batch(1.0),
        num_units=2,
        noise_multiplier=1.0,
    )
    key = jax.random.key(0)
    indices, mask = next(plan.batches(key=key))
    sampled = np.sort(indices[mask])
    in_first = np.isin(sampled, indices[0][mask[0]])
    own = sampling.assign_units(keys.philox_key(key, "sampling"), 0, sampled, 2) == 0
    agree = np.mean(in_first == own)
    assert abs(agree - 0.5) < 6 * 0.5 / np.sqrt(len(sampled))
    # Nor from a place among the sampled: they are those of the records' own numbers.
    unit_of = sampling.assign_units(keys.philox_key(key, "units"), 0, np.arange(4000), 2)
    assert [set(unit_of[row[keep]]) for row, keep in zip(indices, mask, strict=True)] == [{0}, {1}]


def test_units_and_inclusion_are_independent():
    m, n, steps = 4, 3000, 40
    key = jax.random.key(7)
    sampler = sampling.Sampler("poisson", keys.philox_key(key, "sampling"), n, 0.4 * n)
    philox = keys.philox_key(key, "units")
    table = np.zeros((2, m))
    for step in range(steps):
        unit_of = sampling.assign_units(philox, step, np.arange(n), m)
        sampled = np.isin(np.arange(n), sampler.rows(step))
        np.add.at(table, (sampled.astype(int), unit_of), 1)
    expected = np.outer([0.6, 0.4], np.full(m, 1 / m)) * n * steps
    assert chi2.sf(np.sum((table - expected) ** 2 / expected), 2 * m - 1) > FALSE_ALARM


@pytest.mark.parametrize(("rows", "steps"), [(1, 0), (0, 1), (1, 1), (256, 0), (2**32, 0)])
def test_units_of_other_rows_and_steps_are_independent(rows, steps):
    m, n = 7, 100_000
    numbers = np.arange(n, dtype=np.int64)
    one = sampling.assign_units(KEY, 5, numbers, m)
    other = sampling.assign_units(KEY, 5 + steps, numbers + rows, m)
    apart = numbers // max(rows, 1) % 2 == 0  # pairs that have no row in common
    counts = np.bincount(one[apart] * m + other[apart], minlength=m * m)
    expected = np.sum(apart) / m**2
    assert chi2.sf(np.sum((counts - expected) ** 2 / expected), m * m - 1) > FALSE_ALARM


def test_units_are_placed_for_rows_beyond_32_bits():
    rows = np.array([2**31, 10**12, 2**40])
    assert len(set(sampling.assign_units(KEY, 0, rows, 2**30))) == 3
    units, mask = sampling.pad_units(rows, np.array([0, 1, 1]), 2, 2, 2**41)
    assert units.dtype == np.int64
    np.testing.assert_array_equal(np.sort(units[mask]), rows)


def test_a_unit_above_the_capacity_gets_a_larger_shape():
    units, mask = sampling.pad_units(
        np.arange(9, dtype=np.int32), np.array([0] * 7 + [2] * 2), 3, 5, padding=9
    )
    assert units.shape == mask.shape == (3, 10)
    assert mask.sum(axis=1).tolist() == [7, 0, 2]


def test_units_and_samples_have_keys_of_their_own(monkeypatch):
    names, made = [], keys.philox_key
    monkeypatch.setattr(
        keys, "philox_key", lambda key, name: (names.append(name), made(key, name))[1]
    )
    plan = make_plan(jaxdp.clip_batch(1.0), num_units=2)
    next(plan.batches(key=jax.random.key(0)))
    assert {"sampling", "units"} <= set(names)
    assert len(names) == len(set(names))
