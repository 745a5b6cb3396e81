"""The network of Equinox's example of score-based diffusion."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .problem import Problem, images


class MixerBlock(eqx.Module):
    """A network along the patches, then one along the numbers of a patch: `[hidden, patches]`."""

    patch_mixer: eqx.nn.MLP
    hidden_mixer: eqx.nn.MLP
    norm1: eqx.nn.LayerNorm
    norm2: eqx.nn.LayerNorm

    def __init__(self, patches: int, hidden: int, wide: int, key: jax.Array) -> None:
        keys = jax.random.split(key)
        self.patch_mixer = eqx.nn.MLP(patches, patches, wide, depth=1, key=keys[0])
        self.hidden_mixer = eqx.nn.MLP(hidden, hidden, wide, depth=1, key=keys[1])
        self.norm1 = eqx.nn.LayerNorm((hidden, patches))
        self.norm2 = eqx.nn.LayerNorm((patches, hidden))

    def __call__(self, y: jax.Array) -> jax.Array:
        y = y + jax.vmap(self.patch_mixer)(self.norm1(y))
        y = y.T
        y = y + jax.vmap(self.hidden_mixer)(self.norm2(y))
        return y.T


class Mixer(eqx.Module):
    """From an image `[1, side, side]` and a time to the score of the image."""

    conv_in: eqx.nn.Conv2d
    conv_out: eqx.nn.ConvTranspose2d
    blocks: list[MixerBlock]
    norm: eqx.nn.LayerNorm

    def __init__(self, side: int, hidden: int, wide: int, layers: int, key: jax.Array) -> None:
        inkey, outkey, *keys = jax.random.split(key, 2 + layers)
        patches = (side // 4) ** 2
        self.conv_in = eqx.nn.Conv2d(2, hidden, 4, stride=4, key=inkey)
        self.conv_out = eqx.nn.ConvTranspose2d(hidden, 1, 4, stride=4, key=outkey)
        self.blocks = [MixerBlock(patches, hidden, wide, key) for key in keys]
        self.norm = eqx.nn.LayerNorm((hidden, patches))

    def __call__(self, t: jax.Array, y: jax.Array) -> jax.Array:
        t = jnp.broadcast_to(t, (1, *y.shape[1:]))
        y = self.conv_in(jnp.concatenate([y, t]))
        shape = y.shape
        y = y.reshape(shape[0], -1)
        for block in self.blocks:
            y = block(y)
        return self.conv_out(self.norm(y).reshape(shape))


def diffusion_mixer(small: bool = False) -> Problem:
    side, hidden, wide, rows = (8, 4, 8, 4) if small else (28, 64, 512, 32)
    model = Mixer(side, hidden, wide, 2 if small else 4, jax.random.key(2))
    params, rest = eqx.partition(model, eqx.is_inexact_array)

    def loss(params: Any, x: jax.Array, y: tuple[jax.Array, jax.Array]) -> jax.Array:
        noise, t = y
        mean, std = jnp.exp(-0.5 * t), jnp.sqrt(-jnp.expm1(-t))
        score = eqx.combine(params, rest)(t, mean * x + std * noise)
        return jnp.mean(jnp.square(score + noise / std))

    x, _ = images(rows, 1, side, side)
    noise = jax.random.normal(jax.random.key(1), x.shape)
    t = jax.random.uniform(jax.random.key(3), (rows,), minval=0.1, maxval=10.0)
    title = f"diffusion mixer, {hidden} × {(side // 4) ** 2}, batch {rows}"
    return Problem(loss, params, (x, (noise, t)), title=title)
