"""BatchNorm in batch units: statistics of the unit in training, of public records afterwards.

`unit_loss` turns a Flax model into the loss of a batch unit, for
`per_example_grads(loss, unit="batch")`. The statistics come from the unit's own records, padding is
masked out. The running averages that the model keeps are thrown away, so that a unit's records have
an effect through its clipped gradient only. `public_statistics` finds the statistics for evaluation
and release (privacy rule 16).

Both take a `flax.linen` or `flax.nnx` model as it is. Every BatchNorm in it gets the mask and uses
the statistics of the batch, even if the model asks for running averages.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..types import PyTree

Call = Callable[[Any, jax.Array], jax.Array]  # (model, inputs) -> outputs

TOP = "(top)"  # the layer's name where the model is that layer


def _plain_call(model: Any, inputs: jax.Array) -> jax.Array:
    return model(inputs)


def unit_loss(
    model: nn.Module | nnx.Module,
    loss_fn: Callable[..., jax.Array],
    *,
    call: Call = _plain_call,
) -> Callable[..., jax.Array]:
    """Returns the mean loss of a batch unit as a function, for models with BatchNorm.

    Pass it to `per_example_grads(..., unit="batch")`, with `clip_batch` or another clipping of
    batch units. A unit can't be differentiated in parts, because its records share statistics. It
    takes the memory of plain training on as many records.

    Args:
      model: a `flax.linen` module, or an instance of `nnx.Module`. It is not changed.
      loss_fn: `loss_fn(outputs, *targets) -> [n]`, the loss of each of n records.
      call: applies the model, if it takes more than its inputs:
        `lambda model, x: model(x, train=True)`.

    Returns:
      `(params, inputs, *targets, mask) -> scalar`, the mean over the records where `mask` is True,
      and 0 if there are none. `params` are the collection "params" of a linen model, or
      `nnx.state(model, nnx.Param)`.

    Raises:
      TypeError: for a model that is not of Flax.
      ValueError: for a model with random state. When the loss is called: if another layer than
        Flax's BatchNorm keeps statistics, if the records are not the first axis of a BatchNorm's
        inputs, or if `loss_fn` does not return `[n]`.
    """
    apply = _make_pass(model, call)

    def loss(params: PyTree, inputs: jax.Array, *targets_and_mask: jax.Array) -> jax.Array:
        *targets, mask = targets_and_mask
        outputs, _ = apply(params, inputs, mask)
        losses = loss_fn(outputs, *targets)
        if losses.shape != mask.shape:
            raise ValueError(
                f"loss_fn returned shape {losses.shape} for a unit of {mask.size} records: return "
                "the loss of every record, [n], without a mean over them"
            )
        return jnp.sum(jnp.where(mask, losses, 0)) / jnp.maximum(jnp.sum(mask), 1)

    return loss


def public_statistics(
    model: nn.Module | nnx.Module, *, call: Call = _plain_call, rows_at_a_time: int = 500
) -> Callable[[PyTree, np.ndarray], PyTree]:
    """Returns a function that finds BatchNorm's statistics on public records.

    The public records pass through the model in batches, which are normalised as in training. The
    mean and variance of a layer are those of its inputs over all records, without momentum. If a
    layer is called several times, they are those of its last call.

    Find the statistics anew whenever the parameters change, also for an average of parameters.
    Never find them on private records: that would be a release without noise.

    Args:
      model: as in `unit_loss`.
      call: as in `unit_loss`.
      rows_at_a_time: size of a batch. The larger it is, the closer the statistics are to those
        that layers see in evaluation.

    Returns:
      `(params, inputs [n, ...]) -> statistics`. For linen they are the collection "batch_stats":
      `model.apply({"params": params, "batch_stats": statistics}, x)`. For nnx they are a state:
      `nnx.update(model, params, statistics)`, before `model.eval()`.

    Raises:
      TypeError, ValueError: as `unit_loss` does. When the function is called: for inputs without
        rows, or a model without BatchNorm.

    References:
      Wu & Johnson 2021, Rethinking "Batch" in BatchNorm, section 3 (arXiv 2105.07576).
    """
    apply = jax.jit(_make_pass(model, call))

    def statistics(params: PyTree, inputs: np.ndarray) -> PyTree:
        if len(inputs) == 0:
            raise ValueError("inputs has no rows: BatchNorm's statistics need public records")
        batches = -(-len(inputs) // rows_at_a_time)
        size = -(-len(inputs) // batches)
        count, pooled = 0, None
        for start in range(0, len(inputs), size):
            rows = inputs[start : start + size]
            mask = np.arange(size) < len(rows)
            padded = np.concatenate([rows, np.repeat(rows[-1:], size - len(rows), axis=0)])
            _, found = apply(params, padded, mask)
            count += len(rows)
            pooled = found if pooled is None else _pool(pooled, found, len(rows) / count)
        if not jax.tree.leaves(pooled):
            raise ValueError("the model has no BatchNorm: there are no statistics to find")
        return pooled

    return statistics


@jax.jit
def _pool(a: PyTree, b: PyTree, share: float) -> PyTree:
    """Combines the statistics of two sets of records. The share of the records in b is `share`.

    References:
      Chan, Golub & LeVeque 1979, Updating Formulae and a Pairwise Algorithm for Computing Sample
      Variances.
    """
    pooled = []
    leaves_a, leaves_b = jax.tree.leaves(a), jax.tree.leaves(b)
    for i in range(0, len(leaves_a), 2):  # mean and var of every layer, in this order
        (mean_a, var_a), (mean_b, var_b) = leaves_a[i : i + 2], leaves_b[i : i + 2]
        apart = mean_b - mean_a
        pooled += [
            mean_a + share * apart,
            (1 - share) * var_a + share * var_b + share * (1 - share) * apart**2,
        ]
    return jax.tree.unflatten(jax.tree.structure(a), pooled)


# (params, inputs [n, ...], mask [n]) -> outputs, and the batch's mean and var of every BatchNorm
Pass = Callable[[PyTree, jax.Array, jax.Array], tuple[jax.Array, PyTree]]


def _make_pass(model: nn.Module | nnx.Module, call: Call) -> Pass:
    if isinstance(model, nn.Module):
        return _linen_pass(model, call)
    if isinstance(model, nnx.Module):
        return _nnx_pass(model, call)
    raise TypeError(
        f"model is a {type(model).__name__}: pass a flax.linen module or an instance of nnx.Module"
    )


def _linen_pass(model: nn.Module, call: Call) -> Pass:
    def apply(params: PyTree, inputs: jax.Array, mask: jax.Array) -> tuple[jax.Array, PyTree]:
        normalised = []

        def intercept(next_fun: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
            module = context.module
            if not isinstance(module, nn.BatchNorm) or context.method_name != "__call__":
                return next_fun(*args, **kwargs)
            x = args[0] if args else kwargs["x"]
            normalised.append("/".join(module.path) or TOP)
            seen = _records_seen(normalised[-1], x, mask, module.axis, kwargs.get("mask"))
            with _attributes(module, use_running_average=None, momentum=0.0):
                return next_fun(x, use_running_average=False, mask=seen)

        with nn.intercept_methods(intercept):
            outputs, written = model.apply(
                {"params": params}, inputs, method=call, mutable=["batch_stats"]
            )
        statistics = written.get("batch_stats", {})
        _check_layers(statistics, normalised)
        return outputs, statistics

    return apply


@contextmanager
def _attributes(module: nn.Module, **attributes: Any) -> Iterator[None]:
    """Gives a linen module other attributes for a while, although linen modules are frozen."""
    before = {name: getattr(module, name) for name in attributes}
    try:
        for name, value in attributes.items():
            object.__setattr__(module, name, value)
        yield
    finally:
        for name, value in before.items():
            object.__setattr__(module, name, value)


def _nnx_pass(model: nnx.Module, call: Call) -> Pass:
    if jax.tree.leaves(nnx.state(model, nnx.RngState)):
        raise ValueError(
            "the model keeps random state, as nnx.Dropout does: every unit would draw the same "
            "numbers. Leave such layers out"
        )
    graph, others = nnx.split(model)[0], nnx.state(model, nnx.Not(nnx.Param))

    def apply(params: PyTree, inputs: jax.Array, records: jax.Array) -> tuple[jax.Array, PyTree]:
        class InUnit(nnx.BatchNorm):
            """BatchNorm over the records of the unit."""

            def __call__(
                self,
                x: jax.Array,
                use_running_average: bool | None = None,
                *,
                mask: jax.Array | None = None,
            ) -> jax.Array:
                seen = _records_seen("of nnx", x, records, self.axis, mask)
                return super().__call__(x, use_running_average=False, mask=seen)

        # A copy, so that the model itself stays as it is.
        copy = nnx.merge(graph, params, jax.tree.map(jnp.asarray, others))
        normalised = []
        for path, module in nnx.iter_modules(copy):
            if type(module) is nnx.BatchNorm:
                object.__setattr__(module, "__class__", InUnit)
                module.momentum = 0.0
                normalised.append("/".join(map(str, path)) or TOP)
        _check_layers(nnx.to_pure_dict(nnx.state(copy, nnx.BatchStat)), normalised)
        return call(copy, inputs), nnx.state(copy, nnx.BatchStat)

    return apply


def _records_seen(
    layer: str, x: jax.Array, mask: jax.Array, axis: Any, given: jax.Array | None
) -> jax.Array:
    """Returns the mask of a BatchNorm's inputs, combined with the model's own mask (`given`)."""
    features = np.atleast_1d(axis) % x.ndim
    if len(x) != mask.size or 0 in features:
        raise ValueError(
            f"BatchNorm {layer} gets inputs of shape {x.shape} in a unit of {mask.size} records, "
            "padding included: it can't tell padding from records. Keep the records as the first "
            "axis"
        )
    # All rows of an empty unit are padding. They are used here, so that no NaN comes up; their
    # loss is masked out.
    seen = (mask | ~jnp.any(mask)).reshape(-1, *[1] * (x.ndim - 1))
    return seen if given is None else seen & given


def _check_layers(statistics: PyTree, normalised: Sequence[str]) -> None:
    for name in layer_names(statistics):
        if name not in normalised:
            raise ValueError(
                f"layer {name!r} keeps statistics, but is not BatchNorm of flax.linen or flax.nnx "
                "itself, so that nothing keeps padding out of them. Use that BatchNorm"
            )


def layer_names(collection: Any, path: str = "") -> list[str]:
    """Returns the names of the layers with arrays in a collection, as Block_0/BatchNorm_1."""
    if any(not hasattr(value, "items") for value in collection.values()):
        return [path or TOP]
    names = []
    for key, value in collection.items():
        names += layer_names(value, f"{path}/{key}" if path else str(key))
    return names
