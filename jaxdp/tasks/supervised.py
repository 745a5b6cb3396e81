"""Tasks made of a model and a standard loss: classes, numbers, next tokens."""

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..datasets.config import require
from ..types import ComputeDtype, PyTree
from ._libraries import network_of
from ._network import OWN_TASK, Network
from .task import Inputs, Record, Records, Task, WrongRecord

Prepare = Callable[[Inputs], Inputs]
Augment = Callable[[jax.Array, Inputs], Inputs]


def classifier(
    model: Any,
    *,
    preprocess: Prepare | None = None,
    augment: Augment | None = None,
    views: int = 1,
    batch_norm: bool = False,
    compute_dtype: ComputeDtype = "float32",
) -> Task:
    """Returns the task of finding the class of a record, `(inputs, label)`.

    The loss is the cross-entropy of the softmax, in float32 and nats; the mean over the labels, if
    a record has several. The scores are `accuracy` and `loss`. A prediction is `{"class": [...]
    int32, "scores": [..., C] probabilities}`.

    What a model of each library gets, and what its parameters are:

    - Flax linen: inputs with a batch axis, `[1, ...]`. The parameters are its collection "params".
      `init` draws them.
    - Flax nnx: inputs with a batch axis. `init` returns the parameters that the instance has now,
      as a nested dict. `nnx.update(model, params)` brings trained ones back.
    - Equinox: inputs without a batch axis. `init` returns the inexact arrays of the model, all of
      which are trained. `eqx.combine(params, model)` brings trained ones back.
    - Haiku (`hk.transform`): inputs with a batch axis. The parameters are Haiku's. `init` draws
      them.

    In the loss, every layer is in training mode: the arguments `train`, `training` and
    `is_training` of the model's call are True, if it has them, and `deterministic` and `inference`
    are False. Dropout draws from the key of the record. In scores and predictions it is the other
    way round, and nothing may be drawn.

    Args:
      model: a Flax linen module, an instance of an nnx or Equinox module, or a pair of functions
        from `hk.transform`. It maps inputs to logits `[*shape of the label, C]`. It is not changed.
      preprocess: `inputs -> inputs` of one record, before the model, everywhere: scaling, say. Its
        constants must not be computed from private records.
      augment: `(key, inputs) -> inputs` of one record, before `preprocess`, in the loss only. Its
        result has the shape that `preprocess` takes.
      views: K, how many times a record is augmented in a step (augmentation multiplicity). The
        loss is the mean over the views, so their gradients are averaged before they are clipped: a
        record stays one unit with one norm, and the noise is the same for every K. A view's key
        follows from the record's and the view's number.
      batch_norm: whether the model has BatchNorm. It needs batch units (`clip_batch`), and its
        statistics for evaluation come from public records (docs/guides/batchnorm.md). Flax only,
        and without dropout; the inputs are one array.
      compute_dtype: "float32", or "bfloat16": in the loss the model gets parameters and inputs that
        are rounded to it, as accelerators multiply them fastest. The parameters themselves, norms,
        sums, noise and updates are float32, and so are scores and predictions. Layers of the model
        that name a dtype of their own keep it.

    Returns:
      A `Task` with the name "classifier". Label: whole numbers from 0 to C - 1, of any shape.

    Raises:
      TypeError: for something else than such a model, or a model that needs more arguments.
      ValueError: for an nnx or Equinox model with BatchNorm, or other state beside its parameters.
        For linen and Haiku, the task's `init` raises it. The loss and the scores raise it for
        outputs or labels of other shapes.

    Example:
      >>> import flax.linen as nn
      >>> model = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(3)])
      >>> task = classifier(model, preprocess=lambda x: x / 255)
      >>> record = (jnp.zeros(5), jnp.zeros((), int))
      >>> params = task.init(jax.random.key(0), record)
      >>> batch = (jnp.ones((4, 5)), jnp.zeros(4, int))
      >>> keys = jax.random.split(jax.random.key(1), 4)
      >>> grads = jaxdp.per_example_grads(task.loss)(params, (batch, keys))
      >>> grads.materialize()["layers_0"]["kernel"].shape
      (4, 5, 8)
    """
    return _make(CLASSIFIER, model, preprocess, augment, views, batch_norm, compute_dtype)


def regressor(
    model: Any,
    *,
    preprocess: Prepare | None = None,
    augment: Augment | None = None,
    views: int = 1,
    batch_norm: bool = False,
    compute_dtype: ComputeDtype = "float32",
    target_center: float = 0.0,
    target_scale: float = 1.0,
) -> Task:
    """Returns the task of finding the numbers that belong to a record, `(inputs, target)`.

    The model's output is `(target - target_center) / target_scale`. The loss is its squared error,
    in float32: the mean over the numbers, if a target has several. The scores are `loss` and
    `absolute_error`, which is in units of the target, as are predictions.

    Args:
      model: as for `classifier`. It maps inputs to numbers of the shape of the target.
      preprocess: as for `classifier`.
      augment: as for `classifier`.
      views: as for `classifier`.
      batch_norm: as for `classifier`.
      compute_dtype: as for `classifier`.
      target_center, target_scale: a typical target, and how far targets are from it. They must not
        be computed from private records.

    Returns:
      A `Task` with the name "regressor". Target: real numbers of any shape.

    Raises:
      TypeError, ValueError: as `classifier` does; and for a scale that is not above 0.
    """
    if not (math.isfinite(target_center) and 0 < target_scale < math.inf):
        raise ValueError(
            f"target_center is {target_center} and target_scale {target_scale}: give finite "
            "numbers, the scale above 0"
        )
    kind = _regression(target_center, target_scale)
    return _make(kind, model, preprocess, augment, views, batch_norm, compute_dtype)


def language_model(
    model: Any,
    *,
    preprocess: Prepare | None = None,
    augment: Augment | None = None,
    views: int = 1,
    compute_dtype: ComputeDtype = "float32",
) -> Task:
    """Returns the task of finding each next token of a record.

    A record is a pair of tokens `[T]`, whole numbers, and of the token after each of them `[T]`: of
    texts `[n, T + 1]`, `(texts[:, :-1], texts[:, 1:])`.

    The loss is the cross-entropy in nats, the mean over the tokens. The scores are `accuracy` and
    `loss`; the exponential of the loss is the perplexity. `predict` takes tokens `[T]` and returns
    `{"class": [T] int32, "scores": [T, C] probabilities}` of each next token.

    Args:
      model: as for `classifier`. It maps tokens int32 `[1, T]` (Equinox: `[T]`) to logits
        `[1, T, C]` (`[T, C]`). It must not look ahead.
      preprocess: as for `classifier`, of tokens.
      augment: as for `classifier`, of tokens.
      views: as for `classifier`.
      compute_dtype: as for `classifier`.

    Returns:
      A `Task` with the name "language model".

    Raises:
      TypeError, ValueError: as `classifier` does.
    """
    return _make(LANGUAGE_MODEL, model, preprocess, augment, views, False, compute_dtype)


class _Kind(NamedTuple):
    """What is learnt, without the model. All functions are of one record.

    Attributes:
      name: for the privacy statement.
      prepare: `inputs -> inputs`, after those of the user.
      loss: `(outputs, target) -> scalar`.
      scores: `(outputs, target) -> {name: scalar}`.
      prediction: `outputs -> prediction`.
      check: as in `Task`.
    """

    name: str
    prepare: Prepare
    loss: Callable[[PyTree, jax.Array], jax.Array]
    scores: Callable[[PyTree, jax.Array], dict[str, jax.Array]]
    prediction: Callable[[PyTree], PyTree]
    check: Callable[[Records, PyTree], WrongRecord | None] | None = None


def _make(
    kind: _Kind,
    model: Any,
    preprocess: Prepare | None,
    augment: Augment | None,
    views: int,
    batch_norm: bool,
    compute_dtype: ComputeDtype,
) -> Task:
    for name, value in (("preprocess(inputs)", preprocess), ("augment(key, inputs)", augment)):
        if not (value is None or callable(value)):
            raise TypeError(f"{name.partition('(')[0]} is {value!r}: give a function {name}")
    _check_views(views, augment, batch_norm)
    names = get_args(ComputeDtype)
    require(compute_dtype in names, "compute_dtype", compute_dtype, " or ".join(map(repr, names)))
    network = network_of(model, batch_norm)

    def prepare(inputs: Inputs) -> Inputs:
        inputs = jax.tree.map(jnp.asarray, inputs)
        return kind.prepare(inputs if preprocess is None else preprocess(inputs))

    def narrow(tree: PyTree) -> PyTree:
        wide = lambda leaf: leaf.dtype == jnp.float32
        return jax.tree.map(lambda x: x.astype(compute_dtype) if wide(x) else x, tree)

    def init(key: jax.Array, record: Record) -> PyTree:
        inputs, _ = _pair(record)
        if batch_norm and len(jax.tree.leaves(inputs)) != 1:
            raise ValueError(
                f"batch_norm is True, and the inputs are {len(jax.tree.leaves(inputs))} arrays: "
                "make them one array"
            )
        return network.init(key, prepare(inputs))

    def loss(params: PyTree, record: Record, key: jax.Array) -> jax.Array:
        inputs, target = _pair(record)

        def of_view(key: jax.Array) -> jax.Array:
            key, view = _augmented(augment, key, inputs)
            return kind.loss(network.train(narrow(params), narrow(prepare(view)), key), target)

        if views == 1:
            return of_view(key)
        keys = jax.vmap(lambda view: jax.random.fold_in(key, view))(jnp.arange(views))
        return jnp.mean(jax.vmap(of_view)(keys))

    def scores(variables: PyTree, record: Record) -> dict[str, jax.Array]:
        inputs, target = _pair(record)
        return kind.scores(network.evaluate(variables, prepare(inputs)), target)

    def predict(variables: PyTree, inputs: Inputs) -> PyTree:
        return kind.prediction(network.evaluate(variables, prepare(inputs)))

    task = Task(init, loss, scores, predict, name=kind.name, check=kind.check)
    return _in_units(task, kind, network, prepare, augment, narrow) if batch_norm else task


def _in_units(
    task: Task,
    kind: _Kind,
    network: Network,
    prepare: Prepare,
    augment: Augment | None,
    narrow: Callable[[PyTree], PyTree],
) -> Task:
    """The task of a model with BatchNorm: it has a loss of a batch unit only."""
    assert network.unit_loss is not None
    assert network.statistics is not None
    loss_of_rows = network.unit_loss(jax.vmap(kind.loss))
    statistics_of_rows = network.statistics(jax.vmap(prepare))

    def unit_loss(params: PyTree, records: Records, keys: jax.Array, mask: jax.Array) -> jax.Array:
        inputs, targets = _pair(records)
        _, inputs = jax.vmap(functools.partial(_augmented, augment))(keys, inputs)
        rows = narrow(jax.vmap(prepare)(inputs))
        return loss_of_rows(narrow(params), rows, targets, mask)

    def statistics(params: PyTree, records: Records) -> PyTree:
        inputs, _ = _pair(records)
        return statistics_of_rows(params, inputs)

    return replace(task, loss=None, unit_loss=unit_loss, statistics=statistics)


def _check_views(views: int, augment: Augment | None, batch_norm: bool) -> None:
    is_whole = isinstance(views, int | np.integer) and not isinstance(views, bool)
    require(is_whole and views >= 1, "views", views, "a whole number of at least 1")
    if views > 1 and augment is None:
        raise ValueError(f"views is {views}, but nothing changes them: give augment=, or 1 view")
    if views > 1 and batch_norm:
        raise ValueError(
            f"views is {views}, and batch_norm is True: a unit with BatchNorm has one view of each "
            "record. Give 1 (--data.views 1), or a model with GroupNorm (--model.norm group)"
        )


def _augmented(augment: Augment | None, key: jax.Array, inputs: Inputs) -> tuple[jax.Array, Inputs]:
    """A key for the model, and the inputs, changed if they are to be."""
    if augment is None:
        return key, inputs
    key, augment_key = jax.random.split(key)
    return key, augment(augment_key, jax.tree.map(jnp.asarray, inputs))


def _pair(record: Record) -> tuple[Inputs, Any]:
    if not isinstance(record, tuple) or len(record) != 2:
        parts = f" of {len(record)} parts" if isinstance(record, tuple) else ""
        raise TypeError(
            f"a record is a {type(record).__name__}{parts}: give a pair (inputs, label), whose "
            f"inputs may be a dict or tuple; {OWN_TASK}"
        )
    return record


def _tokens(inputs: jax.Array) -> jax.Array:
    if not jnp.issubdtype(inputs.dtype, jnp.integer):
        raise TypeError(f"tokens have dtype {inputs.dtype}: give whole numbers")
    return inputs.astype(jnp.int32)


def _numbers(outputs: PyTree) -> jax.Array:
    """The model's output, in float32 or wider."""
    if len(leaves := jax.tree.leaves(outputs)) != 1:
        raise TypeError(f"the model returns {len(leaves)} arrays: return one; {OWN_TASK}")
    if not jnp.issubdtype(leaves[0].dtype, jnp.floating):
        raise TypeError(f"the model returns dtype {leaves[0].dtype}: return real floating numbers")
    return leaves[0].astype(jnp.promote_types(leaves[0].dtype, jnp.float32))


def _cross_entropy(outputs: PyTree, label: jax.Array) -> jax.Array:
    logits, label = _numbers(outputs), jnp.asarray(label)
    if not jnp.issubdtype(label.dtype, jnp.integer):
        raise TypeError(
            f"a label has dtype {label.dtype}: give the number of the class, a whole number from 0 "
            "to C - 1 (jnp.argmax of one-hot labels)"
        )
    if logits.ndim != label.ndim + 1 or logits.shape[:-1] != label.shape or logits.shape[-1] < 2:
        wanted = ", ".join([*map(str, label.shape), "C"])
        raise ValueError(
            f"the model returns shape {logits.shape} for a record whose label has shape "
            f"{label.shape}: return logits [{wanted}], one for each of C classes, two or more"
        )
    # Optax counts a label below 0 from the end. It must not pass for another class.
    label = jnp.where(label < 0, logits.shape[-1], label)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, label))


def _class_scores(outputs: PyTree, label: jax.Array) -> dict[str, jax.Array]:
    loss = _cross_entropy(outputs, label)
    right = jnp.argmax(_numbers(outputs), axis=-1) == label
    return {"accuracy": jnp.mean(right, dtype=jnp.float32), "loss": loss}


def _classes(outputs: PyTree) -> dict[str, jax.Array]:
    logits = _numbers(outputs)
    return {"class": jnp.argmax(logits, axis=-1), "scores": jax.nn.softmax(logits)}


def _error(outputs: PyTree, target: jax.Array) -> jax.Array:
    numbers, target = _numbers(outputs), jnp.asarray(target)
    if numbers.shape != target.shape:
        raise ValueError(
            f"the model returns shape {numbers.shape} for a target of shape {target.shape}: return "
            "the shape of the target (a single number of [..., 1] is x[..., 0])"
        )
    return numbers - target


def _regression(center: float, scale: float) -> _Kind:
    """What is learnt of targets around a center."""

    def error(outputs: PyTree, target: jax.Array) -> jax.Array:
        return _error(outputs, (jnp.asarray(target) - center) / scale)

    def scores(outputs: PyTree, target: jax.Array) -> dict[str, jax.Array]:
        off = error(outputs, target)
        absolute = scale * jnp.mean(jnp.abs(off))
        return {"loss": jnp.mean(jnp.square(off)), "absolute_error": absolute}

    return _Kind(
        "regressor",
        lambda inputs: inputs,
        lambda outputs, target: jnp.mean(jnp.square(error(outputs, target))),
        scores,
        lambda outputs: jax.tree.map(lambda x: center + scale * x, outputs),
    )


def _check_labels(records: Records, prediction: PyTree) -> WrongRecord | None:
    """Finds a label that is no class."""
    classes = prediction["scores"].shape[-1]
    labels = np.asarray(records[1])
    wrong = ((labels < 0) | (labels >= classes)).reshape(len(labels), -1).any(axis=1)
    if not wrong.any():
        return None
    return WrongRecord(
        int(np.argmax(wrong)),
        f"its label is none of the model's {classes} classes, 0 to {classes - 1}: give the numbers "
        "of classes, or a model with more of them",
    )


CLASSIFIER = _Kind(
    "classifier",
    lambda inputs: inputs,
    _cross_entropy,
    _class_scores,
    _classes,
    _check_labels,
)
LANGUAGE_MODEL = CLASSIFIER._replace(name="language model", prepare=_tokens)
