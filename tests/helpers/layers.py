"""A loss with a dense layer, a convolution and a look-up in a table.

Gradients of the first are outer products, of the second convolutions, of the third look-ups.
Every record's own numbers decide how large they are.
"""

import jax
import jax.numpy as jnp
import numpy as np

LAYERS = {
    "dense": {"w": np.zeros((4, 3), np.float32), "b": np.zeros(3, np.float32)},
    "kernel": np.zeros((3, 1, 2), np.float32),
    "table": np.zeros((5, 3), np.float32),
}


def layers_loss(params, a, c, x, k, words):
    h = a @ params["dense"]["w"] + params["dense"]["b"]
    y = jax.lax.conv_general_dilated(
        x[None], params["kernel"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )[0]
    return jnp.sum(h * c) + jnp.sum(y * k) + jnp.sum(params["table"][words] * c)


def layers_records(rng, size, scale):
    normal = lambda *shape: (scale * rng.standard_normal((size, *shape))).astype(np.float32)
    words = rng.integers(5, size=(size, 2)).astype(np.int32)
    return normal(2, 4), normal(2, 3), normal(6, 1), normal(6, 2), words
