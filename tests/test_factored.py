"""The factored engine against vmap(grad), on every way that a loss may use its parameters."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from jaxdp.gradients.engine import auto_engine, choose, factored_engine
from jaxdp.gradients.program import one_example, trace

B = 5
LAYOUT_1D = ("NWC", "WIO", "NWC")


quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def normal(seed, *shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def reference(loss_fn, params, batch):
    axes = (None, *[0] * len(batch))
    values, grads = quick_jit(jax.vmap(jax.value_and_grad(loss_fn), axes))(params, *batch)
    return np.asarray(values), [np.asarray(g) for g in jax.tree.leaves(grads)]


def agree(loss_fn, params, batch, tolerance=1e-5, engines=(factored_engine, auto_engine)):
    """Values, gradients, norms and weighted sums are those of vmap(grad), leaf by leaf."""
    values, grads = reference(loss_fn, params, batch)
    weights = np.linspace(0.5, 1.5, len(values)).astype(values.dtype)
    for engine in engines:

        @quick_jit
        def run(params, batch, weights):
            values, leaves = engine(loss_fn, params, batch)
            return values, [
                (r.materialize(), r.squared_norms(), r.weighted_sum(weights)) for r in leaves
            ]

        got_values, got = run(params, batch, weights)
        np.testing.assert_allclose(got_values, values, rtol=tolerance)
        assert len(got) == len(grads)
        for (each, squared, total), g in zip(got, grads, strict=True):
            assert each.shape == g.shape
            scale = np.linalg.norm(g.astype(np.float64)) + 1e-12
            assert np.linalg.norm(each - g) <= tolerance * scale
            norms = np.linalg.norm(g.reshape(len(values), -1).astype(np.float64), axis=1)
            np.testing.assert_allclose(np.sqrt(squared), norms, rtol=2e-4, atol=tolerance * scale)
            expected = np.einsum("b,b...->...", weights, g)
            assert np.linalg.norm(total - expected) <= 2 * tolerance * scale


def factored(loss_fn, params, batch):
    """Which leaves are held in factors."""
    choices = choose(trace(loss_fn, params, one_example(batch)), thrifty=False)
    return [choice.form not in ("dense", "zero") for choice in choices]


# --- plain functions ----------------------------------------------------------------------------


def test_linear_layers_and_biases():
    params = {"w": normal(0, 4, 6), "b": normal(1, 6), "v": normal(2, 6)}
    loss = lambda q, x, y: (jnp.tanh(x @ q["w"] + q["b"]) @ q["v"] - y) ** 2
    batch = (normal(3, B, 4), normal(4, B))
    agree(loss, params, batch)
    assert factored(loss, params, batch) == [False, True, True]


@pytest.mark.parametrize(
    ("spec", "a", "w"),
    [
        ("td,dp->tp", (7, 4), (4, 3)),
        ("td,pd->tp", (7, 4), (3, 4)),
        ("dt,pd->pt", (4, 7), (3, 4)),
        ("tuc,cpq->tupq", (2, 3, 4), (4, 2, 5)),
        ("tde,edp->tp", (7, 4, 2), (2, 4, 3)),
        ("std,sdp->stp", (2, 7, 4), (2, 4, 3)),
        ("tsd,dps->pts", (7, 2, 4), (4, 3, 2)),
        ("td,dp->", (7, 4), (4, 3)),
        ("t,p->tp", (7,), (3,)),
        ("hd,khd->hk", (2, 4), (3, 2, 4)),
    ],
)
@pytest.mark.parametrize("swap", [False, True])
def test_einsum_with_several_axes_on_either_side(spec, a, w, swap):
    def loss(q, x):
        ins, out = spec.split("->")
        left, right = ins.split(",")
        y = jnp.einsum(f"{right},{left}->{out}", q, x) if swap else jnp.einsum(spec, x, q)
        return jnp.sum(jnp.sin(y * 2))

    batch = (normal(1, B, *a),)
    agree(loss, normal(2, *w), batch)
    if spec != "td,dp->":  # einsum sums over the free axes of its operands first
        assert factored(loss, normal(2, *w), batch) == [True]


@pytest.mark.parametrize(
    ("space", "options"),
    [
        ((9,), dict(window_strides=(1,), padding="SAME")),
        ((9,), dict(window_strides=(2,), padding=[(3, -1)])),
        ((6, 7), dict(window_strides=(1, 1), padding="SAME")),
        ((6, 7), dict(window_strides=(2, 3), padding="VALID")),
        ((6, 7), dict(window_strides=(2, 1), padding=[(0, 2), (1, 1)], rhs_dilation=(2, 1))),
        ((6, 7), dict(window_strides=(1, 1), padding=[(1, 0), (2, 2)], lhs_dilation=(2, 3))),
        ((6, 7), dict(window_strides=(1, 1), padding="SAME", feature_group_count=2)),
        ((6, 7), dict(window_strides=(1, 2), padding="SAME", feature_group_count=4)),
        ((5, 4, 3), dict(window_strides=(1, 2, 1), padding="SAME")),
    ],
)
@pytest.mark.parametrize(("channels_last", "features"), [(True, 4), (False, 20)])
def test_convolutions(space, options, channels_last, features):
    n = len(space)
    groups = options.get("feature_group_count", 1)
    letters = "DHW"[-n:]
    if channels_last:
        layout = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
        x, kernel = (2, *space, features), (*[3] * n, features // groups, 8)
    else:
        layout = (f"NC{letters}", f"OI{letters}", f"NC{letters}")
        x, kernel = (2, features, *space), (8, features // groups, *[3] * n)

    def loss(q, x):
        y = jax.lax.conv_general_dilated(x * q["s"], q["w"], dimension_numbers=layout, **options)
        return jnp.sum(jnp.sin(y)) / y.size

    batch = (normal(1, B, *x),)
    params = {"s": normal(3, *x), "w": normal(2, *kernel)}  # s: the input's gradient is right too
    agree(loss, params, batch)
    assert factored(loss, params, batch) == [False, True]


def test_patches_are_made_for_a_few_rows_at_a_time(monkeypatch):
    monkeypatch.setattr("jaxdp.convolution.PATCH_NUMBERS", 2 * 9 * 3 * 4)

    def loss(w, x):
        y = jax.lax.conv_general_dilated(x[None], w, (1,), "SAME", dimension_numbers=LAYOUT_1D)
        return jnp.sum(jnp.sin(y))

    agree(loss, normal(2, 3, 4, 6), (normal(1, B, 9, 4),))


@pytest.mark.parametrize("mode", ["fill", "clip", "wrap"])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shape", [(), (7,), (2, 3)])
def test_embeddings_with_repeated_and_outside_indices(mode, axis, shape):
    table = normal(0, 6, 5)
    indices = jax.random.randint(jax.random.key(1), (B, *shape), -2, 9)
    indices = indices if mode != "wrap" else indices % 6

    def loss(q, i):
        rows = jnp.take(q, i, axis=axis, mode=mode, fill_value=0.0)
        return jnp.sum(jnp.sin(rows) * rows)

    agree(loss, table, (indices,))
    assert factored(loss, table, (indices,)) == [True]


def test_views_are_followed():
    def loss(q, x):
        w = jnp.flip(q.T.reshape(2, 2, 6).astype(jnp.float32), 1).reshape(4, 6)[None].squeeze(0)
        return jnp.sum(jnp.sin(jax.jit(lambda x, w: x @ w)(x, w)))

    agree(loss, normal(0, 6, 4), (normal(1, B, 3, 4),))
    assert factored(loss, normal(0, 6, 4), (normal(1, B, 3, 4),)) == [True]


# --- what has no rule ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss",
    [
        lambda w, x: jnp.sum(jnp.sin(x @ w @ w)),
        lambda w, x: jnp.sum(jnp.sin(x @ w)) + 0.1 * jnp.sum(w**2),
        lambda w, x: jnp.sum(jnp.sin(x @ (w / jnp.linalg.norm(w)))),
        lambda w, x: jnp.sum(jnp.sin(x @ w[:2].repeat(2, 0))),
        lambda w, x: jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x @ w.T).sum(),
        lambda w, x: jax.lax.fori_loop(0, 3, lambda _, y: jnp.sin(y @ w) + w[0], x).sum(),
        lambda w, x: jax.lax.scan(lambda w, y: (w * 0.9, y @ w), w, x)[1].sum(),
        lambda w, x: jnp.sum(x @ jax.lax.scan(lambda c, v: (c, (v[0], v)), 0.0, w)[1][1]),
        lambda w, x: w[0, 0] + jnp.sum(x) * jax.lax.stop_gradient(w).sum(),
        lambda w, x: jnp.sum(jnp.linalg.solve(jnp.eye(4) * 9 + w, x.T)),
        lambda w, x: jnp.sum(x @ w) + jnp.sum(jnp.sort(w)[0] * x[0]),
    ],
)
def test_other_uses_are_materialised(loss):
    params, batch = normal(0, 4, 4), (normal(1, B, 3, 4),)
    agree(loss, params, batch)
    assert factored(loss, params, batch) == [False]


def test_unused_and_whole_parameters():
    agree(
        lambda q, x: q["a"] * 1.0 + 0 * x, {"a": jnp.ones(()), "b": normal(1, 3)}, (normal(0, B),)
    )
    agree(lambda q, x: q, jnp.ones(()), (normal(0, B),))


def test_product_of_two_parameters():
    loss = lambda q, x: jnp.sum(jnp.sin(x @ (q["a"] @ q["b"])))
    agree(loss, {"a": normal(0, 4, 2), "b": normal(1, 2, 3)}, (normal(2, B, 6, 4),))


def test_lora_with_a_frozen_base():
    base = normal(0, 8, 6)
    loss = lambda q, x: jnp.sum(jnp.sin(x @ base + x @ q["a"] @ q["b"]))
    params, batch = {"a": normal(1, 8, 2), "b": normal(2, 2, 6)}, (normal(3, B, 4, 8),)
    agree(loss, params, batch)
    assert factored(loss, params, batch) == [True, True]


# --- control flow and transformations -----------------------------------------------------------


def test_scan_over_layers():
    def loss(q, x):
        layer = lambda h, w: (jnp.tanh(h @ w["k"] + w["b"]), None)
        return jnp.sum(jax.lax.scan(layer, x, q)[0] ** 2)

    params, batch = {"k": normal(0, 3, 4, 4), "b": normal(1, 3, 4)}, (normal(2, B, 6, 4),)
    agree(loss, params, batch)
    assert factored(loss, params, batch) == [False, True]


@pytest.mark.parametrize("reverse", [False, True])
def test_nested_scans_views_and_remat(reverse):
    def loss(q, x):
        def inner(h, w):
            return jax.checkpoint(lambda h, w: jnp.sin(h @ w.T))(h, w), None

        def outer(h, ws):
            h, _ = jax.lax.scan(inner, h, ws.reshape(2, 4, 4), reverse=reverse)
            return h, h

        _, ys = jax.lax.scan(outer, x, q.swapaxes(0, 1), reverse=reverse)
        return jnp.sum(ys**2)

    params, batch = normal(0, 8, 3, 4), (normal(1, B, 6, 4),)
    agree(loss, params, batch)
    assert factored(loss, params, batch) == [True]


def test_recurrent_cell_shares_its_weights():
    def loss(q, x):
        cell = lambda h, x: (jnp.tanh(x @ q["i"] + h @ q["h"] + q["b"]), h)
        _, hs = jax.lax.scan(cell, jnp.zeros(4), x)
        return jnp.sum(hs**2)

    params = {"i": normal(0, 3, 4), "h": normal(1, 4, 4), "b": normal(2, 4)}
    agree(loss, params, (normal(3, B, 6, 3),))


def test_weights_shared_by_one_loop_and_sliced_by_another():
    def loss(q, x):
        def step(h, x):
            h, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h + x, q)
            return h, h

        return jnp.sum(jax.lax.scan(step, jnp.zeros((2, 4)), x)[1] ** 2)

    params, batch = normal(0, 3, 4, 4), (normal(1, B, 5, 2, 4),)
    agree(loss, params, batch)
    assert factored(loss, params, batch) == [True]


def test_convolutions_and_lookups_in_loops():
    def loss(q, x, i):
        def step(h, slices):
            x, i = slices
            y = jax.lax.conv_general_dilated(
                x[None], q["c"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
            )
            return h + jnp.sin(y).sum() * jnp.sum(jnp.take(q["e"], i, axis=0)), None

        return jax.lax.scan(step, 0.0, (x, i))[0]

    params = {"c": normal(0, 3, 2, 4), "e": normal(1, 5, 4)}
    batch = (normal(2, B, 4, 6, 2), jax.random.randint(jax.random.key(3), (B, 4, 3), 0, 5))
    agree(loss, params, batch)
    assert factored(loss, params, batch) == [True, True]


def test_the_same_function_called_twice_with_different_weights():
    dense = jax.jit(lambda x, w: jnp.tanh(x @ w))
    loss = lambda q, x: jnp.sum(dense(dense(x, q["a"]), q["b"]))
    params, batch = {"a": normal(0, 4, 4), "b": normal(1, 4, 4)}, (normal(2, B, 3, 4),)
    agree(loss, params, batch)
    assert factored(loss, params, batch) == [True, True]


def test_custom_derivatives_are_kept():
    @jax.custom_vjp
    def wrong(x):
        return x**2

    wrong.defvjp(lambda x: (x**2, x), lambda x, g: (7 * g * x,))

    @jax.custom_jvp
    def odd(x, w):
        return x @ w

    odd.defjvp(lambda p, t: (p[0] @ p[1], 3 * (t[0] @ p[1] + p[0] @ t[1])))
    loss = lambda q, x: jnp.sum(wrong(odd(x @ q["a"], q["b"])))
    params, batch = {"a": normal(0, 4, 4), "b": normal(1, 4, 4)}, (normal(2, B, 3, 4),)
    agree(loss, params, batch)
    assert factored(loss, params, batch) == [True, False]


def test_vmap_and_grad_inside_the_loss():
    def loss(q, x):
        energy = lambda x: jnp.sum(jnp.sin(x @ q["w"]))
        return jnp.sum(jax.vmap(energy)(x)) + jnp.sum(jax.grad(energy)(x[0]) ** 2)

    agree(loss, {"w": normal(0, 4, 3)}, (normal(1, B, 6, 4),))
    experts = lambda q, x: jnp.sum(jnp.sin(jax.vmap(jnp.dot)(x, q)))
    agree(experts, normal(0, 3, 4, 5), (normal(1, B, 3, 2, 4),))
    assert factored(experts, normal(0, 3, 4, 5), (normal(1, B, 3, 2, 4),)) == [True]


def test_dropout_with_a_key_for_every_example():
    def loss(w, x, key):
        return jnp.sum(jnp.sin((x * jax.random.bernoulli(key, 0.5, x.shape)) @ w))

    agree(loss, normal(0, 4, 3), (normal(1, B, 6, 4), jax.random.split(jax.random.key(2), B)))


def test_bfloat16_compute():
    def loss(q, x):
        w = q.astype(jnp.bfloat16)
        return jnp.sum(jnp.sin((x.astype(jnp.bfloat16) @ w).astype(jnp.float32)))

    agree(loss, normal(0, 4, 3), (normal(1, B, 6, 4),), tolerance=1e-2)
    _, leaves = factored_engine(loss, normal(0, 4, 3), (normal(1, B, 6, 4),))
    assert leaves[0].cotangents.dtype == jnp.bfloat16
    assert leaves[0].squared_norms().dtype == jnp.float32
    assert leaves[0].weighted_sum(jnp.ones(B)).dtype == jnp.float32


# --- models -------------------------------------------------------------------------------------


class Block(nn.Module):
    remat: bool = False

    @nn.compact
    def __call__(self, x, _=None):
        h = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(h, h)
        h = nn.Dense(16)(nn.RMSNorm()(x))
        return x + nn.Dense(x.shape[-1])(nn.gelu(h)), None


class Transformer(nn.Module):
    kind: str = "plain"

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(11, 8)
        x = embed(tokens) + self.param("position", nn.initializers.normal(1.0), (6, 8))
        if self.kind == "scan":
            x, _ = nn.scan(
                Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=2
            )()(x, None)
        else:
            block = nn.remat(Block) if self.kind == "remat" else Block
            for _ in range(2):
                x, _ = block()(x)
        return nn.Dense(11)(x) if self.kind != "tied" else embed.attend(x)


def language_loss(model):
    def loss(params, tokens):
        logits = model.apply(params, tokens)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits[:-1]), tokens[1:, None], axis=1)
        return -jnp.mean(picked)

    return loss


@pytest.mark.parametrize("kind", ["plain", "remat", "scan", "tied"])
def test_linen_transformers(kind):
    model = Transformer(kind)
    tokens = jax.random.randint(jax.random.key(0), (B, 6), 0, 11)
    params = model.init(jax.random.key(1), tokens[0])
    loss = language_loss(model)
    agree(loss, params, (tokens,), tolerance=2e-5)
    got = factored(loss, params, (tokens,))
    for (path, _), held in zip(jax.tree_util.tree_leaves_with_path(params), got, strict=True):
        name = jax.tree_util.keystr(path)
        assert held == ("kernel" in name or ("embedding" in name and kind != "tied")), name


class ConvNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), use_bias=False)(x))
        x = nn.GroupNorm(4)(x)
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Conv(16, (3, 3), strides=2)(x))
        return nn.Dense(3)(x.reshape(-1))


def test_linen_convnet():
    model = ConvNet()
    x, y = normal(0, B, 12, 12, 2), jnp.arange(B) % 3
    params = model.init(jax.random.key(1), x[0])
    loss = lambda q, x, y: -jax.nn.log_softmax(model.apply(q, x))[y]
    agree(loss, params, (x, y), tolerance=2e-5)


@pytest.mark.parametrize("cell", [nn.OptimizedLSTMCell, nn.GRUCell])
def test_linen_recurrent(cell):
    model = nn.RNN(cell(5))
    x = normal(0, B, 7, 3)
    params = model.init(jax.random.key(1), x[0])
    agree(lambda q, x: jnp.sum(model.apply(q, x)[-1] ** 2), params, (x,), tolerance=2e-5)


def test_nnx_model():
    model = nnx.Sequential(
        nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(8, 3, rngs=nnx.Rngs(1))
    )
    graph, params = nnx.split(model)
    loss = lambda q, x, y: -jax.nn.log_softmax(nnx.merge(graph, q)(x))[y]
    batch = (normal(0, B, 4), jnp.arange(B) % 3)
    agree(loss, params, batch)
    assert factored(loss, params, batch).count(True) == 2


def test_weight_norm_is_materialised_and_exact():
    model = nn.WeightNorm(nn.Dense(3))
    x = normal(0, B, 4)
    params = model.init(jax.random.key(1), x[0])
    agree(lambda q, x: jnp.sum(jnp.sin(model.apply(q, x))), params, (x,))
