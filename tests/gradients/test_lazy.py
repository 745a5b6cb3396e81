"""PerExampleGrads: microbatches, masks, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.problems import flat64, loss, random_problem

import jaxdp


@pytest.mark.parametrize("method", ["auto", "vmap"])
def test_microbatch_size_changes_nothing(method):
    p = random_problem(3, size=20)
    clip = jaxdp.clip_individual(0.5)
    results = []
    for size in (None, 1, 7, 20, 64):
        transform = jaxdp.per_example_grads(loss, method=method, microbatch_size=size)
        update = jax.jit(
            lambda t=transform: clip.update(t(p.params, p.batch, p.mask), clip.init(p.params))
        )
        results.append(flat64(update()[0]))
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("microbatch_size", [None, 1, 4])
def test_masked_rows_contribute_exactly_zero_whatever_they_hold(microbatch_size):
    p = random_problem(5, size=8)
    mask = np.arange(8) < 5
    clip = jaxdp.clip_individual(1.0)

    @jax.jit
    def clipped(batch):
        transform = jaxdp.per_example_grads(loss, microbatch_size=microbatch_size)
        return clip.update(transform(p.params, batch, mask), clip.init(p.params))[0]

    clean = clipped(p.batch)
    for bad in (np.nan, np.inf, 1e30):
        x, y = p.batch[0].copy(), p.batch[1].copy()
        x[5:], y[5:] = bad, bad
        poisoned = clipped((x, y))
        # `keep` sums in another compiled branch, so equal up to its rounding.
        np.testing.assert_allclose(flat64(poisoned), flat64(clean), rtol=1e-6, atol=1e-7)


def test_a_nonfinite_example_contributes_zero_and_the_others_stay():
    p = random_problem(6, size=4)
    x, y = p.batch
    x = x.copy()
    x[2] = np.nan
    others = np.array([True, True, False, True])
    clip = jaxdp.clip_individual(1.0)
    transform = jaxdp.per_example_grads(loss)
    got = clip.update(transform(p.params, (x, y)), clip.init(p.params))[0]
    want = clip.update(transform(p.params, p.batch, others), clip.init(p.params))[0]
    np.testing.assert_allclose(flat64(got), flat64(want), rtol=1e-6)


def test_batches_of_uneven_size_share_one_trace():
    p = random_problem(7, size=12)
    traces = []

    @jax.jit
    def total(mask):
        traces.append(1)
        clip = jaxdp.clip_individual(1.0)
        transform = jaxdp.per_example_grads(loss, microbatch_size=4)
        return clip.update(transform(p.params, p.batch, mask), clip.init(p.params))[0]

    for count in (0, 1, 5, 12):
        total(np.arange(12) < count)
    assert len(traces) == 1
    assert not flat64(total(np.zeros(12, bool))).any()


@pytest.mark.parametrize(
    "misuse",
    [
        lambda g: jax.jit(lambda: g)(),
        lambda g: jax.jit(lambda value: 1.0)(g),
        lambda g: 0.5 * g,
        lambda g: g + g,
        lambda g: jnp.sum(g),
        lambda g: np.asarray(g),
        lambda g: jax.tree.map(jnp.negative, g),
    ],
)
def test_per_example_grads_are_no_array_and_no_pytree(misuse):
    p = random_problem(1)
    with pytest.raises(ValueError, match=r"held lazily.*first in the optax\.chain"):
        misuse(jaxdp.per_example_grads(loss)(p.params, p.batch))
