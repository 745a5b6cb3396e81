"""Transformers of Flax's layers, for text and for images."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from .problem import Problem, Weights, cross_entropy, images, of_model, outputs, texts


class Block(nn.Module):
    """Attention and a dense network, each after LayerNorm and added to its input."""

    width: int
    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads)(h, h)
        h = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
        return x + nn.Dense(self.width)(h)


class Transformer(nn.Module):
    width: int
    layers: int = 4
    heads: int = 4
    vocabulary: int = 1000
    tied: bool = False

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        embed = nn.Embed(self.vocabulary, self.width)
        x = embed(tokens)
        x = x + self.param("position", nn.initializers.normal(0.02), x.shape)
        for _ in range(self.layers):
            x = Block(self.width, self.heads)(x)
        x = nn.LayerNorm()(x)
        return embed.attend(x) if self.tied else nn.Dense(self.vocabulary)(x)


class LongTransformer(nn.Module):
    """The blocks' weights are stacked, and their activations are computed again going back."""

    width: int
    layers: int
    heads: int
    vocabulary: int = 1000

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(self.vocabulary, self.width)(tokens)
        x = x + self.param("position", nn.initializers.normal(0.02), x.shape)
        blocks = nn.scan(
            nn.remat(lambda block, x, _: (block(x), None)),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.layers,
        )
        x, _ = blocks(Block(self.width, self.heads), x, None)
        return nn.Dense(self.vocabulary)(nn.LayerNorm()(x))


class ViT(nn.Module):
    """For images, in patches of 4 × 4; `dead_use`: with a head as those of big_vision."""

    width: int
    layers: int = 4
    heads: int = 4
    dead_use: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(self.width, (4, 4), strides=4)(x).reshape(-1, self.width)
        x = x + self.param("position", nn.initializers.normal(0.02), x.shape)
        for _ in range(self.layers):
            x = Block(self.width, self.heads)(x)
        x = nn.LayerNorm()(x)
        head = nn.Dense(10)
        if self.dead_use:
            _ = head(x)  # the logits of every patch, which nobody reads
        return head(jnp.mean(x, axis=0))


class Encoder(nn.Module):
    """From embeddings to the logits of a class, read at the first position."""

    width: int
    layers: int
    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.LayerNorm()(x)
        for _ in range(self.layers):
            x = Block(self.width, self.heads)(x)
        return nn.Dense(2)(nn.LayerNorm()(x)[0])


def transformer(
    width: int,
    length: int,
    rows: int,
    heads: int = 4,
    layers: int = 4,
    microbatch_size: int | None = None,
    small: bool = False,
) -> Problem:
    if small:
        width, length, rows, layers, microbatch_size = 8, 6, 4, 1, microbatch_size and 2
    title = f"transformer, width {width}, {length} tokens, batch {rows}"
    if microbatch_size is not None:
        title += f" in microbatches of {microbatch_size}"
    problem = of_model(Transformer(width, layers, heads), texts(rows, length, 1000), title)
    return replace(problem, microbatch_size=microbatch_size)


def gpt_tied(small: bool = False) -> Problem:
    """The embedding is the output layer, too."""
    width, length, rows, layers = (8, 6, 4, 1) if small else (128, 64, 32, 4)
    title = f"GPT with tied embedding, width {width}, {length} tokens, batch {rows}"
    return of_model(Transformer(width, layers, tied=True), texts(rows, length, 1000), title)


def gpt2_tied_embedding(small: bool = False) -> Problem:
    """GPT-2 small's embedding, with one of its twelve blocks."""
    width, vocabulary, length, rows = (8, 50, 6, 4) if small else (768, 50_257, 128, 8)
    heads = 4 if small else 12
    model = Transformer(width, layers=1, heads=heads, vocabulary=vocabulary, tied=True)
    title = f"GPT-2 small's tied embedding, {vocabulary:,} × {width}, {length} tokens, batch {rows}"
    return of_model(model, texts(rows, length, vocabulary), title)


def transformer_long(small: bool = False) -> Problem:
    width, layers, length, rows = (8, 3, 6, 4) if small else (512, 12, 1024, 8)
    model = LongTransformer(width, layers, heads=4 if small else 8)
    title = f"{layers} layers of width {width}, {length:,} tokens, batch {rows}, scan and remat"
    return of_model(model, texts(rows, length, 1000), title)


def vit(dead_use: bool = False, small: bool = False) -> Problem:
    width, side, rows, layers = (8, 8, 4, 1) if small else (256, 32, 64, 4)
    if dead_use and not small:
        width, rows = 128, 32
    title = f"ViT, width {width}, {(side // 4) ** 2} patches, batch {rows}"
    if dead_use:
        title += ", a dead use of the head"
    return of_model(ViT(width, layers, dead_use=dead_use), images(rows, side, side, 3), title)


def bert_vmapped_lookups(small: bool = False) -> Problem:
    """Rows of the tables are read one by one, under vmap, as Equinox's embedding does."""
    width, length, rows, vocabulary, layers = (
        (8, 6, 4, 20, 1) if small else (128, 64, 32, 30_522, 4)
    )
    encoder = Encoder(width, layers, heads=4)
    draw = Weights()
    tables = {
        "token": draw.table(vocabulary, width),
        "position": draw.table(length, width),
        "segment": draw.table(2, width),
    }
    x, _ = texts(rows, length, vocabulary)
    y = jnp.arange(rows) % 2
    segments = jnp.broadcast_to(np.arange(length) >= length // 2, x.shape).astype(jnp.int32)
    body = jax.jit(encoder.init)(jax.random.key(2), jnp.zeros((length, width)))

    def loss(params: Any, x: tuple[jax.Array, jax.Array], y: jax.Array) -> jax.Array:
        tokens, segments = x
        rows_of = lambda name, ids: jax.vmap(lambda j: params["tables"][name][j])(ids)
        h = rows_of("token", tokens) + rows_of("position", jnp.arange(length))
        h = h + rows_of("segment", segments)
        return cross_entropy(outputs(encoder, params["encoder"], h), y)

    params = {"tables": jax.tree.map(jnp.asarray, tables), "encoder": body}
    title = f"BERT with vmapped look-ups, width {width}, {length} tokens, batch {rows}"
    return Problem(loss, params, ((x, segments), y), title=title)
