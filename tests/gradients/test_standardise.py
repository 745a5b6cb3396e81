"""Gradients of a standardised weight, in factors: exact, and never longer than their norms say.

The activations and cotangents of the loss are the batch itself.
"""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.cases import some
from jax.sharding import PartitionSpec as P

from jaxdp.gradients.engine import factored_engine
from jaxdp.gradients.jax_internals import open_jaxpr, vary
from jaxdp.gradients.standardise import Standardised, Values, place
from jaxdp.gradients.standardise_match import match

BOUND_SLACK = 1e-5  # how far above C a contribution may be (privacy rule 9)


def standardisation(w, gain):
    axes = tuple(range(w.ndim - 1))
    w = w - w.mean(axes)
    return gain * w / jnp.sqrt(jnp.mean(w * w, axes) + 1e-6)


def plus_epsilon(w, gain):
    axes = tuple(range(w.ndim - 1))
    w = w - w.mean(axes)
    return gain * w / (jnp.std(w, axes) + 0.1)


def weight_norm(w, gain):
    axes = tuple(range(w.ndim - 1))
    return gain * w / jnp.sqrt(jnp.sum(w * w, axes))


def frobenius(w, gain):
    return gain[0] * w / jnp.sqrt(jnp.sum(w * w))


def rows_norm(w, gain):
    del gain
    return w / jnp.sqrt(jnp.sum(w * w, -1, keepdims=True))


def dense_loss(weight, a, c):
    return jnp.sum((a @ weight.astype(a.dtype)) * c)


def transposed_loss(weight, a, c):
    return jnp.sum(jnp.einsum("pd,td->tp", weight.T.astype(a.dtype), a) * c)


def conv_loss(weight, a, c):
    return jnp.sum(convolve(weight.astype(a.dtype), a) * c)


def convolve(weight, a, **options):
    layout = ("NHWC", "HWIO", "NHWC")
    options = {"window_strides": (1, 1), "padding": "SAME", **options}
    return jax.lax.conv_general_dilated(a[None], weight, dimension_numbers=layout, **options)[0]


def strided_loss(weight, a, c):
    y = convolve(weight, a, window_strides=(2, 2), feature_group_count=2)
    return jnp.sum(y * c)


def spread_loss(weight, a, c):
    return jnp.sum(convolve(weight, a, lhs_dilation=(2, 2), padding=((1, 2), (2, 1))) * c)


def represented(f, loss, w, gain, a, c, norms=None):
    """The gradients of w, those of the gain, and the inner ones."""
    what = f(w, gain)
    inner = factored_engine(loss, what, (a, c))[1][0]
    inner = inner if norms is None else replace(inner, norms=norms)
    closed = jax.make_jaxpr(f)(w, gain)
    jaxpr, _ = open_jaxpr(closed)
    found = match(jaxpr, jaxpr.outvars[0], jaxpr.invars[0])
    assert found is not None
    assert found.base is jaxpr.invars[0]
    gains = [gain if g.var.aval.shape else gain[0] for g in found.gains]
    where = place(found, inner.shape)
    assert where is not None
    return Standardised(inner, found, where, Values.make(found, w, gains))


@functools.cache
def oracle(f, loss):
    whole = lambda w, gain, a, c: loss(f(w, gain), a, c)
    return jax.jit(jax.vmap(jax.grad(whole, (0, 1)), (None, None, 0, 0)))


def exact(f, loss, *arrays):
    """The gradients of w and the gain, by vmap(grad) in float64."""
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(x, np.float64)) for x in arrays]
        return [np.asarray(g) for g in oracle(f, loss)(*wide)]


def norms_of(g):
    return np.sqrt((np.asarray(g, np.float64).reshape(len(g), -1) ** 2).sum(1))


def arrays(kind, b=4, seed=0, dtype=jnp.float32, mean=0.0):
    """w, gain, activations, cotangents."""
    rng = np.random.default_rng(seed)
    w, a, c = {
        "dense": ((24, 8), (6, 24), (6, 8)),
        "one": ((24, 8), (1, 24), (1, 8)),
        "transposed": ((24, 8), (6, 24), (6, 8)),
        "conv": ((3, 3, 4, 6), (5, 5, 4), (5, 5, 6)),
        "pointwise": ((1, 1, 4, 6), (5, 5, 4), (5, 5, 6)),
        "wide": ((1, 1, 48, 6), (5, 5, 48), (5, 5, 6)),
        "strided": ((3, 3, 2, 6), (5, 5, 4), (3, 3, 6)),
        "spread": ((3, 3, 4, 6), (3, 3, 4), (6, 6, 6)),
    }[kind]
    return (
        jnp.asarray(rng.normal(size=w) + 0.2, jnp.float32),
        jnp.asarray(rng.normal(size=w[-1:]), jnp.float32),
        jnp.asarray(rng.normal(size=(b, *a)) + mean, dtype),
        jnp.asarray(rng.normal(size=(b, *c)), dtype),
    )


LOSSES = {
    "dense": dense_loss,
    "one": dense_loss,
    "transposed": transposed_loss,
    "conv": conv_loss,
    "pointwise": conv_loss,
    "wide": conv_loss,
    "strided": strided_loss,
    "spread": spread_loss,
}


def computed(f, kind, values, weights, norms=None):
    """Norms, the weighted sum, the gradients, and those of the gain."""

    @jax.jit
    def compute(w, gain, a, c, weights):
        leaf = represented(f, LOSSES[kind], w, gain, a, c, norms)
        return jnp.sqrt(leaf.squared_norms()), leaf.weighted_sum(weights), leaf.materialize()

    return [np.asarray(x, np.float64) for x in compute(*values, jnp.asarray(weights, jnp.float32))]


CASES = [(standardisation, kind) for kind in LOSSES if kind != "wide"]
CASES += [(plus_epsilon, "dense"), (weight_norm, "conv"), (frobenius, "dense")]
CASES += [(frobenius, "conv"), (rows_norm, "dense"), (rows_norm, "transposed")]
QUICK = [(standardisation, kind) for kind in ("dense", "transposed", "conv", "strided")]
QUICK += [(frobenius, "dense"), (rows_norm, "dense"), (rows_norm, "transposed")]


@pytest.mark.parametrize(("f", "kind"), some(CASES, QUICK), ids=lambda x: getattr(x, "__name__", x))
def test_gradients_are_those_of_vmap_grad(f, kind):
    values = arrays(kind)
    weights = np.array([0.5, 0.0, 2.0, -1.0])
    norms, total, rows = computed(f, kind, values, weights)
    g, _ = exact(f, LOSSES[kind], *values)
    scale = np.abs(g).max()
    np.testing.assert_allclose(rows, g, atol=2e-5 * scale)
    np.testing.assert_allclose(total, np.einsum("b,b...->...", weights, g), atol=5e-5 * scale)
    assert np.all(norms_of(g) <= norms * (1 + BOUND_SLACK))


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize(("f", "kind"), [(standardisation, "conv"), (frobenius, "dense")])
def test_gradients_of_the_gain(f, kind, zero):
    w, gain, a, c = arrays(kind)
    gain = gain.at[0].set(0.0) if zero else gain

    @jax.jit
    def compute(w, gain, a, c):
        forward = {"conv": convolve, "dense": lambda weight, a: a @ weight}[kind]
        y = jax.vmap(lambda a: forward(f(w, gain), a))(a)
        # As factors: an axis of slices, and the convolution's own axis of examples.
        y = y[:, None, None] if kind == "conv" else y[:, None]
        (rows,) = represented(f, LOSSES[kind], w, gain, a, c).gain_gradients(y)
        return rows.materialize()

    _, g = exact(f, LOSSES[kind], w, gain, a, c)
    g = g[:, 0] if f is frobenius else g
    np.testing.assert_allclose(compute(w, gain, a, c), g, atol=1e-5 * np.abs(g).max())


def adversaries(kind, dtype):
    """Activations and cotangents whose gradients nearly vanish, in one way or another."""
    rng = np.random.default_rng(5)
    w, gain, a, c = arrays(kind, seed=5)
    a, c = np.asarray(a, np.float64), np.asarray(c, np.float64)
    positions = tuple(range(1, a.ndim - 1))
    # Along the mean: all activations of an example are one number, but for a little.
    flat = [
        np.full_like(a, 1000.0) * (1 + eps * rng.normal(size=a.shape)) for eps in (0, 1e-6, 1e-3)
    ]
    cancelling = c - c.mean(positions, keepdims=True) + 1e-8 * rng.normal(size=c.shape)
    same = np.broadcast_to(a[(slice(None), *[slice(0, 1)] * len(positions))], a.shape)
    # Along the radius of the first channel: patches are the kernel itself.
    centre = np.asarray(w, np.float64)[..., 0]
    centre = centre - centre.mean()
    if kind == "conv":
        radial = np.zeros_like(a)
        radial[:, 1:4, 1:4] = centre
        one = np.zeros_like(c)
        one[:, 2, 2, 0] = 3.0
    else:
        radial = np.broadcast_to(centre, a.shape) * rng.normal(size=(*a.shape[:-1], 1))
        one = np.zeros_like(c)
        one[..., 0] = c[..., 0]
    pairs = [(x, c) for x in flat] + [(same, cancelling), (same * 1e4, cancelling)]
    pairs += [(flat[2], cancelling), (a + 1000, c), (a + 1000, cancelling)]
    pairs += [(radial, one), (radial + 1000, one)]
    for x, y in pairs:
        yield w, gain, jnp.asarray(x, dtype), jnp.asarray(y, dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("norms", ["gram", pytest.param("direct", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("f", "kind"),
    [
        (standardisation, "conv"),
        (standardisation, "wide"),
        (standardisation, "dense"),
        (weight_norm, "dense"),
    ],
)
def test_norms_are_upper_bounds_where_terms_cancel(f, kind, norms, dtype):
    @jax.jit
    def compute(w, gain, a, c):
        leaf = represented(f, LOSSES[kind], w, gain, a, c, norms)
        bounds = jnp.sqrt(leaf.squared_norms())
        each = jnp.where(bounds > 1e-12, 1 / bounds, 0)  # clipped to length 1, one at a time
        return bounds, jax.vmap(leaf.weighted_sum)(jnp.diag(each))

    for values in adversaries(kind, dtype):
        bounds, sums = (np.asarray(x, np.float64) for x in compute(*values))
        g, _ = exact(f, LOSSES[kind], *values)
        # Below 1e-10 it is the oracle's own rounding.
        sound = (norms_of(g) <= bounds * (1 + BOUND_SLACK)) | (norms_of(g) < 1e-10)
        assert np.all(sound), (norms_of(g), bounds)
        assert np.all(norms_of(sums) <= 1 + BOUND_SLACK), norms_of(sums)


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_means_far_from_zero_cost_little_signal(kind):
    w, gain, a, c = arrays(kind, b=8)
    inside = lambda weight, a, c: jnp.sum(convolve(weight, a, padding="VALID") * c[1:4, 1:4])
    loss = inside if kind == "conv" else dense_loss  # zeros around would be an edge
    values = (w, gain, a + 1000, c)
    g, _ = exact(standardisation, loss, *values)
    norms = jax.jit(lambda *v: represented(standardisation, loss, *v, "gram").squared_norms())
    assert np.all(np.sqrt(norms(*values)) < 1.2 * norms_of(g))


@pytest.mark.parametrize(
    ("loss", "w", "a", "c"),
    [
        (dense_loss, (512, 128), (4, 512), (4, 128)),
        (conv_loss, (3, 3, 64, 64), (8, 8, 64), (8, 8, 64)),
    ],
    ids=["dense", "conv"],
)
def test_ordinary_norms_are_hardly_inflated(loss, w, a, c):
    rng = np.random.default_rng(0)
    w, a, c = (jnp.asarray(rng.normal(size=n), jnp.float32) for n in (w, (2, *a), (2, *c)))

    @jax.jit
    def compute(w, a, c):
        leaf = represented(standardisation, loss, w, jnp.ones(w.shape[-1:]), jax.nn.relu(a), c)
        return jnp.sqrt(leaf.squared_norms()), leaf.materialize()

    norms, rows = compute(w, a, c)
    np.testing.assert_array_less(norms, 1.01 * norms_of(rows))


@pytest.mark.parametrize("bad", [np.nan, pytest.param(np.inf, marks=pytest.mark.slow)])
@pytest.mark.parametrize("where", ["activation", "cotangent"])
@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_rows_that_are_not_finite_show_and_can_be_dropped(kind, where, bad):
    w, gain, a, c = arrays(kind)
    good = exact(standardisation, LOSSES[kind], w, gain, a, c)[0][[0, 3]]
    at = (2, *[1] * (a.ndim - 1))
    a, c = (a.at[at].set(bad), c) if where == "activation" else (a, c.at[at].set(bad))

    @jax.jit
    def compute(w, gain, a, c):
        leaf = represented(standardisation, LOSSES[kind], w, gain, a, c)
        kept = leaf.keep(jnp.asarray([True, False, False, True]))
        total = kept.weighted_sum(jnp.array([2.0, 7.0, 7.0, 0.5]))
        return leaf.squared_norms(), kept.squared_norms(), kept.materialize(), total

    norms, kept_norms, rows, total = compute(w, gain, a, c)
    assert np.isfinite(norms).tolist() == [True, True, False, True]
    np.testing.assert_array_equal(rows[1:3], 0)
    np.testing.assert_array_less(kept_norms[1:3], 1e-30)
    scale = np.abs(good).max()
    np.testing.assert_allclose(total, 2 * good[0] + 0.5 * good[1], atol=1e-4 * scale)


def test_a_weight_without_length_drops_every_row():
    """Its gradient is NaN by JAX's own rules too, and NaN must not enter the sum."""
    w, gain, a, c = arrays("dense")
    w = w.at[:, 0].set(0.0)

    @jax.jit
    def compute(*values):
        leaf = represented(weight_norm, dense_loss, *values)
        return leaf.squared_norms(), leaf.keep(jnp.zeros(4, bool)).weighted_sum(jnp.zeros(4))

    assert np.all(np.isnan(exact(weight_norm, dense_loss, w, gain, a, c)[0]).any((1, 2)))
    norms, total = compute(w, gain, a, c)
    assert not np.any(np.isfinite(norms))
    np.testing.assert_array_equal(total, 0)


def test_weights_of_a_scan_over_layers():
    rng = np.random.default_rng(3)
    w = jnp.asarray(rng.normal(size=(3, 6, 6)), jnp.float32)
    gain = jnp.asarray(rng.normal(size=(3, 6)), jnp.float32)
    x = jnp.asarray(rng.normal(size=(4, 5, 6)), jnp.float32)

    def loss(weights, x):
        return jnp.sum(jax.lax.scan(lambda x, weight: (jnp.tanh(x @ weight), None), x, weights)[0])

    @jax.jit
    def compute(w, gain, x):
        inner = factored_engine(loss, jax.vmap(standardisation)(w, gain), (x,))[1][0]
        jaxpr, _ = open_jaxpr(jax.make_jaxpr(standardisation)(w[0], gain[0]))
        found = match(jaxpr, jaxpr.outvars[0], jaxpr.invars[0])
        values = Values.make(found, w, [gain])
        leaf = Standardised(inner, found, place(found, inner.shape), values)
        return jnp.sqrt(leaf.squared_norms()), leaf.materialize()

    norms, rows = compute(w, gain, x)
    with jax.enable_x64(True):
        w, gain, x = (jnp.asarray(np.asarray(v, np.float64)) for v in (w, gain, x))
        whole = lambda w, gain, x: loss(jax.vmap(standardisation)(w, gain), x)
        g = jax.jit(jax.vmap(jax.grad(whole), (None, None, 0)))(w, gain, x)
    np.testing.assert_allclose(rows, g, atol=1e-5)
    assert np.all(norms_of(g) <= norms * (1 + BOUND_SLACK))


def test_factors_that_cannot_be_scaled_have_no_place():
    """Over inputs alone, each window offset of each channel has a length of its own."""

    def per_offset(w, gain):
        return gain * w / jnp.sqrt(jnp.sum(w * w, 2, keepdims=True))

    w, gain, a, c = arrays("conv")
    inner = factored_engine(conv_loss, per_offset(w, gain), (a, c))[1][0]
    jaxpr, _ = open_jaxpr(jax.make_jaxpr(per_offset)(w, gain))
    found = match(jaxpr, jaxpr.outvars[0], jaxpr.invars[0])
    assert found is not None
    assert place(found, inner.shape) is None


def test_inside_shard_map():
    """Its jaxprs hold equations that mark what varies, and its sums must not cross devices."""
    w, gain, a, c = arrays("conv")
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))

    def device(w, gain, a, c):
        w, gain = vary((w, gain), frozenset({"x"}))
        y = jax.vmap(lambda a: convolve(standardisation(w, gain), a)[None, None])(a)
        leaf = represented(standardisation, conv_loss, w, gain, a, c)
        total, rows = leaf.weighted_sum(jnp.ones(4)), leaf.gain_gradients(y)[0].materialize()
        return leaf.squared_norms(), total[None], rows

    specs = (P(), P(), P("x"), P("x"))
    norms, total, rows = jax.jit(
        jax.shard_map(device, mesh=mesh, in_specs=specs, out_specs=P("x"))
    )(w, gain, a, c)
    g, gains = exact(standardisation, conv_loss, w, gain, a, c)
    assert np.all(norms_of(g) <= np.sqrt(norms) * (1 + BOUND_SLACK))
    np.testing.assert_allclose(total[0], g.sum(0), atol=1e-4 * np.abs(g).max())
    np.testing.assert_allclose(rows, gains, atol=1e-4 * np.abs(gains).max())
