"""Rounded Gaussian noise, drawn exactly up to a counted error, in integer arithmetic on the device.

Every number is a function of (key, step, leaf, element), so that it is the same for any sharding,
slice, microbatch or device. There is no floating point between the random bits and the number, no
rejection and no loop. How far its law is from round(N(0, s²)) is counted in
`accounting.noise_charge`.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from ._noise_tables import CELLS_PER_STD, KERNELS, SLOT_BITS, Scale, kernel_middle, tables
from .threefry import threefry_4x32


def rounded_gaussian(
    key: jax.Array,
    step: jax.Array | int,
    leaf: jax.Array | int,
    shape: tuple[int, ...],
    scale: Scale = 22,
) -> jax.Array:
    """Draws the noise of a leaf at a step: `shape` int32, round(N(0, 4^scale)).

    Args:
      key: `[4] uint32`, a secret.
      step: number of the step.
      leaf: number of the leaf. No two leaves and steps of a key share a counter.
      shape: of the leaf.
      scale: log2 of the standard deviation, 22 or 24.
    """
    low, high = element_numbers(shape)
    return rounded_gaussian_at(key, step, leaf, low, high, scale)


def rounded_gaussian_at(
    key: jax.Array,
    step: jax.Array | int,
    leaf: jax.Array | int,
    low: jax.Array,
    high: jax.Array | int = 0,
    scale: Scale = 22,
) -> jax.Array:
    """Draws single numbers of a leaf's noise again, as for correlated noise.

    Args:
      key, step, leaf, scale: as for `rounded_gaussian`.
      low: whole numbers of the elements, as `element_numbers` counts them.
      high: their upper words; 0 for leaves of up to 2^32 elements.

    Returns:
      int32, in the shape to which the numbers are broadcast.

    Raises:
      TypeError, ValueError: for a key that is not four words, another scale, or numbers that are
        not whole.
    """
    if not (isinstance(key, jax.Array | np.ndarray) and (key.dtype, key.shape) == ("uint32", (4,))):
        raise TypeError(
            f"key is {key!r}: give the four uint32 words of the noise key, "
            "jax.random.key_data(state.privatize_key)"
        )
    if scale not in KERNELS:
        raise ValueError(f"scale is {scale!r}: there are tables for 22 and 24 (noise_grid tells)")
    words = [jnp.asarray(word) for word in (low, high, step, leaf)]
    for name, word in zip(("low", "high", "step", "leaf"), words, strict=True):
        if not jnp.issubdtype(word.dtype, jnp.integer):
            raise TypeError(f"{name} has dtype {word.dtype}: it counts, so give whole numbers")
    counter = tuple(word.astype(jnp.uint32) for word in words)
    return _gaussian_of(threefry_4x32(list(key), counter), scale)


def element_numbers(shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """The number of every element of a leaf, in two words: `(low, high)` uint32.

    Low numbers the elements of the trailing axes, as many as have at most 2^32 elements together,
    in row-major order; high numbers the leading axes.
    """
    first = 0
    while math.prod(shape[first:]) > 2**32:
        first += 1
    if max(shape, default=0) > 2**32 or math.prod(shape[:first]) > 2**32:
        raise ValueError(
            f"a leaf of shape {shape} has too many elements: each of two words of the counter "
            "counts up to 2^32"
        )
    return _count(shape, range(first, len(shape))), _count(shape, range(first))


def _count(shape: tuple[int, ...], axes: range) -> jax.Array:
    total = jnp.zeros(shape, jnp.uint32)
    for axis in axes:
        stride = math.prod(shape[axis + 1 : axes.stop])
        total = total + jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
    return total


def _gaussian_of(block: tuple[jax.Array, ...], scale: Scale) -> jax.Array:
    """Turns 128 bits into a draw: a slot, the choice within it, and a position."""
    first, second, third, fourth = block
    table = tables(scale)
    slot = first >> jnp.uint32(32 - SLOT_BITS[scale])
    # A slot has as many bits as the table has slots: no index is out of bounds.
    look_up = lambda column: jnp.asarray(column).at[slot].get(mode="promise_in_bounds")
    high = look_up(table.high)
    own = (third < high) | ((third == high) & (fourth < look_up(table.low)))
    cell = jnp.where(own, slot.astype(jnp.int32), look_up(table.alias))
    # The bits that are left of the first two words, from the right.
    position = jnp.zeros(first.shape, jnp.uint32)
    words, left = [second, first], [32, 32 - SLOT_BITS[scale]]
    for uniform in KERNELS[scale]:
        i = 0 if left[0] >= uniform.bits else 1
        mask = jnp.uint32(2**uniform.bits - 1)
        position = position + (words[i] & mask) * jnp.uint32(uniform.step)
        words[i], left[i] = words[i] >> jnp.uint32(uniform.bits), left[i] - uniform.bits
    width = 2**scale // CELLS_PER_STD
    middle = table.cells // 2 * width + kernel_middle(scale)
    return cell * width + position.astype(jnp.int32) - middle
