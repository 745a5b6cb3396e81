"""BatchNorm in batch units: statistics of one unit only, and public ones for what is released."""

import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxdp
from jaxdp.models import batchnorm

GUIDES = Path(__file__).parents[2] / "docs" / "guides"
CLASSES, FEATURES = 3, 5
losses = optax.softmax_cross_entropy_with_integer_labels


class Linen(nn.Module):
    """Two BatchNorms that say themselves that they are at evaluation."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4, name="first")(x)
        x = jnp.tanh(nn.BatchNorm(use_running_average=True, name="norm")(x))
        x = nn.Dense(CLASSES, name="second")(x)
        return nn.BatchNorm(use_running_average=True, momentum=0.9, name="last")(x)


class Nnx(nnx.Module):
    """The same model."""

    def __init__(self, rngs):
        self.first = nnx.Linear(FEATURES, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.second = nnx.Linear(4, CLASSES, rngs=rngs)
        self.last = nnx.BatchNorm(CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.last(self.second(jnp.tanh(self.norm(self.first(x)))))


def make(kind):
    """A model and its parameters, the same numbers for both libraries."""
    model = Nnx(nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    if kind == "nnx":
        return model, params
    return Linen(), nnx.to_pure_dict(params)


def records(n, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(2, 3, (n, FEATURES)).astype("f4")
    return x, rng.integers(0, CLASSES, n).astype("i4")


def by_hand(params, x):
    """Outputs of a whole batch, and the inputs of its BatchNorms."""

    def normalise(x, layer):
        return (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5) * layer["scale"] + layer["bias"]

    p = params if isinstance(params, dict) else nnx.to_pure_dict(params)
    first = x @ p["first"]["kernel"] + p["first"]["bias"]
    second = jnp.tanh(normalise(first, p["norm"])) @ p["second"]["kernel"] + p["second"]["bias"]
    return normalise(second, p["last"]), (first, second)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@pytest.fixture(params=["linen", "nnx"])
def kind(request):
    return request.param


def test_padding_takes_no_part(kind):
    model, params = make(kind)
    loss = batchnorm.unit_loss(model, losses)
    x, y = records(6)

    def reference(params):
        return losses(by_hand(params, x)[0], y).mean()

    expected = jax.jit(jax.value_and_grad(reference))(params)
    value_and_grad = jax.jit(jax.value_and_grad(loss))
    for padding in (0.0, 100.0):
        padded_x = np.concatenate([x, np.full((3, FEATURES), padding, "f4")])
        padded_y = np.concatenate([y, np.zeros(3, "i4")])
        got = value_and_grad(params, padded_x, padded_y, np.arange(9) < 6)
        np.testing.assert_allclose(got[0], expected[0], rtol=1e-5)
        np.testing.assert_allclose(flat(got[1]), flat(expected[1]), rtol=1e-3, atol=1e-5)


def test_an_empty_unit_is_zero_and_not_nan(kind):
    model, params = make(kind)
    loss = batchnorm.unit_loss(model, losses)
    x, y = records(4)
    value, grads = jax.jit(jax.value_and_grad(loss))(params, x, y, np.zeros(4, bool))
    assert value == 0
    np.testing.assert_array_equal(flat(grads), 0)


@pytest.mark.slow
def test_units_are_normalised_each_on_their_own(kind):
    (model, params), units = make(kind), 3
    x, y = records(units * 5)
    x, y = x.reshape(units, 5, FEATURES), y.reshape(units, 5)
    mask = np.ones((units, 5), bool)
    mask[0, 3:] = False
    transform = jaxdp.per_example_grads(batchnorm.unit_loss(model, losses), unit="batch")
    grads = jax.jit(lambda *args: transform(*args).materialize())(params, (x, y), mask)
    reference = jax.jit(jax.grad(lambda p, x, y: losses(by_hand(p, x)[0], y).mean()))
    for i in range(units):
        alone = reference(params, x[i][mask[i]], y[i][mask[i]])
        got = jax.tree.map(lambda leaf: leaf[i], grads)
        np.testing.assert_allclose(flat(got), flat(alone), rtol=1e-3, atol=1e-5)


def test_the_model_keeps_nothing(kind):
    model, params = make(kind)
    before = nnx.to_pure_dict(nnx.state(model)) if kind == "nnx" else None
    loss = batchnorm.unit_loss(model, losses)
    jax.jit(jax.grad(loss))(params, *records(4), np.ones(4, bool))
    batchnorm.public_statistics(model)(params, records(4)[0])
    if before is not None:
        jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(model)), before)


@pytest.mark.slow
@pytest.mark.parametrize("rows_at_a_time", [5, 100])
def test_public_statistics_are_those_of_all_records(kind, rows_at_a_time):
    model, params = make(kind)
    x, _ = records(13, seed=1)
    found = batchnorm.public_statistics(model, rows_at_a_time=rows_at_a_time)(params, x)
    found = nnx.to_pure_dict(found) if kind == "nnx" else found
    run = jax.jit(by_hand)
    first, second = run(params, x)[1]  # the second layer's inputs depend on the batches
    np.testing.assert_allclose(found["norm"]["mean"], first.mean(0), rtol=1e-4)
    np.testing.assert_allclose(found["norm"]["var"], first.var(0), rtol=1e-4)
    size = -(-13 // -(-13 // rows_at_a_time))
    second = jnp.concatenate(
        [run(params, x[start : start + size])[1][1] for start in range(0, 13, size)]
    )
    np.testing.assert_allclose(found["last"]["mean"], second.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["last"]["var"], second.var(0), rtol=1e-4)


def test_with_the_statistics_of_its_own_batch_evaluation_is_training(kind):
    model, params = make(kind)
    x, _ = records(20, seed=1)
    found = batchnorm.public_statistics(model)(params, x)
    if kind == "nnx":
        nnx.update(model, params, found)
        model.eval()
        outputs = model(x)
    else:
        outputs = model.apply({"params": params, "batch_stats": found}, x)
    np.testing.assert_allclose(outputs, by_hand(params, x)[0], rtol=1e-3, atol=1e-4)


def test_models_that_take_more_than_inputs_are_called_by_hand():
    class Trained(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.BatchNorm(use_running_average=not train)(nn.Dense(CLASSES)(x))

    x, y = records(6)
    params = jax.jit(lambda: Trained().init(jax.random.key(0), x, train=False))()["params"]
    call = lambda model, x: model(x, train=False)
    loss = jax.jit(batchnorm.unit_loss(Trained(), losses, call=call))
    z = x @ params["Dense_0"]["kernel"]
    expected = losses((z - z.mean(0)) / jnp.sqrt(z.var(0) + 1e-5), y).mean()
    np.testing.assert_allclose(loss(params, x, y, np.ones(6, bool)), expected, rtol=1e-4)


@pytest.mark.slow
def test_layers_under_remat_and_scan():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return jnp.tanh(nn.BatchNorm(use_running_average=True)(nn.Dense(FEATURES)(x))), None

    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x):
            axes = {"params": 0, "batch_stats": 0}
            stack = nn.scan(nn.remat(Block), axes, split_rngs={"params": True}, length=2)
            x, _ = stack(name="blocks")(x, None)
            return nn.Dense(CLASSES)(x)

    x, y = records(6)
    params = jax.jit(Deep().init)(jax.random.key(0), x)["params"]
    mask = np.arange(6) < 4
    loss = jax.jit(batchnorm.unit_loss(Deep(), losses))
    np.testing.assert_allclose(
        loss(params, x, y, mask), loss(params, x[:4], y[:4], mask[:4]), rtol=1e-4
    )
    found = batchnorm.public_statistics(Deep())(params, x)["blocks"]["BatchNorm_0"]
    assert found["mean"].shape == (2, FEATURES)
    p = jax.tree.map(lambda leaf: leaf[0], params["blocks"]["Dense_0"])
    z = x @ p["kernel"] + p["bias"]
    np.testing.assert_allclose(found["var"][0], z.var(0), rtol=1e-4)


def test_what_padding_would_get_into_is_refused():
    class Flattens(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=True)(x.reshape(-1, 1)).reshape(len(x), -1)

    x, y = records(4)
    with pytest.raises(ValueError, match=r"BatchNorm_0 gets inputs of shape \(20, 1\).*4 records"):
        batchnorm.unit_loss(Flattens(), losses)({}, x, y, np.ones(4, bool))

    class Own(nn.Module):
        @nn.compact
        def __call__(self, x):
            mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[1:])
            mean.value = x.mean(0)
            return x - mean.value

    class Around(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Own(name="own")(x)

    with pytest.raises(ValueError, match="layer 'own' keeps statistics"):
        batchnorm.unit_loss(Around(), losses)({}, x, y, np.ones(4, bool))

    class Subclass(nnx.BatchNorm):
        pass

    model = nnx.Sequential(Subclass(FEATURES, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="layer 'layers/0' keeps statistics"):
        batchnorm.unit_loss(model, losses)(nnx.state(model, nnx.Param), x, y, np.ones(4, bool))


def test_misuse_is_refused():
    x, y = records(4)
    model, params = make("linen")
    mean = lambda *args: losses(*args).mean()
    with pytest.raises(ValueError, match=r"returned shape \(\) for a unit of 4 records"):
        batchnorm.unit_loss(model, mean)(params, x, y, np.ones(4, bool))
    with pytest.raises(TypeError, match="model is a function"):
        batchnorm.unit_loss(lambda x: x, losses)
    with pytest.raises(ValueError, match="no BatchNorm"):
        batchnorm.public_statistics(nn.Dense(3))({"kernel": np.ones((5, 3)), "bias": np.ones(3)}, x)
    with pytest.raises(ValueError, match="no rows"):
        batchnorm.public_statistics(model)(params, x[:0])
    dropout = nnx.Sequential(nnx.Dropout(0.5, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="random state"):
        batchnorm.unit_loss(dropout, losses)
    with pytest.raises(ValueError, match=r"batch_stats.*batchnorm\.unit_loss"):
        jaxdp.per_example_grads(lambda p, x, y, mask: 0.0, unit="batch")(
            {"params": params, "batch_stats": params}, (x[None], y[None])
        )


def test_batch_norm_inside_the_loss_of_one_example_sees_one_example():
    model, (x, y) = (
        nn.Sequential([nn.Dense(4), nn.BatchNorm(use_running_average=False)]),
        records(5),
    )
    params = jax.jit(model.init)(jax.random.key(0), x[:1])["params"]

    def loss(params, x, y):
        outputs, _ = model.apply({"params": params}, x[None], mutable=["batch_stats"])
        return losses(outputs[0], y)

    grads_of = jax.jit(lambda x, y: jaxdp.per_example_grads(loss)(params, (x, y)).materialize())
    grads, alone = grads_of(x, y), grads_of(x[:1], y[:1])
    jax.tree.map(lambda g, a: np.testing.assert_allclose(g[:1], a, atol=1e-6), grads, alone)
    np.testing.assert_array_equal(grads["layers_0"]["kernel"], 0)  # the output is 0 for any input


@pytest.mark.slow
def test_the_examples_of_the_page_run():
    page = (GUIDES / "batchnorm.md").read_text(encoding="utf-8")
    names = {}
    for example in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(example, names)
        assert np.all(np.isfinite(names.pop("logits")))
