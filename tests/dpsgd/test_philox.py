"""Philox at many counters is NumPy's, and integers below a limit have no bias."""

import numpy as np
import pytest
from helpers.releases import FALSE_ALARM
from scipy.stats import chi2

from jaxdp.dpsgd import philox

KEY = np.array([2**63 + 11, 2**64 - 5], np.uint64)


def test_the_published_vector():
    # kat_vectors of Random123: philox4x64-10 with counter and key zero.
    word = philox.hashed(np.zeros(2, np.uint64), np.array([0]), 0)
    assert word.tolist() == [0x16554D9ECA36314C]


def test_numpys_generator_gives_the_same_words():
    numbers = np.array([1, 2, 255, 2**32, 2**32 + 1, 10**12, 2**63 - 1])
    for step in (0, 1, 10**6, 2**40):
        for number, word in zip(numbers, philox.hashed(KEY, numbers, step), strict=True):
            # NumPy counts up before it gives a block.
            counter = [int(number) - 1, 0, 0, step]
            assert word == np.random.Philox(key=KEY, counter=counter).random_raw(4)[0]


def test_products_have_128_bits():
    words = np.random.Philox(key=KEY).random_raw(1000)
    words[:4] = [0, 1, 2**64 - 1, 2**63]
    for factor in (1, 7, 2**32 - 1, 2**32, 2**64 - 1, philox.MULTIPLIERS[0]):
        high, low = philox.multiply(words, factor)
        products = [int(top) << 64 | int(rest) for top, rest in zip(high, low, strict=True)]
        assert products == [int(word) * factor for word in words]


def test_streams_never_overlap():
    one, other = (philox.stream(KEY, number).random_raw(10_000) for number in (0, 1))
    assert not set(one) & set(other)


class Words:
    """Gives words that were written down."""

    def __init__(self, words):
        self.words = list(words)

    def random_raw(self, count):
        given, self.words = self.words[:count], self.words[count:]
        return np.array(given, np.uint64)


def test_words_above_the_largest_multiple_are_drawn_again():
    # 2^64 = 6 · k + 4: the four highest words would be 0, 1, 2 and 3 once too often.
    top = 2**64
    words = Words([top - 1, top - 4, top - 5, 7, top - 2, 8, 9])
    assert philox.integers(words, 6, 4).tolist() == [3, 2, 5, 1]
    assert philox.integers(Words([top - 1, 5]), 2**32, 2).tolist() == [2**32 - 1, 5]
    assert philox.integers(Words([top - 1]), 1, 1).tolist() == [0]


@pytest.mark.parametrize("limit", [3 * 2**61, 5 * 2**60, 2**63, 10**9])
def test_integers_are_uniform(limit):
    # For the first two, words modulo the limit alone would put half as many again in some cells.
    count, cells = 50_000, 32
    drawn = philox.integers(philox.stream(KEY, 3), limit, count)
    assert drawn.min() >= 0
    assert drawn.max() < limit
    counts = np.bincount((drawn.astype(object) * cells // limit).astype(int), minlength=cells)
    expected = count / cells
    assert chi2.sf(np.sum((counts - expected) ** 2 / expected), cells - 1) > FALSE_ALARM


def test_no_integers_are_drawn_where_none_are_asked_for():
    assert philox.integers(philox.stream(KEY, 0), 10, 0).tolist() == []
