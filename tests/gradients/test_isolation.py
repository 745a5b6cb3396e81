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
@pytest.mark.parametrize("method", [slow("vmap"), slow("auto"), "factored", "two_pass"])
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


@pytest.mark.parametrize("method", ["auto", "two_pass"])
def test_constant_time_has_no_branch_where_rows_are_taken_apart(method):
    params, x = {"k": jnp.ones((3, 3, 8, 8))}, jnp.ones((4, 8, 8, 8))

    def text(constant_time):
        step = lambda x, mask: clipped(LOSSES["made"], method, params, x, mask, constant_time)
        return str(jax.make_jaxpr(step)(x, np.ones(4, bool)))

    assert "cond[" in text(False)
    assert "cond[" not in text(True)


def line(x, kernel):
    dimensions = ("NWC", "WIO", "NWC")
    return jax.lax.conv_general_dilated(x[None], kernel, (1,), "SAME", None, None, dimensions)[0]


def shifted(x, kernel):
    """The same without a convolution."""
    padded = jnp.pad(x, ((1, 1), (0, 0)))
    return sum(padded[i : i + len(x)] @ kernel[i] for i in range(3))


@jax.custom_vjp
def shifted_forward(x, kernel):
    return shifted(x, kernel)


shifted_forward.defvjp(
    lambda x, kernel: (shifted(x, kernel), (x, kernel)),
    lambda kept, c: jax.vjp(line, *kept)[1](c),
)
IN_LINES = {
    "twice": lambda q, x: jnp.sum(jnp.sin(line(jnp.sin(line(x, q)), q))),
    "backward only": lambda q, x: jnp.sum(jnp.sin(shifted_forward(jnp.sin(x), q))),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", [slow("vmap"), "auto", slow("factored"), "two_pass"])
@pytest.mark.parametrize("loss", IN_LINES)
def test_a_row_that_is_not_finite_stays_alone_in_float64(loss, method):
    """There XLA for CPUs computes groups with zeros between them, of other shapes, too."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        params, x = jnp.asarray(rng.normal(size=(3, 4, 4))), rng.normal(size=(4, 6, 4))
        x[3] = np.nan
        clipping = jaxdp.clip_individual(1.0)
        grads = jaxdp.per_example_grads(IN_LINES[loss], method=method)
        step = lambda params, x: clipping.update(grads(params, (x,)), clipping.init(params))[0]
        with_it, without = jax.jit(step)(params, x), jax.jit(step)(params, x[:3])
        assert np.linalg.norm(without) > 0.5
        np.testing.assert_allclose(with_it, without, rtol=2e-3)


def test_members_of_an_ensemble_would_be_groups_too(monkeypatch):
    clipping = jaxdp.clip_individual(1.0)
    grads = jaxdp.per_example_grads(IN_LINES["twice"])
    step = lambda params, x: clipping.update(grads(params, (x,)), clipping.init(params))[0]
    params, x = jnp.ones((2, 3, 4, 4)), jnp.ones((2, 5, 6, 4))
    told = "vmapped 2 times whose loss has convolutions: on CPUs, .* Use jax.lax.map in place"
    with pytest.raises(ValueError, match=told):
        jax.vmap(step)(params, x)
    assert jax.lax.map(lambda member: step(*member), (params, x)).shape == params.shape
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert jax.vmap(step)(params, x).shape == params.shape
