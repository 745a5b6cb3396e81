"""Networks: examples stay apart, and sizes are as published."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.cases import slow
from helpers.small_dataset import SMALL_FORMAT, small_dataset

import jaxdp
from jaxdp import models
from jaxdp.datasets.sources import Format
from jaxdp.models.config import ModelConfig
from jaxdp.models.wide_resnet import StandardisedConv
from jaxdp.tasks.builtin import make_task

IMAGES = Format("image", "class", 10, 127.5, 127.5, "")


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig("linear"),
        slow(ModelConfig(widths=(4, 8))),
        ModelConfig(widths=(8,), norm_group_size=4),
    ],
    ids=["linear", "cnn", "cnn with GroupNorm"],
)
def test_models_treat_each_example_alone(config):
    model = models.make_model(config, SMALL_FORMAT)
    x = jnp.asarray(small_dataset().private.fields[0], jnp.float32)
    params = jax.jit(model.init)(jax.random.key(0), x[:1])["params"]
    together = model.apply({"params": params}, x)
    alone = jnp.concatenate([model.apply({"params": params}, row[None]) for row in x])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_too_many_convolutions_are_refused():
    task = make_task(ModelConfig(widths=(4,) * 5), SMALL_FORMAT)
    with pytest.raises(ValueError, match=r"model\.widths is \(4, 4, 4, 4, 4\).*\(8, 8, 1\)"):
        task.init(jax.random.key(0), small_dataset().private.zero())


def tensors(config, size, channels):
    """Shapes of the parameters for square images, without drawing them."""
    task = make_task(config, IMAGES)
    record = (np.zeros((size, size, channels), np.uint8), np.int32(0))
    return jax.tree.leaves(jax.eval_shape(lambda key: task.init(key, record), jax.random.key(0)))


def test_wrn_16_4_is_as_large_as_the_published_one():
    found = tensors(ModelConfig("wide_resnet"), 32, 3)
    assert sum(leaf.size for leaf in found) == 2_753_818


def test_other_wide_resnets_have_the_sizes_that_the_literature_gives():
    """Of WRN-16-1, WRN-40-4 and WRN-28-10: 0.2, 8.9 and 36.5 million (Zagoruyko & Komodakis)."""
    sizes = {(16, 1): 0.2e6, (40, 4): 8.9e6, (28, 10): 36.5e6}
    for (layers, width), published in sizes.items():
        found = tensors(ModelConfig("wide_resnet", layers=layers, width=width), 32, 3)
        assert sum(leaf.size for leaf in found) == pytest.approx(published, rel=0.15)


def test_standardised_kernels_have_mean_zero_and_length_one():
    conv = StandardisedConv(4)
    x = jax.random.normal(jax.random.key(0), (1, 5, 5, 3))
    params = conv.init(jax.random.key(1), x)["params"]
    moved = params | {"kernel": 3 * params["kernel"] + 7}  # what standardising takes away
    close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
    close(conv.apply({"params": moved}, x), conv.apply({"params": params}, x))
    ones = jnp.ones((1, 5, 5, 3))
    close(conv.apply({"params": params}, ones)[0, 2, 2], 0)
    points = [jnp.zeros((1, 5, 5, 3)).at[0, 2, 2, c].set(1.0) for c in range(3)]
    squares = sum(jnp.sum(conv.apply({"params": params}, one) ** 2, (0, 1, 2)) for one in points)
    close(squares, 1)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_resnet18_has_the_paper_s_62_tensors(norm):
    found = tensors(ModelConfig("resnet18", norm=norm), 32, 3)
    assert (len(found), sum(leaf.size for leaf in found)) == (62, 11_173_962)
    narrow = tensors(ModelConfig("resnet18", norm=norm, width=16), 32, 3)
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
    records = images, np.array([1, 5, 9], np.int32)
    keys = jax.random.split(jax.random.key(1), 3)
    task = make_task(ModelConfig("resnet18", norm=norm, width=4), IMAGES)
    params = task.init(jax.random.key(0), jax.tree.map(lambda rows: rows[0], records))
    if norm == "batch":
        mask = np.array([True, True, False])
        two = jax.tree.map(lambda rows: rows[:2], (records, keys, mask))
        plain = jax.jit(jax.grad(task.unit_loss))(params, *two)
        grads_of = jaxdp.per_example_grads(task.unit_loss, unit="batch")
        unit = jax.tree.map(lambda rows: rows[None], (records, keys))
        grads = jax.jit(
            lambda params: jax.tree.map(
                lambda leaf: leaf[0], grads_of(params, unit, mask[None]).materialize()
            )
        )(params)
    else:
        plain = jax.jit(jax.vmap(jax.grad(task.loss), (None, 0, 0)))(params, records, keys)
        grads_of = jaxdp.per_example_grads(task.loss, method="factored")
        grads = jax.jit(
            lambda params: grads_of(params, (records, keys), jaxdp.all_rows(3)).materialize()
        )(params)
    for got, want in zip(jax.tree.leaves(grads), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4 * np.abs(want).max())
