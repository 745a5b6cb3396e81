"""Products of data with parameters that have batch axes, and einsum of any form."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from helpers.cases import slow
from helpers.engines import B, agree, agree_exactly, factored, normal

SIZES = dict(b=2, d=4, e=3, h=2, k=3, p=5, s=3, t=6, u=2)


def summed(spec):
    """A loss, a parameter and a batch for einsum's `spec`; the parameter is the second operand."""
    shapes = [tuple(SIZES[letter] for letter in part) for part in spec.split("->")[0].split(",")]

    def loss(w, x):
        y = jnp.einsum(spec, x, w)
        return jnp.sum(jnp.sin(2 * y) * (1 + jnp.arange(y.size).reshape(y.shape) / y.size))

    return loss, normal(1, *shapes[1]), (normal(2, B, *shapes[0]),)


@pytest.mark.parametrize(
    "spec",
    [
        "ted,edp->tep",
        slow("etd,edp->etp"),
        slow("td,edp->tep"),
        slow("ed,edp->ep"),
        slow("td,dhk->htk"),
        slow("thk,hkd->td"),
        slow("btd,pd->bpt"),
        slow("bhtd,hdp->bthp"),
        slow("ted,ed->te"),
        "ted,ed->t",
        slow("td,d->td"),
        slow("td,td->td"),
        "td,td->t",
        slow("t,td->d"),
        "t,->t",
        slow("eu,tud->etd"),
        slow("hts,htd->hsd"),
        slow("dt,dp->p"),
        slow("tt,tp->tp"),
    ],
)
def test_einsum_of_data_with_a_parameter(spec):
    agree_exactly(*summed(spec))


@pytest.mark.parametrize("spec", ["td,edp->tp", "et,edp->edt", "td,dd->t"])
def test_sums_and_diagonals_of_a_parameter_are_taken_before_the_product(spec):
    """einsum sums axes, or picks a diagonal, of the parameter itself: a derived weight."""
    loss, w, batch = summed(spec)
    agree(loss, w, batch)
    assert factored(loss, w, batch) == [False]


def test_mapped_layers_with_weights_of_their_own():
    def loss(params, x):
        h = jax.vmap(lambda w, x: jnp.tanh(x @ w))(params["in"], x)
        y = jax.vmap(lambda w, h: w.T @ h, in_axes=(1, 0))(params["out"], h[:, 0])
        return jnp.sum(jnp.sin(jax.vmap(jnp.dot)(params["dot"], y)))

    params = {"in": normal(0, 3, 4, 5), "out": normal(1, 5, 3, 2), "dot": normal(2, 3, 2)}
    agree_exactly(loss, params, (normal(3, B, 3, 6, 4),))


@pytest.mark.slow
def test_layers_of_flax_with_batch_axes():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.DenseGeneral(5, axis=-1, batch_dims=(0,))(x)
            Mapped = nn.vmap(nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True})
            return nn.DenseGeneral((2, 3), axis=(0, 2))(Mapped(4)(x))

    x = normal(0, B, 3, 6, 4)
    params = Model().init(jax.random.key(1), x[0])
    loss = lambda params, x: jnp.sum(jnp.sin(Model().apply(params, x)))
    agree_exactly(loss, params, (x,), dense=("bias",))
