"""Ragged products with experts as a parameter, against gradients taken one by one.

JAX cannot vmap a ragged product whose experts are shared.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.cases import slow
from helpers.engines import agree_exactly, normal, quick_jit

import jaxdp
from jaxdp.gradients.engine import auto_engine

B, T, D, P, EXPERTS = 4, 9, 4, 5, 3

agree = partial(agree_exactly, one_by_one=True)

# Empty groups, rows behind the last group, and groups that are longer than the rows.
SIZES = np.array([[2, 3, 4], [0, 5, 0], [1, 0, 20], [0, 0, 0]])


def general(rows, experts, sizes, contracting, ragged_axis, expert_axis):
    numbers = jax.lax.RaggedDotDimensionNumbers(
        (contracting, ((), ())), (ragged_axis,), (expert_axis,)
    )
    return jax.lax.ragged_dot_general(rows, experts, sizes, numbers)


def in_a_loop(experts, x, sizes):
    """The same experts for three blocks of rows, of which each has its own groups."""
    blocks = (x.reshape(3, 3, D), jnp.stack([sizes, sizes // 2, sizes[::-1]]))
    return jax.lax.map(lambda block: jax.lax.ragged_dot(block[0], experts, block[1]), blocks)


FORMS = {
    "plain": ((EXPERTS, D, P), lambda w, x, n: jax.lax.ragged_dot(x, w, n)),
    "a view": ((D, P, EXPERTS), lambda w, x, n: jax.lax.ragged_dot(x, w.transpose(2, 0, 1), n)),
    "general": ((P, D, EXPERTS), lambda w, x, n: general(x, w, n, ((1,), (1,)), 0, 2)),
    "columns": ((EXPERTS, D, P), lambda w, x, n: general(x.T, w, n, ((0,), (1,)), 1, 0)),
    "two axes": (
        (EXPERTS, 2, P, 2),
        lambda w, x, n: general(x.reshape(T, 2, 2), w, n, ((1, 2), (3, 1)), 0, 0),
    ),
    "inner axis": (
        (EXPERTS, D, P),
        lambda w, x, n: general(jnp.stack([x, x**2]), w, n, ((2,), (1,)), 1, 0),
    ),
    "outer axis": (
        (EXPERTS, D, P),
        lambda w, x, n: general(jnp.stack([x, x**2], 1), w, n, ((2,), (1,)), 0, 0),
    ),
    "remat": ((EXPERTS, D, P), jax.checkpoint(lambda w, x, n: jax.lax.ragged_dot(x, w, n))),
    "in a loop": ((EXPERTS, D, P), in_a_loop),
}


LONG = ("plain", "a view", "general", "columns", "inner axis", "outer axis", "remat")


@pytest.mark.parametrize("form", [slow(name) if name in LONG else name for name in FORMS])
def test_ragged_products(form):
    shape, multiply = FORMS[form]

    def loss(params, x, sizes):
        y = multiply(params["experts"], jnp.tanh(x @ params["first"]), sizes)
        return jnp.sum(jnp.sin(y) * (1 + jnp.arange(y.size).reshape(y.shape)))

    agree(
        loss, {"experts": normal(0, *shape), "first": normal(1, D, D)}, (normal(2, B, T, D), SIZES)
    )


def route(params, x):
    """A mixture of experts by sorting: each row goes to the expert with the highest score."""
    scores = jax.nn.softmax(x @ params["router"])
    chosen = jnp.argmax(scores, axis=-1)
    order = jnp.argsort(chosen)
    sizes = jnp.bincount(chosen, length=EXPERTS)
    h = jnp.tanh(jax.lax.ragged_dot(x[order], params["up"], sizes))
    y = jax.lax.ragged_dot(h, params["down"], sizes)[jnp.argsort(order)]
    return x + y * jnp.max(scores, axis=-1, keepdims=True)


def mixture(*lead):
    shapes = {"router": (D, EXPERTS), "up": (EXPERTS, D, P), "down": (EXPERTS, P, D)}
    return {name: normal(i, *lead, *shape) for i, (name, shape) in enumerate(shapes.items())}


@pytest.mark.slow
def test_a_mixture_of_experts_by_sorting():
    agree(lambda params, x: jnp.sum(jnp.sin(route(params, x))), mixture(), (normal(9, B, T, D),))


@pytest.mark.slow
def test_layers_of_experts_in_a_scan():
    def loss(params, x):
        layer = jax.checkpoint(lambda h, own: (route(own, h), None))
        return jnp.sum(jnp.sin(jax.lax.scan(layer, x, params)[0]))

    agree(loss, mixture(2), (normal(9, B, T, D),))


@pytest.mark.slow
def test_clipped_sums_and_explanations():
    loss = lambda params, x: jnp.sum(jnp.sin(route(params, x)))
    params, x = mixture(), normal(9, B, T, D)
    explained = jaxdp.explain(loss, params, (x[0],))
    assert {leaf.leaf: leaf.form for leaf in explained.leaves}["['up']"] != "dense"
    _, leaves = auto_engine(loss, params, (x,))
    assert all(np.isfinite(leaf.squared_norms()).all() for leaf in leaves)


@pytest.mark.slow
def test_narrow_types_are_summed_in_float32():
    def loss(experts, x, sizes):
        y = jax.lax.ragged_dot(x.astype(jnp.bfloat16), experts.astype(jnp.bfloat16), sizes)
        return jnp.sum(jnp.sin(y.astype(jnp.float32)))

    _, (leaf,) = auto_engine(loss, normal(0, EXPERTS, D, P), (normal(1, B, T, D), SIZES))
    assert leaf.squared_norms().dtype == leaf.weighted_sum(jnp.ones(B)).dtype == jnp.float32


@pytest.mark.parametrize("method", ["auto", "factored", "two_pass"])
def test_experts_that_are_dense_for_each_example_need_one_at_a_time(method):
    """JAX has no vmap for them. Masked weights are dense."""

    def loss(q, x, counts):
        return jnp.sum(jnp.sin(jax.lax.ragged_dot(x, jnp.where(q > 0, q, 0), counts)))

    params, batch = normal(0, 3, 4, 4), (normal(1, B, 6, 4), jnp.array([[1, 2, 3]] * B))
    clip = jaxdp.clip_individual(1.0)

    def clipped(method, size):
        grads = jaxdp.per_example_grads(loss, method=method, microbatch_size=size)
        return quick_jit(lambda p, b: clip.update(grads(p, b), clip.init(p))[0])(params, batch)

    told = r"can't vmap ragged_dot\w* at .*test_ragged.py:\d+.*: take one example at a time, by "
    with pytest.raises(ValueError, match=told):
        clipped(method, None)
    if method != "factored":
        assert np.all(np.isfinite(clipped(method, 1)))
