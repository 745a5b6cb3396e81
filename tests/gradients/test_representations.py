"""Every representation's norms are upper bounds, whatever rounding does; rows can be dropped."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.cases import slow, some
from helpers.forms import LEADS, LOSSES, exact, matmul_loss, near_cancelling, near_constant
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdp.gradients.convolution import Conv
from jaxdp.gradients.engine import auto_engine, factored_engine
from jaxdp.gradients.lookup import Lookup
from jaxdp.gradients.matmul import Matmul
from jaxdp.gradients.ragged import Ragged

BOUND_SLACK = 1e-5  # how far above C a contribution may be (privacy rule 9)
ORDINARY_INFLATION = 1e-4


def represented(kind, a, c):
    w = jnp.zeros((*LEADS[kind], a.shape[-1], c.shape[-1]))
    return factored_engine(LOSSES[kind], w, (a, c))[1][0]


KINDS = [("matmul", "gram"), ("matmul", "direct"), ("conv", "gram"), ("conv", "direct")]
KINDS += [("ragged", "gram"), ("ragged", "direct")]
KINDS += [("kernels", "gram"), ("lookup", None), ("parts", None)]
# Random numbers take long: the default run leaves them to the forms that others are made of.
SOME_KINDS = some(KINDS, KINDS[:3])
# Every class of representations: what takes long for all kinds is quick for these.
CLASSES = [("matmul", "gram"), ("conv", "gram"), ("ragged", "gram"), ("lookup", None)]


def norms_of(kind, norms, a, c):
    leaf = represented(kind, a, c)
    if norms is not None:
        leaf = replace(leaf, norms=norms)
    return np.sqrt(np.asarray(leaf.squared_norms(), np.float64))


def never_above_the_bound(kind, norms, a, c):
    g = exact(kind, a, c, a.shape[-1])
    true = np.sqrt((g.reshape(len(g), -1) ** 2).sum(1))
    got = norms_of(kind, norms, a, c)
    # min(1, C / got) · true ≤ C (1 + slack) for every C. Below 1e-12 no clipping norm is allowed;
    # squares of huge ones overflow, and then the row contributes nothing.
    sound = true <= got * (1 + BOUND_SLACK)
    assert np.all(sound | (true < 1e-12) | (~np.isfinite(got) & (true > 1e15))), true / got


@pytest.mark.parametrize("dtype", [jnp.float32, slow(jnp.bfloat16)])
@pytest.mark.parametrize(("kind", "norms"), some(KINDS, CLASSES))
def test_norms_are_upper_bounds_where_terms_cancel(kind, norms, dtype):
    cases = [near_cancelling(16, 64, 64, 100.0), near_cancelling(64, 32, 16, 1e4)]
    cases += [near_constant(64, 64, 64, 10.0**-k) for k in (3, 6, 9)]
    cases += [near_constant(16, 8, 8, 0.0)]
    for a, c in cases:
        a, c = jnp.asarray(a, dtype), jnp.asarray(c, dtype)
        never_above_the_bound(kind, norms, a, c)


@pytest.mark.parametrize(("kind", "norms"), SOME_KINDS)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    t=st.sampled_from([1, 2, 16, 65]),
    scales=st.tuples(*[st.sampled_from([1e-30, 1e-18, 1e-8, 1.0, 1e4, 1e9])] * 2),
    like=st.sampled_from([0.0, 0.5, 1.0 - 1e-3, 1.0 - 1e-6, 1.0]),
    cancel=st.sampled_from([0.0, 0.9, 1.0 - 1e-4, 1.0]),
    half=st.booleans(),
    seed=st.integers(0, 99),
)
def test_norms_are_upper_bounds_whatever_the_numbers(
    kind, norms, t, scales, like, cancel, half, seed
):
    rng = np.random.default_rng(seed)
    a = like * rng.normal(size=(4, 1, 24)) + (1 - like) * rng.normal(size=(4, t, 24))
    c = rng.normal(size=(4, t, 8))
    c = (c - cancel * c.mean(1, keepdims=True)) * scales[1]
    dtype = jnp.bfloat16 if half else jnp.float32
    a, c = jnp.asarray(a * scales[0], dtype), jnp.asarray(c, dtype)
    never_above_the_bound(kind, norms, a, c)


@pytest.mark.parametrize(
    ("t", "kind", "norms"),
    some([(t, *kind) for t in (1, 16, 64) for kind in KINDS], [(64, *kind) for kind in CLASSES]),
)
def test_ordinary_norms_are_hardly_inflated(kind, norms, t):
    rng = np.random.default_rng(1)
    a = jnp.asarray(rng.normal(size=(8, t, 64)), jnp.float32)
    c = jnp.asarray(rng.normal(size=(8, t, 32)), jnp.float32)
    g = exact(kind, a, c, 64)
    true = np.sqrt((g.reshape(8, -1) ** 2).sum(1))
    np.testing.assert_allclose(norms_of(kind, norms, a, c), true, rtol=ORDINARY_INFLATION)


@pytest.mark.parametrize("bad", [np.nan, slow(np.inf), slow(-np.inf)])
@pytest.mark.parametrize(
    ("kind", "norms", "where"),
    some(
        [(*kind, where) for kind in KINDS for where in ("activation", "cotangent")],
        [(*kind, "activation") for kind in CLASSES[:3]]
        + [(*kind, "cotangent") for kind in CLASSES if kind[0] != "ragged"],
    ),
)
def test_rows_that_are_not_finite_show_and_can_be_dropped(kind, norms, where, bad):
    if norms is None and where == "activation":
        pytest.skip("indices are always finite")
    rng = np.random.default_rng(2)
    a, c = rng.normal(size=(4, 6, 5)), rng.normal(size=(4, 6, 3))
    (a if where == "activation" else c)[2, 3, 1] = bad
    a, c = jnp.asarray(a, jnp.float32), jnp.asarray(c, jnp.float32)
    leaf = represented(kind, a, c)
    leaf = leaf if norms is None else replace(leaf, norms=norms)
    assert np.isfinite(leaf.squared_norms()).tolist() == [True, True, False, True]
    kept = leaf.keep(jnp.asarray([True, False, False, True]))
    g = exact(kind, a, c, 5)[[0, 3]]
    np.testing.assert_array_equal(kept.materialize()[1:3], 0)
    np.testing.assert_allclose(kept.materialize()[jnp.array([0, 3])], g, rtol=1e-5, atol=1e-6)
    total = kept.weighted_sum(jnp.array([2.0, 7.0, 7.0, 0.5]))
    np.testing.assert_allclose(total, 2 * g[0] + 0.5 * g[1], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(kept.squared_norms()[1:3] < 1e-30, True)


def test_every_representation_is_met():
    a, c = jnp.ones((2, 3, 4)), jnp.ones((2, 3, 5))
    kinds = {"matmul": Matmul, "conv": Conv, "ragged": Ragged, "lookup": Lookup, "parts": Lookup}
    for kind, expected in kinds.items():
        assert type(represented(kind, a, c)) is expected


@pytest.mark.parametrize("engine", [factored_engine, auto_engine])
def test_bfloat16_products_are_float32(engine):
    """Against the exact product of the bfloat16 factors, not a bfloat16 one."""
    rng = np.random.default_rng(3)
    a = jnp.asarray(rng.normal(size=(4, 300, 6)), jnp.bfloat16)
    c = jnp.asarray(rng.normal(size=(4, 300, 5)), jnp.bfloat16)
    leaf = engine(matmul_loss, jnp.zeros((6, 5)), (a, c))[1][0]
    assert leaf.squared_norms().dtype == leaf.weighted_sum(jnp.ones(4)).dtype == jnp.float32
    np.testing.assert_allclose(leaf.materialize(), exact("matmul", a, c, 6), rtol=1e-4, atol=1e-4)


def test_lookups_of_many_rows_are_added_up_without_a_square_product(monkeypatch):
    monkeypatch.setattr("jaxdp.gradients.lookup.MATMUL_LOOKUPS", 4)
    rng = np.random.default_rng(4)
    a = jnp.asarray(rng.normal(size=(4, 40, 5)), jnp.float32)
    c = jnp.asarray(rng.normal(size=(4, 40, 3)), jnp.float32)
    never_above_the_bound("lookup", None, a, c)
    g = exact("lookup", a, c, 5).reshape(4, -1)
    np.testing.assert_allclose(
        norms_of("lookup", None, a, c), np.linalg.norm(g, axis=1), rtol=ORDINARY_INFLATION
    )
