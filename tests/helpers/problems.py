"""Random small problems and the float64 oracle that the engines are held to."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Problem:
    params: dict
    batch: tuple
    mask: np.ndarray


def loss(params, x, y):
    """One example: a small network with a convolution, a dense layer and a scale."""
    h = jnp.convolve(x, params["kernel"], mode="same")
    h = jnp.tanh(h @ params["w"] + params["b"]) * params["scale"]
    return jnp.sum(jnp.square(jnp.sum(h) - y)) + 0.1 * jnp.sum(h**2)


def random_problem(seed: int, size: int = 6, features: int = 5, hidden: int = 4) -> Problem:
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    params = {
        "b": normal(hidden),
        "kernel": normal(3),
        "scale": normal(hidden),
        "w": normal(features, hidden),
    }
    return Problem(params, (normal(size, features), normal(size)), rng.random(size) < 0.7)


def oracle_grads(params, batch, loss_fn=loss):
    """Per-example gradients, a float64 loop over single examples: pytree of `[B, ...]` numpy."""
    with jax.enable_x64(True):
        wide = lambda leaf: (
            jnp.asarray(leaf, jnp.float64) if np.issubdtype(leaf.dtype, np.floating) else leaf
        )
        grad = _grad(loss_fn)
        params = jax.tree.map(wide, params)
        rows = [
            grad(params, *jax.tree.map(lambda leaf: wide(leaf)[i], batch))
            for i in range(len(batch[0]))
        ]
        return jax.tree.map(lambda *leaves: np.stack([np.asarray(g) for g in leaves]), *rows)


@functools.cache
def _grad(loss_fn):
    return jax.jit(jax.grad(loss_fn))


def norms64(grads) -> np.ndarray:
    """Norms `[B]` of per-example gradients in float64."""
    squares = [np.square(np.asarray(g, np.float64)) for g in jax.tree.leaves(grads)]
    return np.sqrt(sum(s.reshape(len(s), -1).sum(1) for s in squares))


def flat64(tree) -> np.ndarray:
    """All leaves of a pytree as one float64 vector."""
    return np.concatenate([np.asarray(g, np.float64).ravel() for g in jax.tree.leaves(tree)])
