"""Augmentation: an example's change is its own affair."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdp.datasets.augmentation import crop_and_flip
from jaxdp.datasets.feeding import record_keys

KEY = jax.random.key(0)


def augmented(ids, images, step=3, key=KEY):
    step_key = jax.random.fold_in(key, step)
    return jax.vmap(crop_and_flip)(record_keys(step_key, jnp.asarray(ids)), images)


def test_an_example_does_not_depend_on_its_place_or_its_neighbours():
    images = np.random.default_rng(0).integers(0, 255, (6, 8, 8, 3), np.uint8)
    ids = np.array([40, 7, 23, 0, 99, 5])
    whole = augmented(ids, images)
    assert whole.dtype == np.uint8
    order = np.array([4, 1, 0])
    np.testing.assert_array_equal(augmented(ids[order], images[order]), whole[order])


def test_steps_ids_and_keys_change_differently():
    images = jnp.broadcast_to(jnp.arange(64.0).reshape(8, 8, 1), (64, 8, 8, 1))
    ids = np.arange(64)
    first = augmented(ids, images)
    assert len(np.unique(first.reshape(64, -1), axis=0)) > 30
    assert not np.array_equal(first, augmented(ids, images, step=4))
    assert not np.array_equal(first, augmented(ids, images, key=jax.random.key(1)))
    np.testing.assert_array_equal(first, augmented(ids, images))


def test_it_shifts_and_mirrors_evenly():
    image = jnp.broadcast_to(jnp.arange(1.0, 33.0)[None, :, None], (32, 32, 1))
    rows = np.asarray(augmented(np.arange(4000), jnp.broadcast_to(image, (4000, 32, 32, 1))))
    row = rows[:, 16, :, 0]
    mirrored = row[:, 16] > row[:, 17]
    shifts = np.where(mirrored, row[:, 15], row[:, 16]) - 17
    assert abs(mirrored.mean() - 0.5) < 0.05  # six standard deviations
    counts = np.bincount((shifts + 4).astype(int), minlength=9)
    assert counts.size == 9
    assert abs(counts / 4000 - 1 / 9).max() < 0.03  # six standard deviations
