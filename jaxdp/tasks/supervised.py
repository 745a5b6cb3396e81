"""Tasks that learn a model of some library: classification, regression, language."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..models import batchnorm
from ..types import PyTree
from .networks import Network, make_network
from .task import Task

Preprocess = Callable[[PyTree], PyTree]
Augment = Callable[[jax.Array, PyTree], PyTree]
ROWS_AT_A_TIME = 500  # public records in a pass, which bounds its memory


class _Kind(NamedTuple):
    """What is done with the output of a model for one record."""

    name: str
    loss: Callable[[Any, jax.Array], jax.Array]  # (output, target)
    scores: Callable[[Any, jax.Array], dict[str, jax.Array]]  # (output, target)
    predict: Callable[[Any], PyTree]  # (output)


def classifier(
    model: Any,
    *,
    preprocess: Preprocess | None = None,
    augment: Augment | None = None,
    batch_norm: bool = False,
) -> Task:
    """A task that learns to classify. A record is a pair (inputs, label).

    The label is a whole number, or an array of them, such as one for each pixel. The loss is the
    cross-entropy in nats, the mean over the labels of the record.

    Args:
      model: a Flax linen module, an instance of an nnx or Equinox module, or `hk.transform(f)`.
        It turns inputs into logits `[classes]`, or `[..., classes]` for an array of labels. Flax
        and Haiku models get a batch of one record, Equinox models the record itself. Inputs that
        are a tree are passed as one argument.
      preprocess: applied to the inputs of a record first, always. Constants in it must not come
        from private records.
      augment: `(key, inputs) -> inputs`, applied before that to the records that are trained on.
      batch_norm: whether the model has BatchNorm (Flax only). It is trained in batch units, and
        needs public records.

    Raises:
      TypeError: for a model of another kind.
      ValueError: for a model that mixes records or keeps state, if that can be seen; else `init`
        raises it.

    Example:
      >>> import flax.linen as nn
      >>> task = classifier(nn.Dense(10))
    """
    return _task(model, _CLASSIFIER, preprocess, augment, batch_norm)


def regressor(
    model: Any,
    *,
    preprocess: Preprocess | None = None,
    augment: Augment | None = None,
    batch_norm: bool = False,
) -> Task:
    """A task that learns numbers. A record is a pair (inputs, target).

    The loss is the squared error, the mean over the numbers of the target. An output `[1]` is taken
    for a target that is one number.

    Args:
      model: as for `classifier`; it turns inputs into numbers in the shape of the target.
      preprocess, augment, batch_norm: as for `classifier`.

    Raises:
      TypeError, ValueError: as for `classifier`.
    """
    return _task(model, _REGRESSOR, preprocess, augment, batch_norm)


def language_model(
    model: Any,
    *,
    preprocess: Preprocess | None = None,
    augment: Augment | None = None,
    batch_norm: bool = False,
) -> Task:
    """A task that learns to predict the next token.

    A record is a pair (tokens `[n]`, the token after each of them `[n]`). The loss is the
    cross-entropy in nats, the mean over the tokens.

    Args:
      model: as for `classifier`; it turns tokens `[n]` into logits `[n, vocabulary]`.
      preprocess, augment, batch_norm: as for `classifier`.

    Raises:
      TypeError, ValueError: as for `classifier`.
    """
    return _task(model, _LANGUAGE, preprocess, augment, batch_norm)


def _task(
    model: Any, kind: _Kind, preprocess: Preprocess | None, augment: Augment | None, bn: bool
) -> Task:
    network = make_network(model, bn)
    prepared = preprocess or (lambda inputs: inputs)

    def init(key: jax.Array, record: PyTree) -> PyTree:
        inputs, _ = _pair(record)
        return network.init(key, prepared(inputs))

    def loss(params: PyTree, record: PyTree, key: jax.Array) -> jax.Array:
        inputs, target = _pair(record)
        if augment is not None:
            # A key of its own, so that no draw of the model is one of the augmentation's.
            inputs = augment(jax.random.fold_in(key, _AUGMENTATION), inputs)
        return kind.loss(network.train(params, prepared(inputs), key), target)

    def scores(variables: PyTree, record: PyTree) -> dict[str, jax.Array]:
        inputs, target = _pair(record)
        return kind.scores(network.evaluate(variables, prepared(inputs)), target)

    def predict(variables: PyTree, inputs: PyTree) -> PyTree:
        return kind.predict(network.evaluate(variables, prepared(inputs)))

    if not bn:
        return Task(init, loss, scores, predict, name=kind.name)
    unit_loss, statistics = _batch_norm_parts(network, kind, prepared, augment)
    return Task(init, None, scores, predict, unit_loss, statistics, kind.name)


_AUGMENTATION = 0x617567


def _batch_norm_parts(
    network: Network, kind: _Kind, prepared: Preprocess, augment: Augment | None
) -> tuple[Callable[..., jax.Array], Callable[[PyTree, PyTree], PyTree]]:
    """The loss of a unit, and the statistics on public records, of a model with BatchNorm."""
    apply = network.training_call or (lambda model, x: model(x))
    call = lambda model, inputs: apply(model, jax.vmap(prepared)(inputs))
    of_unit = batchnorm.unit_loss(network.model, jax.vmap(kind.loss), call=call)
    on_public = batchnorm.public_statistics(network.model, call=call, rows_at_a_time=ROWS_AT_A_TIME)

    def unit_loss(params: PyTree, records: PyTree, keys: jax.Array, mask: jax.Array) -> jax.Array:
        inputs, targets = jax.vmap(_pair)(records)
        if augment is not None:
            own = jax.vmap(lambda key: jax.random.fold_in(key, _AUGMENTATION))(keys)
            inputs = jax.vmap(augment)(own, inputs)
        return of_unit(params, inputs, targets, mask)

    def statistics(params: PyTree, records: PyTree) -> PyTree:
        inputs, _ = jax.vmap(_pair)(records)
        return on_public(params, inputs)

    return unit_loss, statistics


def _pair(record: PyTree) -> tuple[PyTree, Any]:
    if not (isinstance(record, tuple) and len(record) == 2):
        shapes = jax.tree.map(lambda leaf: jnp.shape(leaf), record)
        raise ValueError(
            f"a record is {shapes} (shapes), and the task takes pairs (inputs, label): give "
            "jaxdp.Dataset(private=(inputs, labels), ...), or write a jaxdp.Task"
        )
    return record[0], record[1]


def _cross_entropy(logits: Any, labels: jax.Array) -> jax.Array:
    _check_labels(logits, labels)
    logits = logits.astype(jnp.float32)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def _check_labels(logits: Any, labels: jax.Array) -> None:
    if not hasattr(logits, "shape") or logits.ndim == 0 or logits.shape[:-1] != labels.shape:
        shape = getattr(logits, "shape", type(logits).__name__)
        raise ValueError(
            f"the model turns a record into {shape}, and its label has shape {labels.shape}: let "
            "it return logits with one axis more than the label, [classes] for a whole number"
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels have type {labels.dtype}: give whole numbers from 0 on; for other numbers "
            "there is jaxdp.tasks.regressor"
        )


def _classes(logits: Any, labels: jax.Array) -> dict[str, jax.Array]:
    right = jnp.argmax(logits, axis=-1) == labels
    return {
        "accuracy": jnp.mean(right.astype(jnp.float32)),
        "loss": _cross_entropy(logits, labels),
    }


def _probabilities(logits: Any) -> PyTree:
    scores = jax.nn.softmax(logits.astype(jnp.float32))
    return {"class": jnp.argmax(logits, axis=-1).astype(jnp.int32), "scores": scores}


def _errors(output: Any, target: jax.Array) -> jax.Array:
    output = jnp.asarray(output)
    if output.shape == (1,) and target.shape == ():
        output = output[0]
    if output.shape != target.shape:
        raise ValueError(
            f"the model turns a record into {output.shape}, and its target has shape "
            f"{target.shape}: let them be the same"
        )
    return output.astype(jnp.float32) - target.astype(jnp.float32)


def _distances(output: Any, target: jax.Array) -> dict[str, jax.Array]:
    errors = _errors(output, target)
    return {"absolute error": jnp.mean(jnp.abs(errors)), "loss": jnp.mean(errors**2)}


_CLASSIFIER = _Kind("classifier", _cross_entropy, _classes, _probabilities)
_REGRESSOR = _Kind(
    "regressor",
    lambda output, target: jnp.mean(_errors(output, target) ** 2),
    _distances,
    lambda output: output,
)
_LANGUAGE = _Kind("language model", _cross_entropy, _classes, _probabilities)
