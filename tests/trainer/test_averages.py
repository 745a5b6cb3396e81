"""The moving average of the parameters: of the right numbers, and harmless to training."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdp.trainer import averages


def test_the_average_is_that_of_the_parameters():
    optimizer = optax.chain(optax.sgd(0.5), averages.average_parameters(0.6))
    params = {"w": jnp.arange(3.0)}
    state = optimizer.init(params)
    expected = np.asarray(params["w"])
    plain = params["w"]
    for step in range(1, 9):
        updates, state = optimizer.update({"w": jnp.cos(params["w"])}, state, params)
        params = optax.apply_updates(params, updates)
        plain = plain - 0.5 * jnp.cos(plain)
        share = min(0.6, (1 + step) / (10 + step))
        expected = share * expected + (1 - share) * np.asarray(plain)
    np.testing.assert_allclose(params["w"], plain, rtol=1e-6)
    np.testing.assert_allclose(averages.averaged(state)["w"], expected, rtol=1e-5)


def test_an_optimizer_without_an_average_has_none():
    assert averages.averaged(optax.adam(0.1).init({"w": jnp.ones(2)})) is None


def test_it_needs_the_parameters():
    average = averages.average_parameters(0.9)
    with pytest.raises(ValueError, match="pass the parameters"):
        average.update({"w": jnp.ones(2)}, average.init({"w": jnp.ones(2)}))
