"""Layerwise clipping inside one backward pass: the sums of vmap, bounds, and what falls back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.cases import slow
from helpers.engines import normal, quick_jit
from helpers.problems import flat64
from helpers.two_pass_cases import CASES, TWO, B, X, dense_loss, stack_loss

import jaxdp
from jaxdp.gradients.isolation import has_convolution
from jaxdp.gradients.jax_internals import one_example
from jaxdp.gradients.places import places, scattered
from jaxdp.gradients.program import trace
from jaxdp.gradients.two_pass import TwoPass

LAYERWISE = jaxdp.clip_layerwise(0.3)


def is_scattered(loss_fn, params, batch, clipping=LAYERWISE):
    found = places(trace(loss_fn, params, one_example(batch)))
    return scattered(found, clipping.groups(params).of_leaf)


@pytest.fixture
def passes(monkeypatch):
    """Counts the backward passes in the program of a gradient."""
    made, run = [], TwoPass._run
    monkeypatch.setattr(TwoPass, "_run", lambda *args: made.append(0) or run(*args))
    return made


def clipped(loss_fn, params, batch, clipping, method, mask=None, constant_time=False):
    grads = jaxdp.per_example_grads(loss_fn, method=method, constant_time=constant_time)
    mask = jaxdp.all_rows(len(jax.tree.leaves(batch)[0])) if mask is None else mask

    @quick_jit
    def total(params, batch, mask):
        return clipping.update(grads(params, batch, mask), clipping.init(params))[0]

    return total(params, batch, mask)


def guards(loss_fn, params, batch):
    """How many passes are traced, and never run, to see that convolutions keep rows apart."""
    return int(has_convolution(trace(loss_fn, params, one_example(batch)).jaxpr))


# A group of each tensor. Slices of stacked layers arise one after another.
SCATTERED = {
    "blocks in scan and remat": [1, 2, 3, 4, 5, 7],
    "convolutions": [2],
    "views": [0],
    "ragged experts in scan": [0],
    "kernels in scan": [0, 1],
}
QUICK = ("dense", "embedding", "custom_vjp", "LoRA, merged", "tied embedding", "kernels in scan")


@pytest.mark.parametrize("case", [case if case in QUICK else slow(case) for case in CASES])
def test_sums_are_those_of_vmap(case, passes):
    loss_fn, params, batch, _ = CASES[case]
    assert is_scattered(loss_fn, params, batch) == SCATTERED.get(case, [])
    with jax.enable_x64(True):
        wide = lambda leaf: jnp.asarray(leaf, jnp.float64 if leaf.dtype == "float32" else None)
        params, batch = jax.tree.map(wide, (params, batch))
        got = clipped(loss_fn, params, batch, LAYERWISE, "two_pass")
        assert case in SCATTERED or len(passes) == 1 + guards(loss_fn, params, batch)
        exact = clipped(
            loss_fn, params, batch, LAYERWISE, "factored" if "ragged" in case else "vmap"
        )
    scale = np.linalg.norm(flat64(exact)) + 1e-9
    # Two passes may differ by what rounding differs, one pass is exact.
    assert np.linalg.norm(flat64(got) - flat64(exact)) <= 1e-6 * scale


CLIPPINGS = {
    "a frozen leaf": (jaxdp.clip_layerwise({"[ab]": 0.0, "c": 0.3, "unused": 1.0}), 1),
    "a group that arises in two places": (
        jaxdp.clip_layerwise({"[ab]": 0.3, "c": 0.5, "unused": 1.0}),
        2,
    ),
    "a group with a leaf that is not used": (
        jaxdp.clip_layerwise({"a": 0.3, "b": 0.5, ("c", "unused"): 1.0}),
        1,
    ),
    "one coefficient for all groups": (jaxdp.clip_multiplied(0.3), 2),
    "quantiles": (jaxdp.clip_quantile(0.3, layer="tensor"), 1),
    "infinite": (jaxdp.clip_layerwise(float("inf")), 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", CLIPPINGS)
def test_which_clippings_take_one_pass(kind, passes):
    clipping, expected = CLIPPINGS[kind]
    params = CASES["dense"][1]
    got = clipped(dense_loss, params, (X,), clipping, "two_pass")
    assert len(passes) == expected
    exact = clipped(dense_loss, params, (X,), clipping, "vmap")
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


WIDE = {"a": normal(0, 24, 24) / 5, "b": normal(1, 24, 24) / 5}
ROWS = normal(9, B, 6, 24)
NOT_FINITE = {  # losses with parameters; the gradient of `a` is finite, or that of no leaf
    "small dense leaves": (lambda q, x, y: jnp.sum(jnp.sin(x @ q["a"])) + jnp.sum(y @ q["b"]), TWO),
    "one position": (
        lambda q, x, y: jnp.sum(jnp.sin(x[0] @ q["a"])) + jnp.sum(y[0] @ q["b"]),
        WIDE,
    ),
    "held until the end": (
        lambda q, x, y: jnp.sum(jnp.sin(jnp.sin(y[:2] @ q["a"]) @ q["a"])) + jnp.sum(q["b"] @ x[0]),
        WIDE,
    ),
    "rows of a table": (
        lambda q, x, y: jnp.sum(q["a"][(x[:2, 0] > 0).astype(int)] * y[:2]) + jnp.sum(q["b"]),
        WIDE,
    ),
}
FROZEN = jaxdp.clip_layerwise({"a": 0.3, "b": 0.0})


@pytest.mark.parametrize("constant_time", [False, slow(True)])
@pytest.mark.parametrize("clipping", [LAYERWISE, slow(FROZEN)])
@pytest.mark.parametrize("case", NOT_FINITE)
@pytest.mark.parametrize("bad", [1e30, slow(np.nan)])
def test_a_row_that_is_not_finite_in_one_leaf_is_out_in_all(case, bad, clipping, constant_time):
    loss, params = NOT_FINITE[case]
    x = X if params is TWO else ROWS
    y = x.at[2].set(bad)
    assert not is_scattered(loss, params, (x, y), clipping)
    mask = np.arange(B) != B - 1
    got = clipped(loss, params, (x, y), clipping, "two_pass", mask, constant_time)
    without = mask & (np.arange(B) != 2)
    expected = clipped(loss, params, (x, y), clipping, "vmap", without)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_bad_rows_that_change_give_nan_where_time_must_be_constant():
    """Cannot happen: the second pass is the first one again."""
    grads = TwoPass(dense_loss, CASES["dense"][1], (X,))

    def take(kept):
        found = grads._run([None] * 4)
        return jnp.zeros(B, bool).at[0].set(jnp.sum(kept) > 2), found

    run = lambda kept: grads._without_bad_rows(take, kept, True).totals[0]
    assert np.all(np.isnan(jax.jit(run)(jnp.ones(B, bool))))
    good = lambda kept: (jnp.ones(B, bool), grads._run([None] * 4))
    run = lambda kept: grads._without_bad_rows(good, kept, True).totals[0]
    assert np.all(jax.jit(run)(jnp.ones(B, bool)) == 0)


@pytest.mark.parametrize("cancel", [0.0, 1.0])
@pytest.mark.parametrize("t", [4, 40])
def test_contributions_are_bounded_also_where_terms_cancel(t, cancel):
    """Each leaf's, up to privacy rule 9's 1e-5: equal positions, cotangents that cancel."""

    def loss(q, a, c):
        return jnp.sum((jnp.tanh(a @ q["a"] / 1e3) @ q["b"]) * c)

    rng = np.random.default_rng(0)
    a = np.broadcast_to(100 * rng.normal(size=(B, 1, 24)), (B, t, 24))
    c = rng.normal(size=(B, t, 24))
    c = c - cancel * c.mean(1, keepdims=True)
    batch = (jnp.asarray(a, jnp.float32), jnp.asarray(c, jnp.float32))
    params = {"a": normal(0, 24, 24) / 5, "b": normal(1, 24, 24) / 5}
    most = 1e-7
    clipping = jaxdp.clip_layerwise(most)
    assert not is_scattered(loss, params, batch, clipping)
    grads = jaxdp.per_example_grads(loss, method="two_pass")

    @jax.jit
    def contribution(mask):
        return clipping.update(grads(params, batch, mask), clipping.init(params))[0]

    for i in range(B):
        for leaf in contribution(np.arange(B) == i).values():
            length = np.linalg.norm(flat64(leaf))
            assert length <= most * (1 + 1e-5)
            assert cancel or length >= most * (1 - 1e-3)


def test_privatize_takes_nothing_off_the_sum():
    plan = jaxdp.Plan(
        num_examples=100,
        expected_batch_size=B,
        steps=2,
        clipping=jaxdp.clip_layerwise(1e-3),
        noise_multiplier=1.0,
    )
    tx = jaxdp.privatize(plan, key=jax.random.key(0))
    state = tx.init(TWO)
    loss = lambda q, x: jnp.sum(jnp.tanh(x @ q["a"]) @ q["b"])
    sums = {}
    for method in ("vmap", "two_pass"):
        grads = jaxdp.per_example_grads(loss, method=method, microbatch_size=2)
        take = lambda x, g=grads: tx.sums(g(TWO, (x,), jaxdp.all_rows(B)), state)
        sums[method] = quick_jit(take)(X.at[1].set(jnp.nan))
    np.testing.assert_allclose(
        flat64(sums["two_pass"].gradient), flat64(sums["vmap"].gradient), rtol=1e-5, atol=1e-9
    )
    for a, b in zip(*(jax.tree.leaves(s.diagnostics) for s in sums.values()), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    assert sums["two_pass"].diagnostics.nonfinite == 1


def test_the_memory_is_that_of_plain_training():
    layers, d = 8, 128
    params = {f"{i}": normal(i, d, d) / 12 for i in range(layers)}

    def loss(q, x):
        for w in q.values():
            x = jnp.sin(x @ w)
        return jnp.mean(x**2)

    batch = (normal(5, 16, 128, d),)
    clipping = jaxdp.clip_layerwise(1.0)
    grads = jaxdp.per_example_grads(loss, method="two_pass")
    mean = lambda p, x: jnp.mean(jax.vmap(loss, (None, 0))(p, x))

    def memory(f):
        compiled = jax.jit(f).lower(params, batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    plain = memory(lambda p, b: jax.grad(mean)(p, *b))
    one = memory(lambda p, b: clipping.update(grads(p, b), clipping.init(p))[0])
    assert one <= 1.05 * plain + sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def test_explain_tells_which_groups_need_two_passes():
    plan = jaxdp.Plan(
        num_examples=100,
        expected_batch_size=B,
        steps=2,
        clipping=LAYERWISE,
        noise_multiplier=1.0,
    )
    told = jaxdp.explain(dense_loss, CASES["dense"][1], (X[0],), method="two_pass", plan=plan)
    assert "clipped in one pass" in str(told)
    assert "in both passes" not in str(told)
    params = CASES["blocks in scan and remat"][1]
    told = jaxdp.explain(stack_loss, params, (X[0],), method="two_pass", plan=plan)
    assert "in both passes" in str(told)
    assert (
        "Two passes, since the gradient of down and of 5 more groups arises in several places"
        in (str(told))
    )
