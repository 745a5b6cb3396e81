"""The matrix products behind norms and sums on accelerators: of bfloat16 numbers, and exact.

Accelerators multiply narrow numbers fast. So there the factors of gradients are rounded to bfloat16
first, once, and norms and sums are of the gradients that the *rounded* factors make. The product
of two bfloat16 numbers has 16 significant bits: float32 holds it. What rounds is the addition:

- On TPUs it is IEEE float32's (https://cloud.google.com/tpu/docs/bfloat16).
- Tensor cores that know bfloat16 add eight or more products and the sum so far at once. They cut
  each below the 24 bits of the largest, or less, and cut the result: at most 10 units in the last
  place for 8 terms (Fasi et al. 2021, doi 10.7717/peerj-cs.330; Khattak & Mikaitis 2025, arXiv
  2512.07004).

Other platforms multiply in float32, as everything does at `precision="highest"`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.lax import Precision

from ..types import MatrixPrecision
from .jax_internals import platform, settings
from .representations import wide

# A sum of n products is off by at most (n + 8) times this, relative to the sum of their sizes.
ACCUMULATOR = 1.25 * 2.0**-23

# Names of JAX's own default at which plain training multiplies narrow numbers, too.
_NARROW_DEFAULTS = (None, "default", "fastest", "bfloat16", "tensorfloat32")


def multiplies_narrow(precision: MatrixPrecision) -> bool:
    """Whether norms and sums are of bfloat16 factors, on the platform that JAX runs on by default.

    A wrong guess is sound: products of bfloat16 numbers are exact everywhere, and float32 at full
    precision is what all platforms have. It costs time, and the estimate of the sum's rounding may
    be that of the other platform.
    """
    default = settings()["jax_default_matmul_precision"]
    return precision == "default" and platform() in ("cuda", "tpu") and default in _NARROW_DEFAULTS


def as_factors(narrow: bool, *arrays: jax.Array) -> tuple[tuple[jax.Array, ...], bool]:
    """Rounds factors to bfloat16, if they shall be narrow; tells whether they are. float64 is not.

    XLA must not compute the factors once for the norms and again for the sum: other roundings
    before might then round a number to another neighbour in bfloat16.
    """
    if not narrow or wide(*arrays)[0].dtype != jnp.float32:
        return arrays, False
    return lax.optimization_barrier(tuple(map(_rounded, arrays))), True


def _rounded(array: jax.Array) -> jax.Array:
    """An array in bfloat16. A mere cast might be taken back where a cast to float32 follows."""
    return lax.reduce_precision(array, exponent_bits=8, mantissa_bits=7).astype(jnp.bfloat16)


def multiplied(narrow: bool, *factors: jax.Array) -> tuple[jax.Array, ...]:
    """Factors in the type in which they are multiplied: as they are, or float32 and wider."""
    return factors if narrow else wide(*factors)


def exactly(narrow: bool) -> dict[str, Any]:
    """The options of a product of `multiplied` factors: it is exact but for additions."""
    if narrow:
        return {"preferred_element_type": jnp.float32}
    return {"precision": Precision.HIGHEST}


def contracted(subscripts: str, a: jax.Array, c: jax.Array) -> jax.Array:
    """`jnp.einsum` of `multiplied` factors, exact but for additions."""
    return jnp.einsum(subscripts, a, c, **exactly(a.dtype == jnp.bfloat16))


def scaled(c: jax.Array, coefficients: jax.Array, narrow: bool) -> tuple[jax.Array, ...]:
    """Arrays `[b, ...]` whose sum is the cotangents c times the coefficients `[b]`.

    With `narrow`, coefficients are cut, and two arrays in bfloat16 have the sum exactly.
    """
    (c,) = wide(c)
    weights = cut(coefficients) if narrow else coefficients.astype(c.dtype)
    product = c * weights.reshape(-1, *[1] * (c.ndim - 1))
    return parts_of(product) if narrow else (product,)


def cut(coefficients: jax.Array) -> jax.Array:
    """The first 8 significant bits of float32 coefficients, the others cleared: at most 0.8 % less.

    Rounding them would raise some, and so the contributions.
    """
    bits = lax.bitcast_convert_type(coefficients.astype(jnp.float32), jnp.uint32)
    return lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32)


def parts_of(scaled: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two bfloat16 arrays whose sum is a float32 array of at most 16 significant bits, exactly.

    A bfloat16 number times a `cut` coefficient is one. (What underflow takes is below 2⁻¹²⁶.)
    """
    high = _rounded(scaled)
    return high, _rounded(scaled - high.astype(jnp.float32))
