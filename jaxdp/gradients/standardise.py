"""Gradients of a weight that is standardised, or normalised, before it is used.

The loss uses ŵ = γ·ρ(‖v‖²)·v, with v = w - mean(w): weight standardisation, weight norm. Means go
over some axes of w, squared lengths ‖v‖² over the same axes or more; what is left are the channels,
and the gain γ has one number for each. With G the gradient of ŵ (a product of factors, as ever),
P the removal of means and u = v/‖v‖ of each channel, the gradient of w is

    (I - θ·u·uᵀ)·P·(r·G),    r = γ·ρ,    θ = -2·d log ρ / d log ‖v‖².

r and P change the factors of G and leave them factors. I - θ·u·uᵀ has the eigenvalues 1 and 1 - θ:
for 0 ≤ θ ≤ 2 it never lengthens, nor does its computed form, whose u and θ are a little off. (θ is
1 where v is divided by its length or deviation; less where a constant is added to that, or to its
square; 0 where a constant replaces it. `standardise_match` proves the range for each ρ.) So norms
are taken before it, as upper bounds, and the sum goes through it once, not every example.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .convolution import Conv, ConvShape
from .jax_internals import vary, varying_axes
from .matmul import Matmul, MatmulShape, gram_matrix, products
from .precision import as_factors, contracted, exactly
from .representations import Dense, guarded, wide
from .rounding import lengths, raised_gram, raised_product


@dataclass(frozen=True)
class Standardisation:
    """What `standardise_match.match` reads in a program: ŵ = γ·ρ(‖v‖²)·v, v = w - mean(w).

    Axes are those of w, counted from the end (-1 is the last): leading axes of loops may be added.
    """

    base: Any  # the variable w: the leaf, or a view of it
    shape: tuple[int, ...]  # of w
    order: tuple[int, ...]  # the axis of w that each axis of ŵ is
    mean_axes: tuple[int, ...]  # () if no mean is taken away
    norm_axes: tuple[int, ...]  # they include the axes of the means
    rate: Callable[[jax.Array], jax.Array]  # ρ, of squared lengths of any shape
    gains: tuple["Gain", ...]  # γ is their product

    def derived(self, array: jax.Array) -> jax.Array:
        """An array with the axes of w, with the axes of ŵ."""
        return _transposed(array, self.order)

    def raw(self, array: jax.Array) -> jax.Array:
        """An array with the axes of ŵ, with the axes of w."""
        n = len(self.order)
        places = [axis + n for axis in self.order]
        return _transposed(array, [places.index(axis) - n for axis in range(n)])


@dataclass(frozen=True)
class Gain:
    """A factor of γ: a variable, and the axis of w that each of its axes is (None: it has size 1).

    It does not depend on w.
    """

    var: Any
    axes: tuple[int | None, ...]


def _transposed(array: jax.Array, order: Sequence[int]) -> jax.Array:
    """Orders the last axes, given from the end."""
    lead = array.ndim - len(order)
    return array.transpose(*range(lead), *[array.ndim + axis for axis in order])


@dataclass(frozen=True)
class Place:
    """How the channels of ŵ lie in the factors `[s, d, p]` of its gradient."""

    centred: bool  # whether means go over exactly d, so that factors can be centred
    along: str  # "p" if a channel has all of d, so that cotangents are scaled; "d": the activations
    channels: np.ndarray  # `[s, p]` (or `[s, d]`), the channel's number in w


def place(standardisation: Standardisation, shape: MatmulShape | ConvShape) -> Place | None:
    """Looks whether the factors of a use of ŵ can be scaled and centred; None if they can't.

    Runs at trace time, on integers as many as ŵ has.
    """
    s, _, d, p = shape.sizes
    with jax.ensure_compile_time_eval():
        # From 1 on: 0 stands for what the use does not take of ŵ.
        numbers = jnp.arange(1, s * d * p + 1, dtype=jnp.int32).reshape(1, s, d, p)
        restored = np.asarray(_restored(shape, numbers))[0]
    own = len(standardisation.shape)
    expected = tuple(standardisation.shape[axis] for axis in standardisation.order)
    if restored.ndim < own or restored.shape[restored.ndim - own :] != expected:
        return None
    at = np.asarray(standardisation.raw(restored))

    def channel_numbers(axes: Sequence[int]) -> np.ndarray:
        channels = np.empty(1 + s * d * p, np.int32)
        channels[at] = _channel_numbers(at.shape, axes)
        return channels[1:].reshape(s, d, p)

    scaled = channel_numbers(standardisation.norm_axes)
    means = channel_numbers(standardisation.mean_axes)
    columns = np.all(means == means[:, :1]) and np.unique(means[:, 0]).size == s * p
    centred = bool(standardisation.mean_axes and columns)
    if np.all(scaled == scaled[:, :1]):
        return Place(centred, "p", scaled[:, 0])
    if np.all(scaled == scaled[..., :1]) and isinstance(shape, MatmulShape):
        return Place(False, "d", scaled[..., 0])  # such means never go over exactly d
    return None


def _restored(shape: MatmulShape | ConvShape, products: jax.Array) -> jax.Array:
    """`[b, s, d, p]` to `[b, *ŵ]`."""
    if isinstance(shape, MatmulShape):
        return shape.restore(products)
    return shape.restore_leaf(shape.restore(products)[:, None])


def _channel_numbers(shape: tuple[int, ...], axes: Sequence[int]) -> np.ndarray:
    """Numbers what is left without some axes; the same number all along these."""
    kept = [1 if i - len(shape) in axes else size for i, size in enumerate(shape)]
    return np.broadcast_to(np.arange(math.prod(kept)).reshape(kept), shape)


@dataclass(frozen=True)
class Values:
    """What a standardisation takes from the values of w and of the gains."""

    scale: jax.Array  # r, w's shape with size 1 on the axes of the norm; 0 where not finite
    gains: tuple[jax.Array, ...]  # their values
    normalised: jax.Array  # ŵ/γ, w's shape
    direction: jax.Array  # u, w's shape
    shrink: jax.Array  # θ, as scale
    finite: jax.Array  # scalar: whether all of them were

    @classmethod
    def make(
        cls, standardisation: Standardisation, w: jax.Array, gains: Sequence[jax.Array]
    ) -> "Values":
        """Computes them from w and its gains, in the order of `standardisation.gains`."""
        w, *gains = wide(w, *gains)
        v = w - _mean(w, standardisation.mean_axes)
        squared = jnp.sum(jnp.square(v), axis=standardisation.norm_axes, keepdims=True)
        rho, slope = jax.jvp(standardisation.rate, (squared,), (squared,))
        shrink = -2 * slope / rho
        gain = _product(standardisation.gains, gains, squared)
        # A channel that is not finite makes every gradient so: norms tell, and the sum has zero.
        good = jnp.isfinite(gain * rho) & jnp.isfinite(shrink) & jnp.isfinite(squared)
        clean = lambda x: jnp.where(good, x, 0)
        unit = jnp.where(squared > 0, v / jnp.sqrt(squared), 0)
        return cls(
            scale=clean(gain * rho),
            gains=tuple(gains),
            normalised=rho * v,
            direction=clean(unit),
            shrink=jnp.clip(clean(shrink), 0, 2),
            finite=jnp.all(good),
        )


def _mean(array: jax.Array, axes: Sequence[int]) -> jax.Array | int:
    return jnp.mean(array, axis=tuple(axes), keepdims=True) if axes else 0


def _product(gains: Sequence[Gain], values: Sequence[jax.Array], like: jax.Array) -> jax.Array:
    """γ, in the shape of `like`: w's, with size 1 on the axes of the norm."""
    factors = [_with_axes(v, gain.axes, like.ndim) for gain, v in zip(gains, values, strict=True)]
    return math.prod(factors, start=jnp.ones_like(like))


def _with_axes(values: jax.Array, axes: Sequence[int | None], ndim: int) -> jax.Array:
    """A gain with as many axes as w, in the order of w's."""
    lead = values.ndim - len(axes)
    sizes = [1] * ndim
    sizes[:lead] = values.shape[:lead]
    for axis, size in zip(axes, values.shape[lead:], strict=True):
        if axis is not None:
            sizes[axis] = size
    own = [lead + i for i, axis in enumerate(axes) if axis is None]
    rest = [(axis, lead + i) for i, axis in enumerate(axes) if axis is not None]
    order = [*range(lead), *own, *(i for _, i in sorted(rest))]
    return values.transpose(order).reshape(sizes)


@dataclass(frozen=True)
class Standardised:
    """The gradients of w, given those of ŵ: g[b] = (I - θ·u·uᵀ)·P·(r·G[b])."""

    inner: Matmul | Conv
    standardisation: Standardisation
    place: Place
    values: Values

    # The sum is rounded again by P and I - θ·u·uᵀ.
    one_term: ClassVar[bool] = False

    def squared_norms(self) -> jax.Array:
        squared = self._factors().squared_norms()
        return jnp.where(self.values.finite, squared, jnp.nan)

    def weighted_sum(self, coefficients: jax.Array) -> jax.Array:
        return self._projected(self._factors().weighted_sum(coefficients))

    def keep(self, valid: jax.Array) -> "Standardised":
        return replace(self, inner=self.inner.keep(valid))

    def materialize(self) -> jax.Array:
        return jax.vmap(self._projected)(self._factors().materialize())

    def _factors(self) -> Matmul | Conv:
        """r·G, centred where factors can be.

        They are made again for every answer, which keeps no second copy of them. Rounding may then
        differ between the answers, but only as far as that of a product of these factors does: the
        centre may be off, but P takes away from the sum what that leaves.
        """
        scale = self._scale()
        if isinstance(self.inner, Matmul):
            a, c = wide(self.inner.activations, self.inner.cotangents)
            if self.place.centred:
                a = a - jnp.mean(a, axis=-1, keepdims=True)
            if self.place.along == "p":
                c = c * scale[:, None, :]
            else:
                a = a * scale[:, None, :]
            return replace(self.inner, activations=a, cotangents=c, narrow=False)
        x, c = wide(self.inner.inputs, self.inner.cotangents)
        feature = 2 + self.inner.shape.params["dimension_numbers"].out_spec[1]
        channels = [1] * c.ndim
        channels[feature] = c.shape[feature]
        c = c * scale.reshape(channels)
        if not self.place.centred:
            return replace(self.inner, inputs=x, cotangents=c, narrow=False)
        x, shape = _shifted(x, self.inner.shape)
        return CentredConv(x, c, shape, self.inner.norms)

    def _scale(self) -> jax.Array:
        """r, `[s, p]` or `[s, d]`."""
        return self.values.scale.reshape(-1)[self.place.channels]

    def _projected(self, total: jax.Array) -> jax.Array:
        """(I - θ·u·uᵀ)·P, of an array of ŵ's shape, in w's."""
        g = self.standardisation.raw(total)
        g = g - _mean(g, self.standardisation.mean_axes)
        u = self.values.direction
        axes = self.standardisation.norm_axes
        return g - self.values.shrink * u * jnp.sum(u * g, axis=axes, keepdims=True)

    def raw_gradient(self, derived: jax.Array) -> jax.Array:
        """The gradient of w, given that of ŵ, of one example; NaN where w's values are not finite.

        It is measured where it is summed (`Pulled`).
        """
        g = self.standardisation.raw(derived) * self.values.scale
        return jnp.where(
            self.values.finite, self._projected(self.standardisation.derived(g)), jnp.nan
        )

    def gain_gradients(self, results: jax.Array) -> list[Dense]:
        """The gradients of each gain's variable, in the order of `standardisation.gains`.

        Args:
          results: what the use of ŵ gave, arranged as the cotangents of `inner` are.
        """
        gains, like = self.standardisation.gains, self.values.scale
        gain, pull = jax.vjp(lambda *v: _product(gains, v, like), *self.values.gains)
        if self.place.along == "p":
            # The results are γ times what is asked for: where γ is 0, they do not tell.
            rows = lax.cond(
                jnp.all(gain != 0),
                lambda: self._channel_sums(self._times_results(results)) / gain,
                lambda: self._channel_sums(self._times_normalised()),
            )
        else:
            rows = self._channel_sums(self._times_normalised())
        return [Dense(gradients) for gradients in jax.vmap(pull)(rows)]

    def _channel_sums(self, products: jax.Array) -> jax.Array:
        """Adds up `[b, s, p]` (or `[b, s, d]`) for each channel: `[b, *r.shape]`."""
        b, channels = products.shape[0], self.place.channels.reshape(-1)
        sums = jnp.zeros((b, self.values.scale.size), products.dtype)
        sums = sums.at[:, channels].add(products.reshape(b, -1))
        return sums.reshape(b, *self.values.scale.shape)

    def _times_results(self, results: jax.Array) -> jax.Array:
        """Σ_t c·y, `[b, s, p]`."""
        y, c = wide(results, self.inner.cotangents)
        return self._summed_positions(c * y)

    def _times_normalised(self) -> jax.Array:
        """⟨ŵ/γ, G⟩ of each column `[b, s, p]` (or row `[b, s, d]`) of G."""
        weight = self.standardisation.derived(self.values.normalised)
        narrow = self.inner.narrow
        if isinstance(self.inner, Conv):
            restore = lambda kernels: self.inner.shape.restore_leaf(kernels[:, None])
            kernel = _before(restore, self.inner.shape.kernel, weight)
            x, c, kernel = wide(self.inner.inputs, self.inner.cotangents, kernel)
            (x, kernel), _ = as_factors(narrow, x, kernel)
            convolve = lambda x: lax.conv_general_dilated(
                x, kernel, **self.inner.shape.params, **exactly(narrow)
            )
            return self._summed_positions(c * jax.vmap(convolve)(x[:, 0])[:, None])
        a, c = wide(self.inner.activations, self.inner.cotangents)
        s, d, p = a.shape[1], a.shape[3], c.shape[3]
        matrix = _before(self.inner.shape.restore, (s, d, p), weight).astype(a.dtype)
        if self.place.along == "p":
            (first, matrix), _ = as_factors(narrow, a, matrix)
            return jnp.sum(c * contracted("bstd,sdp->bstp", first, matrix), 2)
        (second, matrix), _ = as_factors(narrow, c, matrix)
        return jnp.sum(a * contracted("bstp,sdp->bstd", second, matrix), 2)

    def _summed_positions(self, products: jax.Array) -> jax.Array:
        if isinstance(self.inner, Matmul):
            return jnp.sum(products, axis=2)
        return jnp.sum(self.inner.shape.positions(products[:, 0]), axis=2)


def _before(
    restore: Callable[..., jax.Array], shape: tuple[int, ...], array: jax.Array
) -> jax.Array:
    """The array of this shape that `restore`, which relabels, turns into `array`."""
    # Made to vary like the array: else shard_map would add up over the devices here.
    zeros = vary(jnp.zeros(shape, array.dtype), varying_axes(array))
    return jax.vjp(lambda x: restore(x[None])[0], zeros)[1](array)[0]


@dataclass(frozen=True)
class CentredConv(Conv):
    """A convolution's gradients; the mean of each patch of inputs is not in the norms.

    The sum and the gradients still have it: they get P afterwards. So rounding in them is as large
    as what they have before it, which raises the norms.
    """

    def squared_norms(self) -> jax.Array:
        return jnp.sum(self._of_patches(_centred_norms), axis=1)


def _centred_norms(product: Matmul) -> jax.Array:
    """Squared norms of Σ_t (a_t - mean(a_t)) ⊗ c_t, without an array of centred patches."""
    a, c = product.activations, product.cotangents
    t, d, p = a.shape[2], a.shape[3], c.shape[3]
    magnitude = jnp.sum(lengths(a) * lengths(c), axis=-1)  # [b, s], with the means
    if product.norms == "direct":
        g = products(a, c)
        g = g - jnp.mean(g, axis=2, keepdims=True)
        squared = guarded(jnp.sum(jnp.square(g), axis=(2, 3)))
        return jnp.sum(raised_product(squared, magnitude, 2 * max(t, d)), axis=-1)
    mean = jnp.mean(a, axis=-1)
    centred = gram_matrix(a) - d * mean[..., :, None] * mean[..., None, :]
    gram = jnp.sum(centred * gram_matrix(c), axis=(2, 3))
    # Twice what `Matmul` allows for: the means round as much as the inner products.
    return guarded(jnp.sum(raised_gram(gram, magnitude, [2 * max(d, p) + 256]), axis=-1))


def _shifted(x: jax.Array, shape: ConvShape) -> tuple[jax.Array, ConvShape]:
    """Inputs minus their mean over an example's channels and positions, padding included.

    P takes the same constant from all of a patch's numbers. What is left is shorter, and rounds
    less, where inputs are far from zero.
    """
    _, feature, *space = shape.params["dimension_numbers"].lhs_spec
    groups = shape.params["feature_group_count"]
    padding = [(0, 0, 0)] * x.ndim
    for axis, (low, high), hole in zip(
        space, shape.params["padding"], shape.params["lhs_dilation"], strict=True
    ):
        padding[2 + axis] = (low, high, hole - 1)
    split = lambda x: x.reshape(*x.shape[: 2 + feature], groups, -1, *x.shape[3 + feature :])
    axes = tuple(i for i in range(1, x.ndim + 1) if i != 2 + feature)
    mean = jnp.mean(split(x), axis=axes, keepdims=True)
    padded = lax.pad(x, jnp.zeros((), x.dtype), padding)
    params = {
        **shape.params,
        "padding": ((0, 0),) * len(space),
        "lhs_dilation": (1,) * len(space),
    }
    shifted = (split(padded) - mean).reshape(padded.shape)
    return shifted, replace(shape, params=params)
