"""Losses with which the activations and cotangents of a parameter are the batch itself.

And the gradients of that parameter, for each form in which they may be held.
"""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np


def matmul_loss(w, a, c):
    return jnp.sum((a @ w.astype(a.dtype)) * c)


def conv_loss(w, a, c):
    layout = ("NWC", "WIO", "NWC")
    y = jax.lax.conv_general_dilated(a[None], w.astype(a.dtype), (1,), "SAME", None, None, layout)
    return jnp.sum(y[0] * c)


def kernels_loss(w, a, c):
    """Two kernels, the slices of a loop; the second sees half of the activations."""
    one = lambda total, own: (total + conv_loss(own[0], own[1] * a, c), None)
    return jax.lax.scan(one, jnp.zeros((), c.dtype), (w, jnp.array([1, 0.5], a.dtype)))[0]


def rows_of(a, d):
    return np.clip(np.abs(a[..., 0].astype(np.float32)) * 3, 0, d - 1).astype(int)


def lookup_loss(w, a, c):
    rows = jnp.clip(jnp.abs(a[:, 0]) * 3, 0, w.shape[0] - 1).astype(int)
    return jnp.sum(jnp.take(w.astype(c.dtype), rows, axis=0) * c)


def parts_loss(w, a, c):
    """Both halves of the positions look up rows, one by one, in a table of their own."""
    rows = jnp.clip(jnp.abs(a[:, 0]) * 3, 0, w.shape[1] - 1).astype(int)
    halves = lambda x: jnp.pad(x, ((0, len(x) % 2), *[(0, 0)] * (x.ndim - 1))).reshape(
        2, -1, *x.shape[1:]
    )
    read = jax.vmap(lambda table, rows: jax.vmap(lambda i: table[i])(rows))
    return jnp.sum(read(w.astype(c.dtype), halves(rows)) * halves(c))


def ragged_loss(w, a, c):
    """Three experts; the rows behind the groups meet none."""
    sizes = jnp.array(ragged_sizes(len(a)))
    dtype = jnp.promote_types(a.dtype, c.dtype)
    y = jax.lax.ragged_dot(a.astype(dtype), w.astype(dtype), sizes)
    return jnp.sum(y * c)


def ragged_sizes(t):
    return [t - t // 2, 0, t // 4]


def exact_matmul(a, c, d):
    return np.einsum("btd,btp->bdp", a, c)


def exact_conv(a, c, d):
    padded = np.pad(a, ((0, 0), (1, 1), (0, 0)))
    windows = [padded[:, k : k + a.shape[1]] for k in range(3)]
    return np.stack([np.einsum("btd,btp->bdp", w, c) for w in windows], 1)


def exact_kernels(a, c, d):
    return np.stack([exact_conv(a, c, d), exact_conv(a / 2, c, d)], 1)


def exact_lookup(a, c, d):
    table = np.zeros((a.shape[0], d, c.shape[-1]))
    for b in range(a.shape[0]):
        np.add.at(table[b], rows_of(a, d)[b], c[b])
    return table


def exact_parts(a, c, d):
    half = -(-a.shape[1] // 2)
    halves = [exact_lookup(a[:, part], c[:, part], d) for part in np.s_[:half, half:]]
    return np.stack(halves, 1)


def exact_ragged(a, c, d):
    ends = np.cumsum([0, *ragged_sizes(a.shape[1])])
    groups = [slice(*pair) for pair in pairwise(ends)]
    return np.stack([exact_matmul(a[:, rows], c[:, rows], d) for rows in groups], 1)


def exact(kind, a, c, d):
    """The gradients in float64."""
    return EXACT[kind](np.asarray(a, np.float64), np.asarray(c, np.float64), d)


EXACT = {"matmul": exact_matmul, "conv": exact_conv, "ragged": exact_ragged}
EXACT |= {"lookup": exact_lookup, "parts": exact_parts, "kernels": exact_kernels}
LOSSES = {"matmul": matmul_loss, "conv": conv_loss, "ragged": ragged_loss}
LOSSES |= {"lookup": lookup_loss, "parts": parts_loss, "kernels": kernels_loss}
# The leaf has these axes in front of [d, p].
LEADS = {"matmul": (), "conv": (3,), "ragged": (3,), "lookup": (), "parts": (2,)}
LEADS |= {"kernels": (2, 3)}


def near_cancelling(t, d, p, scale, seed=0):
    """Equal activations, cotangents that add up to nearly nothing."""
    rng = np.random.default_rng(seed)
    a = np.broadcast_to(rng.normal(size=(8, 1, d)) * scale, (8, t, d))
    c = rng.normal(size=(8, t, p))
    c = c - c.mean(1, keepdims=True) + 1e-6 * rng.normal(size=(8, 1, p))
    return a, c


def near_constant(t, d, p, noise, seed=0):
    rng = np.random.default_rng(seed)
    a = 1 + noise * rng.normal(size=(8, t, d))
    c = np.sign(np.arange(t) % 2 - 0.5)[:, None] * (1 + noise * rng.normal(size=(8, t, p)))
    return a, c
