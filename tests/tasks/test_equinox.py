"""Models of Equinox: one record, a key, and inference mode."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from helpers.networks import INPUTS, Equinox

from jaxdp.tasks import classifier

KEY = jax.random.key(5)
RECORD = (jnp.zeros(INPUTS), jnp.zeros((), int))
X = np.random.default_rng(0).normal(size=INPUTS).astype("f4")


def test_parameters_are_the_inexact_arrays_and_go_back_into_the_model():
    model = Equinox(0.5)
    task = classifier(model)
    params = task.init(KEY, RECORD)
    assert jax.tree.structure(params) == jax.tree.structure(eqx.filter(model, eqx.is_inexact_array))
    trained = jax.tree.map(lambda leaf: leaf + 0.1, params)
    whole = eqx.nn.inference_mode(eqx.combine(trained, model))
    scores = jax.nn.softmax(whole(jnp.asarray(X)))
    np.testing.assert_allclose(task.predict(trained, X)["scores"], scores, rtol=1e-5)


def test_a_model_in_inference_mode_is_trained_with_dropout():
    task, again = (classifier(m) for m in (Equinox(0.5), eqx.nn.inference_mode(Equinox(0.5))))
    params = task.init(KEY, RECORD)
    assert task.loss(params, (X, 1), KEY) == again.loss(params, (X, 1), KEY)


class Split(eqx.Module):
    """Its key has no default, and it splits it in evaluation, too."""

    out: eqx.nn.Linear
    dropout: eqx.nn.Dropout
    numbers: jax.Array

    def __init__(self):
        self.out = eqx.nn.Linear(36, 20, key=KEY)
        self.dropout = eqx.nn.Dropout(0.5)
        self.numbers = jnp.arange(20)

    def __call__(self, x, key, deterministic=None):
        assert deterministic is not None
        first, second = jax.random.split(key)
        x = self.dropout(self.out(x.reshape(-1)) + self.numbers, key=first)
        return self.dropout(x, key=second)


def test_a_call_that_needs_a_key_and_a_flag_gets_both():
    task = classifier(Split())
    params = task.init(KEY, RECORD)
    assert len(jax.tree.leaves(params)) == 2  # whole numbers are no parameters
    keys = jax.random.split(KEY, 4)
    losses = jax.jit(jax.vmap(task.loss, (None, None, 0)))(params, (X, 1), keys)
    assert len(np.unique(losses)) == 4
    expected = params.out.weight @ X.reshape(-1) + params.out.bias + jnp.arange(20)
    np.testing.assert_allclose(
        task.predict(params, X)["scores"], jax.nn.softmax(expected), rtol=1e-4
    )


def test_models_of_equinox_itself():
    for model in (
        eqx.nn.MLP(4, 3, 8, 1, key=KEY),
        eqx.nn.Sequential([eqx.nn.Dropout(0.5), eqx.nn.Linear(4, 3, key=KEY)]),
    ):
        task = classifier(model)
        params = task.init(KEY, (jnp.zeros(4), 0))
        assert np.isfinite(jax.jit(task.loss)(params, (jnp.ones(4), 1), KEY))
        assert np.isfinite(jax.jit(task.scores)(params, (jnp.ones(4), 1))["loss"])
