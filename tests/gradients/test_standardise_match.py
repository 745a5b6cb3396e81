"""What people write as weight standardisation and weight norm is read as that, and nothing else."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdp.gradients.jax_internals import Literal, open_jaxpr
from jaxdp.gradients.standardise import Values
from jaxdp.gradients.standardise_match import match

KERNEL = (3, 3, 4, 5)
INPUTS = (0, 1, 2)


def bit(w):
    w = w - jnp.mean(w, axis=INPUTS)
    return w / (jnp.std(w, axis=INPUTS) + 1e-5)


def keepdims(w):
    mean = w.mean(INPUTS, keepdims=True)
    return (w - mean) / jnp.sqrt(jnp.var(w, INPUTS, keepdims=True) + 1e-3)


def by_hand(w):
    centred = w - jnp.sum(w, INPUTS) / (3 * 3 * 4)
    var = jnp.mean(centred * centred, INPUTS)
    return centred * (var + 1e-3) ** -0.5


def nfnet(w, gain):
    mean = jnp.mean(w, axis=INPUTS, keepdims=True)
    var = jnp.var(w, axis=INPUTS, keepdims=True)
    scale = jax.lax.rsqrt(jnp.maximum(var * np.prod(w.shape[:-1]), 1e-4)) * gain
    shift = mean * scale
    return w * scale - shift


def weight_norm(w, gain):
    return gain * w / jnp.sqrt(jnp.sum(w**2, axis=INPUTS, keepdims=True))


def weight_norm_guarded(w, gain):
    return w * (gain / jnp.maximum(jnp.sqrt(jnp.sum(jnp.square(w), INPUTS)), 1e-6))


def centred_weight_norm(w, gain):
    w = w - w.mean(INPUTS)
    return gain[None, None, None] * (w * jax.lax.rsqrt((w * w).sum(INPUTS) + 1e-6))


def frobenius(w):
    return 3.0 * w / jnp.linalg.norm(w.reshape(-1))


def frobenius_of_matrix(w):
    return w / jnp.sqrt(jnp.sum(w * w))


def centred(w):
    return w - w.mean(INPUTS)


def scaled(w, gain):
    return 0.5 * w * gain


def reshaped(w):
    matrix = w.reshape(-1, w.shape[-1])
    matrix = matrix - matrix.mean(0)
    return matrix / jnp.linalg.norm(matrix, axis=0)


def transposed(w):
    w = jnp.transpose(w, (3, 0, 1, 2))
    w = w - w.mean((1, 2, 3), keepdims=True)
    return w / (w.std((1, 2, 3), keepdims=True) + 1e-5)


def unbiased(w):
    w = w - w.mean(INPUTS)
    return w / jnp.std(w, INPUTS, ddof=1)


def cast(w):
    return bit(w).astype(jnp.bfloat16)


ONE = [bit, keepdims, by_hand, frobenius_of_matrix, centred, reshaped, transposed, unbiased, cast]
TWO = [nfnet, weight_norm, weight_norm_guarded, centred_weight_norm, scaled]


def read(f, *arrays):
    """The description of f's result by its first argument; every value of the jaxpr."""
    jaxpr, consts = open_jaxpr(jax.make_jaxpr(f)(*arrays))
    values = dict(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, arrays, strict=True))
    for eqn in jaxpr.eqns:
        operands = [v.val if isinstance(v, Literal) else values[v] for v in eqn.invars]
        results = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
        results = results if eqn.primitive.multiple_results else [results]
        values.update(zip(eqn.outvars, results, strict=True))
    return match(jaxpr, jaxpr.outvars[0], jaxpr.invars[0]), values


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) + 0.3, jnp.float32)


@pytest.mark.parametrize("f", [*ONE, *TWO], ids=lambda f: f.__name__)
def test_the_description_computes_the_same_weight(f):
    arrays = [random(*KERNEL), random(5, seed=1)][: 1 + (f in TWO)]
    found, values = read(f, *arrays)
    assert found is not None
    got = Values.make(found, values[found.base], [values[gain.var] for gain in found.gains])
    product = np.ones(got.scale.shape)
    if f in TWO:
        assert len(found.gains) == 1
        assert values[found.gains[0].var].size == 5
        product = np.asarray(arrays[1])
    want = f(*arrays)
    rtol = 1e-2 if want.dtype == jnp.bfloat16 else 1e-5
    np.testing.assert_allclose(found.derived(got.normalised * product), want, rtol=rtol, atol=1e-6)
