"""Method "two_pass" against vmap(grad) in float64, its memory, and what it leaves out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.cases import slow
from helpers.engines import B, normal, quick_jit, reference
from helpers.problems import flat64, norms64

import jaxdp
from jaxdp.gradients.engine import factored_engine
from jaxdp.gradients.jax_internals import one_example
from jaxdp.gradients.lazy import Microbatch
from jaxdp.gradients.program import trace
from jaxdp.gradients.two_pass import CONTRIBUTION_TWO_PASS, places, two_pass_engine

LAYOUT = ("NWC", "WIO", "NWC")


def where(loss_fn, params, batch):
    """Where each leaf's gradients are measured."""
    return [place.where for place in places(trace(loss_fn, params, one_example(batch)))]


def both_passes(loss_fn, params, batch, coefficients, valid=None, constant_time=False):
    """Losses, squared norms and sums of both passes, every row being allowed."""
    valid = jnp.ones(len(coefficients), bool) if valid is None else valid

    @quick_jit
    def run(params, batch, coefficients, valid):
        values, grads = two_pass_engine(loss_fn, params, batch)
        every = jnp.ones_like(valid)
        weights = [coefficients * (1 + i) for i in range(grads.count)]
        totals = grads.weighted_sum(weights, valid, lambda _: every, constant_time)
        return values, grads.squared_norms(), totals

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


def block(h, w):
    a = h * jax.lax.rsqrt(jnp.mean(h**2, -1, keepdims=True) + 0.1) * w["scale"]
    q, k, v = (jnp.einsum("td,dhk->htk", a, w["qkv"][i]) for i in range(3))
    scores = jax.nn.softmax(jnp.einsum("htk,hsk->hts", q, k))
    h = h + jnp.einsum("hts,hsk,hkd->td", scores, v, w["out"])
    return h + jax.nn.gelu(h @ w["up"] + w["bias"]) @ w["down"]


def block_params(layers, d):
    shapes = dict(scale=(d,), out=(2, d // 2, d), up=(d, 2 * d), bias=(2 * d,), down=(2 * d, d))
    params = {name: normal(i, layers, *shape) / 4 for i, (name, shape) in enumerate(shapes.items())}
    return params | {"qkv": [normal(i, layers, d, 2, d // 2) / 4 for i in range(3)]}


def stack_loss(params, x):
    layer = lambda h, w: (jax.checkpoint(block)(h, w), None)
    return jnp.mean(jax.lax.scan(layer, x, params)[0] ** 2)


def convolve(x, k):
    return jax.lax.conv_general_dilated(x[None], k, (1,), "SAME", None, None, LAYOUT)[0]


@jax.custom_vjp
def odd(x, w):
    return x @ w


odd.defvjp(lambda x, w: (x @ w, (x, w)), lambda r, g: (g @ r[1].T, 3 * (r[0].T @ g)))


@jax.custom_jvp
def odd_forward(x, w):
    return x @ w


odd_forward.defjvp(lambda p, t: (p[0] @ p[1], 3 * (t[0] @ p[1] + p[0] @ t[1])))


def dense_loss(q, x):
    return jnp.sum(jnp.tanh(x @ q["a"] + q["b"]) @ q["c"].T)


def embedding_loss(q, tokens):
    return jnp.sum(jnp.sin(jnp.take(q["table"], tokens, axis=0) * q["scale"]) @ q["w"])


def conv_loss(q, x):
    h = jax.checkpoint(lambda x, k: jnp.tanh(convolve(x, k)))(jnp.tanh(convolve(x, q["a"])), q["b"])
    return jnp.sum(jax.lax.scan(lambda h, k: (jnp.sin(convolve(h, k)), None), h, q["c"])[0])


def recurrent_loss(q, x):
    cell = lambda h, x: (jnp.tanh(x @ q["i"] + h @ q["h"] + q["b"]), h)
    return jnp.sum(jax.lax.scan(cell, jnp.zeros(len(q["b"]), x.dtype), x)[1] ** 2)


def shared_and_sliced_loss(q, x):
    def step(h, x):
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h + x, q)[0], None

    return jnp.sum(jax.lax.scan(step, jnp.zeros(4, x.dtype), x)[0])


def views_loss(q, x):
    inner = lambda h, w: (jax.checkpoint(lambda h, w: jnp.sin(h @ w.T))(h, w), None)
    outer = lambda h, ws: (jax.lax.scan(inner, h, ws.reshape(2, 4, 4), reverse=True)[0], None)
    return jnp.sum(jax.lax.scan(outer, x, q.swapaxes(0, 1))[0])


def carried_loss(q, x):
    return jnp.sum(jax.lax.scan(lambda w, x: (jnp.sin(w), x @ w), q, x)[1] ** 2)


def branches_loss(q, x):
    return jax.lax.cond(x[0, 0] > 0, lambda: jnp.sum(x @ q["a"]), lambda: jnp.sum(q["b"] ** 2))


def lora_loss(q, x):
    return jnp.sum(jnp.sin(x[0] @ (q["w"] + q["a"] @ q["b"])))


def adapter_loss(q, x):
    return jnp.sum(jnp.sin(x[:3] @ (2 * q["a"] @ q["b"])))


def tied_loss(q, tokens):
    h = jnp.tanh(q["table"][tokens] @ q["w"])
    return jnp.sum(jax.nn.logsumexp(h @ q["table"].T, axis=-1))


def concatenated_loss(q, x):
    return jnp.sum(jnp.sin(x[0] @ jnp.concatenate([q["a"], q["b"]], axis=1)))


def penalty_loss(q, x):
    return jnp.sum(jnp.sin(x[0] @ q["a"])) + jnp.sum(q["a"] ** 2) + jnp.sum(q["b"] ** 2) * x[0, 0]


def twice_loss(q, x):
    return jnp.sum(jnp.sin(jnp.sin(x[:2] @ q["i"] @ q["h"]) @ q["h"]))


def twice_in_scan_loss(q, x):
    layer = lambda h, w: (jnp.sin(jnp.sin(h @ w) @ w), None)
    return jnp.sum(jax.lax.scan(layer, x[:2] @ q["i"], q["h"])[0])


def parts_loss(q, x):
    up, down = jnp.split(q, 2, axis=1)
    return jnp.sum(jnp.sin(jnp.sin(x[0] @ up) @ down.T))


def experts_loss(q, x, counts):
    layer = lambda h, w: (jnp.sin(jax.lax.ragged_dot(h, w, counts)), None)
    return jnp.sum(jax.lax.scan(layer, x, q)[0] ** 2)


def kernels_loss(q, x):
    both = lambda h, k: (jnp.sin(convolve(jax.checkpoint(convolve)(h, k["a"]), k["b"])), None)
    return jnp.sum(jax.lax.scan(both, x, q, reverse=True)[0])


def shared_kernel_loss(q, x):
    h = jnp.tile(x[:3], (1, 2))
    return jnp.sum(jax.lax.fori_loop(0, 2, lambda _, h: jnp.sin(convolve(h, q)), h))


def positions_loss(q, x):
    return jnp.sum(jnp.sin(x + q["table"][jnp.arange(2, 8)]) @ q["w"])


X = normal(9, B, 6, 4)
TWO = {"a": normal(0, 4, 4), "b": normal(1, 4, 4)}
TOKENS = jax.random.randint(jax.random.key(3), (B, 6), 0, 7)
CELL = {"i": normal(0, 4, 24), "h": normal(1, 24, 24) / 5, "b": normal(2, 24)}
NARROW = {"i": normal(0, 4, 3), "h": normal(1, 3, 3), "b": normal(2, 3)}
KERNELS = {"a": normal(0, 3, 4, 5), "b": normal(1, 3, 5, 4), "c": normal(2, 2, 3, 4, 4)}
TABLE = {"scale": normal(0, 4), "table": normal(1, 7, 4), "w": normal(2, 4, 3)}
COUNTS = jnp.array([[2, 0, 4], [1, 2, 3], [0, 0, 0], [6, 0, 0], [1, 3, 1]])
jitted = jax.jit(lambda x, w: jnp.tanh(x @ w))
CASES = {
    "dense": (
        dense_loss,
        {"a": normal(0, 4, 5), "b": normal(1, 5), "c": normal(2, 3, 5), "unused": normal(3, 2)},
        (X,),
        ["site", "leaf", "site", "nowhere"],
    ),
    "blocks in scan and remat": (
        stack_loss,
        block_params(3, 4),
        (X,),
        ["leaf", *["site"] * 5, "leaf", "site"],
    ),
    "embedding": (embedding_loss, TABLE, (TOKENS,), ["leaf", "site", "site"]),
    "convolutions": (conv_loss, KERNELS, (X,), ["site"] * 3),
    "shared over time, by factors": (recurrent_loss, CELL, (X,), ["leaf", "tap", "leaf"]),
    "shared over time, as arrays": (recurrent_loss, NARROW, (X,), ["leaf"] * 3),
    "shared and sliced": (shared_and_sliced_loss, normal(0, 3, 4, 4), (X,), ["leaf"]),
    "views": (views_loss, normal(0, 8, 3, 4), (X,), ["site"]),
    "carried": (carried_loss, normal(0, 4, 2), (X,), ["leaf"]),
    "branches": (branches_loss, TWO, (X,), ["leaf", "leaf"]),
    "twice": (lambda q, x: jnp.sum(jnp.sin(x @ q["a"]) @ q["a"]), TWO, (X,), ["leaf", "nowhere"]),
    "custom_vjp": (lambda q, x: jnp.sum(odd(x @ q["a"], q["b"]) ** 2), TWO, (X,), ["site", "leaf"]),
    "custom_jvp": (
        lambda q, x: jnp.sum(odd_forward(x @ q["a"], q["b"]) ** 2),
        TWO,
        (X,),
        ["site", "leaf"],
    ),
    "stop_gradient": (
        lambda q, x: jnp.sum(jax.lax.stop_gradient(x @ q["a"]) * (x @ q["b"])),
        TWO,
        (X,),
        ["site", "site"],
    ),
    "stopped weight": (
        lambda q, x: jnp.sum(jnp.sin(x @ jax.lax.stop_gradient(q["a"])) * q["b"][0]),
        TWO,
        (X,),
        ["nowhere", "leaf"],
    ),
    "two leaves in one product": (
        lambda q, x: jnp.sum(jnp.sin(x @ (q["a"] @ q["b"]))),
        TWO,
        (X,),
        ["leaf", "leaf"],
    ),
    "LoRA, merged": (
        lora_loss,
        {"a": normal(0, 4, 2), "b": normal(1, 2, 24), "w": normal(2, 4, 24)},
        (X,),
        ["tap"] * 3,
    ),
    "factors that need a leaf as an array": (
        adapter_loss,
        {"a": normal(0, 24, 6) / 5, "b": normal(1, 6, 3)},
        (normal(9, B, 6, 24),),
        ["tap", "leaf"],
    ),
    "tied embedding": (
        tied_loss,
        {"table": normal(0, 20, 24), "w": normal(1, 24, 24) / 5},
        (TOKENS,),
        ["tap", "site"],
    ),
    "concatenated weights": (
        concatenated_loss,
        {"a": normal(0, 4, 5), "b": normal(1, 4, 3)},
        (X,),
        ["tap", "tap"],
    ),
    "L2 penalty": (penalty_loss, TWO, (X,), ["tap", "leaf"]),
    "a layer applied twice": (twice_loss, CELL, (X,), ["nowhere", "tap", "site"]),
    "a layer applied twice, in scan": (
        twice_in_scan_loss,
        {"h": normal(1, 2, 24, 24) / 5, "i": normal(0, 4, 24)},
        (X,),
        ["tap", "site"],
    ),
    "two parts of one leaf": (parts_loss, normal(0, 4, 48), (X,), ["tap"]),
    "ragged experts in scan": (experts_loss, normal(0, 2, 3, 4, 4), (X, COUNTS), ["site"]),
    "kernels in scan": (
        kernels_loss,
        {"a": normal(0, 2, 3, 4, 6), "b": normal(1, 2, 3, 6, 4)},
        (X,),
        ["site", "site"],
    ),
    "a kernel shared by a loop": (shared_kernel_loss, normal(0, 3, 8, 8) / 4, (X,), ["tap"]),
    "positions looked up": (
        positions_loss,
        {"table": normal(0, 9, 4), "w": normal(1, 4, 3)},
        (X,),
        ["site", "site"],
    ),
    "one function called twice": (
        lambda q, x: jnp.sum(jitted(jitted(x, q["a"]), q["b"])),
        TWO,
        (X,),
        ["site", "site"],
    ),
}


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
        _, grads = two_pass_engine(dense_loss, CASES["dense"][1], (X,))

        def allowed(squared):
            asked.append(len(squared))
            return jnp.arange(B) != 3

        ones = jnp.ones(B, bool)
        return grads.weighted_sum([weights] * 4, ones, allowed, constant_time)

    weights = jnp.linspace(0.5, 1.5, B)
    got = total(weights)
    assert asked == [4]  # one program for all sums
    _, grads = two_pass_engine(dense_loss, CASES["dense"][1], (X,))
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
@pytest.mark.parametrize("kind", CLIPPINGS)
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


class Longer:
    """Gradients of norm 1 per leaf in the first pass, and of `again` in the second."""

    count, one_term, excess = 3, True, CONTRIBUTION_TWO_PASS

    def __init__(self, again):
        self.again = jnp.asarray(again, jnp.float32)

    def squared_norms(self):
        return [jnp.ones(len(self.again))] * 3

    def weighted_sum(self, coefficients, valid, allowed, constant_time):
        lengths = jnp.ones((3, len(self.again))).at[0].set(self.again)
        self.allowed = allowed(list(lengths**2)).tolist()
        return [jnp.zeros(1)] * 3


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
    state, groups = clipping.init(params), clipping.groups(params)
    finite = np.isfinite(again)
    grads = Longer([1.0, again - 5e-5, again + 5e-5, np.nan] if finite else [1.0, 9.0])
    microbatch = Microbatch(jnp.zeros(len(grads.again)), grads, None, False)
    coefficients, _ = clipping.weigh(microbatch, groups, state)
    clipping.weighted_sum(microbatch, groups, state, coefficients, 1 + CONTRIBUTION_TWO_PASS)
    assert grads.allowed == ([True, True, False, False] if finite else [True, True])
    if finite:  # with shorter coefficients, as `privatize` has them, up to C itself
        shorter = [c / (1 + CONTRIBUTION_TWO_PASS) for c in coefficients]
        clipping.weighted_sum(microbatch, groups, state, shorter, 1.0)
        assert grads.allowed == [True, True, False, False]


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
