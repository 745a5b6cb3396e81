"""Comparisons of pytrees."""

import jax
import numpy as np


def assert_same(one, other):
    """Fails unless both have the same structure and the same numbers, bit for bit."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)
