"""The three tasks, for a model of every library."""

import re

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers.cases import slow
from helpers.networks import CLASSES, INPUTS, NETWORKS, Linen
from helpers.problems import flat64
from helpers.trees import assert_same

import jaxdp
from jaxdp import models
from jaxdp.tasks import classifier, language_model, regressor

B = 5
RECORD = (jnp.zeros(INPUTS), jnp.zeros((), int))
KEYS = jax.random.split(jax.random.key(1), B)


def records(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(B, *INPUTS)).astype(np.float32)
    return x, rng.integers(0, CLASSES, B).astype(np.int32)


@pytest.fixture(params=NETWORKS)
def library(request):
    return request.param


def start(library, rate=0.0):
    task = classifier(NETWORKS[library](rate))
    return task, task.init(jax.random.key(0), RECORD)


def losses(task, params, batch, keys):
    return np.asarray(jax.jit(jax.vmap(task.loss, (None, 0, 0)))(params, batch, keys))


@pytest.mark.parametrize("rate", [slow(0.0), 0.5])
def test_per_example_gradients_are_those_of_vmap(library, rate):
    task, params = start(library, rate)
    batch = records()
    transform = jaxdp.per_example_grads(task.loss, microbatch_size=2)
    grads = jax.jit(lambda p: transform(p, (batch, KEYS)).materialize())(params)
    expected = jax.jit(jax.vmap(jax.grad(task.loss), (None, 0, 0)))(params, batch, KEYS)
    assert jax.tree.structure(grads) == jax.tree.structure(expected)
    for got, leaf in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        assert np.any(leaf)
        np.testing.assert_allclose(got, leaf, rtol=1e-4, atol=1e-6)


def test_a_model_may_compute_in_bfloat16(library):
    wide, params = start(library)
    task = classifier(NETWORKS[library](0.0), compute_dtype="bfloat16")
    batch, norm = records(), 0.01
    program = str(jax.make_jaxpr(task.loss)(params, RECORD, KEYS[0]))
    products = [
        line for line in program.splitlines() if re.search("dot_general|conv_general", line)
    ]
    assert products
    assert all(line.split("=")[0].split(":")[1].startswith("bf16") for line in products)

    transform = jaxdp.per_example_grads(task.loss)
    clip = jaxdp.clip_individual(norm)

    @jax.jit
    def of_one(record, key):
        lazy = transform(params, (record, key))
        return clip.update(lazy, clip.init(params), params)[0], lazy.materialize()

    for i in range(B):
        one = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], (batch, KEYS))
        clipped, gradient = of_one(*one)
        exact = jax.grad(wide.loss)(params, *jax.tree.map(lambda leaf: leaf[0], one))
        assert {leaf.dtype for leaf in jax.tree.leaves((clipped, gradient))} == {
            np.dtype(np.float32)
        }
        assert np.linalg.norm(flat64(clipped)) <= norm * (1 + 1e-5)
        difference = np.linalg.norm(flat64(gradient) - flat64(exact))
        assert 0 < difference < 0.05 * np.linalg.norm(flat64(exact))


@pytest.mark.parametrize("name", [name if name == "linen" else slow(name) for name in NETWORKS])
def test_two_passes_measure_what_a_model_in_bfloat16_adds(name):
    _, params = start(name)
    task = classifier(NETWORKS[name](0.0), compute_dtype="bfloat16")
    norm = 0.01
    transform = jaxdp.per_example_grads(task.loss, method="two_pass")
    clip = jaxdp.clip_individual(norm)
    one = jax.tree.map(lambda leaf: leaf[:1], (records(), KEYS))
    clipped = jax.jit(
        lambda batch: clip.update(transform(params, batch), clip.init(params), params)[0]
    )(one)
    assert {leaf.dtype for leaf in jax.tree.leaves(clipped)} == {np.dtype(np.float32)}
    assert 0.98 * norm <= np.linalg.norm(flat64(clipped)) <= norm * (1 + 1e-3)


def test_scores_and_predictions_are_those_of_float32(library):
    wide, params = start(library)
    task = classifier(NETWORKS[library](0.0), compute_dtype="bfloat16")
    record = jax.tree.map(lambda leaf: leaf[0], records())
    assert_same(task.scores(params, record), wide.scores(params, record))
    assert_same(task.predict(params, record[0]), wide.predict(params, record[0]))


def test_other_dtypes_are_refused():
    with pytest.raises(ValueError, match="compute_dtype is float16: give 'float32' or"):
        classifier(Linen(0.0), compute_dtype="float16")


def test_dense_and_convolutional_kernels_are_not_held_dense(library):
    task, params = start(library, 0.5)
    leaves = jaxdp.explain(task.loss, params, (RECORD, KEYS[0])).leaves
    kernels = [leaf.form for leaf in leaves if len(leaf.shape) == 2]
    assert kernels == ["gram", "gram"]
    (convolution,) = (leaf.form for leaf in leaves if len(leaf.shape) == 4)
    assert convolution != "dense"
    # One position: the sum's rounding is bounded, whatever the library does with the batch axis.
    assert all(leaf.one_term for leaf in leaves)


def test_dropout_follows_from_the_record_s_key_alone(library):
    task, params = start(library, 0.5)
    x, y = records()
    same = (np.repeat(x[:1], B, axis=0), np.repeat(y[:1], B))
    drawn = losses(task, params, same, KEYS)
    assert len(np.unique(drawn)) == B  # keys apart
    assert len(np.unique(losses(task, params, same, KEYS[np.zeros(B, int)]))) == 1
    rows = np.roll(np.arange(B), 2)
    in_order = losses(task, params, (x, y), KEYS)
    np.testing.assert_allclose(
        losses(task, params, (x[rows], y[rows]), KEYS[rows]), in_order[rows], rtol=1e-5
    )


def test_scores_and_predictions_have_no_dropout(library):
    (task, params), (plain, _) = start(library, 0.5), start(library)
    batch = records()
    scores = jax.jit(jax.vmap(task.scores, (None, 0)))(params, batch)
    expected = losses(plain, params, batch, KEYS)
    np.testing.assert_allclose(scores["loss"], expected, rtol=1e-5)
    assert not np.allclose(losses(task, params, batch, KEYS), expected)
    found = jax.jit(jax.vmap(task.predict, (None, 0)))(params, batch[0])
    np.testing.assert_allclose(np.sum(found["scores"], axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(found["class"], np.argmax(found["scores"], axis=1))
    np.testing.assert_array_equal(scores["accuracy"], found["class"] == batch[1])
    np.testing.assert_allclose(
        scores["loss"], -np.log(found["scores"][np.arange(B), batch[1]]), rtol=1e-4
    )


def test_init_sees_shapes_only_and_returns_arrays_that_may_be_donated(library):
    task = classifier(NETWORKS[library](0.5))
    key = jax.random.key(7)
    params = task.init(key, RECORD)
    before = jax.tree.map(np.array, params)
    for x in jax.tree.leaves(params):
        x.delete()
    again = task.init(key, (np.ones(INPUTS, np.float32), np.int32(1)))
    jax.tree.map(np.testing.assert_array_equal, again, before)
    assert np.isfinite(task.loss(again, (records()[0][0], 1), key))


def test_a_batch_unit_s_loss_is_the_mean(library):
    task, params = start(library, 0.5)
    mask = np.arange(B) < 3
    mean = jaxdp.mean_loss(task.loss, microbatch_size=2)
    np.testing.assert_allclose(
        mean(params, records(), KEYS, mask), losses(task, params, records(), KEYS)[:3].mean(), 1e-5
    )


def test_augmentation_is_of_the_record_s_key_before_preprocess_and_in_the_loss_only():
    def augment(key, x):
        return x + jax.random.normal(key)

    task = classifier(Linen(), preprocess=lambda x: 2 * x, augment=augment)
    plain, params = start("linen")
    x, y = records()
    drawn = losses(task, params, (x, y), KEYS)
    noise = np.array([jax.random.normal(jax.random.split(key)[1]) for key in KEYS])
    moved = 2 * (x + noise.reshape(-1, 1, 1, 1))
    np.testing.assert_allclose(drawn, losses(plain, params, (moved, y), KEYS), rtol=1e-4)
    scores = jax.vmap(task.scores, (None, 0))(params, (x, y))
    np.testing.assert_allclose(scores["loss"], losses(plain, params, (2 * x, y), KEYS), rtol=1e-5)


def test_inputs_may_be_a_tree():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            return nn.Dense(CLASSES)(jnp.concatenate([inputs["a"], inputs["b"]], axis=-1))

    task = classifier(Two())
    record = ({"a": jnp.ones(2), "b": jnp.ones(3)}, 1)
    params = task.init(jax.random.key(0), record)
    assert params["Dense_0"]["kernel"].shape == (5, CLASSES)
    assert np.isfinite(task.loss(params, record, KEYS[0]))


def test_a_record_with_several_labels_has_their_mean_loss():
    class PerPosition(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(CLASSES, dtype=jnp.bfloat16)(x)

    task = classifier(PerPosition())
    x, y = np.random.default_rng(0).normal(size=(4, 2)).astype("f4"), np.array([0, 1, 2, 0])
    params = task.init(jax.random.key(0), (x, y))
    logits = PerPosition().apply({"params": params}, x[None])[0].astype(jnp.float32)
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
    loss = task.loss(params, (x, y), KEYS[0])
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_a_label_out_of_range_is_nan_and_never_another_class():
    task, params = start("linen")
    x = records()[0][0]
    for label in (-1, -CLASSES, CLASSES):
        assert np.isnan(task.loss(params, (x, np.int32(label)), KEYS[0]))


@pytest.mark.parametrize("shape", [(), (2,)])
def test_a_regressor_has_squared_errors(shape):
    class Numbers(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(x)[(...,) if shape else (..., 0)]

    task = regressor(Numbers())
    x, target = jnp.arange(3.0), jnp.full(shape, 2.5)
    params = task.init(jax.random.key(0), (x, target))
    output = Numbers().apply({"params": params}, x[None])[0]
    error = np.asarray(output - target)
    np.testing.assert_allclose(task.loss(params, (x, target), KEYS[0]), (error**2).mean(), 1e-5)
    scores = task.scores(params, (x, target))
    np.testing.assert_allclose(scores["loss"], (error**2).mean(), 1e-5)
    np.testing.assert_allclose(scores["absolute_error"], np.abs(error).mean(), 1e-5)
    np.testing.assert_allclose(task.predict(params, x), output, 1e-6)


class Embed(eqx.Module):
    table: eqx.nn.Embedding
    out: eqx.nn.Linear

    def __init__(self):
        self.table = eqx.nn.Embedding(7, 4, key=jax.random.key(0))
        self.out = eqx.nn.Linear(4, 7, key=jax.random.key(1))

    def __call__(self, tokens):
        return jax.vmap(lambda token: self.out(self.table(token)))(tokens)


@pytest.mark.parametrize(
    "model",
    [
        lambda: nn.Sequential([nn.Embed(7, 4), nn.Dense(7)]),
        slow(
            lambda: nnx.Sequential(
                nnx.Embed(7, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 7, rngs=nnx.Rngs(0))
            )
        ),
        slow(Embed),
        slow(lambda: models.networks.Transformer(7, 8, 1, 2)),
    ],
)
def test_a_language_model_finds_each_next_token(model):
    task = language_model(model())
    text = np.random.default_rng(0).integers(0, 7, (B, 6)).astype(np.uint8)
    pairs = (text[:, :-1], text[:, 1:].astype(np.int32))
    first = (pairs[0][0], pairs[1][0])
    params = task.init(jax.random.key(0), jax.tree.map(np.zeros_like, first))
    each = losses(task, params, pairs, KEYS)
    found = task.predict(params, first[0])
    assert found["class"].shape == (5,)
    right = found["scores"][np.arange(5), first[1]]
    np.testing.assert_allclose(each[0], -np.log(right).mean(), rtol=1e-5)
    assert task.scores(params, first)["accuracy"] == np.mean(found["class"] == first[1])
    transform = jaxdp.per_example_grads(task.loss)
    grads = jax.jit(lambda p: transform(p, (pairs, KEYS)).materialize())(params)
    expected = jax.jit(jax.vmap(jax.grad(task.loss), (None, 0, 0)))(params, pairs, KEYS)
    for got, leaf in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, leaf, rtol=1e-4, atol=1e-6)
