"""The mean loss of a batch unit, and the gradients of losses that couple its records."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.problems import flat64, loss, random_problem

import jaxdp


@pytest.mark.parametrize("microbatch_size", [None, 3, 8])
def test_mean_loss_accumulates_the_gradient_of_a_unit(microbatch_size):
    p = random_problem(3, size=8)
    unit_loss = jaxdp.mean_loss(loss, microbatch_size=microbatch_size)
    value, grads = jax.jit(jax.value_and_grad(unit_loss))(p.params, *p.batch, p.mask)
    losses = jax.vmap(loss, (None, 0, 0))
    plain = lambda q: jnp.sum(jnp.where(p.mask, losses(q, *p.batch), 0)) / p.mask.sum()
    want_value, want = jax.value_and_grad(plain)(p.params)
    np.testing.assert_allclose(value, want_value, rtol=1e-5)
    np.testing.assert_allclose(flat64(grads), flat64(want), rtol=1e-4, atol=1e-5)


def test_a_unit_loss_sees_zeros_for_masked_records_and_its_own_mask():
    def unit_loss(params, x, mask):
        # Couples the records: centred by the unit's own mean.
        mean = jnp.sum(x, axis=0) / jnp.sum(mask)
        return jnp.sum(params * jnp.where(mask[:, None], (x - mean) ** 2, 0)) / jnp.sum(mask)

    x = np.random.default_rng(0).standard_normal((3, 4, 2)).astype(np.float32)
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], bool)
    poisoned = np.where(mask[..., None], x, np.nan)
    grads = jaxdp.per_example_grads(unit_loss, unit="batch", microbatch_size=2)
    rows = grads(jnp.ones(2), (poisoned,), mask).materialize()
    want = [np.var(x[0], axis=0), np.var(x[1, :2], axis=0), np.zeros(2)]
    np.testing.assert_allclose(rows, want, rtol=1e-4)
