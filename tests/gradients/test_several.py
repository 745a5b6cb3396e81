"""Leaves that are used several times: one longer product, or parts with their inner products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.cases import slow
from helpers.engines import B, agree, factored, normal
from jax.sharding import PartitionSpec as P

from jaxdp.gradients.engine import factored_engine
from jaxdp.gradients.matmul import Matmul
from jaxdp.gradients.several import Several, inner_products

X = normal(9, B, 3, 4)
TOKENS = jax.random.randint(jax.random.key(3), (B, 7), 0, 5)


def held(loss, params, batch):
    return factored_engine(loss, params, batch)[1][0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss",
    [
        lambda w, x: jnp.sum(jnp.sin(jnp.sin(x @ w) @ w)),
        lambda w, x: jnp.sum(jnp.sin(jnp.sin(x @ w) @ w.T)),
        lambda w, x: jnp.sum(jnp.sin(x @ w) * jnp.cos(x[::-1] @ w[:, ::-1])[:, ::-1]),
        lambda w, x: jnp.sum(jax.lax.fori_loop(0, 3, lambda _, h: jnp.sin(h @ w), x) @ w),
        lambda w, x: jnp.sum(jnp.sin(x @ w) @ w.reshape(2, 2, 4).reshape(4, 4)),
    ],
)
def test_uses_of_one_form_are_one_longer_product(loss):
    agree(loss, normal(0, 4, 4), (X,))
    assert isinstance(held(loss, normal(0, 4, 4), (X,)), Matmul)


def tied(w, tokens):
    return jnp.sum(jnp.sin(jnp.sin(w[tokens]) @ w.T))


TIED = [
    tied,
    lambda w, i: jnp.sum(jnp.sin(jnp.sin(w[i] + w[i[::-1]]) @ w.T)),
    lambda w, i: jnp.sum(jnp.sin(jnp.sin(jnp.take(w.T, i, axis=1).T) @ w.T)),
    lambda w, i: tied(w, i) + 0.1 * jnp.sum(w**2) * jnp.sqrt(1.0 + i[0]),
    lambda w, i: tied(w, i) * jnp.linalg.norm(w),
    lambda w, i: jnp.sum(jnp.sin(w[i])) + jnp.sum(w**2) * i[1] + jnp.sum(jnp.sin(w)) * i[0],
]


@pytest.mark.parametrize(
    ("width", "loss"),
    [(5 - n % 2, loss) for n, loss in enumerate(TIED)]
    + [slow(4 + n % 2, loss) for n, loss in enumerate(TIED)],
)
def test_tied_embeddings_and_penalties_are_held_in_parts(loss, width):
    agree(loss, normal(0, 5, width), (TOKENS,))
    assert isinstance(held(loss, normal(0, 5, width), (TOKENS,)), Several)


def test_an_embedding_tied_through_its_transpose():
    loss = lambda w, i: jnp.sum(jnp.sin(jnp.sin(jnp.take(w, i, axis=1).T) @ w))
    agree(loss, normal(0, 4, 5), (TOKENS,))
    assert isinstance(held(loss, normal(0, 4, 5), (TOKENS,)), Several)


def split(w, x):
    a, b, c = jnp.split(w, 3, 1)
    return jnp.sum(jnp.sin(x @ a) * jnp.cos(x @ b) * (x @ c))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "shape"),
    [
        (split, (4, 6)),
        (lambda w, x: jnp.sum(jnp.sin(x @ w[:, ::2]) * (x @ w[:, 1::2])), (4, 6)),
        (lambda w, x: jnp.sum(jnp.sin(x[:, :2] @ w[:2]) + jnp.cos(x[:, 2:] @ w[2:])), (4, 3)),
        (lambda w, x: jnp.sum(jnp.sin(x @ w[0]) @ w[1].T), (2, 4, 3)),
    ],
)
def test_parts_of_a_leaf_have_no_inner_product(loss, shape):
    agree(loss, normal(0, *shape), (X,))
    leaf = held(loss, normal(0, *shape), (X,))
    assert isinstance(leaf, Several)
    assert not leaf.meet


def test_parts_that_overlap_are_materialised():
    loss = lambda w, x: jnp.sum(jnp.sin(x @ w[:4]) + jnp.sin(x @ w[1:]))
    agree(loss, normal(0, 5, 2), (X,))
    assert factored(loss, normal(0, 5, 2), (X,)) == [False]


def test_no_gradient_of_a_tied_embedding_is_made():
    """The size of the program's arrays, in the text of a step on a large table."""
    table = jax.ShapeDtypeStruct((5000, 16), jnp.float32)

    def step(table, tokens):
        _, (leaf,) = factored_engine(tied, table, (tokens,))
        return leaf.weighted_sum(1 / jnp.sqrt(leaf.squared_norms()))

    text = str(jax.make_jaxpr(step)(table, jax.ShapeDtypeStruct((3, 6), jnp.int32)))
    assert "[3,5000,16]" not in text
    assert "[3,6,5000]" in text  # the logits


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6])
def test_norms_are_upper_bounds_where_the_uses_cancel(scale):
    """The gradients of look-up and product are opposite, but for a millionth."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 5, (8, 6)).astype(np.int32)
    u = np.asarray(scale * rng.normal(size=(8, 6, 4)), np.float32)
    v = np.asarray(-u * (1 + 1e-6 * rng.normal(size=(8, 6, 1))), np.float32)

    def loss(w, rows, u, v):
        hot = jax.nn.one_hot(rows, 5)
        return jnp.sum(w[rows] * u) + jnp.sum((w.T @ hot.T).T * v)

    batch = tuple(map(jnp.asarray, (rows, u, v)))
    leaf = held(loss, jnp.zeros((5, 4)), batch)
    assert isinstance(leaf, Several)
    exact = np.zeros((8, 5, 4))
    for b in range(8):
        np.add.at(exact[b], rows[b], u[b].astype(np.float64) + v[b])
    norms = np.sqrt(np.asarray(leaf.squared_norms(), np.float64))
    summed = np.stack([leaf.weighted_sum(jnp.eye(8)[i]) for i in range(8)]).astype(np.float64)
    for g in (exact, summed):
        assert np.all(np.linalg.norm(g.reshape(8, -1), axis=1) <= norms * (1 + 1e-5))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_that_are_not_finite_show_and_can_be_dropped(bad):
    x = np.array(normal(1, 4, 6, 4))
    x[2, 3, 1] = bad
    loss = lambda w, i, x: jnp.sum(w[i] * x) + jnp.sum(x @ w.T) + jnp.sum(w**2) * x[0, 0]
    tokens = jnp.zeros((4, 6), jnp.int32)
    leaf = held(loss, normal(0, 5, 4), (tokens, jnp.asarray(x)))
    assert np.isfinite(leaf.squared_norms()).tolist() == [True, True, False, True]
    kept = leaf.keep(jnp.asarray([True, False, False, True]))
    np.testing.assert_array_equal(kept.materialize()[1:3], 0)
    assert np.all(np.isfinite(kept.weighted_sum(jnp.ones(4))))
    np.testing.assert_array_equal(kept.squared_norms()[1:3] < 1e-30, True)


def test_the_rounding_of_inner_products_is_in_the_norm():
    """What the parts' own norms allow for does not hold for the inner products between them."""

    def loss(w, rows, u):
        return jnp.sum(w[rows] * u) - jnp.sum((w.T @ jax.nn.one_hot(rows, 5).T).T * u)

    leaf = held(loss, jnp.zeros((5, 4)), (TOKENS, normal(1, B, 7, 4)))
    one, two = leaf.parts
    bare = one.squared_norms() + two.squared_norms() + 2 * inner_products(one, two)
    magnitude = one.magnitude().sum(-1) + two.magnitude().sum(-1)
    assert np.all(leaf.squared_norms() >= bare + 7 * 2.0**-24 * magnitude**2)


@pytest.mark.parametrize(
    ("loss", "batch"),
    [
        (lambda w, x: jnp.sum(jnp.sin(jnp.sin(x[0] @ w) @ w)), X),
        (lambda w, i: jnp.sum(jnp.sin(w[i[0]])) + jnp.sum(jnp.cos(w[i[1]])), TOKENS),
    ],
)
def test_uses_at_one_position_each_are_several_terms(loss, batch):
    """The rounding of their sum is not bounded by the clipped norms: they may cancel."""
    assert not held(loss, normal(0, 4, 4), (batch,)).one_term


def test_a_penalty_inside_shard_map():
    loss = lambda w, x: jnp.sum(jnp.sin(x @ w)) + jnp.sum(w**2)
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))

    def rows(w, x):
        leaf = held(loss, w, (x,))
        return leaf.materialize(), leaf.squared_norms()

    w = normal(0, 4, 4)
    mapped = jax.shard_map(rows, mesh=mesh, in_specs=(P(), P("x")), out_specs=P("x"))
    got, squared = jax.jit(mapped)(w, X)
    expected = jax.vmap(jax.grad(loss), (None, 0))(w, X)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(squared, jnp.sum(expected**2, (1, 2)), rtol=1e-4)


def test_a_penalty_without_a_gradient_drops_every_row():
    loss = lambda w, x: jnp.sum(jnp.sin(x @ w)) + jnp.linalg.norm(w)
    leaf = held(loss, jnp.zeros((4, 4)), (X,))
    assert isinstance(leaf, Several)
    assert not np.any(np.isfinite(leaf.squared_norms()))
    np.testing.assert_array_equal(leaf.keep(jnp.zeros(B, bool)).weighted_sum(jnp.zeros(B)), 0)
