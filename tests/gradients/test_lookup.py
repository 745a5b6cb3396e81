"""Look-ups of rows of a parameter, against vmap(grad)."""

import jax
import jax.numpy as jnp
import pytest
from helpers.engines import B, agree, factored, normal


@pytest.mark.parametrize("mode", ["fill", "clip", "wrap"])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shape", [(), (7,), (2, 3)])
def test_lookups_with_repeated_and_outside_indices(mode, axis, shape):
    table = normal(0, 6, 5)
    indices = jax.random.randint(jax.random.key(1), (B, *shape), -2, 9)
    indices = indices if mode != "wrap" else indices % 6

    def loss(q, i):
        rows = jnp.take(q, i, axis=axis, mode=mode, fill_value=0.0)
        return jnp.sum(jnp.sin(rows) * rows)

    agree(loss, table, (indices,))
    assert factored(loss, table, (indices,)) == [True]
