"""A row that is not finite stays alone where XLA would take others with it (privacy rule 6)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.cases import slow

import jaxdp
from jaxdp.gradients.isolation import mixes_rows

LAYOUT = ("NHWC", "HWIO", "NHWC")
METHODS = ("vmap", "auto", "factored", "two_pass")


def conv(x, kernel, groups=1):
    return jax.lax.conv_general_dilated(
        x[None], kernel, (1, 1), "SAME", None, None, LAYOUT, feature_group_count=groups
    )[0]


LOSSES = {
    "groups": lambda q, x: jnp.sum(jnp.sin(conv(x, q["k"][:, :, :4], 2))),
    "made": lambda q, x: jnp.sum(jnp.sin(conv(x, jnp.tanh(q["k"])))),
    "of data": lambda q, x: jnp.sum(jnp.sin(conv(x, q["k"] * jnp.mean(x)))),
    "twice": lambda q, x: jnp.sum(jnp.sin(conv(jnp.sin(conv(x, q["k"])), q["k"]))),
}


def clipped(loss, method, params, x, mask, constant_time=False):
    clipping = jaxdp.clip_individual(1e-3)
    grads = jaxdp.per_example_grads(loss, method=method, constant_time=constant_time)
    step = lambda params, x, mask: clipping.update(
        grads(params, (x,), mask), clipping.init(params)
    )[0]
    return jax.jit(step)(params, x, mask)["k"]


@pytest.mark.parametrize("constant_time", [False, slow(True)])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_row_that_is_not_finite_moves_the_sum_by_nothing_else(loss, method, constant_time):
    rng = np.random.default_rng(3)
    params = {"k": jnp.asarray(rng.normal(size=(3, 3, 8, 8)), jnp.float32)}
    x = jnp.asarray(rng.normal(size=(16, 8, 8, 8)), jnp.float32).at[1, 2, 3, 0].set(jnp.nan)
    everyone, others = jnp.ones(16, bool), jnp.arange(16) != 1
    arguments = (LOSSES[loss], method, params)
    with_it = clipped(*arguments, x, everyone, constant_time)
    without = clipped(*arguments, x.at[1].set(0.0), others, constant_time)
    assert np.linalg.norm(without) > 1e-3  # there is something to lose
    assert np.linalg.norm(with_it - without) <= 1e-3 * 1e-3


def test_where_rows_are_groups_is_seen():
    x, kernels = jnp.ones((3, 8, 8, 8)), jnp.ones((3, 3, 3, 8, 8))
    shared = jax.vmap(lambda x: conv(x, jnp.ones((3, 3, 4, 8)), 2))
    own = jax.vmap(lambda row: conv(*row))
    assert not mixes_rows(shared, x)
    assert mixes_rows(own, (x, kernels))
