"""Finds the parameters whose gradient is exactly zero, whatever the example is.

BatchNorm over a single example is the usual cause: an example minus its own mean is zero.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..types import PyTree
from .program import Program, Sites, with_taps

_DRAWS = 8  # so many only for gradients that stay zero: one draw may miss by bad luck
_SCALES = (1.0, 0.01)  # in turns: small numbers do not saturate a tanh
_MOST_NUMBERS = 2**26  # of parameters; the gradient of more would take long, and much memory

_KEYS = ("threefry2x32", "rbg", "unsafe_rbg")


def zero_gradients(
    program: Program, params: PyTree, example: tuple, shared: Sequence[Any]
) -> list[int]:
    """The leaves of `params` whose gradient is zero in every draw of inputs and parameters.

    Inputs are random: floats are normal, integers 0 or 1, and in every other draw the example's own
    integers, if it has values. Parameters are their values, if there are any, plus normal numbers.
    What is shared keeps its values, if it has any.

    Leaves that the loss does not use are left out, and those that enter a branch or a while loop,
    which a random input may not take. The list is empty if nothing can be evaluated.

    Args:
      program: the loss, traced.
      params: pytree of arrays or shapes.
      example: pytree of arrays or shapes.
      shared: the arrays or shapes that all examples see, the program's last arguments.
    """
    leaves = jax.tree.leaves(params)
    if sum(math.prod(leaf.shape) for leaf in (*leaves, *shared)) > _MOST_NUMBERS:
        return []
    branches = {"cond", "while"}
    judged = [
        i
        for i, uses in enumerate(program.uses)
        if program.reads[i] and branches.isdisjoint(u.what for u in uses)
    ]
    left, inputs = judged, jax.tree.leaves(example)
    try:
        with _on_cpu():
            for grads in _gradients(program, leaves, inputs, shared):
                # NaN is not zero: it says nothing.
                left = [i for i in left if not np.any(np.asarray(grads[i]) != 0)]
                if not left:
                    break
    except Exception:  # under jit, or without memory: what can't be tried can't be judged
        return []
    # A loss may ignore labels or tokens that are made up, and then has no gradient at all.
    return [] if left == judged and any(_made_up(leaf) for leaf in (*inputs, *shared)) else left


def _gradients(
    program: Program, leaves: list, inputs: list, shared: Sequence[Any]
) -> Iterator[list]:
    """The gradients of the parameters' leaves, at one draw after the other."""

    def loss(leaves: list, inputs: list, shared: list) -> jax.Array:
        return program.replay([*leaves, *inputs, *shared], Sites(), {}, with_taps({}))[0][0]

    # The levels of XLA differ in time only, and this runs a few times.
    grad = jax.jit(jax.grad(loss), compiler_options={"xla_backend_optimization_level": 0})
    shared = [_as_given(leaf) for leaf in shared]
    for draw in range(_DRAWS):
        rng, scale = np.random.default_rng(draw), _SCALES[draw % len(_SCALES)]
        yield grad(
            [_perturbed(leaf, rng, scale) for leaf in leaves],
            [_random_input(leaf, rng, scale, draw) for leaf in inputs],
            shared,
        )


def _on_cpu() -> AbstractContextManager:
    """Computes on the CPU, if JAX has it: elsewhere compiling is slower, and memory is scarce."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return jax.default_device(None)


def _perturbed(leaf: Any, rng: np.random.Generator, scale: float) -> np.ndarray:
    fan_in = math.prod(leaf.shape[:-1])
    noise = rng.standard_normal(leaf.shape, np.float32) * (scale / math.sqrt(fan_in))
    value = np.asarray(leaf, np.float32) if _has_values(leaf) else np.float32(0)
    return (value + noise).astype(leaf.dtype)


def _as_given(leaf: Any) -> Any:
    rng = np.random.default_rng(_DRAWS)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return _random_input(leaf, rng, 1.0, 0)
    if _has_values(leaf):
        return np.asarray(leaf)
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        return _perturbed(leaf, rng, 1.0)
    return _random_input(leaf, rng, 1.0, 0)


def _random_input(leaf: Any, rng: np.random.Generator, scale: float, draw: int) -> Any:
    shape, dtype = jnp.shape(leaf), jnp.result_type(leaf)
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        kind = next(kind for kind in _KEYS if jax.random.key(0, impl=kind).dtype == dtype)
        return jax.random.split(jax.random.key(draw, impl=kind), shape)
    if jnp.issubdtype(dtype, jnp.inexact):
        return (scale * rng.standard_normal(shape, np.float32)).astype(dtype)
    if _has_values(leaf) and draw % 2 == 0:
        return np.asarray(leaf, dtype)
    # All ones first: a mask lets everything through, and a length is not 0.
    return np.ones(shape, dtype) if draw < 2 else rng.integers(0, 2, shape).astype(dtype)


def _has_values(leaf: Any) -> bool:
    return not isinstance(leaf, jax.ShapeDtypeStruct)


def _made_up(leaf: Any) -> bool:
    drawn = jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    return not drawn and not _has_values(leaf)
