"""Norms and sums of factors in bfloat16, as accelerators take them (privacy rules 8 and 9).

A platform multiplies bfloat16 numbers exactly and adds up the products in its own way. The tests
compute with the CPU's, and hold the bounds to an imitation of tensor cores, too.
"""

import re
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.cases import slow, some
from helpers.engines import agree, normal
from helpers.forms import LEADS, LOSSES, exact, near_cancelling, near_constant
from helpers.tensor_cores import accumulated
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxdp
from jaxdp.gradients import precision
from jaxdp.gradients.convolution import Conv
from jaxdp.gradients.engine import auto_engine, factored_engine
from jaxdp.gradients.matmul import Matmul
from jaxdp.gradients.pulled import Pulled
from jaxdp.gradients.rounding import lengths, raised_gram, raised_product
from jaxdp.gradients.several import Several
from jaxdp.gradients.two_pass import two_pass_engine

BOUND_SLACK = 1e-5  # how far above C a contribution may be (privacy rule 9)

narrow_engines = [partial(engine, narrow=True) for engine in (factored_engine, auto_engine)]


@pytest.fixture
def accelerator(monkeypatch):
    monkeypatch.setattr(precision, "platform", lambda: "tpu")


def held(loss, params, batch, engine=factored_engine):
    return engine(loss, params, batch, narrow=True)[1][0]


def bits(x):
    """How many significant bits numbers need, at most."""
    mantissas, _ = np.frexp(np.asarray(x, np.float64))
    return next(n for n in range(1, 54) if np.all(mantissas * 2.0**n == np.rint(mantissas * 2**n)))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**31 - 1), st.floats(-100, 30))
def test_coefficients_are_cut_downwards_to_eight_bits(seed, exponent):
    c = np.random.default_rng(seed).uniform(1, 2, 64).astype(np.float32) * np.float32(2**exponent)
    got = np.asarray(precision.cut(jnp.asarray(c)))
    assert bits(got) <= 8
    assert np.all((got <= c) & (got > c * (1 - 2.0**-7)))
    np.testing.assert_array_equal(precision.cut(jnp.asarray(got)), got)
    assert precision.cut(jnp.float32(1)) == 1


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**31 - 1), st.floats(-50, 50), st.floats(-50, 10))
def test_a_scaled_cotangent_is_the_sum_of_two_bfloat16_numbers(seed, large, small):
    rng = np.random.default_rng(seed)
    c = jnp.asarray(rng.normal(size=256) * 2**large, jnp.bfloat16)
    coefficient = precision.cut(jnp.asarray(rng.uniform(size=256) * 2**small, jnp.float32))
    parts = precision.parts_of(c.astype(jnp.float32) * coefficient)
    assert all(part.dtype == jnp.bfloat16 for part in parts)
    total = sum(np.asarray(part, np.float64) for part in parts)
    exact = np.asarray(c, np.float64) * np.asarray(coefficient, np.float64)
    underflow = np.where(abs(exact) < 2.0**-110, 2.0**-126, 0)
    assert np.all(abs(total - exact) <= underflow)


def contributions(kind, leaf, a, c, norm):
    """What each row adds to the sum, in float64: that of rounded factors, times what is cut."""
    told = np.sqrt(np.asarray(leaf.squared_norms(), np.float64))
    with np.errstate(divide="ignore"):
        coefficients = jnp.asarray(np.minimum(1, norm / told), jnp.float32)
    rounded = [np.asarray(x.astype(jnp.bfloat16), np.float64) for x in (a, c)]
    g = exact(kind, *rounded, a.shape[-1])
    each = np.asarray(precision.cut(coefficients), np.float64).reshape(-1, *[1] * (g.ndim - 1)) * g
    return coefficients, np.where(np.isfinite(told).reshape(-1, *[1] * (g.ndim - 1)), each, 0)


def norms_of(g):
    with np.errstate(over="ignore"):
        return np.sqrt((np.asarray(g, np.float64).reshape(len(g), -1) ** 2).sum(1))


def never_above_the_norm(kind, a, c):
    w = jnp.zeros((*LEADS[kind], a.shape[-1], c.shape[-1]))
    leaf = held(LOSSES[kind], w, (a, c))
    if isinstance(leaf, Pulled):  # measured where it is summed
        leaf = leaf.inner
    rounded = [np.asarray(x.astype(jnp.bfloat16), np.float64) for x in (a, c)]
    true = norms_of(exact(kind, *rounded, a.shape[-1]))
    for norms in ("gram", "direct"):
        own = replace(leaf, norms=norms)
        for norm in (1.0, 1e-3 * float(np.median(true)) + 1e-12):
            coefficients, each = contributions(kind, own, a, c, norm)
            assert np.all(norms_of(each) <= norm * (1 + BOUND_SLACK))
            told = own.squared_norms()
            kept = own.keep(jnp.isfinite(told))
            weights = jnp.where(jnp.isfinite(told), coefficients, 0)
            total = np.asarray(kept.weighted_sum(weights), np.float64)
            # Far above the few roundings of a CPU, and far below what 8 bits would be off.
            size = sum(norms_of(abs(each[i : i + 1]))[0] for i in range(len(each)))
            magnitude = np.sum(weights * 3 * magnitudes(a, c))  # a kernel has three offsets
            assert np.linalg.norm(total - each.sum(0)) <= 1e-5 * (size + magnitude) + 1e-30


def magnitudes(a, c):
    """Σ_t ‖a_t‖‖c_t‖."""
    a, c = (np.asarray(x, np.float64) for x in (a, c))
    return (np.linalg.norm(a, axis=-1) * np.linalg.norm(c, axis=-1)).sum(-1)


KINDS = ["matmul", "conv", "ragged"]


CANCELLING = [near_cancelling(16, 64, 64, 100.0), near_constant(32, 32, 32, 1e-6)]
CANCELLING += [near_cancelling(64, 32, 16, 1e4)]
CANCELLING += [near_constant(32, 32, 32, noise) for noise in (1e-3, 1e-9)]


@pytest.mark.parametrize(
    ("kind", "case"),
    some(
        [(kind, case) for kind in KINDS for case in range(len(CANCELLING))],
        [("matmul", 0), ("conv", 0)],
    ),
)
def test_contributions_are_bounded_where_terms_cancel(kind, case):
    a, c = (jnp.asarray(x, jnp.float32) for x in CANCELLING[case])
    never_above_the_norm(kind, a, c)


@pytest.mark.parametrize("kind", ["matmul", slow("conv"), slow("ragged")])
@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    t=st.sampled_from([1, 2, 16, 65]),
    scales=st.tuples(*[st.sampled_from([1e-30, 1e-18, 1e-8, 1.0, 1e4, 1e9])] * 2),
    like=st.sampled_from([0.0, 0.5, 1.0 - 1e-3, 1.0]),
    cancel=st.sampled_from([0.0, 0.9, 1.0 - 1e-4, 1.0]),
    seed=st.integers(0, 99),
)
def test_contributions_are_bounded_whatever_the_numbers(kind, t, scales, like, cancel, seed):
    rng = np.random.default_rng(seed)
    a = like * rng.normal(size=(4, 1, 24)) + (1 - like) * rng.normal(size=(4, t, 24))
    c = rng.normal(size=(4, t, 8))
    c = (c - cancel * c.mean(1, keepdims=True)) * scales[1]
    a, c = jnp.asarray(a * scales[0], jnp.float32), jnp.asarray(c, jnp.float32)
    never_above_the_norm(kind, a, c)


def test_parts_that_cancel_have_the_same_coefficient():
    """A table that is read, and multiplied with what takes the reading back."""
    tokens = jnp.array([[3, 1], [2, 2]])
    signs = jnp.array([[1.0, -1.0, 0.5], [2.0, 1.0, 1.0]])

    def loss(w, i, s):
        picked = jax.nn.one_hot(i, 5) @ w
        return jnp.sum(w[i] * s) - 0.999 * jnp.sum(picked * s)

    leaf = held(loss, jnp.ones((5, 3)), (tokens, signs))
    assert isinstance(leaf, Several)
    assert leaf.meet
    told = jnp.sqrt(leaf.squared_norms())
    coefficients = jnp.full(2, 1 + 2.0**-7 - 2.0**-20)  # cutting takes most of this one
    for row in range(2):
        total = leaf.keep(jnp.arange(2) == row).weighted_sum(coefficients)
        assert jnp.linalg.norm(total) <= coefficients[row] * told[row] * (1 + BOUND_SLACK)


@pytest.mark.parametrize("k", [0.5, 1.0])
def test_the_sum_of_tensor_cores_is_within_the_norm_of_parts_that_meet(k):
    """A product that cancels, but for 2,048 terms that are each too small to be added."""
    ((small,),) = np.asarray(jnp.array([[0.99 * 2.0**-24]], jnp.bfloat16), np.float64)
    back, left = [], 2048 * small
    while left > 2.0**-40:
        back.append(float(jnp.bfloat16(left)))
        left -= back[-1]
    terms = np.array([1.0, *[-small] * 2048, -1.0, *back])
    a = np.zeros((1, len(terms), 4))
    a[..., 0] = 1
    c = np.zeros((1, len(terms), 2))
    c[0, :, 0] = terms

    def loss(w, i, read, a, c):
        return jnp.sum(w[i] * read) + jnp.sum((a @ w) * c)

    read = jnp.array([[[k, 0.0]]])
    batch = (jnp.zeros((1, 1), int), read, *(jnp.asarray(x, jnp.float32) for x in (a, c)))
    leaf = held(loss, jnp.ones((4, 2)), batch)
    assert isinstance(leaf, Several)
    assert leaf.meet
    told = float(jnp.sqrt(leaf.squared_norms())[0])
    total = k + float(accumulated(terms[None])[0])  # with the coefficient 1, at C = told
    assert total > (k + np.sum(terms)) * (1 + 5e-5)
    assert total <= told * (1 + BOUND_SLACK)


def layered(w, x):
    """A loop over slices, and one weight in all iterations."""
    body = lambda h, own: (jnp.tanh(h @ own) @ w["shared"], None)
    return jnp.sum(jax.lax.scan(body, x, w["each"])[0] ** 2)


def standardised(w, x):
    own = w - w.mean((0, 1, 2))
    kernel = own / jnp.sqrt(jnp.mean(own * own, (0, 1, 2)) + 1e-4)
    y = jax.lax.conv_general_dilated(
        x[None], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.sum(jnp.tanh(y))


def grouped(w, x):
    y = jax.lax.conv_general_dilated(
        x[None],
        w,
        (2, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=2,
    )
    return jnp.sum(jnp.sin(y))


PROGRAMS = {
    "layers": (layered, {"each": normal(0, 3, 8, 8) / 3, "shared": normal(1, 8, 8) / 3}, (7, 8)),
    "one position": (lambda w, x: jnp.sum(jnp.sin(x @ w)), normal(0, 8, 6), (8,)),
    "many positions": (lambda w, x: jnp.sum(jnp.sin(x @ w)), normal(0, 8, 6), (90, 8)),
    "standardised": (standardised, normal(0, 3, 3, 4, 5), (6, 6, 4)),
    "convolution of few positions": (grouped, normal(0, 3, 3, 8, 32) / 5, (3, 2, 16)),
    "convolution of many positions": (grouped, normal(0, 3, 3, 2, 4) / 5, (12, 9, 4)),
    "low rank": (
        lambda w, x: jnp.sum(jnp.sin(x @ (w["a"] @ w["b"]))),
        {"a": normal(0, 8, 2), "b": normal(1, 2, 6)},
        (5, 8),
    ),
    "squares": (lambda w, x: jnp.sum(jnp.sin(x @ jnp.square(w))), normal(0, 8, 6), (9, 8)),
    "half is read": (lambda w, x: jnp.sum(jnp.sin(x @ w[:, ::2]) * w[:, 1]), normal(0, 8, 2), (8,)),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_gradients_are_those_of_vmap_grad_but_for_eight_bits(name):
    loss, params, shape = PROGRAMS[name]
    batch = (normal(5, 5, *shape),)
    agree(loss, params, batch, tolerance=1.5e-2, engines=narrow_engines, inflation=1.01)
    _, leaves = jax.jit(lambda p, b: narrow_leaves(loss, p, b))(params, batch)
    for one, other in leaves:
        np.testing.assert_allclose(one, other, rtol=0.02, atol=0.02 * np.abs(other).max())


def narrow_leaves(loss, params, batch):
    """Norms in the first of two passes, and of the factors that one pass holds."""
    values, leaves = factored_engine(loss, params, batch, narrow=True)
    first = two_pass_engine(loss, params, batch, narrow=True).squared_norms()
    return values, [
        (squared, leaf.squared_norms()) for squared, leaf in zip(first, leaves, strict=True)
    ]


def test_float64_stays_exact():
    loss, params, shape = PROGRAMS["layers"]
    with jax.enable_x64(True):
        wide = lambda x: jnp.asarray(np.asarray(x, np.float64))
        params = jax.tree.map(wide, params)
        batch = (wide(normal(5, 5, *shape)),)
        agree(loss, params, batch, tolerance=1e-11, engines=narrow_engines)


def sums_of(loss, params, x):
    _, leaves = factored_engine(loss, params, (x,), narrow=True)
    return [leaf.weighted_sum(1 / jnp.sqrt(leaf.squared_norms())) for leaf in leaves]


def own_products(text):
    """The products of a program's text that are not asked for at full precision."""
    found = []
    for line in text.splitlines():
        if "stablehlo.dot_general" in line and "precision = [HIGHEST, HIGHEST]" not in line:
            types = re.search(r": \(tensor<([^>]*)>, tensor<([^>]*)>\) -> tensor<([^>]*)>", line)
            found.append(tuple(each.split("x")[-1] for each in types.groups()))
    return found


@pytest.mark.parametrize("name", ["layers", "many positions", "one position"])
def test_products_behind_norms_and_sums_are_of_bfloat16_numbers_in_float32(name):
    """No other product than the model's own rounds float32 numbers (rule 8)."""
    loss, params, shape = PROGRAMS[name]
    sums = partial(sums_of, loss)
    gradient = jax.vmap(jax.grad(loss), (None, 0))
    x = normal(5, 5, *shape)
    text = lambda f: jax.jit(f).lower(params, x).as_text()
    own = [types for types in own_products(text(sums)) if types != ("f32", "f32", "f32")]
    assert own
    assert set(own) == {("bf16", "bf16", "f32")}
    most = len(own_products(text(gradient)))
    assert own_products(text(sums)).count(("f32", "f32", "f32")) <= most


@pytest.mark.parametrize("name", ["layers", "many positions", "convolution of few positions"])
def test_factors_are_rounded_once(name):
    """Norm and sum multiply what a barrier gives: XLA can't make the factors twice."""
    loss, params, shape = PROGRAMS[name]
    text = jax.jit(partial(sums_of, loss)).lower(params, normal(5, 5, *shape)).as_text()
    barriers = [line for line in text.splitlines() if "stablehlo.optimization_barrier" in line]
    rounded = [line for line in barriers if line.count("bf16>") >= 2]
    assert len(rounded) == len(jax.tree.leaves(params))


def test_the_bound_of_the_sum_is_not_for_tensor_cores():
    loss, params, shape = PROGRAMS["one position"]
    batch = (normal(5, 5, *shape),)
    assert factored_engine(loss, params, batch)[1][0].one_term
    assert not held(loss, params, batch).one_term
    told = lambda narrow: two_pass_engine(loss, params, batch, narrow=narrow).one_term
    assert told(narrow=False)
    assert not told(narrow=True)


@pytest.mark.parametrize(
    ("name", "asked", "default", "expected"),
    [
        ("tpu", "default", None, True),
        ("cuda", "default", "tensorfloat32", True),
        ("cuda", "default", "highest", False),
        ("tpu", "default", "float32", False),
        ("tpu", "highest", None, False),
        ("rocm", "default", None, False),
        ("cpu", "default", "bfloat16", False),
    ],
)
def test_where_factors_are_in_bfloat16(monkeypatch, name, asked, default, expected):
    monkeypatch.setattr(precision, "platform", lambda: name)
    with jax.default_matmul_precision(default):
        assert precision.multiplies_narrow(asked) == expected


def model(params, x):
    h = jnp.tanh(jax.nn.standardize(x @ params["in"]))
    return jnp.sum(jnp.tanh(h.mean(0) @ params["out"]) ** 3) + jnp.sum(params["bias"] * h[0])


MODEL = {"in": normal(0, 6, 16), "out": normal(1, 16, 3), "bias": normal(2, 16)}


def one_row_sums(rows, clipping, method, **options):
    """The clipped gradient of each row alone."""
    plan = jaxdp.Plan(
        num_examples=100,
        expected_batch_size=10,
        steps=10,
        clipping=clipping,
        noise_multiplier=1.0,
        delta=1e-5,
    )
    tx = jaxdp.privatize(plan)
    state = tx.init(MODEL)

    @jax.jit
    def of_row(row):
        # The mask has the padding last.
        order = jnp.argsort(jnp.arange(len(rows)) != row)
        mask = jnp.arange(len(rows)) < 1
        grads = jaxdp.per_example_grads(model, method=method, **options)(
            MODEL, (rows[order],), mask
        )
        return tx.sums(grads, state).gradient

    return [of_row(row) for row in range(len(rows))]


@pytest.mark.parametrize("method", ["factored", "auto", "two_pass", slow("vmap")])
def test_every_method_keeps_to_the_norm_and_close_to_it(accelerator, method):
    rows = normal(3, 4, 5, 6) * jnp.array([1.0, 1e3, 1e-2, 10.0])[:, None, None]
    norm = 1e-3
    for total in one_row_sums(rows, jaxdp.clip_individual(norm), method):
        length = np.sqrt(sum(np.sum(np.square(np.float64(x))) for x in jax.tree.leaves(total)))
        assert 0.97 * norm <= length <= norm * (1 + BOUND_SLACK)


def test_highest_is_what_cpus_do(monkeypatch):
    rows = normal(3, 4, 5, 6)
    with_default = one_row_sums(rows, jaxdp.clip_individual(0.1), "factored")
    monkeypatch.setattr(precision, "platform", lambda: "cuda")
    highest = one_row_sums(rows, jaxdp.clip_individual(0.1), "factored", precision="highest")
    narrow = one_row_sums(rows, jaxdp.clip_individual(0.1), "factored")
    same = lambda one, other: jax.tree.all(jax.tree.map(jnp.array_equal, one, other))
    assert same(with_default, highest)
    assert not same(with_default, narrow)


@pytest.mark.parametrize("microbatch_size", [None, 2])
def test_inflation_is_the_norm_that_is_used_over_the_norm(accelerator, microbatch_size):
    loss = lambda w, x: jnp.sum(jnp.sin(x @ w["m"])) + jnp.sum(w["b"] * x[0])
    params = {"m": normal(0, 64, 32), "b": normal(1, 64)}
    x = normal(2, 5, 8, 64).at[1].set(0)
    grads = jaxdp.per_example_grads(loss, microbatch_size=microbatch_size)

    @jax.jit
    def look(params, x):
        lazy = grads(params, (x,))
        return lazy.inflation(), lazy.squared_norms(), lazy.materialize()

    found, squared, rows = look(params, x)
    used = jnp.sqrt(sum(jax.tree.leaves(squared)))
    exact = np.sqrt(sum(np.square(norms_of(leaf)) for leaf in jax.tree.leaves(rows)))
    assert found[1] == 1
    others = np.array([0, 2, 3, 4])
    np.testing.assert_allclose(found[others], np.asarray(used)[others] / exact[others], 1e-5)
    assert jnp.all((found >= 1 - 1e-6) & (found < 1.01))
    assert jnp.max(found) > 1 + 1e-5


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision is 'high': give 'default' or 'highest'"):
        jaxdp.per_example_grads(model, precision="high")


@pytest.mark.parametrize("kind", ["random", "cancels", "aligned"])
@pytest.mark.parametrize(("t", "d", "p"), [(8, 64, 64), (4, 512, 16), (400, 5, 3)])
def test_norms_are_upper_bounds_whatever_tensor_cores_cut(t, d, p, kind):
    """Inner products, and products, that are cut after each block of terms."""
    rng = np.random.default_rng(t)
    a, c = rng.normal(size=(t, d)), rng.normal(size=(t, p))
    if kind == "cancels":
        a, c = np.ones((t, d)), c - c.mean(0) + 1e-6 * rng.normal(size=(1, p))
    if kind == "aligned":  # all that is cut adds up
        a, c = 1 + np.abs(a), 1 + np.abs(c)
    a, c = (jnp.asarray(x, jnp.bfloat16) for x in (a, c))
    magnitude = jnp.sum(lengths(a.astype(jnp.float32)) * lengths(c.astype(jnp.float32)))
    a, c = (np.asarray(x, np.float64) for x in (a, c))
    true = np.linalg.norm(a.T @ c)
    inner = lambda v: accumulated(v[:, None] * v)
    gram = jnp.float32(np.sum(inner(a) * inner(c)))
    assert np.sqrt(float(raised_gram(gram, magnitude, (d, p), [t]))) >= true
    product = accumulated(np.moveaxis(a[:, :, None] * c[:, None], 0, -1))
    squared = jnp.float32(np.sum(np.square(product)))
    assert np.sqrt(float(raised_product(squared, magnitude, t, True))) >= true


def test_the_forms_that_are_meant_are_met():
    forms = {}

    def look(name, loss, params, batch):
        forms[name] = type(held(loss, params, batch))

    for name, (loss, params, shape) in PROGRAMS.items():
        jax.eval_shape(partial(look, name, loss), params, (normal(5, 5, *shape),))
    assert forms["one position"] is Matmul
    assert forms["convolution of few positions"] is Conv
    for name in ("many positions", "standardised", "convolution of many positions"):
        assert forms[name] is Pulled, name
