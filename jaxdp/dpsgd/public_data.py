"""Clipping norms from public data: the average gradient norm of every layer, scaled.

This is adaptive layerwise clipping (Nguyen et al. 2023, arXiv 2307.11939). It uses only public
records and released weights, so it is post-processing and costs no privacy. Never pass private
records to these functions, and never set clipping norms from private norms.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..gradients.per_example import per_example_grads
from ..gradients.shared import with_shared
from ..types import Method
from .clipping import Clipping

Batches = Iterable[tuple[tuple, Any]]  # (the loss's arguments after the parameters, mask)


def public_norms(
    loss_fn: Callable[..., jax.Array],
    clipping: Clipping,
    *,
    method: Method = "auto",
    microbatch_size: int | None = None,
) -> Callable[..., np.ndarray]:
    """Measures on public data how long the gradients are that a clipping clips.

    Args:
      loss_fn: as for `per_example_grads`: the loss of one example, or for a clipping with
        unit="batch" the mean loss of a unit, `loss_fn(params, *records, mask)`.
      clipping: its groups and its unit are measured.
      method, microbatch_size: as for `per_example_grads`.

    Returns:
      A function `(params, batches, *, shared=None) -> norms [groups] float32`: the norm of every
      group's gradient, averaged over all examples (units) of the public `batches` of
      `(batch, mask)`. Units should be as large as the private ones, because means over more records
      are shorter. `params` are released weights. Gradients that are not finite are left out.
      `shared` is as in `per_example_grads`, but of arrays only.

    Example:
      >>> clip = clip_layerwise(1.0)
      >>> measure = public_norms(lambda w, x: jnp.sum(w["a"] * x) + 3 * w["b"], clip)
      >>> measure({"a": jnp.ones(2), "b": jnp.ones(())}, [((jnp.ones((4, 2)),), None)]).round(3)
      array([1.414, 3.   ], dtype=float32)
    """
    grads_of = per_example_grads(
        loss_fn, method=method, unit=clipping.unit, microbatch_size=microbatch_size
    )

    @jax.jit
    def totals(
        params: Any, batch: tuple, mask: jax.Array, shared: Any
    ) -> tuple[jax.Array, jax.Array]:
        squares = jax.tree.leaves(grads_of(params, batch, mask, shared=shared).squared_norms())
        norms = jnp.sqrt(clipping.groups(params).add_up(squares)).astype(jnp.float32)
        there = jnp.any(mask, axis=tuple(range(1, mask.ndim)))
        counted = there & jnp.all(jnp.isfinite(norms), axis=0)
        return jnp.sum(jnp.where(counted, norms, 0), axis=1), jnp.sum(counted)

    def measure(params: Any, batches: Batches, *, shared: Any = None) -> np.ndarray:
        total, count = np.zeros(()), 0
        for batch, mask in batches:
            if mask is None:
                axes = 2 if clipping.unit == "batch" else 1
                mask = np.ones(jax.tree.leaves(batch)[0].shape[:axes], bool)
            part, counted = totals(params, batch, jnp.asarray(mask), shared)
            total, count = total + np.asarray(part, np.float64), count + int(counted)
        if count == 0:
            raise ValueError(
                "no public gradient is finite, or there are no public records, so there are no "
                "clipping norms. Check the records, or train the first copy with a lower rate"
            )
        return np.asarray(total / count, np.float32)

    return measure


def scale_norms(
    norms: np.ndarray, clipping_norm: float | None = None, *, floor: float = 0.01
) -> np.ndarray:
    """Turns average norms e_h of layers into clipping norms C_h.

    Args:
      norms: `[groups]`, as `public_norms` measures them.
      clipping_norm: with C, C_h = C·e_h / max_k e_k. None: C_h = e_h.
      floor: the least C_h, as a share of the largest. Without it, a layer whose gradient is zero on
        the public records would never be trained.

    Returns:
      `[groups] float32`, for `optax.tree.set(state, clipping_norms=...)`. The noise follows them;
      the noise multiplier stays.
    """
    norms = np.asarray(norms, np.float32)
    if clipping_norm is not None and not 0 < clipping_norm < np.inf:
        raise ValueError(
            f"clipping_norm is {clipping_norm}: give the norm for the layer with the largest "
            "gradient, above 0"
        )
    if not 0 < floor <= 1:
        raise ValueError(
            f"floor is {floor}: it is a share of the largest clipping norm, above 0, at most 1"
        )
    if norms.ndim != 1 or not np.all(norms >= 0) or not 0 < np.max(norms) < np.inf:
        raise ValueError(
            f"norms is {norms}: give the layers' average gradient norms, finite and not all 0"
        )
    largest = np.max(norms)
    shares = np.maximum(norms / largest, np.float32(floor))
    return shares * np.float32(largest if clipping_norm is None else clipping_norm)


def pretrained_copy(
    unit_loss: Callable[..., jax.Array],
    params: Any,
    batches: Batches,
    *,
    optimizer: optax.GradientTransformation | None = None,
    shared: Any = None,
) -> Any:
    """Trains a copy of the parameters on public data, without noise, to measure norms there.

    Gradients at the freshly drawn parameters say little about the gradients some steps later. The
    copy is only for measuring; its weights are as public as the records.

    Args:
      unit_loss: the mean loss of some records, `unit_loss(params, *records, mask)`, as `mean_loss`
        makes it.
      params: the parameters; they are not changed.
      batches: public `(records, mask)`; each is one step.
      optimizer: None takes Adam with a learning rate of 0.001.
      shared: as in `public_norms`, for a loss that wants it.
    """
    optimizer = optimizer or optax.adam(1e-3)

    @jax.jit
    def step(
        params: Any, state: Any, records: tuple, mask: jax.Array, shared: Any
    ) -> tuple[Any, Any]:
        gradient = jax.grad(with_shared(unit_loss, shared))(params, *records, mask)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.asarray, params)
    state = optimizer.init(params)
    for records, mask in batches:
        params, state = step(params, state, records, jnp.asarray(mask), shared)
    return params
