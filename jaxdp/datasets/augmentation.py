"""Random changes to images: what happens to a record depends on the key, the step and its id."""

import jax
import jax.numpy as jnp


def record_keys(key: jax.Array, step: jax.Array, ids: jax.Array) -> jax.Array:
    """One key `[B]` for every record of a batch, whatever its place there and whoever else is in.

    Args:
      key: the run's key for this use.
      step: number of the step.
      ids: `[B]` the records' stable numbers in the data.
    """
    step_key = jax.random.fold_in(key, step)
    return jax.vmap(lambda id_: jax.random.fold_in(step_key, id_))(ids)


def crop_and_flip(key: jax.Array, image_HxWxC: jax.Array, padding: int = 4) -> jax.Array:
    """Shifts an image by up to `padding` pixels, its border repeated, and mirrors it half the time.

    References:
      He et al. 2016, Deep Residual Learning, section 4.2 (there with a border of zeros).
    """
    shift_key, flip_key = jax.random.split(key)
    edges = ((padding, padding), (padding, padding), (0, 0))
    start = jax.random.randint(shift_key, (2,), 0, 2 * padding + 1)
    padded = jnp.pad(image_HxWxC, edges, mode="edge")
    moved = jax.lax.dynamic_slice(padded, (*start, 0), image_HxWxC.shape)
    return jnp.where(jax.random.bernoulli(flip_key), moved[:, ::-1], moved)
