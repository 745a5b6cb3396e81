"""What couples examples is refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

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
    jax.debug.print("{}", x @ w)
    return jnp.sum(jnp.sin(x @ w))


def with_io(w, x):
    io_callback(lambda row: None, None, jax.lax.stop_gradient(x @ w))
    return jnp.sum(jnp.sin(x @ w))


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


@pytest.mark.slow
@pytest.mark.parametrize("loss", [with_print, with_io])
@pytest.mark.parametrize("method", ["auto", "factored", "vmap"])
@pytest.mark.parametrize("microbatch_size", [None, 1, 2])
def test_callbacks_that_return_nothing_are_run_for_every_example(
    loss, method, microbatch_size, capfd
):
    x = jnp.arange(12.0).reshape(4, 3) / 12
    transform = jaxdp.per_example_grads(loss, method=method, microbatch_size=microbatch_size)
    got = jax.jit(lambda w: transform(w, (x,)).materialize())(W)
    jax.effects_barrier()
    if loss is with_print:
        assert len(capfd.readouterr().out.splitlines()) >= 4
    want = jax.vmap(jax.grad(lambda w, x: jnp.sum(jnp.sin(x @ w))), (None, 0))(W, x)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_what_nothing_uses_couples_nothing():
    def loss(w, x):
        unused = mixing(x)
        return jnp.sum(x @ w) + 0 * jnp.sum(unused[:0])

    def used(w, x):
        return jnp.sum(x @ w) + 0 * jnp.sum(mixing(x))

    jaxdp.per_example_grads(lambda w, x: (mixing(x), jnp.sum(x @ w))[1])(W, (X,))
    for coupled in (loss, used):  # they are used, whatever becomes of them
        with pytest.raises(ValueError, match="custom_vmap"):
            jaxdp.per_example_grads(coupled)(W, (X,))


def test_a_ref_that_is_only_written_counts():
    def loss(w, x):
        jax.new_ref(x)[...] = 2 * x
        return jnp.sum(x @ w)

    with pytest.raises(ValueError, match="a Ref can carry values"):
        jaxdp.per_example_grads(loss)(W, (X,))


def foreign(module):
    """A primitive with a rule for vmap of its own, as Equinox's unvmap_any: it adds up examples."""
    primitive = Primitive("total")
    primitive.def_impl(lambda x: x)
    primitive.def_abstract_eval(lambda x: x)
    mlir.register_lowering(primitive, mlir.lower_fun(lambda x: x, multiple_results=False))

    def rule(args, dims):
        return primitive.bind(jnp.broadcast_to(args[0].sum(dims[0]), args[0].shape)), dims[0]

    rule.__module__ = module
    batching.primitive_batchers[primitive] = rule
    return lambda w, x: jnp.sum(jnp.sin(primitive.bind(x) @ w))


@pytest.mark.parametrize("method", ["auto", "factored", "vmap"])
@pytest.mark.parametrize("inside", [lambda f: f, jax.jit, hidden])
def test_rules_for_vmap_that_are_not_jaxs_own_are_refused(method, inside):
    for module in ("mine.rules", "equinox._unvmap"):
        loss = inside(foreign(module))
        package = module.split(".")[0]
        with pytest.raises(ValueError, match=rf"uses total .*it is {package}'s own code"):
            jaxdp.per_example_grads(loss, method=method)(W, (X,))
        with pytest.raises(ValueError, match="uses total"):
            jaxdp.explain(loss, W, (X[0],))


def test_equinoxs_rules_are_never_run_for_one_example_at_a_time():
    one = jaxdp.per_example_grads(foreign("equinox.rules"), microbatch_size=1)
    x = jnp.arange(12.0).reshape(4, 3) / 12
    step = jax.jit(lambda w: one(w, (x,)).materialize())
    want = jax.vmap(jax.grad(lambda w, x: jnp.sum(jnp.sin(x @ w))), (None, 0))(W, x)
    np.testing.assert_allclose(step(W), want, rtol=1e-5, atol=1e-6)
    assert jaxdp.explain(foreign("equinox.rules"), W, (X[0],), microbatch_size=1).one_term
    # A vmap around the step would run them after all.
    with pytest.raises(ValueError, match="a step is vmapped 2 times"):
        jax.vmap(step)(jnp.stack([W, W]))
    with pytest.raises(ValueError, match="it is mine's own code"):
        jaxdp.per_example_grads(foreign("mine.rules"), microbatch_size=1)(W, (X,))
