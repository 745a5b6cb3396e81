"""Models: examples stay apart, and what would mix them is refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdp
from jaxdp.datasets.records import Dataset, Records
from jaxdp.models.config import ModelConfig

nn = pytest.importorskip("flax.linen")
models = pytest.importorskip("jaxdp.models")


def small_dataset() -> Dataset:
    rng = np.random.default_rng(0)
    records = lambda n: Records(
        rng.integers(0, 17, (n, 8, 8, 1)).astype(np.uint8), rng.integers(0, 10, n).astype(np.int32)
    )
    return Dataset(records(6), records(5), 10, 0.0, 8.0, "")


class Net(nn.Module):
    norm: nn.Module

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3))(x)
        return nn.Dense(10)(self.norm(x).reshape(len(x), -1))


def test_batch_norm_is_refused_by_the_layer_s_name():
    net = Net(nn.BatchNorm(use_running_average=False))
    with pytest.raises(ValueError, match=r"BatchNorm in layer 'norm'.*flax\.linen\.GroupNorm"):
        models.init_params(net, jax.random.key(0), small_dataset())


def test_other_state_is_refused():
    class Counter(nn.Module):
        @nn.compact
        def __call__(self, x):
            seen = self.variable("memory", "seen", lambda: jnp.zeros(()))
            seen.value += x.sum()
            return nn.Dense(10)(x.reshape(len(x), -1))

    with pytest.raises(ValueError, match="state beside its parameters, in 'memory'"):
        models.init_params(Counter(), jax.random.key(0), small_dataset())


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig("linear"),
        ModelConfig(widths=(4, 8)),
        ModelConfig(widths=(8,), norm_group_size=4),
    ],
    ids=["linear", "cnn", "cnn with GroupNorm"],
)
def test_models_treat_each_example_alone(config):
    dataset = small_dataset()
    model = models.make_model(config, small_dataset())
    params = models.init_params(model, jax.random.key(0), dataset)
    x = jnp.asarray(dataset.private.inputs, jnp.float32)
    together = model.apply({"params": params}, x)
    alone = jnp.concatenate([model.apply({"params": params}, row[None]) for row in x])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_loss_is_the_cross_entropy_of_one_record():
    dataset = small_dataset()
    model = models.make_model(ModelConfig("linear"), small_dataset())
    params = models.init_params(model, jax.random.key(0), dataset)
    x, y = dataset.private.inputs[0], dataset.private.labels[0]
    dense = params["Dense_0"]
    logits = np.asarray((x / 8.0).reshape(-1) @ dense["kernel"] + dense["bias"], np.float64)
    expected = np.log(np.exp(logits).sum()) - logits[y]
    assert float(models.make_loss(model, dataset)(params, x, y)) == pytest.approx(
        expected, rel=1e-5
    )


def test_accuracy_counts_test_records():
    dataset = small_dataset()
    model = models.make_model(ModelConfig("linear"), small_dataset())
    params = models.init_params(model, jax.random.key(0), dataset)
    favourite = int(dataset.test.labels[0])
    bias = jnp.zeros(10).at[favourite].set(1e6)
    params = {"Dense_0": {**params["Dense_0"], "bias": bias}}
    share = np.mean(dataset.test.labels == favourite)
    assert models.evaluate(model, dataset, params).accuracy == pytest.approx(share)


def test_too_many_convolutions_are_refused():
    model = models.make_model(ModelConfig(widths=(4,) * 5), small_dataset())
    with pytest.raises(ValueError, match=r"model\.widths is \(4, 4, 4, 4, 4\).*\(8, 8, 1\)"):
        models.init_params(model, jax.random.key(0), small_dataset())


def tensors(config, size, channels, unit="example"):
    """Shapes of the parameters for square images, without drawing them."""
    images = np.zeros((2, size, size, channels), np.uint8)
    records = Records(images, np.array([0, 9], np.int32))
    dataset = Dataset(records, records, 10, 127.5, 127.5, "", records)
    model = models.make_model(config, dataset)
    init = lambda key: models.init_params(model, key, dataset, unit)
    return jax.tree.leaves(jax.eval_shape(init, jax.random.key(0)))


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_resnet18_has_the_paper_s_62_tensors(norm):
    found = tensors(ModelConfig("resnet18", norm=norm), 32, 3, "batch")
    assert (len(found), sum(leaf.size for leaf in found)) == (62, 11_173_962)
    narrow = tensors(ModelConfig("resnet18", norm=norm, width=16), 32, 3, "batch")
    assert (len(narrow), sum(leaf.size for leaf in narrow)) == (62, 701_466)


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig("cnn", widths=(32, 64, 64, 128), norm="none", activation="relu"),
        ModelConfig("lenet"),
    ],
    ids=["four convolutions", "lenet"],
)
def test_convnet_and_lenet_have_the_paper_s_10_tensors(config):
    assert len(tensors(config, 32, 3)) == 10


def test_lenet_is_lenet_5():
    sizes = [leaf.size for leaf in tensors(ModelConfig("lenet"), 28, 1)]
    assert sum(sizes) == 61_706  # 156 + 2,416 + 48,120 + 10,164 + 850


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"name": "lenet", "norm": "batch"}, "model.norm is batch: .* lenet has no such layer"),
        ({"name": "resnet18", "norm": "none"}, "does not train without"),
        ({"name": "resnet18", "norm_group_size": 3}, r"divides every one of the widths \(64,\)"),
        ({"name": "resnet18", "width": 0}, "model.width is 0"),
        ({"name": "transformer", "width": 6, "heads": 4}, "divides model.width = 6"),
    ],
)
def test_models_that_make_no_sense_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        ModelConfig(**options)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_gradients_of_the_resnet_agree_with_plain_ones(norm):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)
    records = Records(images, np.array([1, 5, 9], np.int32))
    dataset = Dataset(records, records, 10, 127.5, 127.5, "", records)
    unit = "batch" if norm == "batch" else "example"
    model = models.make_model(ModelConfig("resnet18", norm=norm, width=4), dataset)
    params = models.init_params(model, jax.random.key(0), dataset, unit)
    x, y = records.inputs, records.labels
    if norm == "batch":
        mask = np.array([True, True, False])
        loss = models.make_unit_loss(model, dataset)
        plain = jax.jit(jax.grad(loss))(params, x[:2], y[:2], mask[:2])
        grads_of = jaxdp.per_example_grads(loss, unit="batch")
        grads = jax.jit(
            lambda params: jax.tree.map(
                lambda leaf: leaf[0], grads_of(params, (x[None], y[None]), mask[None]).materialize()
            )
        )(params)
    else:
        loss = models.make_loss(model, dataset)
        plain = jax.jit(jax.vmap(jax.grad(loss), (None, 0, 0)))(params, x, y)
        grads_of = jaxdp.per_example_grads(loss, method="factored")
        grads = jax.jit(lambda params: grads_of(params, (x, y)).materialize())(params)
    for got, want in zip(jax.tree.leaves(grads), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4 * np.abs(want).max())
