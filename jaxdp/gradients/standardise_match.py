"""Reads weight standardisation, weight norm and the like in a jaxpr, however they are written.

What each equation does to one parameter w is known for a few kinds of value: w minus means, times
a factor of each channel; sums of w; a function of squared lengths of w's channels. Every other
value that depends on w is unknown, and so is all that is made of it: unknown means no match.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from .jax_internals import PVARY, Literal, open_jaxpr
from .jax_internals import primitives as p
from .standardise import Standardisation
from .standardise_values import (
    Axes,
    Factor,
    Number,
    Other,
    Value,
    W,
    Weight,
    added,
    divided,
    larger,
    multiplied,
    power,
    subtracted,
    summed,
)


def match(jaxpr: Any, derived: Any, leaf: Any) -> Standardisation | None:
    """Reads how a variable is computed from a leaf; None if it is no standardisation of it.

    Args:
      jaxpr: the program. Calls by jit are read too, but a gain that is computed inside one, or a
        view of the leaf, has no name outside: then there is no match.
      derived: a variable of it that depends on parameters alone.
      leaf: a variable of it, or an argument. Others count as independent of it.
    """
    result = _Reader().run(jaxpr, {leaf: _raw(leaf)}, derived)
    if not isinstance(result, Weight):
        return None
    return _described(result, tuple(derived.aval.shape))


def _raw(var: Any) -> Weight:
    shape = tuple(var.aval.shape)
    return Weight(W(var, shape), tuple(i if n != 1 else None for i, n in enumerate(shape)))


def _described(result: Weight, shape: tuple[int, ...]) -> Standardisation | None:
    w, factor, rate = result.w, result.factor, result.factor.rate
    n = len(w.shape)
    order = _filled(result.axes, w.shape)
    if w.var is None or order is None or shape != tuple(w.shape[axis] for axis in order):
        return None
    if factor.scale == 0 or (factor == Factor() and not result.mean):
        return None
    if rate is None:
        # No length: the channels are what the gains tell apart, and the means.
        gains = {axis for gain in factor.gains for axis in gain.axes if axis is not None}
        norm = frozenset(range(n)) - gains
        apply: Callable[[jax.Array], jax.Array] = jnp.ones_like
    else:
        # d log ŵ/v must lie between -1 and 0: then 0 ≤ θ ≤ 2.
        if (rate.w, rate.mean) != (w, result.mean) or rate.low < -1 or rate.high > 0:
            return None
        norm, apply = rate.norm | {i for i, size in enumerate(w.shape) if size == 1}, rate.apply
        if any(axis in norm for gain in factor.gains for axis in gain.axes):
            return None
    if not result.mean <= norm:
        return None
    scale = factor.scale
    return Standardisation(
        base=w.var,
        shape=w.shape,
        order=tuple(axis - n for axis in order),
        mean_axes=tuple(sorted(axis - n for axis in result.mean)),
        norm_axes=tuple(sorted(axis - n for axis in norm)),
        rate=lambda squared: scale * apply(squared),
        gains=tuple(
            replace(gain, axes=tuple(None if a is None else a - n for a in gain.axes))
            for gain in factor.gains
        ),
    )


def _filled(axes: Axes, shape: tuple[int, ...]) -> list[int] | None:
    """The axes of a value that is a transposition of w, those of size 1 too."""
    ones = [i for i, size in enumerate(shape) if size == 1]
    if len(axes) != len(shape) or len(set(axes) - {None}) != len(shape) - len(ones):
        return None
    return [ones.pop(0) if axis is None else axis for axis in axes]


class _Reader:
    """Follows the values through a jaxpr."""

    def __init__(self, nested: bool = False) -> None:
        self._nested = nested

    def run(self, jaxpr: Any, known: dict[Any, Value], wanted: Any) -> Value:
        """The value of a variable."""
        values = dict(known)
        for eqn in jaxpr.eqns:
            if wanted in values:
                break
            results = self._equation(eqn, [self._read(values, atom) for atom in eqn.invars])
            values.update(zip(eqn.outvars, results, strict=True))
        return self._read(values, wanted)

    def _read(self, values: dict[Any, Value], atom: Any) -> Value:
        aval: Any = atom.aval
        if isinstance(atom, Literal):
            known = aval.shape == () and _is_number(aval)
            return Number(float(atom.val)) if known else self._other(None, atom)
        if atom in values:
            return values[atom]
        return self._other(None if self._nested else atom, atom)

    def _other(self, var: Any, atom: Any) -> Other:
        return Other(var, tuple(i if n != 1 else None for i, n in enumerate(atom.aval.shape)))

    def _equation(self, eqn: Any, values: list[Value]) -> list[Value]:
        results: list[Value]
        if eqn.primitive is p.jit_p:
            inner, _ = open_jaxpr(eqn.params["jaxpr"])
            known = dict(zip(inner.invars, values, strict=True))
            reader = _Reader(nested=True)
            results = [reader.run(inner, known, var) for var in inner.outvars]
        elif len(eqn.outvars) == 1:
            results = [self._result(eqn, values)]
        else:
            results = [None] * len(eqn.outvars)
        if not all(isinstance(value, Number | Other) for value in values):
            return results
        unnamed = lambda result: (
            result is None or (isinstance(result, Other) and result.var is None)
        )
        return [
            self._other(None if self._nested else var, var) if unnamed(result) else result
            for var, result in zip(eqn.outvars, results, strict=True)
        ]

    def _result(self, eqn: Any, values: list[Value]) -> Value:
        primitive, params = eqn.primitive, eqn.params
        if not values:
            return None
        first, before, after = values[0], eqn.invars[0].aval, eqn.outvars[0].aval
        if len(values) == 1 and primitive in _RELABELLINGS:
            return self._relabelled(eqn, first, before, after)
        if primitive is p.reduce_sum_p:
            return summed(first, params["axes"], before.shape)
        if primitive in _POWERS or primitive in (p.integer_pow_p, p.square_p):
            exponent = params["y"] if primitive is p.integer_pow_p else _POWERS.get(primitive, 2)
            return power(first, exponent)
        if primitive is p.pow_p and isinstance(values[1], Number):
            return power(first, values[1].value)
        if primitive is p.select_n_p and isinstance(first, Number):
            return values[1 + int(first.value)]
        if len(values) == 2:
            a, b = values
            if isinstance(a, Number) and isinstance(b, Number):
                return _number(eqn, a.value, b.value)
            if primitive is p.sub_p and _is_real(after):
                # Numbers like 1/n are rounded in the program.
                return subtracted(a, b, close=float(jnp.finfo(after.dtype).eps))
            rule = _BINARY.get(primitive)
            return rule(a, b) if rule is not None else None
        return None

    def _relabelled(self, eqn: Any, value: Value, before: Any, after: Any) -> Value:
        primitive, params = eqn.primitive, eqn.params
        if isinstance(value, Number):
            rounds = primitive is p.convert_element_type_p and not _is_real(after)
            return value if not rounds or value.value.is_integer() else None
        if value is None:
            return None
        if primitive is p.convert_element_type_p:
            return value if _is_real(before) and _is_real(after) else None
        if primitive is p.transpose_p:
            axes: Axes | None = tuple(value.axes[axis] for axis in params["permutation"])
        elif primitive is p.broadcast_in_dim_p:
            spread: list[int | None] = [None] * len(after.shape)
            for axis, place in zip(value.axes, params["broadcast_dimensions"], strict=True):
                spread[place] = axis
            axes = tuple(spread)
        elif primitive in (p.reshape_p, p.squeeze_p):
            if params["dimensions"] is not None:
                return None
            axes = _reshaped(value.axes, before.shape, after.shape)
        else:
            axes = value.axes
        if axes is not None:
            return replace(value, axes=axes)
        if not isinstance(value, Weight) or value != Weight(value.w, value.axes):
            return None
        if math.prod(before.shape) == math.prod(value.w.shape):
            view = _raw(eqn.outvars[0])
            return view if not self._nested else replace(view, w=replace(view.w, var=None))
        return None


def _is_real(aval: Any) -> bool:
    return bool(jnp.issubdtype(aval.dtype, jnp.floating))


def _is_number(aval: Any) -> bool:
    kinds = (jnp.floating, jnp.integer, jnp.bool_)
    return any(jnp.issubdtype(aval.dtype, kind) for kind in kinds)


def _reshaped(axes: Axes, before: Sequence[int], after: Sequence[int]) -> Axes | None:
    """The axes after a reshape that only adds or drops axes of size 1."""
    kept = [(n, axis) for n, axis in zip(before, axes, strict=True) if n != 1]
    if [n for n, _ in kept] != [n for n in after if n != 1]:
        return None
    left = iter(kept)
    return tuple(next(left)[1] if n != 1 else None for n in after)


def _number(eqn: Any, a: float, b: float) -> Value:
    """Works out a number from two."""
    if eqn.primitive is p.div_p and not _is_real(eqn.outvars[0].aval):
        return None  # of integers
    compute = _ARITHMETIC.get(eqn.primitive)
    return Number(float(compute(a, b))) if compute is not None else None


_RELABELLINGS = {
    p.convert_element_type_p,
    p.transpose_p,
    p.broadcast_in_dim_p,
    p.reshape_p,
    p.squeeze_p,
    p.copy_p,
    p.name_p,
    p.sharding_constraint_p,
    PVARY,
}

_POWERS = {p.sqrt_p: 0.5, p.rsqrt_p: -0.5}

_BINARY: dict[Any, Callable[[Value, Value], Value]] = {
    p.mul_p: multiplied,
    p.div_p: divided,
    p.add_p: added,
    p.max_p: larger,
}

_ARITHMETIC: dict[Any, Callable[[float, float], float]] = {
    p.mul_p: lambda a, b: a * b,
    p.div_p: lambda a, b: a / b if b else math.nan,
    p.sub_p: lambda a, b: a - b,
    p.add_p: lambda a, b: a + b,
    p.max_p: max,
    p.gt_p: lambda a, b: a > b,
    p.ge_p: lambda a, b: a >= b,
    p.lt_p: lambda a, b: a < b,
    p.le_p: lambda a, b: a <= b,
    p.eq_p: lambda a, b: a == b,
    p.ne_p: lambda a, b: a != b,
}
