"""Models of Haiku: with and without random numbers."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdp.tasks import classifier

KEY = jax.random.key(5)
RECORD = (jnp.zeros(4), jnp.zeros((), int))
X = jnp.arange(4.0)


def test_the_record_s_key_is_haiku_s():
    def network(x, is_training):
        # It asks for a key in evaluation, too, and does not use it.
        x = hk.dropout(hk.next_rng_key(), 0.5 if is_training else 0.0, hk.Linear(50)(x))
        return hk.Linear(3)(x)

    model = hk.transform(network)
    task = classifier(model)
    params = task.init(KEY, RECORD)
    expected = model.init(KEY, X[None], True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), params, expected)
    logits = model.apply(params, KEY, X[None], True)[0]
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, 1)
    np.testing.assert_allclose(task.loss(params, (X, 1), KEY), loss, rtol=1e-5)
    logits = model.apply(params, KEY, X[None], False)[0]
    np.testing.assert_allclose(task.predict(params, X)["scores"], jax.nn.softmax(logits), rtol=1e-5)


def test_a_model_without_random_numbers():
    network = lambda x: hk.nets.MLP([8, 3])(x)
    for model in (hk.transform(network), hk.without_apply_rng(hk.transform(network))):
        task = classifier(model)
        params = task.init(KEY, RECORD)
        logits = hk.transform(network).apply(params, None, X[None])[0]
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, 1)
        np.testing.assert_allclose(task.loss(params, (X, 1), KEY), loss, rtol=1e-6)
        np.testing.assert_allclose(task.scores(params, (X, 1))["loss"], loss, rtol=1e-6)
