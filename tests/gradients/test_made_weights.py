"""Weights that are standardised, or made by any function: held in factors, exact, within bounds."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from helpers.cases import slow
from helpers.engines import B, agree, normal

import jaxdp
from jaxdp.gradients import made_weights
from jaxdp.gradients.choice import choose
from jaxdp.gradients.engine import factored_engine
from jaxdp.gradients.jax_internals import one_example
from jaxdp.gradients.program import trace

IMAGES, ROWS = normal(9, B, 6, 6, 3), normal(8, B, 7, 4)
KERNELS = {"v": normal(0, 3, 3, 3, 4), "w": normal(1, 3, 3, 4, 5)}
INFLATION = 3  # a projection takes 1 of so few inputs away


def forms(loss, params, batch):
    return [c.form for c in choose(trace(loss, params, one_example(batch)), thrifty=False)]


def wave(y):
    return jnp.sum(jnp.sin(y))


def conv(x, kernel):
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x[None], kernel, (1, 1), "SAME", None, None, layout)[0]


def standard(w):
    """As in Big Transfer."""
    w = w - jnp.mean(w, axis=(0, 1, 2))
    return w / (jnp.std(w, axis=(0, 1, 2)) + 1e-5)


def scaled(w, gain):
    """As in networks without normalisation."""
    mean = jnp.mean(w, axis=(0, 1, 2), keepdims=True)
    var = jnp.var(w, axis=(0, 1, 2), keepdims=True)
    fan_in = w[..., 0].size
    scale = jax.lax.rsqrt(jnp.maximum(var * fan_in, 1e-4)) * gain
    return w * scale - mean * scale


def two_layers(q, x):
    return wave(conv(jax.nn.relu(conv(x, standard(q["v"]))), standard(q["w"])))


def with_gain(q, x):
    return wave(conv(x, q["g"] * standard(q["w"])))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "params", "batch"),
    [
        slow(two_layers, KERNELS, IMAGES),
        slow(with_gain, {"g": 1 + normal(1, 4), "w": normal(0, 3, 3, 3, 4)}, IMAGES),
        (with_gain, {"g": jnp.array([0.0, 1, 2, 3]), "w": normal(0, 3, 3, 3, 4)}, IMAGES),
        slow(
            lambda q, x: wave(x @ (q["g"] * q["w"] / jnp.linalg.norm(q["w"], axis=0))),
            {"g": normal(1, 5), "w": normal(0, 4, 5)},
            ROWS,
        ),
        (
            lambda q, x: wave(x @ (q["w"] * (q["g"] / jnp.linalg.norm(q["w"], axis=1))[:, None]).T),
            {"g": normal(1, 5), "w": normal(0, 5, 4)},
            ROWS,
        ),
        (lambda w, x: wave(x @ (w / jnp.linalg.norm(w))), normal(0, 4, 5), ROWS),
    ],
)
def test_standardised_weights_and_their_gains_are_factors(loss, params, batch):
    agree(loss, params, (batch,), inflation=INFLATION)
    held = zip(
        jax.tree_util.tree_leaves_with_path(params), forms(loss, params, (batch,)), strict=True
    )
    for (path, _), form in held:
        assert form == ("product" if "g" in jax.tree_util.keystr(path) else "direct")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "shape"),
    [
        (lambda w, x: wave(x[:, :1] @ w[:, :3]), (1, 5)),
        (lambda w, x: wave(x[:, :1] @ w[:, 2:]), (1, 5)),
        (lambda w, x: wave(x[:, :3] @ w.T[:3, :1]), (1, 4)),
        (lambda w, x: wave(x @ w[:, 1:4]), (4, 5)),
    ],
)
def test_a_part_of_a_standardised_weight(loss, shape):
    """The channels of what is not used must not take the place of others."""
    made = lambda q: q["g"] * q["w"] / jnp.sqrt(jnp.sum(q["w"] ** 2, 0) + 0.1)
    params = {"g": 1 + normal(1, shape[1]), "w": normal(0, *shape)}
    # Of one input, the projection takes nearly all away.
    agree(lambda q, x: loss(made(q), x), params, (ROWS,), inflation=1000)


def test_whole_numbers_made_of_a_weight_are_no_standardisation():
    """As in `jax.scipy.linalg.expm`, which counts how often it halves."""

    def loss(w, x):
        halvings = jnp.asarray(jnp.abs(w).sum(), int) - jnp.arange(2)[1]
        return wave(x @ jnp.exp(w * 2.0**-halvings))

    agree(loss, normal(0, 4, 4), (ROWS,))


def nfnets(q, x):
    return wave(conv(x, scaled(q["w"], q["g"])))


def test_the_standardisation_of_nfnets():
    params = {"g": 1 + normal(1, 4), "w": normal(0, 3, 3, 3, 4)}
    agree(nfnets, params, (IMAGES,), inflation=INFLATION)


def linen():
    model = nn.WeightNorm(nn.Dense(3))
    params = model.init(jax.random.key(1), ROWS[0])
    return lambda q, x: wave(model.apply(q, x)), params


def of_equinox():
    model = eqx.nn.WeightNorm(eqx.nn.Linear(4, 3, key=jax.random.key(0)))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    return lambda q, x: wave(jax.vmap(eqx.combine(q, static))(x)), params


@pytest.mark.parametrize("make", [linen, slow(of_equinox)])
def test_weight_norm_of_libraries(make):
    loss, params = make()
    agree(loss, params, (ROWS,), inflation=INFLATION)
    found = forms(loss, params, (ROWS,))
    assert "direct" in found or "gram" in found, found


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [(3, 3, 16, 32), (1, 1, 64, 32)])
def test_the_bound_costs_little_signal_at_ordinary_sizes(kernel):
    x = jax.nn.relu(normal(3, 4, 8, 8, kernel[2]))
    c = normal(4, 4, 8, 8, kernel[3])
    loss = lambda w, x, c: jnp.sum(conv(x, standard(w)) * c)
    w = normal(5, *kernel)
    _, (leaf,) = factored_engine(loss, w, (x, c))
    exact = jax.vmap(jax.grad(loss), (None, 0, 0))(w, x, c).reshape(4, -1)
    inflation = np.sqrt(leaf.squared_norms()) / np.linalg.norm(exact, axis=1)
    assert np.all((inflation >= 1 - 1e-6) & (inflation <= 1.05)), inflation


@pytest.mark.parametrize(
    "loss",
    [
        lambda q, x: wave(x @ jnp.exp(q["w"])),
        lambda q, x: wave(x @ (q["w"] * (q["w"] > 0) * q["v"])),
        lambda q, x: wave(x @ (q["w"] + q["w"][::-1] * q["v"])),
        lambda q, x: wave(x @ jnp.where(q["v"] > 0, q["w"], q["v"])),
    ],
)
def test_any_function_is_taken_a_few_rows_at_a_time_where_arrays_are_large(loss, monkeypatch):
    monkeypatch.setattr(made_weights, "LARGE", 4)
    params = {"v": normal(0, 4, 5), "w": normal(1, 4, 5)}
    agree(loss, params, (ROWS,))
    reasons = [choice.reason for choice in choose(trace(loss, params, one_example((ROWS,))), False)]
    assert "made by a function: a few rows at a time" in reasons


@pytest.mark.slow
def test_a_function_may_be_of_more_equations_than_python_calls(monkeypatch):
    def loss(w, x):
        for _ in range(1200):
            w = jnp.sin(w)
        return wave(x @ w)

    monkeypatch.setattr(made_weights, "LARGE", 4)
    rows = lambda w, x: factored_engine(loss, w, (x,))[1][0].materialize()
    assert jax.eval_shape(rows, normal(0, 4, 5), ROWS).shape == (B, 4, 5)


def test_small_ones_are_arrays():
    assert forms(lambda w, x: wave(x @ jnp.exp(w)), normal(0, 4, 5), (ROWS,)) == ["dense"]


def test_a_straight_through_estimate_is_a_sum_of_the_weight_and_a_constant():
    loss = lambda w, x: wave(x @ (w + jax.lax.stop_gradient(jnp.round(w * 4) / 4 - w)))
    agree(loss, normal(0, 4, 5), (ROWS,))
    assert forms(loss, normal(0, 4, 5), (ROWS,)) == ["direct"]


def test_a_gain_that_is_an_array_gets_its_gradient_through_a_tapped_convolution():
    """The convolution's own rule gives no gradient to a kernel that only taps ask for."""

    def loss(q, x):
        branch = jax.lax.cond(x[0, 0, 0] > 0, lambda: q["g"], lambda: 2 * q["g"])
        return wave(conv(x, q["g"] * standard(q["w"])) * branch)

    params = {"g": 1 + normal(1, 4), "w": normal(0, 3, 3, 3, 4)}
    agree(loss, params, (IMAGES,), inflation=INFLATION)
    assert forms(loss, params, (IMAGES,)) == ["dense", "direct"]


def test_explain_names_them():
    params = {"g": 1 + normal(1, 4), "w": normal(0, 3, 3, 3, 4)}
    text = str(jaxdp.explain(with_gain, params, (IMAGES[0],)))
    assert "the gain of a standardised weight" in text
    assert "standardised, " in text


def test_weights_of_nnx_are_read():
    model = nnx.WeightNorm(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    loss = lambda q, x: wave(nnx.merge(graph, q, rest)(x))
    agree(loss, params, (ROWS,), inflation=INFLATION)
