"""Method "two_pass" against vmap(grad) in float64, its memory, and what it leaves out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.cases import slow
from helpers.engines import normal, quick_jit, reference
from helpers.problems import flat64, norms64
from helpers.two_pass_cases import (
    CASES,
    TWO,
    B,
    X,
    block_params,
    dense_loss,
    embedding_loss,
    stack_loss,
)

import jaxdp
from jaxdp.gradients.engine import factored_engine
from jaxdp.gradients.jax_internals import one_example
from jaxdp.gradients.places import places
from jaxdp.gradients.program import trace
from jaxdp.gradients.two_pass import CONTRIBUTION_TWO_PASS, two_pass_engine


def where(loss_fn, params, batch):
    """Where each leaf's gradients are measured."""
    return [place.where for place in places(trace(loss_fn, params, one_example(batch)))]


def both_passes(loss_fn, params, batch, coefficients, valid=None, constant_time=False):
    """Losses, squared norms and sums of both passes, every row being allowed."""
    valid = jnp.ones(len(coefficients), bool) if valid is None else valid

    @quick_jit
    def run(params, batch, coefficients, valid):
        grads = two_pass_engine(loss_fn, params, batch)
        every = jnp.ones_like(valid)
        weights = [coefficients * (1 + i) for i, _ in enumerate(jax.tree.leaves(params))]
        totals = grads.weighted_sum(weights, valid, lambda _: every, constant_time)
        return grads.values, grads.squared_norms(), totals

    return run(params, batch, coefficients, valid)


def agree(loss_fn, params, batch, one_by_one=False):
    """Losses, norms and sums are those of vmap(grad), leaf by leaf, in float64.

    `one_by_one`: a loop takes the place of vmap, for what JAX cannot vmap.
    """
    with jax.enable_x64(True):
        wide = lambda leaf: jnp.asarray(leaf, jnp.float64 if leaf.dtype == "float32" else None)
        params, batch = jax.tree.map(wide, (params, batch))
        size = len(jax.tree.leaves(batch)[0])
        weights = jnp.linspace(0.5, 1.5, size)
        exact_values, grads = reference(loss_fn, params, batch, one_by_one)
        values, squared, totals = both_passes(loss_fn, params, batch, weights)
        np.testing.assert_allclose(values, exact_values, rtol=1e-12)
        assert len(grads) == len(squared) == len(totals)
        for i, g in enumerate(grads):
            scale = np.linalg.norm(g) + 1e-9
            exact = np.sum(np.square(g.reshape(size, -1)), axis=1)
            np.testing.assert_allclose(squared[i], exact, rtol=1e-8, atol=1e-12 * scale**2)
            expected = (1 + i) * np.einsum("b,b...->...", weights, g)
            assert totals[i].shape == expected.shape
            assert np.linalg.norm(totals[i] - expected) <= 1e-10 * scale, i


QUICK = (
    "dense",
    "embedding",
    "convolutions",
    "shared over time, by factors",
    "custom_vjp",
    "LoRA, merged",
    "tied embedding",
    "concatenated weights",
    "L2 penalty",
    "a layer applied twice",
    "ragged experts in scan",
    "kernels in scan",
)


@pytest.mark.parametrize("case", [case if case in QUICK else slow(case) for case in CASES])
def test_norms_and_sums_are_those_of_vmap(case):
    loss_fn, params, batch, expected = CASES[case]
    assert where(loss_fn, params, batch) == expected
    agree(loss_fn, params, batch, one_by_one="ragged" in case)


def test_weights_that_are_cast_are_summed_in_float32():
    def loss(q, x):
        half = lambda w: w.astype(jnp.bfloat16)
        return jnp.sum((jnp.tanh(half(x) @ half(q["a"])) @ half(q["b"])).astype(jnp.float32) ** 2)

    weights = jnp.linspace(0.5, 1.5, B)
    _, squared, totals = both_passes(loss, TWO, (X,), weights)
    expected = quick_jit(
        lambda: [
            (leaf.squared_norms(), (1 + i) * leaf.weighted_sum(weights))
            for i, leaf in enumerate(factored_engine(loss, TWO, (X,))[1])
        ]
    )()
    for (norms, total), got_norms, got in zip(expected, squared, totals, strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got_norms, norms, rtol=1e-5)
        assert np.linalg.norm(got - total) <= 1e-6 * np.linalg.norm(total)


@pytest.mark.parametrize("constant_time", [False, True])
@pytest.mark.parametrize(
    "case",
    ["blocks in scan and remat", slow("embedding"), slow("shared over time, by factors")],
)
def test_rows_that_are_not_finite_show_and_are_left_out(case, constant_time):
    loss_fn, params, batch, _ = CASES[case]
    if case == "embedding":
        loss_fn = lambda q, tokens, x: embedding_loss(q, tokens) * x[0, 0]
        batch = (*batch, X)
    bad = (*batch[:-1], batch[-1].at[2, 0, 0].set(jnp.nan))
    weights = jnp.linspace(0.5, 1.5, B).at[1].set(0)
    valid = jnp.arange(B) != 2
    _, squared, totals = both_passes(loss_fn, params, bad, weights, valid, constant_time)
    assert np.isfinite(sum(squared)).tolist() == valid.tolist()
    _, _, expected = both_passes(loss_fn, params, batch, jnp.where(valid, weights, 0))
    for got, total in zip(totals, expected, strict=True):
        assert np.linalg.norm(got - total) <= 1e-6 * np.linalg.norm(total)


@pytest.mark.parametrize("constant_time", [False, True])
def test_a_row_that_is_too_long_in_the_second_pass_is_left_out(constant_time):
    asked = []

    @quick_jit
    def total(weights):
        grads = two_pass_engine(dense_loss, CASES["dense"][1], (X,))

        def allowed(squared):
            asked.append(len(squared))
            return jnp.arange(B) != 3

        ones = jnp.ones(B, bool)
        return grads.weighted_sum([weights] * 4, ones, allowed, constant_time)

    weights = jnp.linspace(0.5, 1.5, B)
    got = total(weights)
    assert asked == [4]  # one program for all sums
    grads = two_pass_engine(dense_loss, CASES["dense"][1], (X,))
    every = lambda _: jnp.ones(B, bool)
    expected = grads.weighted_sum([weights.at[3].set(0)] * 4, every(0), every, False)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    whole = grads.weighted_sum([weights] * 4, every(0), every, False)
    assert not np.allclose(whole[0], got[0], rtol=1e-3)


CLIPPINGS = {
    "individual": jaxdp.clip_individual(0.7),
    "layerwise": jaxdp.clip_layerwise(0.3),
    "frozen": jaxdp.clip_layerwise({"[ab]": 0.3, "c": 0.0, "unused": 1.0}),
    "multiplied": jaxdp.clip_multiplied({"[ab]": 0.3, "c": 0.5, "unused": 1.0}),
    "normalised": jaxdp.clip_normalised(0.7),
    "quantile": jaxdp.clip_quantile(0.7),
    "infinite": jaxdp.clip_individual(float("inf")),
}


@pytest.mark.parametrize("microbatch_size", [slow(None), 2])
@pytest.mark.parametrize(
    "kind",
    [slow(kind) if kind in ("frozen", "quantile", "infinite") else kind for kind in CLIPPINGS],
)
def test_every_clipping_gives_the_sum_of_vmap(kind, microbatch_size):
    clipping, params = CLIPPINGS[kind], CASES["dense"][1]
    x, mask = X.at[1].set(jnp.nan), np.arange(B) < 4
    results = {}
    for method in ("vmap", "two_pass"):
        grads = jaxdp.per_example_grads(dense_loss, method=method, microbatch_size=microbatch_size)
        update = lambda p, x, g=grads: clipping.update(g(p, (x,), mask), clipping.init(p))[0]
        results[method] = quick_jit(update)(params, x)
    for a, b in zip(*map(jax.tree.leaves, results.values()), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("clipping", "again"),
    [
        # Of leaves a and b together, C is 0.1 and the norm √2; so a may grow by √(1 + 2·2e-3).
        (jaxdp.clip_layerwise({"[ab]": 0.1, "c": 1.0}), 1 + 2e-3),
        (jaxdp.clip_individual(0.1), 1 + 3e-3),
        (jaxdp.clip_multiplied({"a": 0.1, "b": 1.0, "c": 1.0}), 1 + 1e-3 * 1.02),
        (jaxdp.clip_layerwise({"a": 0.1, "b": 1.0, "c": 1.0}), 1 + 1e-3),
        (jaxdp.clip_layerwise({"a": 4.0, "b": 0.1, "c": 0.1}), 4 + 4e-3),
        (jaxdp.clip_layerwise({"a": 0.0, "b": 0.1, "c": 0.1}), float("inf")),
    ],
)
def test_what_may_contribute_in_the_second_pass(clipping, again):
    params = dict.fromkeys("abc", jnp.zeros(1))
    clip = clipping.clip(clipping.groups(params), clipping.init(params), strict=False)
    finite = np.isfinite(again)
    first = jnp.array([1.0, again - 5e-5, again + 5e-5, np.nan] if finite else [1.0, 9.0])
    lengths = jnp.ones((3, len(first))).at[0].set(first)  # norms are 1 per leaf in the first pass
    coefficients = clip.coefficients([jnp.ones(len(first))] * 3)
    fits = lambda shorter, longest: clip.fits(
        [c / shorter for c in coefficients], list(lengths**2), longest
    ).tolist()
    more = 1 + CONTRIBUTION_TWO_PASS
    assert fits(1.0, more) == ([True, True, False, False] if finite else [True, True])
    if finite:  # with shorter coefficients, as `privatize` has them, up to C itself
        assert fits(more, 1.0) == [True, True, False, False]


def test_explain_tells_where_norms_are_taken():
    loss_fn, params, batch, _ = CASES["shared over time, by factors"]
    example = jax.tree.map(lambda leaf: leaf[0], batch)
    told = jaxdp.explain(loss_fn, params, example, method="two_pass")
    assert [leaf.form for leaf in told.leaves] == ["dense", "gram", "dense"]
    assert [leaf.numbers > 0 for leaf in told.leaves] == [False, True, False]
    assert "one leaf at a time, smaller than its factors" in str(told)
    told = jaxdp.explain(
        stack_loss, CASES["blocks in scan and remat"][1], (X[0],), method="two_pass"
    )
    assert "in both passes, many positions" in str(told)
    assert not any(leaf.numbers for leaf in told.leaves)


def test_privatize_takes_the_excess_off_the_sum():
    plan = jaxdp.Plan(
        num_examples=100,
        expected_batch_size=B,
        steps=2,
        clipping=jaxdp.clip_individual(1e-3),
        noise_multiplier=1.0,
    )
    tx = jaxdp.privatize(plan, key=jax.random.key(0))
    state = tx.init(TWO)
    loss = lambda q, x: jnp.sum(jnp.tanh(x @ q["a"]) @ q["b"])
    sums = {}
    for method in ("vmap", "two_pass"):
        grads = jaxdp.per_example_grads(loss, method=method)
        take = lambda g=grads: tx.sums(g(TWO, (X,), jaxdp.all_rows(B)), state)
        sums[method] = flat64(quick_jit(take)().gradient)
    shorter = sums["two_pass"] * (1 + CONTRIBUTION_TWO_PASS)
    np.testing.assert_allclose(shorter, sums["vmap"], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("case", ["shared over time, by factors", "ragged experts in scan"])
def test_materialize_and_norms(case):
    loss_fn, params, batch, _ = CASES[case]
    mask = np.arange(B) != 1
    grads = jaxdp.per_example_grads(loss_fn, method="two_pass", microbatch_size=2)
    each, squared = quick_jit(
        lambda: (
            grads(params, batch, mask).materialize(),
            grads(params, batch, mask).squared_norms(),
        )
    )()
    structure = jax.tree.structure(params)
    exact = jax.tree.unflatten(structure, reference(loss_fn, params, batch, "ragged" in case)[1])
    norms = np.sqrt(sum(np.asarray(s, np.float64) for s in jax.tree.leaves(squared)))
    np.testing.assert_allclose(norms, norms64(exact), rtol=1e-4)
    for a, b in zip(jax.tree.leaves(each), jax.tree.leaves(exact), strict=True):
        assert not np.any(a[1])
        np.testing.assert_allclose(a[mask], b[mask], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cancel", [0.0, 1.0])
def test_contributions_are_bounded_also_where_terms_cancel(cancel):
    """Equal positions, and cotangents that add up to nearly nothing."""

    def loss(q, a, c):
        layer = jax.checkpoint(lambda h, w: h @ w)
        return jnp.sum((jax.lax.scan(lambda h, w: (layer(h, w), None), a, q)[0]) * c)

    rng = np.random.default_rng(0)
    a = np.broadcast_to(100 * rng.normal(size=(B, 1, 32)), (B, 16, 32))
    c = rng.normal(size=(B, 16, 32))
    batch = (jnp.asarray(a, jnp.float32), jnp.asarray(c - cancel * c.mean(1, keepdims=True)))
    batch = (batch[0], batch[1].astype(jnp.float32))
    params, most = normal(0, 2, 32, 32) / 6, 1e-7
    clipping = jaxdp.clip_individual(most)
    grads = jaxdp.per_example_grads(loss, method="two_pass")

    @jax.jit
    def contribution(mask):
        return clipping.update(grads(params, batch, mask), clipping.init(params))[0]

    lengths = [np.linalg.norm(flat64(contribution(np.arange(B) == i))) for i in range(B)]
    assert max(lengths) <= most * (1 + CONTRIBUTION_TWO_PASS) * (1 + 1e-5)
    if not cancel:  # and not shorter than it may be
        assert min(lengths) >= most * (1 - 1e-3)


@pytest.mark.slow
def test_the_memory_is_that_of_plain_training():
    params, batch = block_params(6, 64), (normal(5, 8, 128, 64),)
    clipping = jaxdp.clip_individual(1.0)
    grads = jaxdp.per_example_grads(stack_loss, method="two_pass")
    mean = lambda p, x: jnp.mean(jax.vmap(stack_loss, (None, 0))(p, x))

    def memory(f):
        compiled = jax.jit(f).lower(params, batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    plain = memory(lambda p, b: jax.grad(mean)(p, *b))
    clipped = memory(lambda p, b: clipping.update(grads(p, b), clipping.init(p))[0])
    assert clipped <= 1.05 * plain + sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def test_norms_of_loops_include_their_rounding():
    """The squares of all layers but the last are too small to change a float32 sum with that."""
    scales = np.full(3000, 2.0**-12.5, np.float32)
    scales[-1] = 1

    def loss(w, x):
        add = lambda total, layer: (total + layer[1] * jnp.sum(x @ layer[0]), None)
        return jax.lax.scan(add, 0.0, (w, scales))[0]

    w, batch = jnp.ones((len(scales), 1, 1)), (jnp.ones((1, 1)),)
    assert where(loss, w, batch) == ["site"]
    (squared,) = two_pass_engine(loss, w, batch).squared_norms()
    assert float(squared[0]) >= np.sum(np.square(scales, dtype=np.float64))


def test_several_terms_are_told():
    """A bound on the rounding of the sum is for one term of each example alone (rule 9)."""
    loss = lambda w, x: jnp.sum(jnp.sin(x @ w))
    told = lambda *shape: two_pass_engine(loss, jnp.ones((3, 3)), (jnp.ones(shape),)).one_term
    assert told(B, 3)
    assert not told(B, 4, 3)
