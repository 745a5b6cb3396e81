"""Gradients through any function of parameters alone, a few rows at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.cases import some

from jaxdp.gradients import pulled
from jaxdp.gradients.engine import factored_engine
from jaxdp.gradients.pulled import Pulled

BOUND_SLACK = 1e-5  # how far above C a contribution may be (privacy rule 9)


def spectral(w):
    """Two steps of the power method."""
    v = jnp.ones(w.shape[-1]) / 3
    for _ in range(2):
        u = w @ v
        v = w.T @ (u / jnp.linalg.norm(u))
    return w / jnp.linalg.norm(v)


def orthogonal(w):
    skew = w - w.T
    return jnp.linalg.solve(jnp.eye(len(w)) + skew, jnp.eye(len(w)) - skew)


def standardised(w):
    w = w - w.mean(0)
    return w / jnp.sqrt(jnp.mean(w * w, 0) + 1e-6)


def matmul_loss(weight, a, c):
    return jnp.sum((a @ weight.astype(a.dtype)) * c)


def conv_loss(weight, a, c):
    layout = ("NWC", "WIO", "NWC")
    kernel = weight.reshape(1, *weight.shape)
    return jnp.sum(
        jax.lax.conv_general_dilated(a[None], kernel, (1,), "SAME", None, None, layout) * c
    )


def lookup_loss(weight, a, c):
    return jnp.sum(weight[jnp.argmax(a, -1)] * c)


def dense_loss(weight, a, c):
    return jnp.sum(jnp.tanh(weight).sum(-1) * a) * jnp.sum(c)


LOSSES = {"matmul": matmul_loss, "conv": conv_loss, "lookup": lookup_loss, "dense": dense_loss}


def represented(f, loss, w, a, c):
    weight, pull = jax.vjp(f, w)
    inner = factored_engine(loss, weight, (a, c))[1][0]
    return Pulled.make(inner, lambda g: pull(g.astype(weight.dtype))[0])


def exact(f, loss, w, a, c):
    with jax.enable_x64(True):
        w, a, c = (jnp.asarray(np.asarray(x, np.float64)) for x in (w, a, c))
        return np.asarray(
            jax.jit(jax.vmap(jax.grad(lambda w, a, c: loss(f(w), a, c)), (None, 0, 0)))(w, a, c)
        )


def norms_of(g):
    return np.sqrt((np.asarray(g, np.float64).reshape(len(g), -1) ** 2).sum(1))


def arrays(b=6, d=8, p=8, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((d, p), (b, 5, d), (b, 5, p))
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


PAIRS = [(spectral, "matmul"), (orthogonal, "conv"), (standardised, "lookup"), (spectral, "dense")]


@pytest.mark.parametrize(
    ("f", "kind", "rows"),
    some(
        [(*pair, rows) for pair in PAIRS for rows in (1, 2, 6)],
        [(*pair, rows) for pair, rows in zip(PAIRS, (2, 1, 6, 2), strict=True)],
    ),
)
def test_gradients_are_those_of_vmap_grad(f, kind, rows, monkeypatch):
    monkeypatch.setattr(pulled, "PATCH_NUMBERS", rows * 64 + 10)
    w, a, c = arrays()
    a = a[..., 0, :] if kind == "dense" else a
    g = exact(f, LOSSES[kind], w, a, c)
    weights = np.array([0.5, 0.0, 2.0, -1.0, 1.0, 3.0], np.float32)

    @jax.jit
    def compute(w, a, c):
        leaf = represented(f, LOSSES[kind], w, a, c)
        return leaf.squared_norms(), leaf.weighted_sum(weights), leaf.materialize()

    squared, total, gradients = compute(w, a, c)
    scale = np.abs(g).max()
    np.testing.assert_allclose(np.sqrt(squared), norms_of(g), rtol=1e-4)
    np.testing.assert_allclose(total, np.einsum("b,b...->...", weights, g), atol=1e-4 * scale)
    np.testing.assert_allclose(gradients, g, atol=1e-4 * scale)


def test_few_rows_are_made_at_a_time(monkeypatch):
    monkeypatch.setattr(pulled, "PATCH_NUMBERS", 2 * 64)
    w, a, c = arrays()
    program = jax.jit(lambda *v: represented(spectral, matmul_loss, *v).weighted_sum(jnp.ones(6)))
    text = program.lower(w, a, c).as_text()
    assert "tensor<2x8x8xf32>" in text
    assert "tensor<6x8x8xf32>" not in text


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_no_row_is_longer_than_its_norm_where_f_cancels(dtype):
    """The gradient of the weight is a million times what is left of it."""
    w, a, c = arrays()
    for noise in (0.0, 1e-6, 1e-4):
        flat = jnp.asarray(1000 * (1 + noise * np.asarray(a)), dtype)

        @jax.jit
        def clipped(w, a, c):
            leaf = represented(standardised, matmul_loss, w, a, c)
            norms = jnp.sqrt(leaf.squared_norms())
            return jax.vmap(leaf.weighted_sum)(jnp.diag(jnp.where(norms > 1e-12, 1 / norms, 0)))

        sums = norms_of(clipped(w, flat, jnp.asarray(c, dtype)))
        assert np.all(sums <= 1 + BOUND_SLACK), sums


def test_a_row_that_comes_out_longer_the_second_time_is_shortened():
    """As it may where the compiler orders the operations of the two passes differently."""
    w, a, c = arrays()
    leaf = represented(spectral, matmul_loss, w, a, c)
    told = leaf.squared.at[1].multiply(1e-4).at[2].set(0.0)
    leaf = Pulled(leaf.inner, leaf.pull, told)
    g = leaf.materialize()
    for row, factor in ((0, 1), (1, 1e-2), (2, 0)):
        total = leaf.weighted_sum(jnp.zeros(6).at[row].set(1.0))
        np.testing.assert_allclose(total, factor * g[row], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_that_are_not_finite_show_and_can_be_dropped(bad):
    w, a, c = arrays()
    g = exact(spectral, matmul_loss, w, a, c)
    leaf = represented(spectral, matmul_loss, w, a.at[2, 3, 1].set(bad), c)
    assert np.isfinite(leaf.squared_norms()).tolist() == [True, True, False, True, True, True]
    kept = leaf.keep(jnp.asarray([True, False, False, True, False, False]))
    np.testing.assert_array_equal(kept.materialize()[1:3], 0)
    np.testing.assert_array_equal(kept.squared_norms()[1:3], 0)
    total = kept.weighted_sum(jnp.array([2.0, 7.0, 7.0, 0.5, 7.0, 7.0]))
    np.testing.assert_allclose(total, 2 * g[0] + 0.5 * g[3], rtol=1e-4, atol=1e-4)
