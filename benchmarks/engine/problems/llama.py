"""Transformers in plain JAX: Llama's block, merged LoRA, and mixtures of experts."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .problem import Problem, Weights, cross_entropy, texts

LAYERS = 4
HEADS = 4
VOCABULARY = 1000


def rms_norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6) * scale


def rotary(x: jax.Array) -> jax.Array:
    """Turns pairs of numbers of queries or keys `[T, heads, width]` by their position's angles."""
    half = x.shape[-1] // 2
    frequencies = 10_000.0 ** (-np.arange(half) / half)
    angles = np.arange(len(x))[:, None, None] * frequencies
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    left, right = x[..., :half], x[..., half:]
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


def attention(w: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Causal attention of `[T, width]` to itself."""
    in_heads = lambda name: (x @ w[name]).reshape(len(x), HEADS, -1)
    q, k, v = rotary(in_heads("q")), rotary(in_heads("k")), in_heads("v")
    scores = jnp.einsum("thd,shd->hts", q, k) / np.sqrt(np.float32(q.shape[-1]))
    allowed = np.tril(np.ones((len(x), len(x)), bool))
    weights = jax.nn.softmax(jnp.where(allowed, scores, -1e9))
    return jnp.einsum("hts,shd->thd", weights, v).reshape(x.shape) @ w["o"]


def swiglu(w: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return (jax.nn.silu(x @ w["gate"]) * (x @ w["up"])) @ w["down"]


def block(
    w: dict[str, jax.Array], x: jax.Array, feed_forward: Callable[..., jax.Array] = swiglu
) -> jax.Array:
    x = x + attention(w, rms_norm(x, w["attention_norm"]))
    return x + feed_forward(w, rms_norm(x, w["norm"]))


def attention_weights(draw: Weights, width: int, *stacked: int) -> dict[str, np.ndarray]:
    weights = {name: draw(*stacked, width, width) for name in "qkvo"}
    ones = np.ones((*stacked, width), np.float32)
    return weights | {"attention_norm": ones, "norm": ones}


def swiglu_weights(draw: Weights, width: int, *stacked: int) -> dict[str, np.ndarray]:
    hidden = 3 * width
    return {
        "gate": draw(*stacked, width, hidden),
        "up": draw(*stacked, width, hidden),
        "down": draw(*stacked, hidden, width),
    }


def ends_weights(draw: Weights, width: int) -> dict[str, np.ndarray]:
    """Returns the weights before and after the blocks."""
    return {
        "embedding": draw.table(VOCABULARY, width),
        "norm": np.ones(width, np.float32),
        "output": draw(width, VOCABULARY),
    }


def language_loss(
    ends: dict[str, jax.Array], blocks: Callable[[jax.Array], jax.Array], x: jax.Array, y: jax.Array
) -> jax.Array:
    h = blocks(ends["embedding"][x])
    return cross_entropy(rms_norm(h, ends["norm"]) @ ends["output"], y)


def llama_scan_remat(small: bool = False) -> Problem:
    width, length, rows = (8, 6, 4) if small else (128, 64, 32)
    draw = Weights()
    stacked = attention_weights(draw, width, LAYERS) | swiglu_weights(draw, width, LAYERS)
    params = jax.tree.map(jnp.asarray, {"blocks": stacked, "ends": ends_weights(draw, width)})

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        again = jax.checkpoint(lambda h, w: (block(w, h), None))
        blocks = lambda h: jax.lax.scan(again, h, params["blocks"])[0]
        return language_loss(params["ends"], blocks, x, y)

    title = f"Llama block, scan and remat, width {width}, {length} tokens, batch {rows}"
    return Problem(loss, params, texts(rows, length, VOCABULARY), title=title)


def lora_merged(small: bool = False) -> Problem:
    """Only A and B are trained; the weight is W + AB, and the loss closes over W."""
    width, length, rows, rank, layers = (8, 6, 4, 2, 1) if small else (256, 64, 16, 8, LAYERS)
    draw = Weights()
    # numpy arrays: constants of whatever program the loss becomes a part of
    frozen = [attention_weights(draw, width) | swiglu_weights(draw, width) for _ in range(layers)]
    ends = ends_weights(draw, width)
    adapters = [
        {
            name: {"a": draw(w.shape[0], rank), "b": draw.table(rank, w.shape[1])}
            for name, w in layer.items()
            if w.ndim == 2
        }
        for layer in frozen
    ]

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        def blocks(h: jax.Array) -> jax.Array:
            for layer, adapter in zip(frozen, params, strict=True):
                merged = {name: layer[name] + ab["a"] @ ab["b"] for name, ab in adapter.items()}
                h = block(layer | merged, h)
            return h

        return language_loss(jax.tree.map(jnp.asarray, ends), blocks, x, y)

    params = jax.tree.map(jnp.asarray, adapters)
    title = f"merged LoRA of rank {rank}, width {width}, {length} tokens, batch {rows}"
    return Problem(loss, params, texts(rows, length, VOCABULARY), title=title)


def dispatched(w: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Each token goes to the expert of its largest gate, if that has a place left (GShard)."""
    gates = jax.nn.softmax(x @ w["router"])  # [T, experts]
    capacity = 2 * len(x) // gates.shape[1]
    chosen = jax.nn.one_hot(jnp.argmax(gates, axis=1), gates.shape[1], dtype=jnp.int32)
    place = jnp.cumsum(chosen, axis=0) * chosen - 1  # -1, so no place, for experts not chosen
    dispatch = jax.nn.one_hot(place, capacity)  # [T, experts, capacity]
    h = jnp.einsum("td,tec->ecd", x, dispatch)
    h = jax.nn.gelu(jnp.einsum("ecd,edp->ecp", h, w["in"]))
    h = jnp.einsum("ecp,epd->ecd", h, w["out"])
    return jnp.einsum("ecd,tec->td", h, dispatch * gates[:, :, None])


def sorted_by_expert(w: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Each token goes to the expert of its largest gate; those of one expert lie together."""
    gates = jax.nn.softmax(x @ w["router"])  # [T, experts]
    expert = jnp.argmax(gates, axis=1)
    order = jnp.argsort(expert)
    sizes = jnp.bincount(expert, length=gates.shape[1]).astype(jnp.int32)
    # JAX (0.12) can't vmap ragged_dot of weights that all examples share: they are chosen here by
    # a condition that depends on the example, and is always true.
    own = lambda name: jnp.where(sizes[0] >= 0, w[name], 0.0)
    h = jax.nn.gelu(jax.lax.ragged_dot(x[order], own("in"), sizes))
    h = jax.lax.ragged_dot(h, own("out"), sizes)
    gate = jnp.take_along_axis(gates, expert[:, None], axis=1)
    return jnp.zeros_like(x).at[order].set(h) * gate


def experts(
    feed_forward: Callable[..., jax.Array], how: str, rows: int, small: bool = False
) -> Problem:
    width, length, rows, count, layers = (8, 8, 4, 2, 1) if small else (128, 64, rows, 4, LAYERS)
    draw = Weights()
    blocks_weights = [
        attention_weights(draw, width)
        | {
            "router": draw(width, count),
            "in": draw(count, width, 2 * width),
            "out": draw(count, 2 * width, width),
        }
        for _ in range(layers)
    ]

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        def blocks(h: jax.Array) -> jax.Array:
            for layer in params["blocks"]:
                h = block(layer, h, feed_forward)
            return h

        return language_loss(params["ends"], blocks, x, y)

    params = jax.tree.map(
        jnp.asarray, {"blocks": blocks_weights, "ends": ends_weights(draw, width)}
    )
    title = f"{count} experts, {how}, width {width}, {length} tokens, batch {rows}"
    return Problem(loss, params, texts(rows, length, VOCABULARY), title=title)
