"""Holds the factored engines to vmap(grad)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxdp.gradients.choice import choose
from jaxdp.gradients.engine import auto_engine, factored_engine
from jaxdp.gradients.jax_internals import one_example
from jaxdp.gradients.program import trace

B = 5

quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def normal(seed, *shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def reference(loss_fn, params, batch, one_by_one=False):
    axes = (None, *[0] * len(batch))
    one = jax.value_and_grad(loss_fn)
    looped = lambda params, *batch: jax.lax.map(lambda example: one(params, *example), batch)
    every = looped if one_by_one else jax.vmap(one, axes)
    values, grads = quick_jit(every)(params, *batch)
    return np.asarray(values), [np.asarray(g) for g in jax.tree.leaves(grads)]


def agree(
    loss_fn,
    params,
    batch,
    tolerance=1e-5,
    engines=(factored_engine, auto_engine),
    one_by_one=False,
    inflation=1.0,
):
    """Values, gradients, norms and weighted sums are those of vmap(grad), leaf by leaf.

    `one_by_one`: a loop takes the place of vmap, for what JAX cannot vmap. `inflation`: how many
    times the exact ones norms may be.
    """
    values, grads = reference(loss_fn, params, batch, one_by_one)
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
            found, slack = np.sqrt(squared), tolerance * scale
            assert np.all(found >= norms * (1 - 2e-4) - slack)
            assert np.all(found <= norms * (inflation + 2e-4) + slack)
            expected = np.einsum("b,b...->...", weights, g)
            assert np.linalg.norm(total - expected) <= 2 * tolerance * scale


def agree_exactly(loss_fn, params, batch, one_by_one=False, dense=()):
    """`agree` in float64, and all leaves are held in factors but those with a name in `dense`."""
    with jax.enable_x64(True):
        widen = lambda x: jnp.asarray(np.asarray(x, np.float64 if x.dtype == np.float32 else None))
        params, batch = jax.tree.map(widen, (params, batch))
        agree(loss_fn, params, batch, tolerance=1e-11, one_by_one=one_by_one)
        names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)]
        for name, held in zip(names, factored(loss_fn, params, batch), strict=True):
            assert held == (not any(repr(leaf) in name for leaf in dense)), name


def factored(loss_fn, params, batch):
    """Which leaves are held in factors."""
    choices = choose(trace(loss_fn, params, one_example(batch)), thrifty=False)
    return [choice.form not in ("dense", "zero") for choice in choices]
