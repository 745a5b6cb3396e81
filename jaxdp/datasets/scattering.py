"""Scattering: features of an image that nothing is learnt for.

An image is convolved with wavelets of J scales and L directions, the modulus is taken, and the
result is averaged; and once more with the coarser wavelets, before it is averaged. What comes out
hardly changes when the image is moved or bent a little. It is a fixed map of one image, so it
costs no ε.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .config import require

SIGMA, FREQUENCY = 0.8, 3 * np.pi / 4  # of the finest wavelets: pixels, radians per pixel

VERSION = 1  # of the numbers that come out: models are for those that they were trained on

# Are added to the variance of a group: of that of order 1, and for images of one colour. Else
# flat images would have loud features of order 2.
RELATIVE_FLOOR, FLOOR = 0.02, 1e-9


class Filters(NamedTuple):
    """What images of one size are filtered with, in float64. They are periodic.

    Attributes:
      wavelets: `wavelets[j, k]`, j ≤ k, are those of scale k, `[L, height/2^j, width/2^j]`, for
        images at every 2^j-th pixel, in the Fourier domain, where they are real.
      averages: `averages[j]` are matrices for the rows and the columns of such images,
        `[height/2^J - 2, height/2^j]` and `[width/2^J - 2, width/2^j]`: they average, take every
        2^J-th pixel and leave out the border.
    """

    wavelets: Mapping[tuple[int, int], np.ndarray]
    averages: tuple[tuple[np.ndarray, np.ndarray], ...]


def scattering(
    images: jax.Array, J: int = 2, L: int = 8, *, normalised: bool = False, mirrored: bool = False
) -> jax.Array:
    """Returns the scattering coefficients of order 0, 1 and 2 of images.

    The map is fixed: features of private images are private, and computing them costs no ε. Train
    on them as on images, and release a model of them; never release them.

    Args:
      images: `[..., height, width, colours]`, of any real dtype. The sides are multiples of 2^J,
        and longer than 2^J. Bytes are divided by 255. All other numbers are taken as they are:
        the features of k·x are those of x, times k, for k ≥ 0, unless they are normalised.
      J: number of scales; the resolution becomes 2^J times lower.
      L: number of directions.
      normalised: whether an image's features are shifted and divided so that each group of them
        has mean 0 and variance 1, over positions and colours. Groups are order 0, the scales of
        order 1, and of order 2 the scales with their first direction. That is GroupNorm without
        scale and bias, and like it needs no other image. It adds to each variance a fiftieth of
        those of order 1, so that contrast does not matter.
      mirrored: whether they are averaged with those of the mirrored image. The right half of the
        columns then says nearly the same as the left one, in mirrored directions, and is left out:
        of w columns, w/2 rounded up stay. A linear layer on them gives an image and its mirror
        image the same logits, and has half as many parameters to add noise to. For classes that a
        mirror does not change.

    Returns:
      `[..., height/2^J, width/2^J, colours·(1 + J·L + L²·J(J-1)/2)]`, in float64 for images in
      float64, else in float32. The features of a colour lie together, by order, then by scales.
      If they are mirrored, only half of the columns.

      Take a thousand images at a time: one of 32×32 pixels in colours needs 2 MB on the way.

    Raises:
      ValueError: for images of other shapes or dtypes, and for J or L below 1.

    References:
      Bruna & Mallat 2013, Invariant Scattering Convolution Networks (arXiv 1203.1513). Oyallon &
      Mallat 2015, Deep Roto-Translation Scattering (arXiv 1412.8659), for the Morlet wavelets.
      Tramèr & Boneh 2021 (arXiv 2011.11660) train on them privately.
    """
    _check(np.shape(images), J, L)
    x = jnp.asarray(images)
    if not (jnp.issubdtype(x.dtype, jnp.floating) or jnp.issubdtype(x.dtype, jnp.integer)):
        raise ValueError(f"images has dtype {x.dtype}: give real numbers")
    dtype = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
    x = x.astype(dtype) / 255 if x.dtype == jnp.uint8 else x.astype(dtype)
    if mirrored:
        one, other = (
            scattering(side, J, L, normalised=normalised) for side in (x, x[..., ::-1, :])
        )
        features = (one + other) / 2
        return features[..., : -(-features.shape[-2] // 2), :]
    edge = 2**J
    x = jnp.moveaxis(x, -1, -3)
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(edge, edge)] * 2, mode="reflect")
    filters = make_filters(*x.shape[-2:], J, L)
    average = lambda x, j: _averaged(x, *filters.averages[j])
    x = x[..., None, :, :]  # an axis for paths
    once, twice, spectrum = [average(x, 0)], [], jnp.fft.fft2(x)
    for j in range(J):
        first = _modulus(spectrum, filters.wavelets[0, j], 2**j)
        once.append(average(first, j))
        if j + 1 < J:
            first_spectrum = jnp.fft.fft2(first)[..., None, :, :]
        for k in range(j + 1, J):
            second = _modulus(first_spectrum, filters.wavelets[j, k], 2 ** (k - j))
            second = second.reshape(*second.shape[:-4], -1, *second.shape[-2:])
            twice.append(average(second, k))
    features = jnp.moveaxis(jnp.concatenate(once + twice, axis=-3), (-4, -3), (-2, -1))
    if normalised:
        features = _normalised(features, J, L)
    return features.reshape(*features.shape[:-2], -1)


def _check(shape: Sequence[int], J: int, L: int) -> None:
    for name, number in (("J", J), ("L", L)):
        is_whole = isinstance(number, int | np.integer) and not isinstance(number, bool)
        require(is_whole and number >= 1, name, number, "a whole number of at least 1")
    step = 2**J
    if len(shape) < 3 or any(side % step or side <= step for side in shape[-3:-1]):
        raise ValueError(
            f"images has shape {tuple(shape)}: give [..., height, width, colours] with a height "
            f"and a width that are multiples of 2^J = {step} and longer than that"
        )


def _normalised(features: jax.Array, J: int, L: int) -> jax.Array:
    """Features `[..., height, width, colours, paths]` with mean 0 and variance 1 in each group.

    Of order 0 and 1 a group is a scale, of order 2 a first scale, first direction and second scale.
    """
    sizes = [1, *[L] * (J + L * (J * (J - 1) // 2))]
    mean = functools.partial(jnp.mean, axis=(-4, -3, -2, -1), keepdims=True)
    groups = [x - mean(x) for x in jnp.split(features, np.cumsum(sizes)[:-1], axis=-1)]
    variances = [mean(x**2) for x in groups]
    floor = RELATIVE_FLOOR * sum(variances[1 : J + 1]) / J + FLOOR
    scaled = [x * jax.lax.rsqrt(v + floor) for x, v in zip(groups, variances, strict=True)]
    return jnp.concatenate(scaled, axis=-1)


def _modulus(spectrum: jax.Array, wavelets: np.ndarray, step: int) -> jax.Array:
    """The modulus of images that are convolved with each wavelet, at every step-th pixel."""
    product = spectrum * wavelets.astype(spectrum.real.dtype)
    *rest, height, width = product.shape
    folded = product.reshape(*rest, step, height // step, step, width // step)
    return jnp.abs(jnp.fft.ifft2(jnp.mean(folded, axis=(-4, -2))))


def _averaged(images: jax.Array, rows: np.ndarray, columns: np.ndarray) -> jax.Array:
    rows, columns = rows.astype(images.dtype), columns.astype(images.dtype)
    return jnp.einsum("rh,...hw,cw->...rc", rows, images, columns, precision="highest")


@functools.lru_cache(maxsize=8)
def make_filters(height: int, width: int, J: int, L: int) -> Filters:
    """Makes Morlet wavelets, and a Gaussian to average with."""
    wavelets = [_morlets((height, width), k, L) for k in range(J)]
    folded = lambda filters, step: filters.reshape(
        L, step, height // step, step, width // step
    ).sum((1, 3))
    return Filters(
        {(j, k): folded(w, 2**j) for k, w in enumerate(wavelets) for j in range(k + 1)},
        tuple((_average(height, j, J), _average(width, j, J)) for j in range(J)),
    )


def _average(size: int, j: int, J: int) -> np.ndarray:
    """A matrix `[size/2^J - 2, size/2^j]` that averages with a Gaussian of 0.8·2^(J-1) pixels."""
    centers, places = np.arange(0, size, 2**J)[1:-1], np.arange(0, size, 2**j)
    far = (centers[:, None] - places + size // 2) % size - size // 2
    weights = np.exp(-(far**2) / (2 * (SIGMA * 2 ** (J - 1)) ** 2))
    averages: np.ndarray = weights / weights.sum(1, keepdims=True)
    return averages


def _morlets(shape: tuple[int, int], scale: int, L: int) -> np.ndarray:
    """The wavelets of a scale in all directions, `[L, height, width]`, in the Fourier domain.

    Each is a wave under a Gaussian, less as much of that Gaussian as makes its mean zero.
    """
    made = []
    for direction in range(L):
        angle = (L - L // 2 - 1 - direction) * np.pi / L
        wave, window = (
            _gabor(shape, scale, angle, slant=4 / L, frequency=f) for f in (FREQUENCY, 0.0)
        )
        made.append(np.fft.fft2(wave - np.mean(wave) / np.mean(window) * window).real)
    return np.stack(made)


def _gabor(
    shape: tuple[int, int], scale: int, angle: float, slant: float, frequency: float
) -> np.ndarray:
    """A wave under an elliptic Gaussian, summed over the periods of the grid.

    Args:
      shape: height and width of the grid.
      scale: the Gaussian has 0.8·2^scale pixels along the wave.
      angle: of the wave, in radians.
      slant: how many times narrower the Gaussian is along the wave than across.
      frequency: of the wave at scale 0, in radians per pixel.
    """
    sigma: float = SIGMA * 2**scale
    total = np.zeros(shape, complex)
    for shift in itertools.product(range(-2, 3), repeat=2):
        places = (np.arange(n) + float(s * n) for n, s in zip(shape, shift, strict=True))
        y, x = np.meshgrid(*places, indexing="ij")
        along = y * np.cos(angle) + x * np.sin(angle)
        across = x * np.cos(angle) - y * np.sin(angle)
        window = np.exp(-(along**2 + (slant * across) ** 2) / (2 * sigma**2))
        total += window * np.exp(1j * (frequency / 2**scale) * along)
    return total * slant / (2 * np.pi * sigma**2)
