"""From a loss, or from a user's own gradients, to the lazy gradients of a batch."""

from collections.abc import Callable
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np

from ..types import MatrixPrecision, Method, PyTree, Unit
from ._checks import (
    batch_size,
    check_axes,
    check_dense,
    check_loss,
    check_mask,
    check_memory_limit,
    check_microbatch_size,
    check_order,
    check_params,
    unit_rows,
)
from .coupling import check_uncoupled
from .engine import auto_engine, factored_engine
from .held import Gradients, Held
from .isolation import each_on_its_own, mixes_rows
from .jax_internals import one_example, vary, varying_axes
from .lazy import PerExampleGrads
from .limit import default_method, is_alone, within_limit
from .nnx_optimizer import tell_nnx
from .precision import multiplies_narrow
from .program import trace
from .representations import Dense, Representation
from .shared import with_shared
from .two_pass import two_pass_engine

Engine = Callable[[Callable[..., jax.Array], PyTree, tuple, bool, bool, bool], Gradients]


def per_example_grads(
    loss_fn: Callable[..., jax.Array],
    *,
    method: Method = "auto",
    unit: Unit = "example",
    microbatch_size: int | None = None,
    memory_limit: int | None = None,
    constant_time: bool = False,
    precision: MatrixPrecision = "default",
) -> Callable[..., PerExampleGrads]:
    """Turns the loss of one example into the lazy gradients of a batch.

    Args:
      loss_fn: `loss_fn(params, *example) -> scalar`, the loss of a *single* example, without a
        batch axis (layers that want one get `x[None]`). Only `params` is differentiated. Randomness
        (dropout) comes in as a key in the batch: one for each example, made of its record's number.
        With unit="batch", `loss_fn(params, *records, mask) -> scalar`, the *mean* loss of a whole
        batch unit: records have a leading axis, and only those where `mask` is True count. If
        `shared` is given, it is called with `shared=shared` too.
      method: "vmap" differentiates every example on its own; "factored" holds the gradients as the
        factors of a product, where it has a rule; "auto" takes the cheaper form, leaf by leaf, or
        two passes where factors would take 64 MB more than plain training, and twice as much.
        "two_pass" holds nothing: it differentiates once for the norms and once more for the sum, in
        about the memory of plain training, and some more time. The two passes round differently,
        so a contribution is bounded by the clipping norm up to a fraction of 1e-3, which
        `privatize` takes off the sum. One pass is enough for `clip_layerwise` where the gradient of
        every group arises in one place of the program: with one tensor a group, and no loop over
        slices of it. `explain(plan=...)` tells for which groups it is not enough.
      unit: "example", or "batch" for losses that couple the records of a batch unit (`clip_batch`).
      microbatch_size: how many examples (or batch units) are differentiated at a time. It bounds
        what activations and factors take, and changes nothing else; the running sums take up to
        three times the parameters' memory. None takes the whole batch at once. A batch unit is
        never split: it takes the memory of plain training on its records (`mean_loss` needs less).
      memory_limit: how many bytes of temporary memory the gradient may take, by an estimate from
        the shapes (`explain` tells it). Chooses the microbatch size if none is given, and with
        method="auto" the method. Arguments, results, noise and optimizer come on top.
      constant_time: also computes microbatches that hold only padding, always zeroes rows that are
        not finite, and with "two_pass" always adds up twice. Otherwise the time of a step tells how
        many records were sampled, and whether a gradient was not finite, to whoever can watch it.
      precision: "default" computes norms and sums on TPUs and NVIDIA's GPUs of factors that are
        rounded to bfloat16, with matrix products that are exact but for the additions: several
        times as fast there as "highest", which is what all other platforms do. Coefficients are cut
        to 8 bits, which takes at most 0.8 % of a clipped gradient.

    Returns:
      A function `(params, batch, mask=None, *, shared=None) -> PerExampleGrads`. `batch` is the
      tuple of the loss's arguments after `params`, every leaf with a leading axis of length B;
      `mask [B] bool` is False for padding rows, which contribute exactly zero, whatever they hold.
      `privatize` wants a mask, with the padding last: that of `plan.batches()`, or `all_rows(B)`.
      With unit="batch" the leaves are `[m, capacity, ...]` and the mask `[m, capacity]`: the loss
      sees zeros in place of masked records, and a batch unit without any record contributes zero.
      `shared` is a pytree that all examples see: frozen weights, a large table. It is held once,
      without an axis of examples, and not differentiated. Give it to your `jit` as an argument:
      what `jit` closes over is a constant of the program. It must hold nothing of private records,
      since a record in it would change the gradients of all examples.

    Raises:
      ValueError: for an unknown method, unit or precision, or a wrong microbatch_size or
        memory_limit. The returned function raises it for a wrong batch, mask or parameters, for a
        loss that couples examples, and where no method fits into memory_limit.
      TypeError: by the returned function, for a loss that is not one real number, a batch that is
        not a tuple, or parameters that are not real floating arrays.

    Example:
      >>> loss = lambda params, x, y: (params @ x - y) ** 2
      >>> grads = per_example_grads(loss)(jnp.ones(3), (jnp.ones((5, 3)), jnp.zeros(5)))
      >>> grads.materialize().shape
      (5, 3)
    """
    if method not in get_args(Method):
        choices = ", ".join(map(repr, get_args(Method)))
        raise ValueError(f"method is {method!r}: choose one of {choices}")
    if unit not in ("example", "batch"):
        raise ValueError(f"unit is {unit!r}: give 'example' or 'batch'")
    if precision not in get_args(MatrixPrecision):
        raise ValueError(f"precision is {precision!r}: give 'default' or 'highest'")
    check_microbatch_size(microbatch_size)
    check_memory_limit(memory_limit)

    def taken(
        loss: Callable[..., jax.Array], params: PyTree, batch: tuple, size: int, narrow: bool
    ) -> tuple[Method, int | None]:
        """The method, and how many rows at a time, of all that was left open."""
        at_once = min(microbatch_size or size, size)
        if memory_limit is None and (method != "auto" or at_once == 1):
            return method, microbatch_size
        params = vary(params, varying_axes((params, batch)))
        program = trace(loss, params, one_example(batch), narrow=narrow)
        if memory_limit is None:
            return default_method(program, at_once), microbatch_size
        what = "example" if unit == "example" else "batch unit"
        return within_limit(program, memory_limit, method, size, microbatch_size, what)

    def transform(
        params: PyTree,
        batch: tuple,
        mask: jax.Array | None = None,
        *more: object,
        shared: PyTree = None,
    ) -> PerExampleGrads:
        if more:
            raise TypeError(
                f"got {3 + len(more)} arguments, of (params, batch, mask): put the loss's "
                "arguments after params into one tuple, as in grads(params, (x, y), mask)"
            )
        check_order(params, batch)
        check_params(params)
        loss = with_shared(loss_fn, shared)
        batch, size = tuple(batch), batch_size(batch)
        check_axes(params, batch)
        record_mask = mask
        if unit == "batch":
            batch, mask = unit_rows(batch, mask)
        mask = check_mask(mask, size)
        check_loss(loss, params, batch)
        narrow = multiplies_narrow(precision)
        chosen, at_once = taken(loss, params, batch, size, narrow)
        alone = is_alone(chosen, min(at_once or size, size))
        seen = check_uncoupled(loss, params, batch, alone=alone)
        tell_nnx()

        def compute(rows: tuple) -> Gradients:
            own, rows = seen.guarded((params, rows))
            engine = _single_engine if alone else ENGINES[chosen]
            return engine(loss, own, rows, constant_time, seen.convolves, narrow)

        return PerExampleGrads(
            compute,
            batch,
            mask,
            params,
            at_once,
            unit,
            record_mask=record_mask,
            constant_time=constant_time,
        )

    return transform


def all_rows(count: int) -> np.ndarray:
    """The mask of a batch without padding, `[count] bool`."""
    return np.ones(count, bool)


def from_dense(
    grads: PyTree,
    mask: jax.Array | None,
    *,
    like: PyTree,
    unit: Unit = "example",
    microbatch_size: int | None = None,
) -> PerExampleGrads:
    """Takes per-example gradients that were computed elsewhere, for example by `vmap(grad)`.

    Args:
      grads: pytree like the parameters, every leaf `[B, ...]`: row i must depend on example i only.
      mask: `[B] bool`, False for padding rows; `all_rows(B)` if there are none. None is for
        clipping alone: `privatize` refuses it.
      like: the parameters, or their shapes. A mean gradient, or one of a single example, has them
        too, and would be taken for many examples where its own leading axes agree.
      unit: "batch" if a row is the gradient of a batch unit's mean loss.
      microbatch_size: as in `per_example_grads`.

    Raises:
      ValueError: if leaves or mask disagree in the number of rows, or there are none; or if a leaf
        does not have the shape of its parameter behind the leading axis.
      TypeError: if a leaf is not a real floating array.
    """
    check_microbatch_size(microbatch_size)
    check_params(grads)
    check_dense(grads, like)
    size = batch_size(grads)
    like = jax.tree.map(lambda g: jax.ShapeDtypeStruct(g.shape[1:], g.dtype), grads)

    def compute(rows: PyTree) -> Gradients:
        leaves = jax.tree.leaves(rows)
        unknown_loss = jnp.full(leaves[0].shape[:1], jnp.nan, jnp.float32)
        return Held(unknown_loss, [Dense(leaf) for leaf in leaves])

    rows = check_mask(mask, size)
    tell_nnx()
    return PerExampleGrads(compute, grads, rows, like, microbatch_size, unit, record_mask=mask)


def _vmap_engine(
    loss_fn: Callable[..., jax.Array],
    params: PyTree,
    rows: tuple,
    constant_time: bool,
    convolves: bool,
    narrow: bool,
) -> Gradients:
    """The reference: differentiate every example on its own."""
    del narrow
    # Inside shard_map, the gradients of shared parameters would be summed over the devices at once.
    params = vary(params, varying_axes((params, rows)))
    of_row = lambda row: jax.value_and_grad(loss_fn)(params, *row)
    if convolves and mixes_rows(jax.vmap(of_row), rows):
        values, grads = each_on_its_own(of_row, rows, constant_time)
    else:
        values, grads = jax.vmap(of_row)(rows)
    return Held(values, [Dense(g) for g in jax.tree.leaves(grads)])


def _single_engine(
    loss_fn: Callable[..., jax.Array],
    params: PyTree,
    rows: tuple,
    constant_time: bool,
    convolves: bool,
    narrow: bool,
) -> Gradients:
    """Differentiates one row (a whole batch unit, say) without a batch axis that XLA might move."""
    del constant_time, convolves, narrow
    params = vary(params, varying_axes((params, rows)))
    row = jax.tree.map(lambda leaf: leaf[0], rows)
    value, grads = jax.value_and_grad(loss_fn)(params, *row)
    return Held(value[None], [Dense(g[None]) for g in jax.tree.leaves(grads)])


def _held(
    engine: Callable[..., tuple[jax.Array, list[Representation]]],
) -> Engine:
    def with_gradients(
        loss_fn: Callable[..., jax.Array],
        params: PyTree,
        rows: tuple,
        constant_time: bool,
        convolves: bool,
        narrow: bool,
    ) -> Gradients:
        return Held(*engine(loss_fn, params, rows, constant_time, convolves, narrow))

    return with_gradients


ENGINES: dict[str, Engine] = {
    "auto": _held(auto_engine),
    "factored": _held(factored_engine),
    "two_pass": two_pass_engine,
    "vmap": _vmap_engine,
}
