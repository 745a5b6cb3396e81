"""Models of Flax nnx: the instance is split and stays as it is."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from helpers.networks import INPUTS, Nnx

from jaxdp.tasks import WithStatistics, classifier

KEY = jax.random.key(5)
RECORD = (jnp.zeros(INPUTS), jnp.zeros((), int))
X = np.random.default_rng(0).normal(size=INPUTS).astype("f4")


def leaves(model):
    state = nnx.to_pure_dict(nnx.state(model))
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    plain = lambda x: np.array(jax.random.key_data(x) if is_key(x) else x)
    return jax.tree.leaves(jax.tree.map(plain, state))


def test_the_instance_is_not_changed_and_takes_trained_parameters_back():
    model = Nnx(0.5)
    model.eval()  # whoever has just tried it
    before = leaves(model)
    task = classifier(model)
    params = task.init(KEY, RECORD)
    jax.jit(jax.grad(task.loss))(params, (X, 1), KEY)
    task.loss(params, (X, 1), KEY)
    task.scores(params, (X, 1))
    for old, new in zip(before, leaves(model), strict=True):
        np.testing.assert_array_equal(old, new)
    assert model.dropout.deterministic
    trained = jax.tree.map(lambda leaf: leaf + 0.1, params)
    nnx.update(model, trained)
    scores = jax.nn.softmax(model(X[None])[0])
    np.testing.assert_allclose(task.predict(trained, X)["scores"], scores, rtol=1e-5)


def test_an_instance_in_evaluation_mode_is_trained_with_dropout():
    model = Nnx(0.5)
    task = classifier(model)
    model.eval()
    again = classifier(model)
    params = task.init(KEY, RECORD)
    assert task.loss(params, (X, 1), KEY) == again.loss(params, (X, 1), KEY)


class Streams(nnx.Module):
    """Two layers that draw from one stream, twenty that hold streams of a stack, and a constant."""

    def __init__(self, rngs):
        self.rngs = rngs
        self.scale = jnp.full(INPUTS, 2.0)
        self.drawing = True
        self.out = nnx.Linear(36, 20, rngs=rngs)

        @nnx.split_rngs(splits=20)
        @nnx.vmap
        def stack(rngs):
            return nnx.Dropout(0.5, rngs=rngs)

        self.stack = stack(rngs)

    def __call__(self, x, deterministic):
        x = x * self.scale
        if not deterministic:
            self.first, self.second = self.rngs.params(), self.rngs.params()
            x += jax.random.normal(self.first, x.shape) + jax.random.normal(self.second, x.shape)
        x = self.out(x.reshape(len(x), -1))
        return nnx.vmap(lambda layer, x: layer(x), in_axes=(0, 1), out_axes=1)(self.stack, x)


def test_every_stream_has_a_key_of_the_record_and_counts_from_zero():
    model = Streams(nnx.Rngs(params=0, default=1))
    model.rngs.params()  # a count that is not zero
    task = classifier(model)
    params = task.init(KEY, RECORD)
    keys = jax.random.split(KEY, 6)
    drawn = {float(task.loss(params, (X, 1), key)) for key in keys}
    assert len(drawn) == 6
    assert float(task.loss(params, (X, 1), keys[0])) in drawn  # each time the same
    other = classifier(Streams(nnx.Rngs(params=7, default=8)))
    assert float(other.loss(params, (X, 1), keys[0])) in drawn  # not from the instance's keys
    logits = task.predict(params, X)["scores"]
    x = (2 * X).reshape(-1)
    expected = jax.nn.softmax(x @ params["out"]["kernel"] + params["out"]["bias"])
    np.testing.assert_allclose(logits, expected, rtol=1e-4)


def test_the_layers_of_a_stack_draw_masks_of_their_own():
    class Stack(Streams):
        def __call__(self, x):
            ones = jnp.ones((1, 20))
            kept = nnx.vmap(lambda layer, x: layer(x), in_axes=(0, 1), out_axes=1)(self.stack, ones)
            return kept + 0 * self.out(x.reshape(1, -1))

    task = classifier(Stack(nnx.Rngs(0)))
    params = task.init(KEY, RECORD)
    # 20 masks that were the same would give log(20) whatever they are.
    assert abs(float(task.loss(params, (X, 1), KEY)) - np.log(20)) > 0.1


def test_rngs_of_the_call_are_of_the_record():
    class Called(nnx.Module):
        def __init__(self, rngs):
            self.out = nnx.Linear(36, 20, rngs=rngs)
            self.dropout = nnx.Dropout(0.5)

        def __call__(self, x, *, rngs):
            return self.dropout(self.out(x.reshape(len(x), -1)), rngs=rngs)

    task = classifier(Called(nnx.Rngs(0)))
    params = task.init(KEY, RECORD)
    keys = jax.random.split(KEY, 4)
    losses = jax.jit(jax.vmap(task.loss, (None, None, 0)))(params, (X, 1), keys)
    assert len(np.unique(losses)) == 4
    expected = X.reshape(-1) @ params["out"]["kernel"]
    np.testing.assert_allclose(
        task.predict(params, X)["scores"], jax.nn.softmax(expected), rtol=1e-4
    )


def test_batch_norm_in_units():
    class Normalised(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.layers = nnx.List([nnx.Linear(4, 6, rngs=rngs), nnx.BatchNorm(6, rngs=rngs)])
            self.out = nnx.Linear(6, 3, rngs=rngs)

        def __call__(self, x):
            for layer in self.layers:
                x = layer(x)
            return self.out(jnp.tanh(x))

    rng = np.random.default_rng(0)
    x, y = rng.normal(2, 3, (12, 4)).astype("f4"), rng.integers(0, 3, 12).astype("i4")
    model = Normalised()
    task = classifier(model, batch_norm=True)
    assert task.loss is None
    params = task.init(KEY, (x[0], y[0]))
    keys, mask = jax.random.split(KEY, 12), np.ones(12, bool)
    loss = jax.jit(task.unit_loss)(params, (x, y), keys, mask)
    statistics = task.statistics(params, (x, y))
    assert isinstance(statistics, dict)
    assert set(statistics["layers"][1]) == {"mean", "var"}
    # At the statistics of the unit itself, evaluation is training.
    variables = WithStatistics(params, statistics)
    scores = jax.jit(jax.vmap(task.scores, (None, 0)))(variables, (x, y))
    np.testing.assert_allclose(scores["loss"].mean(), loss, rtol=1e-4)
    np.testing.assert_array_equal(model.layers[1].mean[...], 0)
