"""Models: examples stay apart, and what would mix them is refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdp import data
from jaxdp.config import ModelConfig

nn = pytest.importorskip("flax.linen")
models = pytest.importorskip("jaxdp.models")


def small_dataset() -> data.Dataset:
    rng = np.random.default_rng(0)
    records = lambda n: data.Records(
        rng.integers(0, 17, (n, 8, 8, 1)).astype(np.uint8), rng.integers(0, 10, n).astype(np.int32)
    )
    return data.Dataset(records(6), records(5), 10, 0.0, 8.0, "")


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
