"""Augmented views of a record: averaged before they are clipped, one unit, wherever it is."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.cases import some
from helpers.networks import CLASSES, INPUTS, NETWORKS, Linen

import jaxdp
from jaxdp.datasets.augmentation import crop_and_flip
from jaxdp.datasets.feeding import record_keys
from jaxdp.tasks import classifier, language_model, regressor

B, VIEWS = 6, 4
STEP_KEY = jax.random.key(5)
RECORD = (jnp.zeros(INPUTS), jnp.zeros((), int))
NORM = 0.3


def shaken(key, x):
    """Augments by noise, so that each view is another one."""
    return x + jax.random.normal(key, x.shape, jnp.float32)


def records(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(B, *INPUTS)).astype(np.float32)
    return x, rng.integers(0, CLASSES, B).astype(np.int32)


def start(library="linen", views=VIEWS, rate=0.0, augment=shaken):
    task = classifier(NETWORKS[library](rate), augment=augment, views=views)
    return task, task.init(jax.random.key(0), RECORD)


def clipped_sum(task, params, batch, ids, mask):
    """The sum of clipped gradients of a step, as the trainer takes it."""
    plan = jaxdp.Plan(
        num_examples=100,
        expected_batch_size=B,
        steps=10,
        noise_multiplier=1.0,
        delta=1e-3,
        clipping=jaxdp.clip_individual(NORM),
    )
    tx = jaxdp.privatize(plan)
    state = tx.init(params)
    grads = jaxdp.per_example_grads(task.loss, microbatch_size=4)
    take = jax.jit(
        lambda b, k, m: tx.sums(grads(params, (b, k), m), state).gradient  #
    )
    return take(batch, record_keys(STEP_KEY, jnp.asarray(ids, jnp.int32)), mask)


def flat(tree):
    return np.concatenate(
        [np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)]
    )


def mean_by_hand(library, rate, params, dtype):
    """For each view of each record the gradient of a task with that one view; and their mean."""
    one = classifier(NETWORKS[library](rate), augment=shaken)
    keys = record_keys(STEP_KEY, jnp.arange(B))
    of_view = lambda view: jax.vmap(lambda key: jax.random.fold_in(key, view))(keys)
    gradient = jax.jit(jax.vmap(jax.grad(one.loss), (None, 0, 0)))
    params = jax.tree.map(lambda a: jnp.asarray(a, dtype), params)
    x, y = records()
    each = [gradient(params, (x.astype(dtype), y), of_view(view)) for view in range(VIEWS)]
    assert np.max(np.abs(flat(each[0]) - flat(each[1]))) > 0.01
    return jax.tree.map(lambda *leaves: np.mean([np.asarray(a) for a in leaves], 0), *each)


@pytest.mark.parametrize(
    ("library", "rate"),
    some(
        [(library, rate) for library in NETWORKS for rate in (0.0, 0.5)],
        [("linen", 0.0)],
    ),
)
def test_the_gradient_is_the_mean_over_the_views(library, rate):
    task, params = start(library, rate=rate)
    keys = record_keys(STEP_KEY, jnp.arange(B))
    got = jaxdp.per_example_grads(task.loss)(params, (records(), keys)).materialize()
    with jax.enable_x64(rate == 0):  # dropout would draw other numbers in float64
        dtype = jnp.float64 if rate == 0 else jnp.float32
        want = mean_by_hand(library, rate, params, dtype)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


def test_kernels_are_held_as_for_one_view():
    """The views are more positions of a record: nothing becomes dense."""
    forms = []
    for views in (1, VIEWS):
        task, params = start(views=views)
        leaves = jaxdp.explain(task.loss, params, (RECORD, STEP_KEY)).leaves
        forms.append([leaf.form for leaf in leaves if len(leaf.shape) > 1])
    assert "dense" not in forms[1]
    assert len(forms[1]) == 3


def test_every_view_of_every_record_at_every_step_is_another():
    seen = []

    def augment(key, x):
        return x * 0 + jax.random.uniform(key)

    task = classifier(Seeing(), augment=augment, views=VIEWS)
    one = classifier(Seeing(), augment=augment)
    params = task.init(jax.random.key(0), RECORD)
    for step in range(3):
        for number in range(5):
            (key,) = record_keys(jax.random.fold_in(STEP_KEY, step), jnp.array([number]))
            each = [one.loss(params, RECORD, jax.random.fold_in(key, v)) for v in range(VIEWS)]
            np.testing.assert_allclose(task.loss(params, RECORD, key), np.mean(each), rtol=1e-6)
            seen += map(float, each)
    assert len(set(seen)) == 3 * 5 * VIEWS


class Seeing(nn.Module):
    """Tells the drawn number by its loss."""

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, ())
        return scale * jnp.stack([jnp.mean(x, axis=tuple(range(1, x.ndim))), jnp.zeros(len(x))], 1)


def test_the_place_in_the_batch_changes_nothing():
    task, params = start()
    batch, ids = records(), np.array([7, 3, 11, 2, 9, 5])
    whole = clipped_sum(task, params, batch, ids, np.ones(B, bool))
    order = np.array([4, 0, 5, 2, 1, 3])
    moved = jax.tree.map(lambda a: a[order], batch)
    np.testing.assert_allclose(
        flat(clipped_sum(task, params, moved, ids[order], np.ones(B, bool))),
        flat(whole),
        atol=2e-6 * NORM * B,
    )
    others = clipped_sum(task, params, batch, ids + 1, np.ones(B, bool))
    assert np.max(np.abs(flat(others) - flat(whole))) > 1e-3  # other numbers draw other views


@pytest.mark.parametrize("size", [1.0, 1e6, 1e-3])
def test_a_record_moves_the_sum_by_at_most_the_norm(size):
    """Its views are clipped together: K views of it move the sum as far as one."""
    task, params = start()
    x, y = records()
    x[2] *= size
    without = np.arange(B) < 2
    whole = np.arange(B) < 3
    ids = np.arange(B)
    moved = flat(clipped_sum(task, params, (x, y), ids, whole))
    moved -= flat(clipped_sum(task, params, (x, y), ids, without))
    rounding = 1e-6 * NORM * B
    assert np.linalg.norm(moved) <= NORM * (1 + 1e-5) + rounding
    if size >= 1:
        assert np.linalg.norm(moved) > 0.9 * NORM


@pytest.mark.slow
def test_images_keep_their_form():
    images = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 1)).astype(np.uint8)
    task = classifier(Linen(), augment=crop_and_flip, preprocess=lambda x: x / 255, views=2)
    record = (images[0], np.int32(1))
    params = task.init(jax.random.key(0), record)
    assert np.isfinite(task.loss(params, record, STEP_KEY))
    assert task.predict(params, images[0])["class"].shape == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: classifier(Linen(), augment=shaken, views=0), "views is 0: give a whole number"),
        (lambda: regressor(Linen(), augment=shaken, views=2.5), "views is 2.5: give a whole"),
        (lambda: language_model(Linen(), views=2), "views is 2, but nothing changes them"),
        (
            lambda: classifier(Linen(), augment=shaken, views=2, batch_norm=True),
            "views is 2, and batch_norm is True: .* Give 1 .*, or a model with GroupNorm",
        ),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
