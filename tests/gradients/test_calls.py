"""Parameters are followed through calls and loops, and around functions with custom derivatives."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from helpers.cases import slow
from helpers.engines import B, agree, agree_exactly, normal
from jax.ad_checkpoint import checkpoint_name

from jaxdp.gradients.choice import choose
from jaxdp.gradients.program import trace


def attend(q, k, v):
    return jax.nn.softmax(q @ k.T) @ v


@jax.custom_vjp
def flash(q, k, v):
    """Attention that computes its scores again in its own backward pass."""
    return attend(q, k, v)


flash.defvjp(
    lambda q, k, v: (attend(q, k, v), (q, k, v)),
    lambda kept, c: jax.vjp(attend, *kept)[1](c),
)


@jax.custom_jvp
def doubled(x):
    return jnp.sin(x)


doubled.defjvp(lambda primals, tangents: (doubled(*primals), 2 * tangents[0]))


@jax.custom_gradient
def reversed_gradient(x):
    return x, lambda c: -c


def attention(w, x):
    return jax.nn.dot_product_attention(*[(x @ w)[None, :, None]] * 3)


AROUND = {
    "flash": lambda w, x: flash(x @ w, x, x),
    "flash in a loop": lambda w, x: jax.lax.scan(
        jax.checkpoint(lambda h, _: (flash(h @ w, h, h), None)), x, None, length=2
    )[0],
    "mapped flash": lambda w, x: jax.vmap(flash)((x @ w)[None], x[None], x[None]),
    "dot_product_attention": attention,
    "custom_jvp": lambda w, x: doubled(x @ w),
    "custom_gradient": lambda w, x: reversed_gradient(x @ w),
    "silu": lambda w, x: jax.nn.silu(x @ w),
    "relu": lambda w, x: jax.nn.relu(x @ w),
    "gelu": lambda w, x: jax.nn.gelu(x @ w),
    "logsumexp": lambda w, x: jax.nn.logsumexp(x @ w, axis=-1),
}

CALLS = {
    "checkpoint": lambda w, x: jax.checkpoint(lambda w, x: jnp.sin(x @ w))(w, x),
    "checkpoint with a policy": lambda w, x: jax.checkpoint(
        lambda w, x: jnp.sin(x @ w), policy=jax.checkpoint_policies.dots_saveable
    )(w, x),
    "named_call": lambda w, x: jax.named_call(jnp.matmul, name="layer")(x, w),
    "nested jit": lambda w, x: jax.jit(lambda w: jax.jit(jnp.matmul)(x, w))(w),
    "fori_loop": lambda w, x: jax.lax.fori_loop(0, 3, lambda _, h: jnp.sin(h @ w), x),
    "map": lambda w, x: jax.lax.map(lambda row: jnp.sin(row @ w), x),
    "map of blocks": lambda w, x: jax.lax.map(lambda row: jnp.sin(row @ w), x, batch_size=2),
    "unrolled scan": lambda w, x: jax.lax.scan(
        lambda h, _: (jnp.sin(h @ w), None), x, None, length=3, unroll=2
    )[0],
    "scan backwards": lambda w, x: jax.lax.scan(
        lambda h, row: (jnp.sin(h + row @ w), None), x[0], x, reverse=True
    )[0],
    "scan in scan": lambda w, x: jax.lax.map(
        lambda row: jax.lax.fori_loop(0, 2, lambda _, h: jnp.sin(h @ w), row), x
    ),
    "vmap": lambda w, x: jax.vmap(lambda row: row @ w, spmd_axis_name="rows")(x),
    "associative_scan": lambda w, x: jax.lax.associative_scan(jnp.add, x @ w),
    "named": lambda w, x: x @ checkpoint_name(w, "w"),
}

LONG = ("flash in a loop", "mapped flash", "gelu", "logsumexp", "unrolled scan", "named_call")
LONG += ("map", "map of blocks", "scan in scan", "associative_scan")

FORMS = AROUND | CALLS


def total(apply, w, x):
    y = apply(w, x)
    return jnp.sum(jnp.sin(y) * (1 + jnp.arange(y.size).reshape(y.shape) / y.size))


@pytest.mark.parametrize("form", [slow(name) if name in LONG else name for name in FORMS])
def test_a_matrix_is_held_in_factors(form):
    loss = partial(total, FORMS[form])
    agree_exactly(loss, normal(0, 4, 4), (normal(1, B, 6, 4),))


@jax.custom_vjp
def multiply(x, w):
    return x @ w


multiply.defvjp(lambda x, w: (x @ w, (x, w)), lambda kept, c: (c @ kept[1].T, 3 * kept[0].T @ c))


@jax.custom_jvp
def scaled(x, w):
    return x @ w


scaled.defjvp(lambda xw, t: (xw[0] @ xw[1], t[0] @ xw[1] + 2 * xw[0] @ t[1]))


@pytest.mark.parametrize(
    "apply",
    [
        lambda w, x: multiply(x, w),
        lambda w, x: jax.vmap(lambda row: multiply(row[None], w))(x),
        lambda w, x: scaled(x, w),
        lambda w, x: jax.lax.map(lambda row: scaled(row, w), x),
    ],
)
def test_what_is_passed_into_a_custom_derivative_is_dense(apply):
    """Its own derivative, not that of the product inside, is what is clipped."""
    loss, w, x = partial(total, apply), normal(0, 4, 4), normal(1, B, 6, 4)
    agree(loss, w, (x,))
    (choice,) = choose(trace(loss, w, (x[0],)), thrifty=False)
    assert choice.form == "dense"
    assert choice.reason == "inside a function with a custom derivative"
