"""Random changes of images. They depend on the step's key and the record's id, on nothing else."""

import jax
import jax.numpy as jnp


def record_keys(step_key: jax.Array, ids: jax.Array) -> jax.Array:
    """Returns one key per record, `[B]`.

    A record's key depends neither on its place in the batch nor on the other records.

    Args:
      step_key: the JAX key for augmentation at this step.
      ids: `[B]`, the ids of the records (`Records.numbers`).
    """
    return jax.vmap(lambda id_: jax.random.fold_in(step_key, id_))(ids)


def crop_and_flip(key: jax.Array, image_HxWxC: jax.Array, padding: int = 4) -> jax.Array:
    """Shifts an image by up to `padding` pixels each way, and mirrors it half the time.

    The pixels of its border are repeated outwards, to fill what the shift leaves empty.

    References:
      He et al. 2016, Deep Residual Learning, section 4.2 (they fill with zeros).
    """
    shift_key, flip_key = jax.random.split(key)
    edges = ((padding, padding), (padding, padding), (0, 0))
    start = jax.random.randint(shift_key, (2,), 0, 2 * padding + 1)
    padded = jnp.pad(image_HxWxC, edges, mode="edge")
    moved = jax.lax.dynamic_slice(padded, (*start, 0), image_HxWxC.shape)
    return jnp.where(jax.random.bernoulli(flip_key), moved[:, ::-1], moved)


# By the value of the option data.augment.
AUGMENTATIONS = {"none": None, "crop_flip": crop_and_flip}
