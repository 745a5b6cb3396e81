"""Keys and narrow types pass through the engines."""

import jax
import jax.numpy as jnp
from helpers.engines import B, agree, normal

from jaxdp.gradients.engine import factored_engine


def test_dropout_with_a_key_for_every_example():
    def loss(w, x, key):
        return jnp.sum(jnp.sin((x * jax.random.bernoulli(key, 0.5, x.shape)) @ w))

    agree(loss, normal(0, 4, 3), (normal(1, B, 6, 4), jax.random.split(jax.random.key(2), B)))


def test_bfloat16_compute():
    def loss(q, x):
        w = q.astype(jnp.bfloat16)
        return jnp.sum(jnp.sin((x.astype(jnp.bfloat16) @ w).astype(jnp.float32)))

    agree(loss, normal(0, 4, 3), (normal(1, B, 6, 4),), tolerance=1e-2)
    _, leaves = factored_engine(loss, normal(0, 4, 3), (normal(1, B, 6, 4),))
    assert leaves[0].cotangents.dtype == jnp.bfloat16
    assert leaves[0].squared_norms().dtype == jnp.float32
    assert leaves[0].weighted_sum(jnp.ones(B)).dtype == jnp.float32
