"""Views of parameters are followed to their use."""

import jax
import jax.numpy as jnp
from helpers.engines import B, agree, factored, normal

from jaxdp.gradients.program import trace

W, X = jnp.ones((3, 3)), jnp.ones((4, 3))


def test_views_are_followed():
    def loss(q, x):
        w = jnp.flip(q.T.reshape(2, 2, 6).astype(jnp.float32), 2).reshape(4, 6)[None].squeeze(0)
        return jnp.sum(jnp.sin(jax.jit(lambda x, w: x @ w)(x, w)))

    agree(loss, normal(0, 6, 4), (normal(1, B, 3, 4),))
    assert factored(loss, normal(0, 6, 4), (normal(1, B, 3, 4),)) == [True]


def test_the_line_of_a_use_is_known():
    (use,) = trace(lambda w, x: jnp.sum(x @ w), W, (X[0],)).uses[0]
    assert "test_uses.py" in use.where
    assert use.what == "dot_general"


def test_values_made_by_many_equations_are_followed():
    """One that is reached on 2^500 ways, and through more equations than Python may call."""

    def loss(w, x):
        for _ in range(500):
            w = jnp.sin(w) * w
        return jnp.sum(jnp.tanh(x @ w))

    (use,) = trace(loss, W, (X[0],)).uses[0]
    assert use.view.leaves == {0}


def test_a_use_with_several_results_counts():
    """No rule reads such an equation: the leaf is differentiated for every example."""

    def loss(w, x):
        branches = (lambda w, x: (x @ w, x), lambda w, x: (x, 2 * (x @ w)))
        first, second = jax.lax.cond(x[0] > 0, *branches, w, x)
        return jnp.sum(jnp.sin(first) * second)

    (use,) = trace(loss, W, (X[0],)).uses[0]
    assert use.primitive is not None
    agree(loss, normal(0, 3, 3), (normal(1, B, 3),))


def test_a_leaf_that_a_loop_carries_counts():
    def loss(w, x):
        both = lambda carry, _: ((0.5 * carry[0], jnp.sin(carry[1] @ carry[0])), None)
        return jnp.sum(jax.lax.scan(both, (w, x), None, length=3)[0][1])

    agree(loss, normal(0, 3, 3), (normal(1, B, 3),))
    assert factored(loss, normal(0, 3, 3), (normal(1, B, 3),)) == [False]
