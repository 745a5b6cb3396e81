import jax
import jax.numpy as jnp
import optax

from .task import Task


def classifier(model, *, preprocess=None, augment=None, batch_norm=False):
    preprocess = preprocess or (lambda x: x)

    def init(key, record):
        return jax.jit(model.init)(key, preprocess(record[0])[None])["params"]

    def logits(params, x):
        return model.apply({"params": params}, preprocess(x)[None])[0]

    def ce(l, y):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(l, y))

    def loss(params, record, key):
        x, y = record
        if augment:
            x = augment(key, x)
        return ce(logits(params, x), y)

    def scores(params, record):
        l = logits(params, record[0])
        return {"accuracy": jnp.mean(jnp.argmax(l, -1) == record[1]), "loss": ce(l, record[1])}

    return Task(init, loss, scores, lambda p, x: logits(p, x), name="classifier")


language_model = classifier
