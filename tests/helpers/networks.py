"""The same networks in every library that a task takes."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
from flax import nnx

SIDE, HIDDEN, CLASSES = 6, 16, 3
INPUTS = (SIDE, SIDE, 1)
PIXELS = SIDE * SIDE * 4  # after the convolution


class Linen(nn.Module):
    """A convolution, a dense layer with dropout, and a last one."""

    rate: float = 0.0
    outputs: int = CLASSES

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Conv(4, (3, 3), name="conv")(x)).reshape(len(x), -1)
        x = jnp.tanh(nn.Dense(HIDDEN, name="hidden")(x))
        x = nn.Dropout(self.rate, deterministic=not train)(x)
        return nn.Dense(self.outputs, name="out")(x)


class Nnx(nnx.Module):
    def __init__(self, rate=0.0, outputs=CLASSES, seed=0):
        rngs = nnx.Rngs(seed)
        self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.hidden = nnx.Linear(PIXELS, HIDDEN, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.out = nnx.Linear(HIDDEN, outputs, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.conv(x)).reshape(len(x), -1)
        return self.out(self.dropout(jnp.tanh(self.hidden(x))))


class Equinox(eqx.Module):
    conv: eqx.nn.Conv2d
    hidden: eqx.nn.Linear
    dropout: eqx.nn.Dropout
    out: eqx.nn.Linear

    def __init__(self, rate=0.0, outputs=CLASSES):
        conv, hidden, out = jax.random.split(jax.random.key(0), 3)
        self.conv = eqx.nn.Conv2d(1, 4, 3, padding=1, key=conv)
        self.hidden = eqx.nn.Linear(PIXELS, HIDDEN, key=hidden)
        self.dropout = eqx.nn.Dropout(rate)
        self.out = eqx.nn.Linear(HIDDEN, outputs, key=out)

    def __call__(self, x, *, key=None):
        x = jax.nn.relu(self.conv(jnp.moveaxis(x, -1, 0))).reshape(-1)
        return self.out(self.dropout(jnp.tanh(self.hidden(x)), key=key))


def haiku_function(rate=0.0, outputs=CLASSES):
    def network(x, is_training):
        x = jax.nn.relu(hk.Conv2D(4, 3)(x)).reshape(len(x), -1)
        x = jnp.tanh(hk.Linear(HIDDEN)(x))
        if is_training:
            x = hk.dropout(hk.next_rng_key(), rate, x)
        return hk.Linear(outputs)(x)

    return network


NETWORKS = {
    "linen": Linen,
    "nnx": Nnx,
    "equinox": Equinox,
    "haiku": lambda *args: hk.transform(haiku_function(*args)),
    "haiku_without_state": lambda *args: hk.transform_with_state(haiku_function(*args)),
}
