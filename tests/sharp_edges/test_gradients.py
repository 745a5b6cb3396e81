"""Wrong gradients and sums, as users write them: an error, or NaN, and never a number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdp

SQUARE = {"w": jnp.zeros((4, 4)), "b": jnp.zeros(4)}


def make_plan(clipping=None):
    return jaxdp.Plan(
        num_examples=100,
        expected_batch_size=4,
        steps=5,
        clipping=jaxdp.clip_individual(1.0) if clipping is None else clipping,
        noise_multiplier=1.0,
    )


def dense(batch=4, value=100.0):
    rows = jax.tree.map(lambda p: jnp.full((batch, *p.shape), value), SQUARE)
    return jaxdp.from_dense(rows, jaxdp.all_rows(batch), like=SQUARE)


def is_nan(gradient):
    return all(bool(np.isnan(leaf).all()) for leaf in jax.tree.leaves(gradient))


def test_a_mean_gradient_is_no_batch_of_gradients():
    mean = jax.tree.map(lambda p: jnp.full(p.shape, 100.0), SQUARE)
    with pytest.raises(ValueError, match=r"\['b'\] has shape \(4,\), and its parameter has shape"):
        jaxdp.from_dense(mean, jaxdp.all_rows(4), like=SQUARE)
    with pytest.raises(ValueError, match="give the gradients of all parameters"):
        jaxdp.from_dense({"w": jnp.zeros((4, 4, 4))}, jaxdp.all_rows(4), like=SQUARE)


def test_gradients_of_other_parameters_are_refused_when_optax_passes_the_parameters():
    tx = jaxdp.privatize(make_plan())
    row = jax.tree.map(lambda p: p[0], SQUARE)  # what a mean gradient would be for
    mean = jaxdp.from_dense(jax.tree.map(jnp.ones_like, SQUARE), jaxdp.all_rows(4), like=row)
    with pytest.raises(ValueError, match="they belong to other parameters"):
        tx.update(mean, tx.init(SQUARE), SQUARE)


def test_a_part_that_is_counted_twice_or_missing_or_scaled_is_nan():
    tx = jaxdp.privatize(make_plan())
    state = tx.init(SQUARE)
    part = lambda i, n=2: tx.sums(dense(), state, part=(i, n))
    release = lambda sums: tx.release(sums, state, SQUARE)[0]
    assert not is_nan(release(part(0) + part(1)))
    one = tx.sums(dense(), state)
    assert not is_nan(release(one))
    halves = [jax.tree.map(lambda x: x / 2, one)] * 2
    for wrong in (
        one + one,
        part(0),
        part(0) + part(0),
        part(0) + part(1) + part(1),
        jax.tree.map(lambda x: 2 * x, one),
        jax.tree.map(lambda x: 0.5 * x, one),
        jax.tree.map(lambda x: -x, one),
    ):
        assert is_nan(release(wrong))
        assert is_nan(jax.jit(release)(wrong))
    assert not is_nan(release(halves[0] + halves[1]))  # it is the sum itself
    with pytest.raises(ValueError, match="sums of 2 and of 3 parts"):
        part(0) + part(1, 3)
    for wrong, error in (((2, 2), ValueError), ((0, 0), ValueError), (3, TypeError)):
        with pytest.raises(error, match="part"):
            tx.sums(dense(), state, part=wrong)


@pytest.mark.parametrize(
    ("clip", "release"),
    [
        (jaxdp.clip_individual(2.0), jaxdp.clip_individual(1.0)),
        (jaxdp.clip_layerwise({"w": 1.0, "b": 1.0}), jaxdp.clip_multiplied({"w": 1.0, "b": 1.0})),
        (jaxdp.clip_normalised(1.0, stability=0.1), jaxdp.clip_individual(1.0)),
        (lambda: jaxdp.clip_batch(1.0), jaxdp.clip_individual(1.0)),
    ],
)
def test_sums_of_another_clipping_are_refused(clip, release):
    clip = clip() if callable(clip) else clip
    tx, other = jaxdp.privatize(make_plan(clip)), jaxdp.privatize(make_plan(release))
    rows = jax.tree.map(lambda p: jnp.ones((4, *p.shape)), SQUARE)
    grads = jaxdp.from_dense(rows, jaxdp.all_rows(4), like=SQUARE, unit=clip.unit)
    sums = tx.sums(grads, tx.init(SQUARE))
    with pytest.raises(ValueError, match="the sums were clipped by clip_"):
        other.release(sums, other.init(SQUARE))
    with pytest.raises(ValueError, match="add sums of one clipping"):
        sums + other.sums(dense(), other.init(SQUARE)) if release.unit == "example" else None
    # Through jit and back they are of the same clipping still.
    passed = jax.jit(lambda sums: sums)(sums)
    assert not is_nan(tx.release(passed, tx.init(SQUARE))[0])
