"""Losses, batches and parameters as users write them wrongly: one line, with the cure."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdp

X, Y = np.ones((4, 3), np.float32), np.zeros(4, np.int32)
W = {"w": jnp.ones((3, 2))}


def test_a_loss_without_shared_is_told():
    with pytest.raises(TypeError, match=r"the loss takes \(params, x\), without shared: write it"):
        jaxdp.per_example_grads(lambda params, x: 0.0)(W, (X,), shared=X)
    with pytest.raises(TypeError, match=r"write it as loss\(params, \*example, shared\)"):
        jaxdp.explain(lambda params, x: 0.0, W, (X[0],), shared=X)
    loss = jaxdp.mean_loss(lambda params, x: 0.0)
    with pytest.raises(TypeError, match="without shared"):
        jaxdp.per_example_grads(loss, unit="batch")(W, (X[None],), shared=X)


def test_shared_that_the_loss_wants_and_does_not_get_is_told():
    def loss(params, x, *, shared):
        return jnp.sum(x @ params["w"] * shared)

    with pytest.raises(TypeError, match="the loss has a parameter shared, and shared is None"):
        jaxdp.per_example_grads(loss)(W, (X,))
    with pytest.raises(TypeError, match="has a parameter shared"):
        jaxdp.explain(loss, W, (X[0],))


def test_losses_that_take_any_name_or_have_a_default_get_it_too():
    for loss in (
        lambda p, x, shared=None: jnp.sum(x @ p["w"]) * (1 if shared is None else shared),
        lambda p, x, **kw: jnp.sum(x @ p["w"]) * kw.get("shared", 1),
    ):
        one = jaxdp.per_example_grads(loss)(W, (X,)).materialize()["w"]
        two = jaxdp.per_example_grads(loss)(W, (X,), shared=2.0).materialize()["w"]
        np.testing.assert_allclose(two, 2 * one)


def test_a_loss_for_a_batch_is_told_what_it_got():
    def logits(p, x):
        return x @ p["w"]

    def each(p, x, y):  # [B] of a batch
        return jnp.sum(logits(p, x) ** 2, -1, keepdims=True)

    with pytest.raises(
        TypeError, match=r"returned shape \(1,\) .* of shapes \(3,\), \(\), without"
    ):
        jaxdp.per_example_grads(each)(W, (X, Y))

    def picks(p, x, y):
        return logits(p, x)[jnp.arange(len(x)), y].mean()

    for run in (
        lambda: jaxdp.per_example_grads(picks)(W, (X, Y)),
        lambda: jaxdp.explain(picks, W, (X[0], Y[0])),
    ):
        with pytest.raises(IndexError) as caught:
            run()
        note = "jaxdp called the loss with arguments of shapes (3,), (), without a batch axis"
        assert any(note in told for told in caught.value.__notes__)


def test_arguments_in_another_order_are_told():
    loss = lambda p, x: jnp.sum(x @ p["w"])
    with pytest.raises(TypeError, match=r"as if they were swapped: call per_example_grads\(loss\)"):
        jaxdp.per_example_grads(loss)((X,), W)
    with pytest.raises(TypeError, match=r"batch is a ndarray: pass the tuple"):
        jaxdp.per_example_grads(loss)(W, (X))
    with pytest.raises(TypeError, match=r"batch is a dict: pass the tuple"):
        jaxdp.per_example_grads(loss)(W, {"x": X})


def test_whole_numbers_among_the_parameters_are_told():
    loss = lambda p, x: jnp.sum(x @ p["w"])
    with pytest.raises(TypeError, match=r"\['n'\] has dtype int32.* shared=rest\)"):
        jaxdp.per_example_grads(loss)({**W, "n": jnp.arange(3)}, (X,))


def test_constants_in_the_batch_are_told():
    with pytest.raises(ValueError, match=r"batch\[1\] is 2.0, .*by name, as shared="):
        jaxdp.per_example_grads(lambda p, x, c: c)(W, (X, 2.0))


class Counter(eqx.Module):
    weight: jax.Array
    calls: jax.Array


@pytest.mark.parametrize(
    ("model", "leaf"),
    [
        (eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0)), r"\.activation is .*custom_jvp"),
        (Counter(jnp.ones(3), jnp.array(0)), r"\.calls has dtype int32"),
    ],
)
def test_an_equinox_module_is_to_be_partitioned(model, leaf):
    with pytest.raises(TypeError, match=rf"{leaf}.*eqx.partition\(model, eqx.is_inexact_array\)"):
        jaxdp.per_example_grads(lambda m, x: jnp.sum(m(x)))(model, (X,))
    params, rest = eqx.partition(model, eqx.is_inexact_array)
    if isinstance(model, eqx.nn.MLP):
        loss = lambda params, x, shared: jnp.sum(eqx.combine(params, shared)(x))
        got = jaxdp.per_example_grads(loss)(params, (X,), shared=rest).materialize()
        want = eqx.filter_vmap(eqx.filter_grad(lambda m, x: jnp.sum(m(x))), in_axes=(None, 0))
        for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want(model, X)), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def checked(on_error):
    return lambda w, x: jnp.sum(jnp.sin(eqx.error_if(w * x, x[0] > 2, "no", on_error=on_error)))


def test_an_error_that_one_example_raises_for_all_is_refused():
    """equinox.error_if asks whether any example of the batch errs: one NaN would be everyone's."""
    w, x = jnp.ones(3), jnp.asarray(X).at[1].set(5.0)
    grads = lambda on_error, **options: jaxdp.per_example_grads(checked(on_error), **options)
    for on_error in ("raise", "nan"):
        with pytest.raises(ValueError, match=r"unvmap_any.*microbatch_size=1.*EQX_ON_ERROR=off"):
            grads(on_error)(w, (x,))
    with pytest.raises(ValueError, match=r"pure_callback.*EQX_ON_ERROR=off before Equinox is"):
        grads("raise", microbatch_size=1)(w, (x,))
    every = jnp.cos(x) * x
    np.testing.assert_allclose(grads("off")(w, (x,)).materialize(), every, rtol=1e-5)
    alone = grads("nan", microbatch_size=1)(w, (x,)).materialize()
    np.testing.assert_allclose(alone, every.at[1].set(0), rtol=1e-5)


@pytest.mark.slow
def test_loops_of_equinox_take_one_example_at_a_time():
    def loss(w, x):
        step = lambda carry: (carry[0] + 1, jnp.sin(carry[1] * w))
        count = jnp.round(x[0]).astype(int)
        go_on = lambda carry: carry[0] < count
        loop = eqx.internal.while_loop(go_on, step, (0, x), max_steps=8, kind="checkpointed")
        return jnp.sum(loop[1])

    x = jnp.arange(12.0).reshape(4, 3) / 3
    with pytest.raises(ValueError, match=r"equinox's own code.*microbatch_size=1"):
        jaxdp.per_example_grads(loss)(jnp.ones(3), (x,))
    one = jaxdp.per_example_grads(loss, microbatch_size=1)
    got = jax.jit(lambda w: one(w, (x,)).materialize())(jnp.ones(3))
    want = jnp.stack([jax.grad(loss)(jnp.ones(3), row) for row in x])
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
