"""Threefry-4x32 with 20 rounds: 128 random bits for every 128-bit counter, under a 128-bit key.

It is written out, so that XLA can fuse it with what uses its bits: JAX's own Threefry-2x32 is a
rolled loop on CPUs, with a 64-bit key.

References:
  Salmon et al. 2011, Parallel Random Numbers: As Easy as 1, 2, 3 (SC'11), section 4.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

Words = tuple[jax.Array, jax.Array, jax.Array, jax.Array]  # uint32 arrays that broadcast

ROUNDS = 20
_ROTATIONS = ((10, 26), (11, 21), (13, 27), (23, 5), (6, 20), (17, 11), (25, 10), (18, 20))
_PARITY = 0x1BD11BDA


def threefry_4x32(key: Sequence[jax.Array], counter: Sequence[jax.Array]) -> Words:
    """Returns the block of a counter: four uint32 arrays.

    Args:
      key: four uint32 scalars.
      counter: four uint32 arrays that broadcast.
    """
    parity = jnp.uint32(_PARITY) ^ key[0] ^ key[1] ^ key[2] ^ key[3]
    keys = (*key, parity)
    x = [word + own for word, own in zip(counter, keys, strict=False)]
    # Scalars (the step, the leaf) are divided by 1, of which XLA does not know that it is 1. It
    # computes divisions of scalars beside the loops over the elements. So the loops of two leaves
    # of one shape are the same program, and are compiled once.
    one = jnp.minimum(key[0] | jnp.uint32(1), jnp.uint32(1))
    x = [word if jnp.ndim(word) else jax.lax.div(word, one) for word in x]
    for number in range(ROUNDS):
        first, second = (1, 3) if number % 2 == 0 else (3, 1)
        for add_to, mixed, by in zip((0, 2), (first, second), _ROTATIONS[number % 8], strict=True):
            x[add_to] = x[add_to] + x[mixed]
            x[mixed] = _rotate(x[mixed], by) ^ x[add_to]
        if number % 4 == 3:
            turn = number // 4 + 1
            x = [word + keys[(turn + i) % 5] for i, word in enumerate(x)]
            x[3] = x[3] + jnp.uint32(turn)
    return x[0], x[1], x[2], x[3]


def _rotate(word: jax.Array, by: int) -> jax.Array:
    return (word << jnp.uint32(by)) | (word >> jnp.uint32(32 - by))
