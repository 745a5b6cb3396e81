"""Random programs in float64: the factored engines equal grad of each example on all of them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdp.gradients.clip import Clip
from jaxdp.gradients.engine import auto_engine, factored_engine
from jaxdp.gradients.standardise import Standardised
from jaxdp.gradients.two_pass import two_pass_engine

B, T, D = 3, 4, 6
LAYOUT = ("NWC", "WIO", "NWC")

# Every operation maps [T, D] to [T, D]; `w` gives it parameters of the shapes that it asks for.


def dense(x, w):
    return x @ w(D, D) + w(D)


def transposed(x, w):
    return x @ w(D, D).T


def mlp(x, w):
    return jnp.tanh(x @ w(D, 3)) @ w(3, D)


def heads(x, w):
    y = jnp.einsum("td,dhk->thk", x, w(D, 2, 3))
    return jnp.einsum("thk,hkd->td", y, w(2, 3, D))


def attention(x, w):
    q, k, v = (jnp.einsum("td,dhk->htk", x, w(D, 2, 3)) for _ in range(3))
    scores = jax.nn.softmax(jnp.einsum("htk,hsk->hts", q, k))
    return jnp.einsum("hts,hsk->thk", scores, v).reshape(T, D)


@jax.custom_vjp
def flash(q, k, v):
    return jax.nn.softmax(q @ k.T) @ v


flash.defvjp(
    lambda q, k, v: (flash(q, k, v), (q, k, v)),
    lambda kept, c: jax.vjp(lambda q, k, v: jax.nn.softmax(q @ k.T) @ v, *kept)[1](c),
)


def custom_attention(x, w):
    return flash(x @ w(D, 3), x @ w(D, 3), x @ w(D, D))


def norm(x, w):
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 0.1) * w(D) + w(D)


def convolution(x, w):
    return jax.lax.conv_general_dilated(x[None], w(3, D, D), (1,), "SAME", None, None, LAYOUT)[0]


def depthwise(x, w):
    options = dict(dimension_numbers=LAYOUT, feature_group_count=D)
    return jax.lax.conv_general_dilated(x[None], w(2, 1, D), (1,), "SAME", **options)[0]


def kernels(x, w):
    """A kernel for every iteration, and one for all."""
    shared, options = w(3, 1, D), dict(dimension_numbers=LAYOUT, feature_group_count=D)

    def layer(h, own):
        h = jax.lax.conv_general_dilated(h, shared, (1,), "SAME", **options)
        return jnp.sin(jax.lax.conv_general_dilated(h, own, (1,), "SAME", None, None, LAYOUT)), None

    return jax.lax.scan(layer, x[None], w(2, 2, D, D))[0][0]


def upsampled(x, w):
    y = jax.lax.conv_transpose(x[None], w(3, D, 4), (2,), "SAME")
    return jax.lax.conv_general_dilated(y, w(3, 4, D), (2,), "SAME", None, None, LAYOUT)[0]


def lookup(x, w):
    rows = jnp.clip(jnp.abs(x[:, 0]) * 2, 0, 4).astype(int)
    return x + jnp.take(w(5, D), rows, axis=0)


def one_by_one(x, w):
    rows = (jnp.abs(x[:, 0]) * 2).astype(int) - 1
    table = w(5, D)
    return x + jax.vmap(lambda i: table[i])(rows)


def tables(x, w):
    rows = (jnp.abs(x[:, 0]) * 2).astype(int)
    read = lambda h, own: (h + own[0][own[1]], None)
    return x + jax.lax.scan(read, jnp.zeros(D, x.dtype), (w(T, 5, D), rows))[0]


def experts(x, w):
    h = jnp.tanh(jnp.einsum("td,edp->etp", x, w(2, D, 3)))
    return jnp.einsum("etp,epd->etd", h, w(2, 3, D)).sum(0)


def ragged(x, w):
    return x + jax.lax.ragged_dot(x, w(2, D, D), jnp.array([1, 2]) + (x[0, 0] > 0))


def position(x, w):
    return x + w(T, D)


def layers(x, w):
    return jax.lax.scan(lambda h, k: (jnp.sin(h @ k), None), x, w(2, D, D))[0]


def recurrent(x, w):
    wx, wh = w(D, D), w(D, D)
    cell = lambda h, x: (jnp.tanh(x @ wx + h @ wh), h)
    return jax.lax.scan(cell, jnp.zeros(D, x.dtype), x)[1]


def branches(x, w):
    a, b = w(D, D), w(D)
    return jax.lax.cond(x[0, 0] > 0, lambda: x @ a, lambda: x * b)


def repeated(x, w):
    k = w(D, D)
    return jnp.sin(x @ k) @ k


def normalised(x, w):
    k = w(D, D)
    return x @ (k / jnp.linalg.norm(k, axis=0))


def product(x, w):
    return x @ (w(D, 2) @ w(2, D))


def low_rank(x, w):
    return x @ (w(D, D) - 0.5 * w(D, 2) @ w(2, D))


def low_rank_layers(x, w):
    """Updates of low rank in a loop over layers, inside a loop over time."""
    base, down, up = w(2, D, D), w(2, D, 2), w(2, 2, D)

    def step(h, row):
        layer = lambda h, own: (jnp.sin(h @ (own[0] + own[1] @ own[2])), None)
        h, _ = jax.lax.scan(layer, h + row, (base, down, up))
        return h, h

    return jax.lax.scan(step, jnp.zeros(D, x.dtype), x)[1]


def gates(x, w):
    fused = jnp.concatenate([w(D, 2), w(D, 4)], axis=1)
    step = lambda h, y: (jnp.tanh(y + h @ fused), h)
    return jax.lax.scan(step, jnp.zeros(D, x.dtype), x @ jnp.stack([w(D, D)])[0])[1]


def parts(x, w):
    left, right = jnp.split(w(D, 2 * D), 2, axis=1)
    return jnp.sin(x @ left) * (x @ right)


def tied(x, w):
    table = w(5, D)
    rows = (jnp.abs(x[:, 0]) * 2).astype(int)
    return jnp.tanh(x + table[rows]) @ table.T @ table


def penalty(x, w):
    k = w(D, D)
    return x @ k + 0.1 * jnp.sum(k**2)


def standardised(x, w):
    k = w(3, D, D)
    k = (k - k.mean((0, 1))) / jnp.sqrt(k.var((0, 1)) + 1e-5) * w(D)
    return jax.lax.conv_general_dilated(x[None], k, (1,), "SAME", None, None, LAYOUT)[0]


def masked(x, w):
    k = w(D, D)
    return x @ jnp.where(k > 0, k, 0)


def mapped(x, w):
    k = w(D, D)
    return jax.vmap(lambda row: jnp.sin(row @ k))(x)


def unused(x, w):
    w(D, 2)
    return x


@jax.custom_vjp
def tripled(x):
    return jnp.sin(x)


tripled.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (3 * g * jnp.cos(x),))
OPERATIONS = [dense, transposed, mlp, heads, attention, norm, convolution, depthwise, lookup]
OPERATIONS += [one_by_one, tables, ragged, kernels, upsampled, experts]
OPERATIONS += [custom_attention, low_rank, low_rank_layers, gates, parts, tied, penalty]
OPERATIONS += [standardised, masked]
OPERATIONS += [position, layers, recurrent, branches, repeated, normalised, product, mapped, unused]
WRAPPERS = [
    lambda f: f,
    lambda f: lambda x, *w: x + f(x, *w),
    lambda f: lambda x, *w: tripled(f(x, *w)),
    jax.jit,
    jax.checkpoint,
    lambda f: lambda x, *w: jax.nn.relu(jax.jit(jax.checkpoint(f))(x, *w)),
]
PROGRAMS = st.lists(
    st.tuples(st.sampled_from(OPERATIONS), st.sampled_from(WRAPPERS)), min_size=1, max_size=4
)


class Shapes:
    """Notes the shapes that an operation asks for."""

    def __init__(self):
        self.shapes = []

    def __call__(self, *shape):
        self.shapes.append(shape)
        return jnp.ones(shape)


def with_given(operation, x, *given):
    rest = iter(given)
    return operation(x, lambda *_: next(rest))


def shortened(squared, norm):
    return norm / (1 + squared)


def check(program, seed, tie):
    # JAX cannot vmap a ragged product whose experts are shared, so they need a rule.
    tie = tie and all(operation is not ragged for operation, _ in program)
    rng = np.random.default_rng(seed)
    params, pieces = [], []
    for operation, wrapper in program:
        noted = Shapes()
        jax.eval_shape(partial(operation, w=noted), jnp.ones((T, D)))
        pieces.append((operation, wrapper, len(noted.shapes)))
        params.append([jnp.asarray(rng.normal(size=s) / np.sqrt(s[0])) for s in noted.shapes])

    def loss(params, x):
        first = {}  # with `tie`, the first leaf of a shape takes the place of all
        for (operation, wrapper, _), own in zip(pieces, params, strict=True):
            if tie:
                own = [first.setdefault(leaf.shape, leaf) for leaf in own]
            x = wrapper(partial(with_given, operation))(x, *own)
        return jnp.sum(jnp.cos(x))

    bounds = []  # whether norms are bounds, by engine and leaf
    x = jnp.asarray(rng.normal(size=(B, T, D)))
    weights = jnp.asarray(rng.uniform(size=B))

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def run(params, x):
        grads = jax.lax.map(partial(jax.grad(loss), params), x)
        held = [engine(loss, params, (x,))[1] for engine in (factored_engine, auto_engine)]
        bounds[:] = [[isinstance(r, Standardised) for r in leaves] for leaves in held]
        each = [
            [(r.materialize(), r.weighted_sum(weights), r.squared_norms()) for r in leaves]
            for leaves in held
        ]
        again = two_pass_engine(loss, params, (x,))
        every = jnp.ones(B, bool)
        clip = Clip(
            range(len(each[0])),
            jnp.ones(len(each[0])),
            lambda squared: [shortened(s, 1.0) for s in squared],
            shortened if seed % 2 else None,  # in one pass, if the program allows it
            lambda *_: every,
            strict=False,
        )
        sums, rows = again.clipped_sum(clip, every, False)
        return jax.tree.leaves(grads), each, rows.squared_norms, sums

    grads, held, norms, sums = run(params, x)
    for g, squared, total, bound in zip(grads, norms, sums, bounds[0], strict=True):
        scale = float(jnp.linalg.norm(g)) + 1e-9
        expected = jnp.tensordot(shortened(squared, 1.0), g, 1)
        assert jnp.linalg.norm(total - expected) <= 1e-10 * scale
        exact = jnp.sum(g.reshape(B, -1) ** 2, axis=1)
        slack = 1e-12 * scale**2
        assert np.all(squared >= exact * (1 - 1e-7) - slack)
        assert bound or np.all(squared <= exact * (1 + 1e-7) + slack)
    for leaves, bounded in zip(held, bounds, strict=True):
        for g, (rows, total, squared), bound in zip(grads, leaves, bounded, strict=True):
            scale = float(jnp.linalg.norm(g)) + 1e-9
            assert jnp.linalg.norm(rows - g) <= 1e-10 * scale
            assert jnp.linalg.norm(total - jnp.tensordot(weights, g, 1)) <= 1e-10 * scale
            exact = jnp.sum(g.reshape(B, -1) ** 2, axis=1)
            slack = 1e-12 * scale**2
            assert np.all(squared >= exact * (1 - 1e-7) - slack)
            assert bound or np.all(squared <= exact * (1 + 1e-7) + slack)


@settings(max_examples=5, deadline=None, derandomize=True)
@given(PROGRAMS, st.integers(0, 99), st.booleans())
def test_random_programs(program, seed, tie):
    with jax.enable_x64(True):
        check(program, seed, tie)


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(PROGRAMS, st.integers(0, 9999), st.booleans())
def test_many_random_programs(program, seed, tie):
    with jax.enable_x64(True):
        check(program, seed, tie)
    jax.clear_caches()
