"""Networks: examples stay apart, and sizes are as published."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.small_dataset import small_dataset

import jaxdp
from jaxdp import models
from jaxdp.datasets.records import Dataset, Records
from jaxdp.models.config import ModelConfig


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
