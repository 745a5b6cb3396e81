"""Keyed permutations that are read at a few places: shuffled epochs without shuffling."""

import math

import numpy as np

from . import philox

ROUNDS = 10


class Permutation:
    """A keyed permutation of 0, ..., size - 1, in time of the places that are read.

    A Feistel network (Luby and Rackoff, 1988) on pairs of digits: a number below a·b is (l, r) with
    l < a and r < b, where a and b are about √size. Each round adds a random function of one digit
    to the other, modulo a or b, which can be undone: so every round is a bijection, whatever the
    functions. Values of `size` and above are sent through the network again ("cycle walking"),
    until they are below: they are few, and what is left is a bijection of 0, ..., size - 1. The
    functions are tables of √size words each, from Philox.

    Not all size! permutations can come out. Nothing rests on that: shuffled epochs are accounted
    without amplification by sampling, whatever their order.

    Args:
      key: Philox key `[2] uint64`.
      number: of the permutation, such as an epoch.
      size: of the permuted set, at least 1.
    """

    def __init__(self, key: np.ndarray, number: int, size: int) -> None:
        self.size = size
        self._left = math.isqrt(size - 1) + 1 if size > 1 else 1
        self._right = -(-size // self._left)
        words = philox.stream(key, number)
        sides = (self._left, self._right)
        self._tables = [
            philox.integers(words, sides[i % 2], sides[1 - i % 2]).astype(np.uint32)
            for i in range(ROUNDS)
        ]

    def at(self, places: np.ndarray) -> np.ndarray:
        """Returns what the permutation puts at the places: `[n] int64` for `[n] int64`."""
        values = self._network(places)
        while np.any(outside := values >= self.size):
            values[outside] = self._network(values[outside])
        return values

    def _network(self, numbers: np.ndarray) -> np.ndarray:
        left, right = np.divmod(numbers, self._right)
        for i, table in enumerate(self._tables):
            if i % 2 == 0:
                left = (left + table[right]) % self._left
            else:
                right = (right + table[left]) % self._right
        return left * self._right + right
