"""Wrong gradients and sums, as users write them: an error, or NaN, and never a number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdp

SQUARE = {"w": jnp.zeros((4, 4)), "b": jnp.zeros(4)}


def make_plan(clipping=None):
    return jaxdp.Plan(
        num_examples=100,
        expected_batch_size=4,
        steps=5,
        clipping=jaxdp.clip_individual(1.0) if clipping is None else clipping,
        noise_multiplier=1.0,
    )


def dense(batch=4, value=100.0):
    rows = jax.tree.map(lambda p: jnp.full((batch, *p.shape), value), SQUARE)
    return jaxdp.from_dense(rows, jaxdp.all_rows(batch), like=SQUARE)


def is_nan(gradient):
    return all(bool(np.isnan(leaf).all()) for leaf in jax.tree.leaves(gradient))


def test_a_mean_gradient_is_no_batch_of_gradients():
    mean = jax.tree.map(lambda p: jnp.full(p.shape, 100.0), SQUARE)
    with pytest.raises(ValueError, match=r"\['b'\] has shape \(4,\), and its parameter has shape"):
        jaxdp.from_dense(mean, jaxdp.all_rows(4), like=SQUARE)
    with pytest.raises(ValueError, match="give the gradients of all parameters"):
        jaxdp.from_dense({"w": jnp.zeros((4, 4, 4))}, jaxdp.all_rows(4), like=SQUARE)


def test_gradients_of_other_parameters_are_refused_when_optax_passes_the_parameters():
    tx = jaxdp.privatize(make_plan())
    row = jax.tree.map(lambda p: p[0], SQUARE)  # what a mean gradient would be for
    mean = jaxdp.from_dense(jax.tree.map(jnp.ones_like, SQUARE), jaxdp.all_rows(4), like=row)
    with pytest.raises(ValueError, match="they belong to other parameters"):
        tx.update(mean, tx.init(SQUARE), SQUARE)


def test_a_part_that_is_counted_twice_or_missing_or_scaled_is_nan():
    tx = jaxdp.privatize(make_plan())
    state = tx.init(SQUARE)
    part = lambda i, n=2: tx.sums(dense(), state, part=(i, n))
    release = lambda sums: tx.release(sums, state, SQUARE)[0]
    assert not is_nan(release(part(0) + part(1)))
    one = tx.sums(dense(), state)
    assert not is_nan(release(one))
    halves = [jax.tree.map(lambda x: x / 2, one)] * 2
    for wrong in (
        one + one,
        part(0),
        part(0) + part(0),
        part(0) + part(1) + part(1),
        jax.tree.map(lambda x: 2 * x, one),
        jax.tree.map(lambda x: 0.5 * x, one),
        jax.tree.map(lambda x: -x, one),
    ):
        assert is_nan(release(wrong))
        assert is_nan(jax.jit(release)(wrong))
    assert not is_nan(release(halves[0] + halves[1]))  # it is the sum itself
    with pytest.raises(ValueError, match="sums of 2 and of 3 parts"):
        part(0) + part(1, 3)
    for wrong, error in (((2, 2), ValueError), ((0, 0), ValueError), (3, TypeError)):
        with pytest.raises(error, match="part"):
            tx.sums(dense(), state, part=wrong)


def test_sums_of_another_step_are_nan():
    tx = jaxdp.privatize(make_plan())
    state = tx.init(SQUARE)
    sums = tx.sums(dense(), state)
    released, later = tx.release(sums, state)
    assert not is_nan(released)
    assert is_nan(tx.release(sums, later)[0])
    part = lambda i, state: tx.sums(dense(), state, part=(i, 2))
    assert is_nan(tx.release(part(0, state) + part(1, later), later)[0])
    with pytest.raises(ValueError, match="privatize_step has dtype uint8"):
        tx.sums(dense(), state._replace(privatize_step=jnp.uint8(0)))
    assert is_nan(tx.update(dense(), state._replace(privatize_step=jnp.int32(-1)))[0])


def test_sums_that_were_cast_are_refused():
    tx = jaxdp.privatize(make_plan())
    state = tx.init(SQUARE)
    cast = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tx.sums(dense(), state))
    for use in (lambda: tx.release(cast, state), lambda: cast + cast):
        with pytest.raises(ValueError, match="dtype bfloat16, which is too narrow"):
            use()


def test_members_of_an_ensemble_with_copies_of_one_key_are_nan():
    tx = jaxdp.privatize(make_plan())
    states = [tx.init(SQUARE) for _ in range(3)]
    stack = lambda states: jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    updates = jax.vmap(lambda state: tx.update(dense(), state)[0])
    assert np.isfinite(updates(stack(states))["w"]).all()
    copied = updates(stack([states[0], states[1], states[0]]))["w"]
    assert np.isnan(copied[np.array([0, 2])]).all()
    assert np.isfinite(copied[1]).all()


@pytest.mark.parametrize("kind", ["rbg", "unsafe_rbg"])
@pytest.mark.parametrize("method", ["auto", "vmap"])
def test_keys_whose_draws_are_shared_under_vmap_are_refused(kind, method):
    """jaxdp.secret_key() is one of them: the first record's key would decide everybody's mask."""
    step_key = jax.random.key(0, impl=kind)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, jnp.arange(4))

    def loss(params, x, key):
        return jnp.sum(params["b"] * jax.random.bernoulli(key, 0.5, x.shape) * x)

    grads = jaxdp.per_example_grads(loss, method=method)
    with pytest.raises(ValueError, match=r"draws random numbers from a key of kind .*jax_key"):
        grads({"b": jnp.zeros(4)}, (jnp.ones((4, 4)), keys), jaxdp.all_rows(4))
    words = jax.random.key_data(keys)

    def raw(params, x, key):
        return loss(params, x, jax.random.wrap_key_data(key, impl=kind))

    with pytest.raises(ValueError, match="draws random numbers from a key of kind"):
        jaxdp.per_example_grads(raw, method=method)({"b": jnp.zeros(4)}, (jnp.ones((4, 4)), words))
    own = jaxdp.dpsgd.jax_key(jaxdp.secret_key(), "dropout", 0)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(own, jnp.arange(4))
    grads({"b": jnp.zeros(4)}, (jnp.ones((4, 4)), keys), jaxdp.all_rows(4))


def test_foreign_code_in_a_loss_is_refused():
    @jax.custom_vjp
    def twice(x):
        like = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.ffi.ffi_call("somewhere", like, vmap_method="expand_dims")(x)

    twice.defvjp(lambda x: (twice(x), None), lambda _, c: (2 * c,))
    loss = lambda params, x: jnp.sum(twice(params["b"] * x))
    with pytest.raises(ValueError, match="foreign code sees several examples"):
        jaxdp.per_example_grads(loss)({"b": jnp.zeros(4)}, (jnp.ones((3, 4)),))


@pytest.mark.parametrize(
    ("clip", "release"),
    [
        (jaxdp.clip_individual(2.0), jaxdp.clip_individual(1.0)),
        (jaxdp.clip_layerwise({"w": 1.0, "b": 1.0}), jaxdp.clip_multiplied({"w": 1.0, "b": 1.0})),
        (jaxdp.clip_normalised(1.0, stability=0.1), jaxdp.clip_individual(1.0)),
        (lambda: jaxdp.clip_batch(1.0), jaxdp.clip_individual(1.0)),
    ],
)
def test_sums_of_another_clipping_are_refused(clip, release):
    clip = clip() if callable(clip) else clip
    tx, other = jaxdp.privatize(make_plan(clip)), jaxdp.privatize(make_plan(release))
    rows = jax.tree.map(lambda p: jnp.ones((4, *p.shape)), SQUARE)
    grads = jaxdp.from_dense(rows, jaxdp.all_rows(4), like=SQUARE, unit=clip.unit)
    sums = tx.sums(grads, tx.init(SQUARE))
    with pytest.raises(ValueError, match="the sums were clipped by clip_"):
        other.release(sums, other.init(SQUARE))
    with pytest.raises(ValueError, match="add sums of one clipping"):
        sums + other.sums(dense(), other.init(SQUARE)) if release.unit == "example" else None
    # Through jit and back they are of the same clipping still.
    passed = jax.jit(lambda sums: sums)(sums)
    assert not is_nan(tx.release(passed, tx.init(SQUARE))[0])
