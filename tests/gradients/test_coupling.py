"""What couples examples is refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdp

W, X = jnp.ones((3, 3)), jnp.ones((4, 3))


@jax.custom_batching.custom_vmap
def mixing(x):
    return x


@mixing.def_vmap
def _(axis_size, in_batched, x):
    return jnp.broadcast_to(x.mean(0), x.shape), True


def with_callback(w, x):
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jnp.sum(jax.pure_callback(np.sin, shape, x, vmap_method="expand_dims") @ w)


def with_print(w, x):
    jax.debug.print("{}", x)
    return jnp.sum(x @ w)


def with_ref(w, x):
    ref = jax.new_ref(x)
    ref[...] += 1
    return jnp.sum(ref[...] @ w)


def hidden(loss):
    return lambda w, x: jax.lax.cond(
        x[0] > 0,
        lambda: jax.lax.scan(lambda c, _: (c + loss(w, x), None), 0.0, length=2)[0],
        lambda: 0.0,
    )


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        (lambda w, x: jnp.sum(mixing(x) @ w), "custom_vmap_call"),
        (with_callback, "pure_callback"),
        (with_print, "debug_"),
        (with_ref, "ref"),
    ],
)
@pytest.mark.parametrize("inside", [lambda f: f, jax.jit, hidden])
@pytest.mark.parametrize("method", ["auto", "factored"])
def test_what_couples_examples_is_refused_by_name(loss, name, inside, method):
    if name == "ref" and inside is hidden:
        pytest.skip("JAX itself refuses Refs there")
    with pytest.raises(ValueError, match=rf"the loss uses \w*{name}"):
        jaxdp.per_example_grads(inside(loss), method=method)(W, (X,)).materialize()


def test_collectives_under_an_outer_axis_are_refused():
    def coupled(w, x):
        return jnp.sum((x - jax.lax.pmean(x, "batch")) @ w)

    def run(x):
        return jaxdp.per_example_grads(coupled)(W, (x,)).materialize()

    with pytest.raises(ValueError, match=r"the loss uses psum.*communicates"):
        jax.vmap(run, axis_name="batch")(jnp.ones((2, 4, 3)))


def test_collectives_inside_one_example_are_fine():
    def loss(w, x):
        centred = jax.vmap(lambda v: v - jax.lax.pmean(v, "i"), axis_name="i")
        return jnp.sum(jnp.sin(centred(x)[:, None] * w))

    got = jaxdp.per_example_grads(loss)(W, (X,)).materialize()
    assert got.shape == (4, 3, 3)


def _mixing_backward():
    @jax.custom_batching.custom_vmap
    def mix(x):
        return x

    @mix.def_vmap
    def mix_rule(axis_size, in_batched, x):
        return jnp.broadcast_to(jnp.sum(x, axis=0), x.shape), True

    @jax.custom_vjp
    def f(x):
        return x

    f.defvjp(lambda x: (x, None), lambda _, g: (mix(g),))
    return lambda p, x: jnp.sum(f(p * x) * x)


@pytest.mark.parametrize("method", ["auto", "factored", "vmap"])
@pytest.mark.parametrize("microbatch_size", [None, 1])
def test_losses_that_couple_examples_are_refused(method, microbatch_size):
    callback = lambda p, x: jnp.sum(
        p * jax.pure_callback(lambda v: v, jax.ShapeDtypeStruct((3,), jnp.float32), x)
    )
    for coupled, name in ((_mixing_backward(), "custom_vmap"), (callback, "pure_callback")):
        transform = jaxdp.per_example_grads(coupled, method=method, microbatch_size=microbatch_size)
        with pytest.raises(ValueError, match=f"the loss uses {name}"):
            transform(jnp.ones(3), (X,)).materialize()
