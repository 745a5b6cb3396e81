"""What people write as weight standardisation and weight norm is read as that, and nothing else."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdp.gradients.jax_internals import Literal, bind, open_jaxpr
from jaxdp.gradients.jax_internals import primitives as p
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
        values.update(zip(eqn.outvars, bind(eqn, operands), strict=True))
    return match(jaxpr, jaxpr.outvars[0], jaxpr.invars[0]), values


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) + 0.3, jnp.float32)


@pytest.mark.slow
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


def flat(jaxpr, consts, *arrays):
    """The same program with its calls written out."""

    def run(jaxpr, consts, inputs):
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))
        for eqn in jaxpr.eqns:
            operands = [v.val if isinstance(v, Literal) else values[v] for v in eqn.invars]
            if eqn.primitive is p.jit_p:
                results = run(*open_jaxpr(eqn.params["jaxpr"]), operands)
            else:
                results = bind(eqn, operands)
            values.update(zip(eqn.outvars, results, strict=True))
        return [v.val if isinstance(v, Literal) else values[v] for v in jaxpr.outvars]

    return open_jaxpr(jax.make_jaxpr(lambda *inputs: run(jaxpr, consts, inputs))(*arrays))[0]


def of_first_product(f, params, leaf):
    """Reads the weight of the first matrix product or convolution of f(params), in a library."""
    leaves, structure = jax.tree.flatten(params)
    closed = jax.make_jaxpr(lambda *leaves: f(jax.tree.unflatten(structure, leaves)))(*leaves)
    jaxpr = flat(*open_jaxpr(closed), *leaves)
    products = (p.dot_general_p, p.conv_general_dilated_p)
    product = next(eqn for eqn in jaxpr.eqns if eqn.primitive in products)
    index = next(i for i, value in enumerate(leaves) if value is leaf)
    found = [match(jaxpr, v, jaxpr.invars[index]) for v in product.invars]
    (one,) = [x for x in found if x is not None]
    return one


def test_weight_norm_of_linen():
    module = nn.WeightNorm(nn.Conv(5, (3, 3)))
    x = jnp.ones((1, 6, 6, 4))
    variables = module.init(jax.random.key(0), x)
    kernel = variables["params"]["layer_instance"]["kernel"]
    found = of_first_product(lambda v: module.apply(v, x), variables, kernel)
    assert (found.mean_axes, found.norm_axes) == ((), (-4, -3, -2))
    assert [gain.axes for gain in found.gains] == [(-1,)]


def test_weight_norm_of_nnx():
    module = nnx.WeightNorm(nnx.Linear(4, 5, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
    graph, state = nnx.split(module)
    x = jnp.ones((1, 4))
    kernel = next(v for v in jax.tree.leaves(state) if v.shape == (4, 5))
    found = of_first_product(lambda state: nnx.merge(graph, state)(x), state, kernel)
    assert (found.mean_axes, found.norm_axes) == ((), (-2,))
    assert len(found.gains) == 1


def test_weight_norm_of_equinox():
    module = eqx.nn.WeightNorm(eqx.nn.Linear(4, 5, key=jax.random.key(0)))
    params, static = eqx.partition(module, eqx.is_array)
    weight = next(v for v in jax.tree.leaves(params) if v.shape == (5, 4))
    x = jnp.ones(4)
    found = of_first_product(lambda params: eqx.combine(params, static)(x), params, weight)
    assert (found.mean_axes, found.norm_axes) == ((), (-1,))
    assert len(found.gains) == 1


def spectral(w):
    u = w.reshape(-1, 5) @ jnp.ones(5)
    v = jax.lax.stop_gradient(u / jnp.linalg.norm(u))
    return w / jnp.linalg.norm(v @ w.reshape(-1, 5))


NEITHER = {
    "nothing": lambda w: w,
    "only cast": lambda w: w.astype(jnp.bfloat16),
    "not positive": lambda w: w / (jnp.sqrt((w * w).sum(INPUTS)) + (-0.1)),
    "another weight's length": lambda w, v: w / jnp.linalg.norm(v.reshape(-1)),
    "not quite the mean": lambda w: w - 0.999 * w.mean(INPUTS),
    "sum, not mean": lambda w: w - w.sum(INPUTS),
    "length with means, of what has none": lambda w: (
        (w - w.mean(INPUTS)) / jnp.sqrt((w * w).sum(INPUTS))
    ),
    "deviation of what keeps its mean": lambda w: w / jnp.std(w, INPUTS),
    "longer channels stay longer": lambda w: w * jnp.sqrt((w * w).sum(INPUTS)),
    "turned around": lambda w: w / (w * w).sum(INPUTS) ** 1.5,
    "stopped": lambda w: w / jax.lax.stop_gradient(jnp.std(w, INPUTS)),
    "absolute": lambda w: w / jnp.abs(w).sum(INPUTS),
    "largest": lambda w: w / w.max(INPUTS),
    "squared": lambda w: w * w,
    "means over other axes than lengths": lambda w: (
        (w - w.mean((0, 3), keepdims=True))
        / jnp.sqrt(((w - w.mean((0, 3), keepdims=True)) ** 2).sum(INPUTS))
    ),
    "the wrong axis": lambda w: w[0, 0, 0, :, None] / jnp.sqrt((w * w).sum((0, 1, 2))),
    "normalised twice": lambda w: bit(bit(w)),
    "gain before the length": lambda w, g: (w * g) / jnp.sqrt(((w * g) ** 2).sum(INPUTS)),
    "gain within the channel": lambda w, g: w / jnp.sqrt((w * w).sum()) * g,
    "gain that is a function of w": lambda w: bit(w) * jnp.tanh(w).sum(INPUTS),
    "masked": lambda w: jnp.where(w > 0, w, 0) / jnp.std(w, INPUTS),
    "repeated": lambda w: jnp.broadcast_to(bit(w), (2, *w.shape)),
    "spectral": spectral,
}


@pytest.mark.parametrize("what", NEITHER)
def test_what_is_neither_is_not_read(what):
    f = NEITHER[what]
    arrays = [random(*KERNEL), random(5, seed=1)][: f.__code__.co_argcount]
    assert read(f, *arrays)[0] is None


def test_a_square_matrix_is_not_read_along_the_wrong_axis():
    w = random(5, 5)
    assert read(lambda w: w / jnp.sqrt((w * w).sum(1)), w)[0] is None
    assert read(lambda w: w / jnp.sqrt((w * w).sum(1, keepdims=True)), w)[0].norm_axes == (-1,)


def test_a_weight_that_is_repeated_along_an_axis_of_size_1_is_not_read():
    assert read(lambda w: jnp.broadcast_to(w * 2, (3, 4, 5)), random(1, 4, 5))[0] is None
    assert read(lambda w: w * 2, random(1, 4, 5))[0] is not None


def test_a_constant_deviation_shrinks_nothing():
    """Below the smallest allowed length the weight is only multiplied."""
    w = random(*KERNEL)
    found, _ = read(lambda w: w / jnp.maximum(jnp.sqrt((w * w).sum(INPUTS)), 100.0), w)
    np.testing.assert_array_equal(Values.make(found, w, []).shrink, 0)
