"""Gradients of a convolution's kernel: its input and cotangents instead of their product."""

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core.primitives import conv_general_dilated_p
from jax.lax import Precision

from .outer import Norms
from .representations import accumulation_dtype, guarded
from .rounding import lengths, raised_gram, raised_product
from .tracing import Use, View, vary, varying_axes

# With fewer channels than this a kernel offset, a matrix product per offset is too thin.
THIN = 16


@dataclass(frozen=True)
class ConvShape:
    """How one use of a leaf is the kernel of a convolution: g[k] = Σ_t x[t + k] ⊗ c[t]."""

    view: View
    params: Any  # of lax.conv_general_dilated
    kernel: tuple[int, ...]  # the use's operand
    sizes: tuple[int, int, int, int]  # s (groups), t (positions), d (inputs), p (outputs)

    def restore(self, kernel: jax.Array) -> jax.Array:
        """`[..., *kernel]` to `[..., *leaf.shape]`."""
        return self.view.restore(kernel, kernel.ndim - len(self.kernel))


def conv_shape(use: Use) -> ConvShape | None:
    """Reads a convolution whose kernel is a leaf, or gives None if the use is something else."""
    if use.primitive is not conv_general_dilated_p or use.operand != 1:
        return None
    if use.params["batch_group_count"] != 1 or use.view.sliced:
        return None
    numbers, groups = use.params["dimension_numbers"], use.params["feature_group_count"]
    kernel, result = use.operands[1].shape, use.result.shape
    outputs = kernel[numbers.rhs_spec[0]]
    iterations = math.prod(length for length, _ in use.view.loops)
    names = ("window_strides", "padding", "lhs_dilation", "rhs_dilation", "dimension_numbers")
    return ConvShape(
        view=use.view,
        params={name: use.params[name] for name in (*names, "feature_group_count")},
        kernel=kernel,
        sizes=(
            groups,
            iterations * math.prod(result) // outputs,
            math.prod(kernel) // outputs,
            outputs // groups,
        ),
    )


@dataclass(frozen=True)
class Conv:
    """g[b, k] = Σ_t x[b, t + k] ⊗ c[b, t]: what a convolution's kernel gets."""

    inputs: jax.Array  # [b, *x], x as in the convolution, shared loops folded into its batch
    cotangents: jax.Array  # [b, *y]
    shape: ConvShape
    norms: Norms

    @classmethod
    def make(
        cls, inputs: jax.Array, cotangents: jax.Array, shape: ConvShape, norms: Norms
    ) -> "Conv":
        numbers, loops = shape.params["dimension_numbers"], len(shape.view.loops)
        fold = lambda array, spec: _fold(array, range(1, 1 + loops), 1 + loops + spec[0])
        return cls(fold(inputs, numbers.lhs_spec), fold(cotangents, numbers.out_spec), shape, norms)

    def squared_norms(self) -> jax.Array:
        x, c = self._wide()
        columns, c = self._columns(x), self._positions(c)
        magnitude = jnp.sum(_patch_lengths(columns) * lengths(c), axis=-1)  # [b, s]
        if self.norms == "direct":
            squares = [_squares(column, c) for column in columns]
            squared = raised_product(guarded(sum(squares[1:], squares[0])), magnitude)
        else:
            grams = [_gram(column) for column in columns]
            gram = jnp.sum(sum(grams[1:], grams[0]) * _gram(c), axis=(2, 3))
            squared = raised_gram(gram, magnitude)
        return guarded(jnp.sum(squared, axis=-1))

    def weighted_sum(self, coefficients: jax.Array) -> jax.Array:
        x, c = self._wide()
        c = c * coefficients.reshape(-1, *[1] * (c.ndim - 1)).astype(c.dtype)
        numbers = self.shape.params["dimension_numbers"]
        x = _fold(x, [0], 1 + numbers.lhs_spec[0])
        c = _fold(c, [0], 1 + numbers.out_spec[0])
        # Made to vary like x: else shard_map would add up the gradient over the devices here.
        kernel = vary(jnp.zeros(self.shape.kernel, x.dtype), varying_axes((x, c)))
        convolve = lambda kernel: lax.conv_general_dilated(
            x, kernel, **self.shape.params, precision=Precision.HIGHEST
        )
        return self.shape.restore(jax.vjp(convolve, kernel)[1](c)[0])

    def keep(self, valid: jax.Array) -> "Conv":
        rows = lambda array: jnp.where(valid.reshape(-1, *[1] * (array.ndim - 1)), array, 0)
        return replace(self, inputs=rows(self.inputs), cotangents=rows(self.cotangents))

    def materialize(self) -> jax.Array:
        x, c = self._wide()
        columns, c = self._columns(x), self._positions(c)
        products = jnp.concatenate([_products(column, c) for column in columns], axis=2)
        return self.shape.restore(self._to_kernel(products))

    def _to_kernel(self, products: jax.Array) -> jax.Array:
        """`[b, s, offsets·d, p]` to `[b, *kernel]`."""
        outputs, inputs, *window = self.shape.params["dimension_numbers"].rhs_spec
        kernel = self.shape.kernel
        b, groups, _, p = products.shape
        sizes = [kernel[axis] for axis in window]
        apart = products.reshape(b, groups, *sizes, kernel[inputs], p)
        joined = jnp.moveaxis(apart, 1, -2).reshape(b, *sizes, kernel[inputs], groups * p)
        source = [*window, inputs, outputs]  # the kernel axis that each axis of `joined` is
        return joined.transpose(0, *[1 + source.index(axis) for axis in range(len(kernel))])

    def _wide(self) -> tuple[jax.Array, jax.Array]:
        dtype = accumulation_dtype(jnp.promote_types(self.inputs.dtype, self.cotangents.dtype))
        return self.inputs.astype(dtype), self.cotangents.astype(dtype)

    def _columns(self, x: jax.Array) -> list[jax.Array]:
        """What each kernel offset sees, `[b, s, t, d]`; thin offsets are joined."""
        params, numbers = self.shape.params, self.shape.params["dimension_numbers"]
        batch, features, *space = numbers.lhs_spec
        x = x.transpose(0, 1 + batch, *[1 + axis for axis in space], 1 + features)
        none = (0, 0, 0)
        edges = [
            (low, high, dilation - 1)
            for (low, high), dilation in zip(params["padding"], params["lhs_dilation"], strict=True)
        ]
        x = lax.pad(x, jnp.zeros((), x.dtype), [none, none, *edges, none])
        window = [self.shape.kernel[axis] for axis in numbers.rhs_spec[2:]]
        strides, dilations = params["window_strides"], params["rhs_dilation"]
        reach = [(w - 1) * d + 1 for w, d in zip(window, dilations, strict=True)]
        counts = [(n - r) // s + 1 for n, r, s in zip(x.shape[2:-1], reach, strides, strict=True)]
        columns = []
        for offset in itertools.product(*map(range, window)):
            starts = [o * d for o, d in zip(offset, dilations, strict=True)]
            ends = [i + (n - 1) * s + 1 for i, n, s in zip(starts, counts, strides, strict=True)]
            column = lax.slice(
                x, (0, 0, *starts, 0), (*x.shape[:2], *ends, x.shape[-1]), (1, 1, *strides, 1)
            )
            columns.append(self._groups(column))
        thin = columns[0].shape[-1] < THIN
        return [jnp.concatenate(columns, axis=-1)] if thin else columns

    def _positions(self, c: jax.Array) -> jax.Array:
        """`[b, s, t, p]`"""
        batch, features, *space = self.shape.params["dimension_numbers"].out_spec
        return self._groups(c.transpose(0, 1 + batch, *[1 + axis for axis in space], 1 + features))

    def _groups(self, array: jax.Array) -> jax.Array:
        """`[b, n, *space, features]` to `[b, groups, n·space, features of the group]`."""
        groups = self.shape.params["feature_group_count"]
        split = array.reshape(array.shape[0], -1, groups, array.shape[-1] // groups)
        return split.swapaxes(1, 2)


def _fold(array: jax.Array, axes: Any, into: int) -> jax.Array:
    """Folds axes into a later one, next to it."""
    axes = list(axes)
    if not axes:
        return array
    rest = [axis for axis in range(array.ndim) if axis not in axes]
    order = [axis for r in rest for axis in ([*axes, r] if r == into else [r])]
    sizes = [
        array.shape[into] * math.prod(array.shape[a] for a in axes) if r == into else array.shape[r]
        for r in rest
    ]
    return array.transpose(order).reshape(sizes)


def _patch_lengths(columns: list[jax.Array]) -> jax.Array:
    squares = [jnp.square(lengths(column)) for column in columns]
    return jnp.sqrt(sum(squares[1:], squares[0]))


def _products(column: jax.Array, c: jax.Array) -> jax.Array:
    return jnp.einsum("bstd,bstp->bsdp", column, c, precision=Precision.HIGHEST)


def _squares(column: jax.Array, c: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(_products(column, c)), axis=(2, 3))


def _gram(x: jax.Array) -> jax.Array:
    return jnp.einsum("bstd,bsud->bstu", x, x, precision=Precision.HIGHEST)
