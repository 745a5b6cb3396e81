"""Recurrent networks over texts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from .problem import Problem, Weights, cross_entropy, of_model, texts

VOCABULARY = 1000


def cell(
    w: dict[str, jax.Array], state: tuple[jax.Array, jax.Array], x: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """One step of an LSTM whose four gates are one product."""
    h, c = state
    i, f, g, o = jnp.split(x @ w["input"] + h @ w["state"] + w["bias"], 4)
    c = jax.nn.sigmoid(f + 1) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return (h, c), h


def lstm(small: bool = False) -> Problem:
    """In plain JAX: a scan over time for each of the layers."""
    width, length, rows, layers = (8, 5, 4, 2) if small else (128, 64, 32, 4)
    draw = Weights()
    weights = {
        "embedding": draw.table(VOCABULARY, width),
        "cells": [
            {
                "input": draw(width, 4 * width),
                "state": draw(width, 4 * width),
                "bias": np.zeros(4 * width, np.float32),
            }
            for _ in range(layers)
        ],
        "output": draw(width, VOCABULARY),
    }

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        xs = params["embedding"][x]
        start = (jnp.zeros(width), jnp.zeros(width))
        for w in params["cells"]:
            _, xs = jax.lax.scan(lambda state, x: cell(w, state, x), start, xs)
        return cross_entropy(xs @ params["output"], y)

    title = f"LSTM, {layers} layers of {width}, {length} tokens, batch {rows}"
    params = jax.tree.map(jnp.asarray, weights)
    return Problem(loss, params, texts(rows, length, VOCABULARY), title=title)


class Bidirectional(nn.Module):
    width: int
    layers: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(VOCABULARY, self.width)(tokens)
        for _ in range(self.layers):
            forward, backward = (nn.RNN(nn.OptimizedLSTMCell(self.width)) for _ in range(2))
            x = nn.Bidirectional(forward, backward)(x)
        return nn.Dense(VOCABULARY)(x)


def bilstm_optimized(small: bool = False) -> Problem:
    width, length, rows, layers = (8, 5, 4, 1) if small else (128, 64, 16, 2)
    title = f"bidirectional LSTM, {layers} layers of {width}, {length} tokens, batch {rows}"
    return of_model(Bidirectional(width, layers), texts(rows, length, VOCABULARY), title)
