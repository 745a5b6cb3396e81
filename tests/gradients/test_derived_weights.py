"""Weights that are computed from parameters: the factors go on to the leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.cases import slow
from helpers.engines import B, agree, factored, normal

from jaxdp.gradients.engine import factored_engine

X = normal(9, B, 3, 4)
BASE = normal(5, 4, 6)
PAIR = {"a": normal(0, 4, 2), "b": normal(1, 2, 6)}


def wave(y):
    return jnp.sum(jnp.sin(y))


def in_layers(q, x):
    layer = lambda h, q: (jnp.sin(h @ (q["w"] + q["a"] @ q["b"])), None)
    return jnp.sum(jax.lax.scan(layer, x, q)[0])


def in_time(q, x):
    step = lambda h, y: (jnp.sin(h @ (q["w"] + 0.5 * q["a"] @ q["b"]) + y), h)
    return jnp.sum(jax.lax.scan(step, jnp.zeros(4), x)[1])


def in_remat(q, x):
    layer = jax.checkpoint(lambda h, q: jnp.sin(h @ (q["w"] + q["a"] @ q["b"])))
    return jnp.sum(layer(layer(x, q), q))


def lstm(q, x):
    def step(h, y):
        gates = y @ jnp.concatenate([q["a"], q["b"]], 1) + h @ jnp.concatenate([q["c"], q["d"]], 1)
        return jnp.sin(gates), h

    return jnp.sum(jax.lax.scan(step, jnp.zeros(5), x)[1])


def heads(q, x):
    weight = BASE.reshape(4, 2, 3) + jnp.einsum("dr,rhk->dhk", q["a"], q["b"].reshape(2, 2, 3))
    return wave(jnp.einsum("td,dhk->thk", x, weight))


def merged_heads(q, x):
    return wave(jnp.einsum("td,dhk->thk", x, (BASE + q["a"] @ q["b"]).reshape(4, 2, 3)))


def experts(q, x):
    weights = jnp.stack([q["a"], q["b"], q["c"]])
    return wave(jnp.einsum("etd,edp->etp", x.reshape(3, 2, 2), weights))


SQUARE = {"w": normal(2, 4, 4), "a": normal(3, 4, 2), "b": normal(4, 2, 4)}
LAYERS = {"w": normal(2, 3, 4, 4), "a": normal(3, 3, 4, 2), "b": normal(4, 3, 2, 4)}
GATES = {"a": normal(0, 4, 2), "b": normal(1, 4, 3), "c": normal(2, 5, 2), "d": normal(3, 5, 3)}


@pytest.mark.parametrize(
    ("loss", "params"),
    [
        slow(lambda q, x: wave(x @ (BASE + 0.5 * (q["a"] @ q["b"]))), PAIR),
        (lambda q, x: wave(x @ (BASE - q["a"] @ -q["b"] / 3)), PAIR),
        slow(lambda q, x: wave(x @ (BASE * jnp.arange(1.0, 7.0) @ q["a"].T @ q["b"][:, ::2])),
         {"a": normal(0, 4, 6), "b": normal(1, 4, 6)}),
        (lambda q, x: wave(x @ (jnp.flip(q["a"], 0) @ q["b"])), PAIR),
        slow(lambda q, x: wave(x @ (q["a"] * jnp.arange(1.0, 3.0)) @ q["b"]), PAIR),
        (lambda q, x: wave(x @ (jnp.arange(1.0, 5.0)[:, None] * q["a"])), {"a": PAIR["a"]}),
        (lambda q, x: wave((BASE.T @ q["a"]) @ x[:2]), {"a": normal(0, 4, 2)}),
        (in_layers, LAYERS),
        (in_time, SQUARE),
        slow(in_remat, SQUARE),
        (heads, PAIR),
        slow(merged_heads, PAIR),
        (lstm, GATES),
        (lambda q, x: wave(x @ jnp.concatenate([q["a"], q["b"]])),
         {"a": normal(0, 3, 2), "b": normal(1, 1, 2)}),
        slow(experts, {"a": normal(0, 2, 2), "b": normal(1, 2, 2), "c": normal(2, 2, 2)}),
    ],
)  # fmt: skip
def test_products_sums_scales_and_neighbours_stay_factors(loss, params):
    agree(loss, params, (X,))
    assert factored(loss, params, (X,)) == [True] * len(jax.tree.leaves(params))


@pytest.mark.parametrize(
    "loss",
    [
        lambda q, x: wave(x @ (q * (BASE > 0))),
        lambda q, x: wave(x @ jnp.exp(q)),
        lambda q, x: wave(x @ (q + q[:1])),
        lambda q, x: wave(x @ (q @ q.T @ q)),
        lambda q, x: wave(x @ (BASE[:, :1] * q[:1])),
    ],
)
def test_what_has_no_rule_is_materialised(loss):
    agree(loss, BASE, (X,))
    assert factored(loss, BASE, (X,)) == [False]


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss",
    [
        lambda q, x: wave(jnp.abs(x @ jax.lax.complex(q, q[::-1]))),
        lambda q, x: wave(jnp.abs(x.astype(complex) @ q.astype(complex).T)),
        lambda q, x: wave(jnp.fft.irfft(jnp.fft.rfft(x) * jnp.fft.rfft(q[0]))),
        lambda q, x: wave(jnp.real(x * jnp.exp(1j * jnp.sum(q)))),
    ],
)
@pytest.mark.parametrize("large", [0, 2**22])
def test_complex_numbers_made_of_parameters_have_gradients(monkeypatch, loss, large):
    monkeypatch.setattr("jaxdp.gradients.made_weights.LARGE", large)
    agree(loss, normal(0, 4, 4), (X,))


def test_a_derived_value_made_of_another_that_is_tapped_counts_once():
    def loss(q, x):
        made = jnp.ones((3, 4)) @ q
        return wave(x @ made[:2].T) + wave(x @ (made * 2).T) * made[0, 0]

    agree(loss, normal(0, 4, 4), (X,))


def test_a_product_with_a_constant_is_a_use_where_nothing_else_reads_it():
    def loss(q, x):
        h = jnp.zeros(3)
        for row in x:
            h = jnp.tanh(row @ q["i"] + h @ q["h"])
        return jnp.sum(h + q["table"][jnp.arange(3), 0])

    params = {"h": normal(0, 3, 3), "i": normal(1, 4, 3), "table": normal(2, 7, 1)}
    agree(loss, params, (X,))
    assert factored(loss, params, (X,))[:2] == [True, True]


def test_positions_from_a_constant_range_are_looked_up():
    loss = lambda q, x: wave(x @ q["w"] + q["table"][jnp.arange(3)])
    params = {"table": normal(0, 7, 3), "w": normal(1, 4, 3)}
    agree(loss, params, (X,))
    assert factored(loss, params, (X,)) == [True, True]


def test_what_is_computed_and_not_used_is_no_use():
    def loss(q, x):
        hidden = x @ q
        _ = (2 * x) @ q
        return wave(hidden)

    agree(loss, BASE, (X,))
    assert factored(loss, BASE, (X,)) == [True]


def test_norms_of_low_rank_updates_are_upper_bounds_where_terms_cancel():
    """In float64, what is summed is never longer than the norm says (privacy rule 9)."""
    rng = np.random.default_rng(0)
    a = np.broadcast_to(rng.normal(size=(8, 1, 32)) * 100, (8, 16, 32))
    c = rng.normal(size=(8, 16, 24))
    c = c - c.mean(1, keepdims=True) + 1e-6 * rng.normal(size=(8, 1, 24))
    params = {"a": rng.normal(size=(32, 4)), "b": rng.normal(size=(4, 24))}
    loss = lambda q, a, c: jnp.sum((a @ (q["a"] @ q["b"])) * c)
    batch = [np.asarray(x, np.float32) for x in (a, c)]
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
    _, leaves = factored_engine(loss, params, tuple(map(jnp.asarray, batch)))
    exact_a, exact_c = (x.astype(np.float64) for x in batch)
    product = np.einsum("btd,btp->bdp", exact_a, exact_c)
    expected = [product @ params["b"].T.astype(np.float64)]
    expected.append(np.einsum("dr,bdp->brp", params["a"].astype(np.float64), product))
    for leaf, g in zip(leaves, expected, strict=True):
        length = np.linalg.norm(g.reshape(8, -1), axis=1)
        summed = np.stack([leaf.weighted_sum(jnp.eye(8)[i]) for i in range(8)])
        norms = np.sqrt(np.asarray(leaf.squared_norms(), np.float64))
        assert np.all(np.linalg.norm(summed.reshape(8, -1).astype(np.float64), axis=1) <= norms)
        assert np.all(length <= norms * (1 + 1e-5))
