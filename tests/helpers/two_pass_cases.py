"""Losses for method "two_pass": with parameters, a batch, and where each leaf is measured."""

import jax
import jax.numpy as jnp
from helpers.engines import B, normal

LAYOUT = ("NWC", "WIO", "NWC")


def block(h, w):
    a = h * jax.lax.rsqrt(jnp.mean(h**2, -1, keepdims=True) + 0.1) * w["scale"]
    q, k, v = (jnp.einsum("td,dhk->htk", a, w["qkv"][i]) for i in range(3))
    scores = jax.nn.softmax(jnp.einsum("htk,hsk->hts", q, k))
    h = h + jnp.einsum("hts,hsk,hkd->td", scores, v, w["out"])
    return h + jax.nn.gelu(h @ w["up"] + w["bias"]) @ w["down"]


def block_params(layers, d):
    shapes = dict(scale=(d,), out=(2, d // 2, d), up=(d, 2 * d), bias=(2 * d,), down=(2 * d, d))
    params = {name: normal(i, layers, *shape) / 4 for i, (name, shape) in enumerate(shapes.items())}
    return params | {"qkv": [normal(i, layers, d, 2, d // 2) / 4 for i in range(3)]}


def stack_loss(params, x):
    layer = lambda h, w: (jax.checkpoint(block)(h, w), None)
    return jnp.mean(jax.lax.scan(layer, x, params)[0] ** 2)


def convolve(x, k):
    return jax.lax.conv_general_dilated(x[None], k, (1,), "SAME", None, None, LAYOUT)[0]


@jax.custom_vjp
def odd(x, w):
    return x @ w


odd.defvjp(lambda x, w: (x @ w, (x, w)), lambda r, g: (g @ r[1].T, 3 * (r[0].T @ g)))


@jax.custom_jvp
def odd_forward(x, w):
    return x @ w


odd_forward.defjvp(lambda p, t: (p[0] @ p[1], 3 * (t[0] @ p[1] + p[0] @ t[1])))


def dense_loss(q, x):
    return jnp.sum(jnp.tanh(x @ q["a"] + q["b"]) @ q["c"].T)


def embedding_loss(q, tokens):
    return jnp.sum(jnp.sin(jnp.take(q["table"], tokens, axis=0) * q["scale"]) @ q["w"])


def conv_loss(q, x):
    h = jax.checkpoint(lambda x, k: jnp.tanh(convolve(x, k)))(jnp.tanh(convolve(x, q["a"])), q["b"])
    return jnp.sum(jax.lax.scan(lambda h, k: (jnp.sin(convolve(h, k)), None), h, q["c"])[0])


def recurrent_loss(q, x):
    cell = lambda h, x: (jnp.tanh(x @ q["i"] + h @ q["h"] + q["b"]), h)
    return jnp.sum(jax.lax.scan(cell, jnp.zeros(len(q["b"]), x.dtype), x)[1] ** 2)


def shared_and_sliced_loss(q, x):
    def step(h, x):
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h + x, q)[0], None

    return jnp.sum(jax.lax.scan(step, jnp.zeros(4, x.dtype), x)[0])


def views_loss(q, x):
    inner = lambda h, w: (jax.checkpoint(lambda h, w: jnp.sin(h @ w.T))(h, w), None)
    outer = lambda h, ws: (jax.lax.scan(inner, h, ws.reshape(2, 4, 4), reverse=True)[0], None)
    return jnp.sum(jax.lax.scan(outer, x, q.swapaxes(0, 1))[0])


def carried_loss(q, x):
    return jnp.sum(jax.lax.scan(lambda w, x: (jnp.sin(w), x @ w), q, x)[1] ** 2)


def branches_loss(q, x):
    return jax.lax.cond(x[0, 0] > 0, lambda: jnp.sum(x @ q["a"]), lambda: jnp.sum(q["b"] ** 2))


def lora_loss(q, x):
    return jnp.sum(jnp.sin(x[0] @ (q["w"] + q["a"] @ q["b"])))


def adapter_loss(q, x):
    return jnp.sum(jnp.sin(x[:3] @ (2 * q["a"] @ q["b"])))


def tied_loss(q, tokens):
    h = jnp.tanh(q["table"][tokens] @ q["w"])
    return jnp.sum(jax.nn.logsumexp(h @ q["table"].T, axis=-1))


def concatenated_loss(q, x):
    return jnp.sum(jnp.sin(x[0] @ jnp.concatenate([q["a"], q["b"]], axis=1)))


def penalty_loss(q, x):
    return jnp.sum(jnp.sin(x[0] @ q["a"])) + jnp.sum(q["a"] ** 2) + jnp.sum(q["b"] ** 2) * x[0, 0]


def twice_loss(q, x):
    return jnp.sum(jnp.sin(jnp.sin(x[:2] @ q["i"] @ q["h"]) @ q["h"]))


def twice_in_scan_loss(q, x):
    layer = lambda h, w: (jnp.sin(jnp.sin(h @ w) @ w), None)
    return jnp.sum(jax.lax.scan(layer, x[:2] @ q["i"], q["h"])[0])


def parts_loss(q, x):
    up, down = jnp.split(q, 2, axis=1)
    return jnp.sum(jnp.sin(jnp.sin(x[0] @ up) @ down.T))


def experts_loss(q, x, counts):
    layer = lambda h, w: (jnp.sin(jax.lax.ragged_dot(h, w, counts)), None)
    return jnp.sum(jax.lax.scan(layer, x, q)[0] ** 2)


def kernels_loss(q, x):
    both = lambda h, k: (jnp.sin(convolve(jax.checkpoint(convolve)(h, k["a"]), k["b"])), None)
    return jnp.sum(jax.lax.scan(both, x, q, reverse=True)[0])


def shared_kernel_loss(q, x):
    h = jnp.tile(x[:3], (1, 2))
    return jnp.sum(jax.lax.fori_loop(0, 2, lambda _, h: jnp.sin(convolve(h, q)), h))


def positions_loss(q, x):
    return jnp.sum(jnp.sin(x + q["table"][jnp.arange(2, 8)]) @ q["w"])


X = normal(9, B, 6, 4)
TWO = {"a": normal(0, 4, 4), "b": normal(1, 4, 4)}
TOKENS = jax.random.randint(jax.random.key(3), (B, 6), 0, 7)
CELL = {"i": normal(0, 4, 24), "h": normal(1, 24, 24) / 5, "b": normal(2, 24)}
NARROW = {"i": normal(0, 4, 3), "h": normal(1, 3, 3), "b": normal(2, 3)}
KERNELS = {"a": normal(0, 3, 4, 5), "b": normal(1, 3, 5, 4), "c": normal(2, 2, 3, 4, 4)}
TABLE = {"scale": normal(0, 4), "table": normal(1, 7, 4), "w": normal(2, 4, 3)}
COUNTS = jnp.array([[2, 0, 4], [1, 2, 3], [0, 0, 0], [6, 0, 0], [1, 3, 1]])
jitted = jax.jit(lambda x, w: jnp.tanh(x @ w))
CASES = {
    "dense": (
        dense_loss,
        {"a": normal(0, 4, 5), "b": normal(1, 5), "c": normal(2, 3, 5), "unused": normal(3, 2)},
        (X,),
        ["site", "leaf", "site", "nowhere"],
    ),
    "blocks in scan and remat": (
        stack_loss,
        block_params(3, 4),
        (X,),
        ["leaf", *["site"] * 5, "leaf", "site"],
    ),
    "embedding": (embedding_loss, TABLE, (TOKENS,), ["leaf", "site", "site"]),
    "convolutions": (conv_loss, KERNELS, (X,), ["site"] * 3),
    "shared over time, by factors": (recurrent_loss, CELL, (X,), ["leaf", "tap", "leaf"]),
    "shared over time, as arrays": (recurrent_loss, NARROW, (X,), ["leaf"] * 3),
    "shared and sliced": (shared_and_sliced_loss, normal(0, 3, 4, 4), (X,), ["leaf"]),
    "views": (views_loss, normal(0, 8, 3, 4), (X,), ["site"]),
    "carried": (carried_loss, normal(0, 4, 2), (X,), ["leaf"]),
    "branches": (branches_loss, TWO, (X,), ["leaf", "leaf"]),
    "twice": (lambda q, x: jnp.sum(jnp.sin(x @ q["a"]) @ q["a"]), TWO, (X,), ["leaf", "nowhere"]),
    "custom_vjp": (lambda q, x: jnp.sum(odd(x @ q["a"], q["b"]) ** 2), TWO, (X,), ["site", "leaf"]),
    "custom_jvp": (
        lambda q, x: jnp.sum(odd_forward(x @ q["a"], q["b"]) ** 2),
        TWO,
        (X,),
        ["site", "leaf"],
    ),
    "stop_gradient": (
        lambda q, x: jnp.sum(jax.lax.stop_gradient(x @ q["a"]) * (x @ q["b"])),
        TWO,
        (X,),
        ["site", "site"],
    ),
    "stopped weight": (
        lambda q, x: jnp.sum(jnp.sin(x @ jax.lax.stop_gradient(q["a"])) * q["b"][0]),
        TWO,
        (X,),
        ["nowhere", "leaf"],
    ),
    "two leaves in one product": (
        lambda q, x: jnp.sum(jnp.sin(x @ (q["a"] @ q["b"]))),
        TWO,
        (X,),
        ["leaf", "leaf"],
    ),
    "LoRA, merged": (
        lora_loss,
        {"a": normal(0, 4, 2), "b": normal(1, 2, 24), "w": normal(2, 4, 24)},
        (X,),
        ["tap"] * 3,
    ),
    "factors that need a leaf as an array": (
        adapter_loss,
        {"a": normal(0, 24, 6) / 5, "b": normal(1, 6, 3)},
        (normal(9, B, 6, 24),),
        ["tap", "leaf"],
    ),
    "tied embedding": (
        tied_loss,
        {"table": normal(0, 20, 24), "w": normal(1, 24, 24) / 5},
        (TOKENS,),
        ["tap", "site"],
    ),
    "concatenated weights": (
        concatenated_loss,
        {"a": normal(0, 4, 5), "b": normal(1, 4, 3)},
        (X,),
        ["tap", "tap"],
    ),
    "L2 penalty": (penalty_loss, TWO, (X,), ["tap", "leaf"]),
    "a layer applied twice": (twice_loss, CELL, (X,), ["nowhere", "tap", "site"]),
    "a layer applied twice, in scan": (
        twice_in_scan_loss,
        {"h": normal(1, 2, 24, 24) / 5, "i": normal(0, 4, 24)},
        (X,),
        ["tap", "site"],
    ),
    "two parts of one leaf": (parts_loss, normal(0, 4, 48), (X,), ["tap"]),
    "ragged experts in scan": (experts_loss, normal(0, 2, 3, 4, 4), (X, COUNTS), ["site"]),
    "kernels in scan": (
        kernels_loss,
        {"a": normal(0, 2, 3, 4, 6), "b": normal(1, 2, 3, 6, 4)},
        (X,),
        ["site", "site"],
    ),
    "a kernel shared by a loop": (shared_kernel_loss, normal(0, 3, 8, 8) / 4, (X,), ["tap"]),
    "positions looked up": (
        positions_loss,
        {"table": normal(0, 9, 4), "w": normal(1, 4, 3)},
        (X,),
        ["site", "site"],
    ),
    "one function called twice": (
        lambda q, x: jnp.sum(jitted(jitted(x, q["a"]), q["b"])),
        TWO,
        (X,),
        ["site", "site"],
    ),
}
