"""Norms that are raised are never below the exact ones, and hardly above (privacy rule 9)."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdp.gradients.rounding import lengths, raised_gram, raised_product, unit_roundoff


def test_the_unit_roundoff_is_half_of_the_machine_epsilon():
    assert unit_roundoff(jnp.float32) == 2.0**-24


@pytest.mark.parametrize("scale", [1.0, 1e15, 1e-15, 1e-25, 1e-38])
def test_lengths_hide_nothing_by_underflow(scale):
    v = (np.random.default_rng(0).standard_normal((50, 7)) * scale).astype(np.float32)
    exact = np.linalg.norm(v.astype(np.float64), axis=-1)
    found = np.asarray(lengths(jnp.asarray(v)), np.float64)
    assert np.all(found >= exact * (1 - 1e-6))
    if scale >= 1:
        np.testing.assert_allclose(found, exact, rtol=1e-5)


def test_a_gram_sum_of_terms_that_cancel_is_raised_to_the_exact_norm():
    """Activations that are nearly constant, cotangents that sum to almost nothing."""
    rng = np.random.default_rng(1)
    below = []
    for _ in range(50):
        a = (1000 + rng.standard_normal((64, 8))).astype(np.float32)
        c = rng.standard_normal((64, 4)).astype(np.float32)
        c -= c.mean(axis=0)
        exact = np.sum(np.square(a.astype(np.float64).T @ c.astype(np.float64)))
        gram = jnp.sum(jnp.asarray(a @ a.T) * jnp.asarray(c @ c.T))
        magnitude = jnp.sum(lengths(jnp.asarray(a)) * lengths(jnp.asarray(c)))
        assert float(raised_gram(gram, magnitude, [8])) >= exact
        below.append(float(gram) < exact)
    assert any(below)  # the problem is hard enough: without the raise some are too low


def test_raising_a_sum_of_products_moves_an_ordinary_norm_little():
    squared, magnitude = jnp.float32(4.0), jnp.float32(3.0)
    for raised in (raised_gram(squared, magnitude, [64]), raised_product(squared, magnitude, 64)):
        assert 4.0 <= float(raised) <= 4.0 * (1 + 1e-5)
    assert float(raised_gram(jnp.float32(-1.0), magnitude, [64])) > 0
    assert float(raised_product(squared, 1000 * magnitude)) > float(
        raised_product(squared, magnitude)
    )
    assert float(raised_gram(squared, magnitude, [2**20])) > float(
        raised_gram(squared, magnitude, [1])
    )
