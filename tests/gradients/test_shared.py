"""What all examples share is held once, and changes nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.problems import flat64

import jaxdp
from jaxdp.dpsgd import public_norms
from jaxdp.dpsgd.public_data import pretrained_copy

B, D = 6, 16


def adapted(params, x, y, shared):
    """Low-rank updates of frozen layers."""
    for layer in params:
        x = jnp.tanh(x @ shared["base"] + x @ layer["a"] @ layer["b"] + shared["bias"])
    return (jnp.sum(x) - y) ** 2


def problem(size=D, batch=B, layers=2, dtype=np.float32):
    rng = np.random.default_rng(0)
    normal = lambda *shape: (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(dtype)
    params = [{"a": normal(size, 2), "b": normal(2, size)} for _ in range(layers)]
    shared = {"base": normal(size, size), "bias": normal(size)}
    return params, (normal(batch, size), normal(batch)), shared


@pytest.mark.parametrize("method", ["auto", "factored", "vmap"])
@pytest.mark.parametrize("microbatch_size", [None, 1, 4])
def test_gradients_are_those_of_a_float64_loop(method, microbatch_size):
    params, batch, shared = problem()
    transform = jaxdp.per_example_grads(adapted, method=method, microbatch_size=microbatch_size)
    got = jax.jit(lambda p, s: transform(p, batch, shared=s).materialize())(params, shared)
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda leaf: leaf.astype(np.float64), (params, batch, shared))
        grad = jax.vmap(jax.grad(adapted), (None, 0, 0, None))
        want = grad(exact[0], *exact[1], exact[2])
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5 * np.abs(other).max())


def step_of(**options):
    clip = jaxdp.clip_individual(1.0)
    transform = jaxdp.per_example_grads(adapted, **options)

    def step(params, batch, shared):
        return clip.update(transform(params, batch, shared=shared), clip.init(params))[0]

    return step


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": "factored"},
        {"method": "vmap"},
        {"microbatch_size": 1},
        {"microbatch_size": 4, "constant_time": True},
    ],
)
def test_it_is_never_a_constant_of_the_program(options):
    def text(size):
        params, batch, shared = problem(size)
        return len(jax.jit(step_of(**options)).lower(params, batch, shared).as_text())

    small, large = text(64), text(512)
    assert large < small + 1500  # wider numbers in the shapes
    params, batch, shared = problem(512)
    closed = lambda params, batch: step_of(**options)(params, batch, shared)
    constants = len(jax.jit(closed).lower(params, batch).as_text())
    assert constants > 2 * shared["base"].nbytes


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"method": "factored"}, {"microbatch_size": 8}])
def test_its_memory_does_not_grow_with_the_examples(options):
    def memory(batch):
        given = problem(512, batch)
        compiled = jax.jit(step_of(**options)).lower(*given).compile()
        return compiled.memory_analysis().temp_size_in_bytes, given[2]["base"].nbytes

    (few, base), (many, _) = memory(8), memory(64)
    assert many - few < base  # 56 times the base, if every example had its own


@pytest.mark.slow
@pytest.mark.parametrize("microbatch_size", [None, 2])
@pytest.mark.parametrize("units_at_once", [None, 1])
def test_batch_units_share_it_too(microbatch_size, units_at_once):
    params, batch, shared = problem()
    units = jax.tree.map(lambda leaf: leaf.reshape(2, 3, *leaf.shape[1:]), batch)
    mask = np.array([[True, True, True], [True, True, False]])
    unit_loss = jaxdp.mean_loss(adapted, microbatch_size=microbatch_size)
    transform = jaxdp.per_example_grads(unit_loss, unit="batch", microbatch_size=units_at_once)
    lowered = jax.jit(lambda p, s: transform(p, units, mask, shared=s).materialize())
    got = lowered(params, shared)
    each = jax.vmap(jax.grad(adapted), (None, 0, 0, None))(params, *batch, shared)
    for one, rows in zip(jax.tree.leaves(got), jax.tree.leaves(each), strict=True):
        np.testing.assert_allclose(one[0], rows[:3].mean(0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(one[1], rows[3:5].mean(0), rtol=1e-4, atol=1e-6)


def test_what_is_no_array_is_passed_as_it_is():
    loss = lambda p, x, shared: jnp.sum(shared["activation"](x @ p + shared["bias"]))
    shared = {"activation": jnp.tanh, "bias": jnp.ones(3), "none": None, "name": "tanh"}
    params, x = jnp.ones((4, 3)), jnp.ones((5, 4))
    got = jaxdp.per_example_grads(loss)(params, (x,), shared=shared).materialize()
    want = jax.vmap(jax.grad(lambda p, x: loss(p, x, shared)), (None, 0))(params, x)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert jaxdp.explain(loss, params, (x[0],), shared=shared).leaves[0].form == "gram"


def test_a_parameter_that_is_shared_too_is_a_constant_there():
    loss = lambda p, x, shared: jnp.sum(jnp.sin(x * p) * shared)
    p, x = jnp.array([1.0, 2.0]), jnp.ones((3, 2))
    step = jax.jit(lambda p: jaxdp.per_example_grads(loss)(p, (x,), shared=p).materialize())
    np.testing.assert_allclose(step(p), jnp.broadcast_to(jnp.cos(p) * p, (3, 2)), rtol=1e-5)


def test_it_may_have_no_influence_and_hold_keys_and_whole_numbers():
    loss = lambda p, x, shared: jnp.sum(jnp.sin(x * p)[shared["places"]])
    shared = {"key": jax.random.key(0), "places": np.array([0, 2]), "unused": np.ones(3)}
    p, x = jnp.ones(3), jnp.ones((5, 3))
    got = jaxdp.per_example_grads(loss)(p, (x,), shared=shared).materialize()
    want = np.broadcast_to(np.cos(1) * np.array([1, 0, 1]), (5, 3))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert jaxdp.explain(loss, p, (x[0],), shared=shared).without_gradient == ()


def test_explain_takes_values_or_shapes():
    params, batch, shared = problem()
    example = jax.tree.map(lambda leaf: leaf[0], batch)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), shared)
    told = [jaxdp.explain(adapted, params, example, shared=s) for s in (shared, shapes)]
    assert str(told[0]) == str(told[1])
    assert {leaf.form for leaf in told[0].leaves} == {"gram"}
    assert told[0].without_gradient == ()


def test_zero_gradients_are_found_at_the_shared_values():
    loss = lambda p, x, shared: jnp.sum(p * x * shared)
    told = lambda shared: jaxdp.explain(loss, X, (X,), shared=shared).without_gradient
    X = jnp.ones(4)
    assert told(jnp.zeros(4)) == ("params",)
    assert told(jnp.ones(4)) == told(jax.ShapeDtypeStruct((4,), jnp.float32)) == ()
    # Nothing of the trial is left in a program that has it as an argument.
    assert jax.make_jaxpr(lambda s: jnp.float32(len(told(s))))(X).eqns == []


def test_public_norms_and_the_copy_share_it_too():
    params, batch, shared = problem()
    clip = jaxdp.clip_layerwise(1.0)
    closed = lambda p, *example: adapted(p, *example, shared)
    batches = [(batch, None)]
    norms = public_norms(adapted, clip)(params, batches, shared=shared)
    np.testing.assert_allclose(norms, public_norms(closed, clip)(params, batches), rtol=1e-5)
    batches = [(batch, np.ones(B, bool))] * 2
    copy = pretrained_copy(jaxdp.mean_loss(adapted), params, batches, shared=shared)
    want = pretrained_copy(jaxdp.mean_loss(closed), params, batches)
    np.testing.assert_allclose(flat64(copy), flat64(want), rtol=1e-5, atol=1e-7)


def test_examples_that_see_each_other_are_refused_as_ever():
    def coupled(p, x, shared):
        return jnp.sum((x - jax.lax.pmean(x, "batch")) @ p * shared)

    run = lambda x: jaxdp.per_example_grads(coupled)(jnp.ones((3, 3)), (x,), shared=jnp.ones(3))
    with pytest.raises(ValueError, match="communicates across a mapped axis"):
        jax.vmap(lambda x: run(x).materialize(), axis_name="batch")(jnp.ones((2, 4, 3)))
