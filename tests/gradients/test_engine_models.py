"""The engines against vmap(grad) on models of Flax."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx
from helpers.cases import slow
from helpers.engines import B, agree, factored, normal


class Block(nn.Module):
    remat: bool = False

    @nn.compact
    def __call__(self, x, _=None):
        h = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(h, h)
        h = nn.Dense(16)(nn.RMSNorm()(x))
        return x + nn.Dense(x.shape[-1])(nn.gelu(h)), None


class Transformer(nn.Module):
    kind: str = "plain"

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(11, 8)
        x = embed(tokens) + self.param("position", nn.initializers.normal(1.0), (6, 8))
        if self.kind == "scan":
            x, _ = nn.scan(
                Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=2
            )()(x, None)
        else:
            block = nn.remat(Block) if self.kind == "remat" else Block
            for _ in range(2):
                x, _ = block()(x)
        return nn.Dense(11)(x) if self.kind != "tied" else embed.attend(x)


def language_loss(model):
    def loss(params, tokens):
        logits = model.apply(params, tokens)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits[:-1]), tokens[1:, None], axis=1)
        return -jnp.mean(picked)

    return loss


@pytest.mark.parametrize("kind", [slow("plain"), slow("remat"), slow("scan"), slow("tied")])
def test_linen_transformers(kind):
    model = Transformer(kind)
    tokens = jax.random.randint(jax.random.key(0), (B, 6), 0, 11)
    params = model.init(jax.random.key(1), tokens[0])
    loss = language_loss(model)
    agree(loss, params, (tokens,), tolerance=2e-5)
    got = factored(loss, params, (tokens,))
    for (path, _), held in zip(jax.tree_util.tree_leaves_with_path(params), got, strict=True):
        name = jax.tree_util.keystr(path)
        assert held == ("kernel" in name or "embedding" in name), name


class ConvNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), use_bias=False)(x))
        x = nn.GroupNorm(4)(x)
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Conv(16, (3, 3), strides=2)(x))
        return nn.Dense(3)(x.reshape(-1))


@pytest.mark.slow
def test_linen_convnet():
    model = ConvNet()
    x, y = normal(0, B, 12, 12, 2), jnp.arange(B) % 3
    params = model.init(jax.random.key(1), x[0])
    loss = lambda q, x, y: -jax.nn.log_softmax(model.apply(q, x))[y]
    agree(loss, params, (x, y), tolerance=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("cell", [nn.OptimizedLSTMCell, nn.GRUCell])
def test_linen_recurrent(cell):
    model = nn.RNN(cell(5))
    x = normal(0, B, 7, 3)
    params = model.init(jax.random.key(1), x[0])
    agree(lambda q, x: jnp.sum(model.apply(q, x)[-1] ** 2), params, (x,), tolerance=2e-5)


def test_nnx_model():
    model = nnx.Sequential(
        nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(8, 3, rngs=nnx.Rngs(1))
    )
    graph, params = nnx.split(model)
    loss = lambda q, x, y: -jax.nn.log_softmax(nnx.merge(graph, q)(x))[y]
    batch = (normal(0, B, 4), jnp.arange(B) % 3)
    agree(loss, params, batch)
    assert factored(loss, params, batch).count(True) == 2
