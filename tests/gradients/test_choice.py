"""What has no rule is held as dense or zero, and is exact."""

import jax
import jax.numpy as jnp
import pytest
from helpers.engines import B, agree, factored, normal


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss",
    [
        lambda w, x: jnp.sum(jnp.sin(x @ w[:2].repeat(2, 0))),
        lambda w, x: jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x @ w.T).sum(),
        lambda w, x: jax.lax.fori_loop(0, 3, lambda _, y: jnp.sin(y @ w) + w[0], x).sum(),
        lambda w, x: jax.lax.scan(lambda w, y: (w * 0.9, y @ w), w, x)[1].sum(),
        lambda w, x: jnp.sum(x @ jax.lax.scan(lambda c, v: (c, (v[0], v * 2)), 0.0, w)[1][1]),
        lambda w, x: jnp.sin(w[0, 0] * x[0, 0]) + jnp.sum(x) * jax.lax.stop_gradient(w).sum(),
        lambda w, x: jnp.sum(jnp.sin(x @ w[:, 1:]) + jnp.cos(x @ w[:, :3])),
        lambda w, x: jnp.sum(jnp.sin(x @ w) @ w.reshape(2, 8)[:, :4].T),
        lambda w, x: jnp.sum(jnp.linalg.solve(jnp.eye(4) * 9 + w, x.T)),
        lambda w, x: jnp.sum(x @ w) + jnp.sum(jnp.sort(w)[0] * x[0]),
    ],
)
def test_other_uses_are_materialised(loss):
    params, batch = normal(0, 4, 4), (normal(1, B, 3, 4),)
    agree(loss, params, batch)
    assert factored(loss, params, batch) == [False]


def test_unused_and_whole_parameters():
    agree(
        lambda q, x: q["a"] * 1.0 + 0 * x, {"a": jnp.ones(()), "b": normal(1, 3)}, (normal(0, B),)
    )
    agree(lambda q, x: q, jnp.ones(()), (normal(0, B),))
