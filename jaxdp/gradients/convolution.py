"""Gradients of a convolution's kernel: its input and cotangents instead of their product."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.lax import Precision

from .axes import folded
from .jax_internals import primitives as p
from .jax_internals import vary, varying_axes
from .matmul import Matmul, Norms
from .precision import as_factors, multiplied, scaled
from .uses import Use, View

# Patches repeat each input for every kernel offset: this many numbers of them are made at a time.
PATCH_NUMBERS = 2**20

OPTIONS = ("window_strides", "padding", "lhs_dilation", "rhs_dilation")

Params = Mapping[str, Any]


@dataclass(frozen=True)
class ConvShape:
    """How one use of a leaf is the kernel of a convolution: g[k] = Σ_t x[t + k] ⊗ c[t].

    Where the convolution is in loops over slices of the leaf, each slice is a kernel of its own.
    """

    view: View
    params: Params  # of lax.conv_general_dilated
    kernel: tuple[int, ...]  # the use's operand
    sizes: tuple[int, int, int, int]  # s (kernels · groups), t (positions), d (inputs), p (outputs)

    recorded: ClassVar[tuple[int, ...]] = (0,)

    # Not even at one position: GPUs may compute convolutions by way of other sums.
    one_term: ClassVar[bool] = False

    @property
    def window(self) -> int:
        """How many inputs each output sees."""
        return math.prod(self._window_sizes)

    @property
    def _window_sizes(self) -> list[int]:
        return [self.kernel[axis] for axis in self.params["dimension_numbers"].rhs_spec[2:]]

    def make(
        self,
        operands: tuple[jax.Array, ...],
        cotangents: jax.Array,
        norms: Norms,
        narrow: bool,
    ) -> "Conv":
        """The gradients, from what was recorded."""
        numbers, loops = self.params["dimension_numbers"], self.view.loops
        own = [1 + i for i, (_, sliced) in enumerate(loops) if sliced]
        shared = range(1 + len(own), 1 + len(loops))

        def fold(array: jax.Array, spec: Sequence[int]) -> jax.Array:
            array = jnp.moveaxis(array, own, range(1, 1 + len(own)))
            array = folded(array, shared, 1 + len(loops) + spec[0])
            return array.reshape(array.shape[0], -1, *array.shape[1 + len(own) :])

        (inputs,) = operands
        folded_inputs = fold(inputs, numbers.lhs_spec)
        (x, c), narrow = as_factors(narrow, folded_inputs, fold(cotangents, numbers.out_spec))
        return Conv(x, c, self, norms, narrow)

    def restore_leaf(self, kernels: jax.Array) -> jax.Array:
        """`[..., kernels, *kernel]` to `[..., *leaf.shape]`, with at most one leading axis."""
        lead = kernels.ndim - len(self.kernel) - 1
        loops = [length for length, sliced in self.view.loops if sliced]
        return self.view.restore(kernels.reshape(*kernels.shape[:lead], *loops, *self.kernel), lead)

    def restore(self, products: jax.Array) -> jax.Array:
        """`[b, groups, offsets·d, p]` to `[b, *kernel]`."""
        outputs, inputs, *window = self.params["dimension_numbers"].rhs_spec
        b, groups, _, p = products.shape
        sizes = [self.kernel[axis] for axis in window]
        apart = products.reshape(b, groups, *sizes, self.kernel[inputs], p)
        joined = jnp.moveaxis(apart, 1, -2).reshape(b, *sizes, self.kernel[inputs], groups * p)
        source = [*window, inputs, outputs]  # the kernel axis that each axis of `joined` is
        return joined.transpose(0, *[1 + source.index(axis) for axis in range(joined.ndim - 1)])

    def patches(self, x: jax.Array) -> jax.Array:
        """What each kernel offset sees at each position: `[b, groups, t, offsets·d]`."""
        batch, features, *space = self.params["dimension_numbers"].lhs_spec
        x = x.transpose(0, 1 + batch, *[1 + axis for axis in space], 1 + features)
        table = self._seen(x.shape[2:-1])
        groups = self.params["feature_group_count"]
        x = x.reshape(*x.shape[:2], -1, groups, x.shape[-1] // groups)
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 1), (0, 0), (0, 0)))  # the position that is padding
        seen = jnp.take(x, table, axis=2, mode="clip")  # [b, n, positions, offsets, groups, d]
        seen = jnp.moveaxis(seen, 4, 1)
        return seen.reshape(*seen.shape[:2], -1, seen.shape[-2] * seen.shape[-1])

    def positions(self, c: jax.Array) -> jax.Array:
        """The cotangents, `[b, groups, t, p]`."""
        batch, features, *space = self.params["dimension_numbers"].out_spec
        c = c.transpose(0, 1 + batch, *[1 + axis for axis in space], 1 + features)
        groups = self.params["feature_group_count"]
        return c.reshape(c.shape[0], -1, groups, c.shape[-1] // groups).swapaxes(1, 2)

    def _seen(self, space: Sequence[int]) -> np.ndarray:
        """The input position that each output position sees at each kernel offset.

        One past the last position stands for padding.
        """
        table, inside = np.zeros((1, 1), np.int32), np.ones((1, 1), bool)
        options = (self.params[name] for name in OPTIONS)
        for size, width, stride, (low, high), hole, gap in zip(
            space, self._window_sizes, *options, strict=True
        ):
            spread = _dilated(size, hole)
            count = (spread + low + high - _dilated(width, gap)) // stride + 1
            at = np.arange(count)[:, None] * stride + np.arange(width) * gap - low
            good = (at >= 0) & (at < spread) & (at % hole == 0)
            table = _outer_sum(table * size, at // hole)
            inside = _outer_sum(inside, good, np.logical_and)
        return np.where(inside, table, math.prod(space)).astype(np.int32)

    def kernel_gradient(self, x: jax.Array, c: jax.Array) -> jax.Array:
        """The gradient of the kernel, summed over the whole batch, in the kernel's shape.

        XLA for CPUs runs a convolution inside `cond` and loops up to 100 times slower unless its
        axes are in one order; JAX's own transposition rule has another.
        """
        lhs, rhs, out = self.params["dimension_numbers"]
        if self.params["feature_group_count"] > 1:
            # Made to vary like x: else shard_map would add up the gradient over the devices here.
            kernel = vary(jnp.zeros(self.kernel, x.dtype), varying_axes((x, c)))
            convolve = lambda kernel: lax.conv_general_dilated(
                x, kernel, **self.params, precision=Precision.HIGHEST
            )
            return jax.vjp(convolve, kernel)[1](c)[0]
        x = x.transpose(lhs[1], *lhs[2:], lhs[0])
        c = c.transpose(*out[2:], out[0], out[1])
        n = x.ndim
        kernel = lax.conv_general_dilated(
            x,
            c,
            window_strides=self.params["rhs_dilation"],
            padding=_conv_general_vjp_rhs_padding(
                x.shape[1:-1], self._window_sizes, c.shape[:-2], self.params
            ),
            lhs_dilation=self.params["lhs_dilation"],
            rhs_dilation=self.params["window_strides"],
            dimension_numbers=lax.ConvDimensionNumbers(
                (0, n - 1, *range(1, n - 1)),
                (n - 1, n - 2, *range(n - 2)),
                (0, n - 1, *range(1, n - 1)),
            ),
            precision=Precision.HIGHEST,
        )
        source = [rhs[1], *rhs[2:], rhs[0]]
        return kernel.transpose([source.index(axis) for axis in range(n)])


# Paddings (before, after), with the names and formulas of JAX's own transposition rules. For each
# axis, low is the convolution's padding in front, and lhs, rhs and out are the dilated sizes of the
# input, the window and the output (the latter dilated by the stride):
#   of the input's gradient   (rhs - low - 1, lhs + rhs - 1 - out - before)
#   of the kernel's gradient  (low,           out - lhs + rhs - 1 - low)


def _conv_general_vjp_lhs_padding(
    in_shape: Sequence[int], window: Sequence[int], out_shape: Sequence[int], params: Params
) -> list[tuple[int, int]]:
    """The padding of the convolution that computes the input's gradient."""
    padding = []
    for low, lhs, rhs, out in _dilated_sizes(in_shape, window, out_shape, params):
        before = rhs - low - 1
        padding.append((before, lhs + rhs - 1 - out - before))
    return padding


def _conv_general_vjp_rhs_padding(
    in_shape: Sequence[int], window: Sequence[int], out_shape: Sequence[int], params: Params
) -> list[tuple[int, int]]:
    """The padding of the convolution that computes the kernel's gradient."""
    return [
        (low, out - lhs + rhs - 1 - low)
        for low, lhs, rhs, out in _dilated_sizes(in_shape, window, out_shape, params)
    ]


def _dilated_sizes(
    in_shape: Sequence[int], window: Sequence[int], out_shape: Sequence[int], params: Params
) -> Iterator[tuple[int, int, int, int]]:
    options = (params[name] for name in OPTIONS)
    sizes = zip(in_shape, window, out_shape, strict=True)
    for (size, width, count), stride, (low, _), hole, gap in zip(sizes, *options, strict=True):
        yield low, _dilated(size, hole), _dilated(width, gap), _dilated(count, stride)


def _dilated(size: int, dilation: int) -> int:
    return (size - 1) * dilation + 1


def _outer_sum(a: np.ndarray, b: np.ndarray, add: Any = np.add) -> np.ndarray:
    """`[t, k]` and `[u, l]` to `[t·u, k·l]`."""
    both = add(a[:, None, :, None], b[None, :, None, :])
    return both.reshape(a.shape[0] * b.shape[0], -1)


def conv_shape(use: Use) -> ConvShape | None:
    """Reads a convolution whose kernel is a leaf; None if the use is something else."""
    if use.primitive is not p.conv_general_dilated_p or use.operand != 1:
        return None
    if use.params["batch_group_count"] != 1:
        return None
    numbers, groups = use.params["dimension_numbers"], use.params["feature_group_count"]
    kernel, result = use.operands[1].shape, use.result.shape
    outputs = kernel[numbers.rhs_spec[0]]
    iterations = math.prod(length for length, sliced in use.view.loops if not sliced)
    kernels = math.prod(length for length, sliced in use.view.loops if sliced)
    return ConvShape(
        view=use.view,
        params={
            name: use.params[name]
            for name in (*OPTIONS, "dimension_numbers", "feature_group_count")
        },
        kernel=kernel,
        sizes=(
            kernels * groups,
            iterations * math.prod(result) // outputs,
            math.prod(kernel) // outputs,
            outputs // groups,
        ),
    )


@dataclass(frozen=True)
class Conv:
    """The gradients of kernels: g[b, s, k] = Σ_t x[b, s, t + k] ⊗ c[b, s, t]."""

    inputs: jax.Array  # [b, s, *x], x as in the convolution, shared loops folded into its batch
    cotangents: jax.Array  # [b, s, *y]
    shape: ConvShape
    norms: Norms
    narrow: bool = False  # as in `Matmul`; then the sum is a matrix product of patches, too

    one_term: ClassVar[bool] = ConvShape.one_term

    def squared_norms(self) -> jax.Array:
        return jnp.sum(self._of_patches(Matmul.squared_norms), axis=1)

    def weighted_sum(self, coefficients: jax.Array) -> jax.Array:
        if self.narrow:
            return self._sum_of_patches(coefficients)
        x, c = self._multiplied
        (c,) = scaled(c, coefficients, self.narrow)
        lhs, _, out = self.shape.params["dimension_numbers"]
        x, c = folded(x, [0], 2 + lhs[0]), folded(c, [0], 2 + out[0])
        if x.shape[0] == 1:  # no loop around it: XLA for CPUs is slower there
            kernels = self.shape.kernel_gradient(x[0], c[0])[None]
        else:
            kernels = lax.map(lambda own: self.shape.kernel_gradient(*own), (x, c))
        return self.shape.restore_leaf(kernels)

    def keep(self, valid: jax.Array) -> "Conv":
        rows = lambda array: jnp.where(valid.reshape(-1, *[1] * (array.ndim - 1)), array, 0)
        return replace(self, inputs=rows(self.inputs), cotangents=rows(self.cotangents))

    def materialize(self) -> jax.Array:
        return self.shape.restore_leaf(self._of_patches(Matmul.materialize))

    def _of_patches(self, answer: Callable[[Matmul], jax.Array]) -> jax.Array:
        """Writes each convolution as a matrix product of patches and asks that: `[b, s, ...]`.

        Few rows at once.
        """

        ask = lambda x, c: answer(self._as_product(x, c))
        x, c = self._multiplied
        lead = x.shape[:2]
        x, c = x.reshape(-1, *x.shape[2:]), c.reshape(-1, *c.shape[2:])
        rows = rows_at_once(x.shape[0], x.size * self.shape.window)
        if rows == x.shape[0]:
            answers = ask(x, c)
        else:
            one = lambda row: ask(row[0][None], row[1][None])[0]
            answers = jax.lax.map(one, (x, c), batch_size=rows)
        return answers.reshape(*lead, *answers.shape[1:])

    def _sum_of_patches(self, coefficients: jax.Array) -> jax.Array:
        """The weighted sum, few rows at once.

        GPUs may compute a convolution by way of other sums (Winograd, Fourier), whose products are
        not exact.
        """
        x, c = self._multiplied
        b, s = x.shape[:2]
        rows = rows_at_once(b, x.size // s * self.shape.window)
        padded = lambda array: jnp.pad(array, [(0, -b % rows), *[(0, 0)] * (array.ndim - 1)])
        split = lambda array: padded(array).reshape(-1, rows, *array.shape[1:])

        def of_kernel(own: tuple[jax.Array, jax.Array]) -> jax.Array:
            def add(total: jax.Array, part: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
                x, c, coefficients = part
                return total + self._as_product(x, c).weighted_products(coefficients), None

            groups, _, d, p = self.shape.sizes
            zeros = jnp.zeros((groups // s, d, p), jnp.float32)
            zeros = vary(zeros, varying_axes((own, coefficients)))
            parts = tuple(map(split, (*own, coefficients)))
            return self.shape.restore(jax.lax.scan(add, zeros, parts)[0][None])[0]

        by_kernel = x.swapaxes(0, 1), c.swapaxes(0, 1)
        return self.shape.restore_leaf(jax.lax.map(of_kernel, by_kernel))

    def _as_product(self, x: jax.Array, c: jax.Array) -> Matmul:
        """The convolutions of x and c as matrix products of patches, `[rows, groups, t, ...]`."""
        shape = self.shape
        return Matmul(shape.patches(x), shape.positions(c), shape, self.norms, self.narrow)

    @property
    def _multiplied(self) -> tuple[jax.Array, ...]:
        return multiplied(self.narrow, self.inputs, self.cotangents)


def rows_at_once(count: int, numbers: int) -> int:
    """Of how many rows patches are made at a time, of `count` rows whose patches have `numbers`.

    Never of all, so that a loop makes them: outside of one XLA makes those of all layers in the
    forward pass, and holds them until the cotangents are there.
    """
    most = min(max(1, PATCH_NUMBERS * count // numbers), max(1, count // 2))
    even = max(rows for rows in range(1, most + 1) if count % rows == 0)
    return even if 4 * even >= most else most


def convolve_for_inputs(x: jax.Array, kernel: jax.Array, params: Params) -> jax.Array:
    """Convolves; only the input gets a gradient, computed in the axis order that CPUs are fast at.

    The kernel's gradient is zero: a tap takes its place.
    """
    order = tuple(range(x.ndim))
    last = (0, x.ndim - 1, *order[1:-1])
    numbers = lax.ConvDimensionNumbers(last, (x.ndim - 1, x.ndim - 2, *order[:-2]), last)
    plain = params["feature_group_count"] == params["batch_group_count"] == 1
    if not plain or params["dimension_numbers"] != numbers or x.dtype != kernel.dtype:
        return p.conv_general_dilated_p.bind(x, kernel, **params)

    @jax.custom_vjp
    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return p.conv_general_dilated_p.bind(x, kernel, **params)

    def backward(kernel: jax.Array, c: jax.Array) -> tuple[jax.Array, jax.Array]:
        mirrored = jnp.flip(kernel, order[:-2]).swapaxes(-1, -2)
        gradient = lax.conv_general_dilated(
            c,
            mirrored,
            window_strides=params["lhs_dilation"],
            padding=_conv_general_vjp_lhs_padding(
                x.shape[1:-1], kernel.shape[:-2], c.shape[1:-1], params
            ),
            lhs_dilation=params["window_strides"],
            rhs_dilation=params["rhs_dilation"],
            dimension_numbers=numbers,
            precision=params["precision"],
        )
        return gradient.astype(x.dtype), jnp.zeros_like(kernel)

    convolve.defvjp(lambda x, kernel: (convolve(x, kernel), kernel), backward)
    return convolve(x, kernel)


SUBSTITUTES = {p.conv_general_dilated_p: convolve_for_inputs}
