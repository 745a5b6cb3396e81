"""What couples examples is refused by name; the user's own errors stay the user's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdp
from jaxdp.gradients.program import trace

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


def test_errors_in_the_loss_are_the_users_own():
    class MyError(Exception):
        pass

    def loss(w, x):
        if x.ndim == 1:
            raise MyError("line of mine")
        return jnp.sum(w)

    with pytest.raises(MyError, match="line of mine"):
        jaxdp.per_example_grads(loss)(W, (X,)).materialize()


def test_shape_errors_name_the_users_shapes():
    with pytest.raises(TypeError, match="dot_general requires contracting dimensions"):
        jaxdp.per_example_grads(lambda w, x: jnp.sum(x[:2] @ w))(W, (X,)).materialize()


def test_the_line_of_a_use_is_known():
    (use,) = trace(lambda w, x: jnp.sum(x @ w), W, (X[0],)).uses[0]
    assert "test_tracing.py" in use.where
    assert use.what == "dot_general"
