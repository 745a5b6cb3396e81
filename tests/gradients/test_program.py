"""Loops, calls and transformations inside the loss are replayed exactly."""

import jax
import jax.numpy as jnp
import pytest
from helpers.engines import B, agree, factored, normal


def test_scan_over_layers():
    def loss(q, x):
        layer = lambda h, w: (jnp.tanh(h @ w["k"] + w["b"]), None)
        return jnp.sum(jax.lax.scan(layer, x, q)[0] ** 2)

    params, batch = {"k": normal(0, 3, 4, 4), "b": normal(1, 3, 4)}, (normal(2, B, 6, 4),)
    agree(loss, params, batch)
    assert factored(loss, params, batch) == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize("reverse", [False, True])
def test_nested_scans_views_and_remat(reverse):
    def loss(q, x):
        def inner(h, w):
            return jax.checkpoint(lambda h, w: jnp.sin(h @ w.T))(h, w), None

        def outer(h, ws):
            h, _ = jax.lax.scan(inner, h, ws.reshape(2, 4, 4), reverse=reverse)
            return h, h

        _, ys = jax.lax.scan(outer, x, q.swapaxes(0, 1), reverse=reverse)
        return jnp.sum(ys**2)

    params, batch = normal(0, 8, 3, 4), (normal(1, B, 6, 4),)
    agree(loss, params, batch)
    assert factored(loss, params, batch) == [True]


def test_recurrent_cell_shares_its_weights():
    def loss(q, x):
        cell = lambda h, x: (jnp.tanh(x @ q["i"] + h @ q["h"] + q["b"]), h)
        _, hs = jax.lax.scan(cell, jnp.zeros(4), x)
        return jnp.sum(hs**2)

    params = {"i": normal(0, 3, 4), "h": normal(1, 4, 4), "b": normal(2, 4)}
    agree(loss, params, (normal(3, B, 6, 3),))


def test_weights_shared_by_one_loop_and_sliced_by_another():
    def loss(q, x):
        def step(h, x):
            h, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h + x, q)
            return h, h

        return jnp.sum(jax.lax.scan(step, jnp.zeros((2, 4)), x)[1] ** 2)

    params, batch = normal(0, 3, 4, 4), (normal(1, B, 5, 2, 4),)
    agree(loss, params, batch)
    assert factored(loss, params, batch) == [True]


@pytest.mark.slow
def test_convolutions_and_lookups_in_loops():
    def loss(q, x, i):
        def step(h, slices):
            x, i = slices
            y = jax.lax.conv_general_dilated(
                x[None], q["c"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
            )
            return h + jnp.sin(y).sum() * jnp.sum(jnp.take(q["e"], i, axis=0)), None

        return jax.lax.scan(step, 0.0, (x, i))[0]

    params = {"c": normal(0, 3, 2, 4), "e": normal(1, 5, 4)}
    batch = (normal(2, B, 4, 6, 2), jax.random.randint(jax.random.key(3), (B, 4, 3), 0, 5))
    agree(loss, params, batch)
    assert factored(loss, params, batch) == [True, True]


def test_the_same_function_called_twice_with_different_weights():
    dense = jax.jit(lambda x, w: jnp.tanh(x @ w))
    loss = lambda q, x: jnp.sum(dense(dense(x, q["a"]), q["b"]))
    params, batch = {"a": normal(0, 4, 4), "b": normal(1, 4, 4)}, (normal(2, B, 3, 4),)
    agree(loss, params, batch)
    assert factored(loss, params, batch) == [True, True]


def test_custom_derivatives_are_kept():
    @jax.custom_vjp
    def wrong(x):
        return x**2

    wrong.defvjp(lambda x: (x**2, x), lambda x, g: (7 * g * x,))

    @jax.custom_jvp
    def odd(x, w):
        return x @ w

    odd.defjvp(lambda p, t: (p[0] @ p[1], 3 * (t[0] @ p[1] + p[0] @ t[1])))
    loss = lambda q, x: jnp.sum(wrong(odd(x @ q["a"], q["b"])))
    params, batch = {"a": normal(0, 4, 4), "b": normal(1, 4, 4)}, (normal(2, B, 3, 4),)
    agree(loss, params, batch)
    assert factored(loss, params, batch) == [True, False]


def test_vmap_and_grad_inside_the_loss():
    def loss(q, x):
        energy = lambda x: jnp.sum(jnp.sin(x @ q["w"]))
        return jnp.sum(jax.vmap(energy)(x)) + jnp.sum(jax.grad(energy)(x[0]) ** 2)

    agree(loss, {"w": normal(0, 4, 3)}, (normal(1, B, 6, 4),))
    experts = lambda q, x: jnp.sum(jnp.sin(jax.vmap(jnp.dot)(x, q)))
    agree(experts, normal(0, 3, 4, 5), (normal(1, B, 3, 2, 4),))
    assert factored(experts, normal(0, 3, 4, 5), (normal(1, B, 3, 2, 4),)) == [True]
