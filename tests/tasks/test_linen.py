"""Models of Flax linen: training flags, random streams, BatchNorm in batch units."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdp
from jaxdp.models import batchnorm
from jaxdp.tasks import WithStatistics, classifier

KEY = jax.random.key(5)
RECORD = (jnp.zeros(4), jnp.zeros((), int))
cross_entropy = optax.softmax_cross_entropy_with_integer_labels


@pytest.mark.parametrize("flag", ["train", "training", "is_training", "deterministic", "inference"])
def test_every_name_of_the_flag_is_known(flag):
    training = flag not in ("deterministic", "inference")
    space = {"nn": nn}
    exec(
        "class Net(nn.Module):\n"
        "    @nn.compact\n"
        f"    def __call__(self, x, {flag}):\n"
        f"        assert isinstance({flag}, bool)\n"
        f"        still = {'not ' if training else ''}{flag}\n"
        "        return nn.Dense(20)(nn.Dropout(0.5)(nn.Dense(50)(x), deterministic=still))\n",
        space,
    )
    net = space["Net"]()
    task = classifier(net)
    params = task.init(KEY, RECORD)
    x = jnp.arange(4.0)
    logits = net.apply({"params": params}, x[None], **{flag: not training})[0]
    np.testing.assert_allclose(task.predict(params, x)["scores"], jax.nn.softmax(logits), rtol=1e-5)
    logits = net.apply({"params": params}, x[None], **{flag: training}, rngs={"dropout": KEY})[0]
    np.testing.assert_allclose(task.loss(params, (x, 1), KEY), cross_entropy(logits, 1), rtol=1e-5)


def test_streams_of_other_names_follow_from_the_key_too():
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            if train:
                for name in ("dropout", "mine", "yours"):
                    x += jax.random.normal(self.make_rng(name), x.shape)
            return nn.Dense(3)(x)

    task = classifier(Noisy())
    params = task.init(KEY, RECORD)
    keys = jax.random.split(KEY, 4)
    assert len({float(task.loss(params, (jnp.ones(4), 1), key)) for key in keys}) == 4
    # The three draws are apart: were two of them the same, all would be.
    drawn = []
    draw = jax.random.normal
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.random, "normal", lambda *a: drawn.append(draw(*a)) or drawn[-1])
        task.loss(params, (jnp.ones(4), 1), KEY)
    assert len(np.unique(np.concatenate(drawn))) == 12


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, name="norm")(nn.Dense(6)(x))
        return nn.Dense(3)(jnp.tanh(x))


def units(n=12, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(2, 3, (n, 4)).astype("f4"), rng.integers(0, 3, n).astype("i4")


@pytest.mark.slow
def test_batch_norm_in_units_is_that_of_models():
    net, scale = Normalised(), lambda x: x / 3
    task = classifier(net, preprocess=scale, batch_norm=True)
    assert task.loss is None
    params = task.init(KEY, RECORD)
    (x, y), mask, keys = units(), np.arange(12) < 9, jax.random.split(KEY, 12)
    call = lambda model, x: model(x, train=True)
    reference = batchnorm.unit_loss(net, cross_entropy, call=call)
    expected = jax.value_and_grad(reference)(params, x / 3, y, mask)
    got = jax.value_and_grad(task.unit_loss)(params, (x, y), keys, mask)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), got, expected)
    transform = jaxdp.per_example_grads(task.unit_loss, unit="batch")
    row = lambda leaf: leaf[None]
    grads = jax.jit(lambda p: transform(p, ((row(x), row(y)), row(keys)), row(mask)).materialize())(
        params
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-4, atol=1e-6), grads, expected[1]
    )


def test_batch_norm_s_statistics_come_from_public_records_and_serve_one_record():
    net = Normalised()
    task = classifier(net, preprocess=lambda x: x / 3, batch_norm=True)
    params, (x, y) = task.init(KEY, RECORD), units(30, seed=1)
    found = task.statistics(params, (x, y))
    hidden = x / 3 @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    np.testing.assert_allclose(found["norm"]["mean"], hidden.mean(0), rtol=1e-4, atol=1e-5)
    variables = WithStatistics(params, found)
    collections = {"params": params, "batch_stats": found}
    logits = net.apply(collections, x[:1] / 3, train=False)[0]
    predicted = task.predict(variables, x[0])["scores"]
    np.testing.assert_allclose(predicted, jax.nn.softmax(logits), rtol=1e-5)
    np.testing.assert_allclose(
        task.scores(variables, (x[0], y[0]))["loss"], cross_entropy(logits, y[0]), rtol=1e-5
    )


def test_augmentation_in_a_unit_is_each_record_s_own():
    augment = lambda key, x: x + jax.random.normal(key)
    task = classifier(Normalised(), augment=augment, batch_norm=True)
    params = task.init(KEY, RECORD)
    (x, y), mask, keys = units(), np.ones(12, bool), jax.random.split(KEY, 12)
    noise = np.array([jax.random.normal(jax.random.split(key)[1]) for key in keys])
    plain = classifier(Normalised(), batch_norm=True)
    np.testing.assert_allclose(
        task.unit_loss(params, (x, y), keys, mask),
        plain.unit_loss(params, (x + noise[:, None], y), keys, mask),
        rtol=1e-5,
    )
