"""Random changes of images, by a key that each record has at each step."""

import jax
import jax.numpy as jnp


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
