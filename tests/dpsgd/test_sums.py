"""What a batch adds up to before the noise, and the private facts about it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.dense import from_dense
from helpers.engines import quick_jit
from helpers.problems import flat64, loss, random_problem
from helpers.releases import PARAMS, make_plan, zero_gradients

import jaxdp


def test_sums_of_parts_add_up_to_the_batch():
    p = random_problem(1, size=10)
    tx = jaxdp.privatize(make_plan(jaxdp.clip_individual(0.5)), key=jax.random.key(0))
    state = tx.init(p.params)
    transform = jaxdp.per_example_grads(loss)
    mask = np.arange(10) < 9
    release = quick_jit(lambda sums: tx.release(sums, state, p.params)[0])

    @quick_jit
    def all_sums(batch):
        whole = tx.sums(transform(p.params, batch, mask), state)
        part = lambda i, rows: tx.sums(
            transform(p.params, jax.tree.map(lambda leaf: leaf[rows], batch), mask[rows]),
            state,
            part=(i, 2),
        )
        return whole, part(0, slice(0, 4)), part(1, slice(4, 10))

    whole, first, second = all_sums(p.batch)
    parts = first + second
    facts = lambda sums: flat64((sums.gradient, sums.counts, sums.diagnostics))
    np.testing.assert_allclose(facts(parts), facts(whole), rtol=1e-4, atol=1e-5)
    update = quick_jit(lambda b: tx.update(transform(p.params, b, mask), state, p.params)[0])
    np.testing.assert_allclose(
        flat64(release(parts)), flat64(update(p.batch)), rtol=1e-4, atol=1e-5
    )
    # A part that is missing, there twice, or scaled releases nothing.
    for wrong in (first, parts + first, first + first, jax.tree.map(lambda x: 2 * x, parts)):
        assert np.isnan(flat64(release(wrong))).all()


def test_diagnostics_describe_the_batch():
    grads = jnp.array([[3.0, 4.0], [0.3, 0.4], [jnp.inf, 0.0], [30.0, 40.0]])
    mask = np.array([True, True, True, False])
    tx = jaxdp.privatize(make_plan(jaxdp.clip_individual(1.0)))
    found = tx.sums(from_dense(grads, mask), tx.init(grads[0])).diagnostics
    assert (found.count, found.clipped, found.nonfinite) == (3, 1, 1)
    edges = jaxdp.NORM_BIN_EDGES
    occupied = np.flatnonzero(found.norm_histogram)
    assert [edges[i - 1] < want <= edges[i] for i, want in zip(occupied, (0.5, 5.0), strict=True)]


def test_sums_are_added_to_sums_only():
    tx = jaxdp.privatize(make_plan())
    sums = tx.sums(zero_gradients(), tx.init(PARAMS))
    with pytest.raises(TypeError, match="added to Sums only, not to int"):
        sums + 1
