"""Keyed permutations: one-to-one for every size, and another one for every key and epoch."""

import numpy as np
import pytest
from helpers.releases import FALSE_ALARM
from scipy.stats import chi2

from jaxdp.dpsgd.permutation import Permutation

KEY = np.array([5, 6], np.uint64)


def test_every_small_size_is_permuted():
    for size in range(1, 301):
        for number in range(3):
            values = Permutation(KEY, number, size).at(np.arange(size))
            np.testing.assert_array_equal(np.sort(values), np.arange(size), err_msg=f"{size}")


@pytest.mark.parametrize("size", [997, 1024, 10_000, 2**16, 2**16 + 1, 99_991, 999_999])
def test_large_sizes_are_permuted(size):
    values = Permutation(KEY, 1, size).at(np.arange(size))
    np.testing.assert_array_equal(np.sort(values), np.arange(size))


@pytest.mark.parametrize("size", [2**31 - 1, 2**31, 10**11])
def test_huge_sizes_are_read_at_a_few_places(size):
    places = np.concatenate([np.arange(1000), np.arange(size - 1000, size)])
    values = Permutation(KEY, 0, size).at(places)
    assert len(set(values)) == 2000
    assert values.min() >= 0
    assert size * 0.9 < values.max() < size


def test_values_do_not_depend_on_what_else_is_read():
    permutation = Permutation(KEY, 0, 1000)
    whole = permutation.at(np.arange(1000))
    some = np.array([999, 3, 500, 3])
    np.testing.assert_array_equal(permutation.at(some), whole[some])
    np.testing.assert_array_equal(some, [999, 3, 500, 3])


def test_keys_and_numbers_give_other_orders():
    orders = [Permutation(KEY, number, 500).at(np.arange(500)) for number in range(3)]
    for word in range(2):
        for bit in (0, 63):
            key = KEY.copy()
            key[word] ^= np.uint64(1 << bit)
            orders.append(Permutation(key, 0, 500).at(np.arange(500)))
    assert len({order.tobytes() for order in orders}) == 7
    for order in orders:
        assert np.sum(order == np.arange(500)) < 12  # one on average


@pytest.mark.slow
@pytest.mark.parametrize("places", [(0, 1), (17, 29)])
def test_two_places_get_any_two_records(places):
    size, count = 30, 20_000
    pairs = np.array([Permutation(KEY, i, size).at(np.array(places)) for i in range(count)])
    counts = np.bincount(pairs[:, 0] * size + pairs[:, 1], minlength=size**2)
    counts = counts.reshape(size, size)
    assert np.trace(counts) == 0
    expected = count / (size * (size - 1))
    apart = counts[~np.eye(size, dtype=bool)]
    assert chi2.sf(np.sum((apart - expected) ** 2 / expected), len(apart) - 1) > FALSE_ALARM
