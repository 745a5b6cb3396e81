"""Estimates what a private step holds on each device, by parts, before anything runs."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from ..gradients.limit import default_method, need_of, program_of
from ..gradients.representations import accumulation_dtype
from ..types import Method, PyTree
from ._checks import axes_of
from .devices import Layout
from .plan import Plan

NOISE = 0.004  # of the sums: what drawing the noise takes besides them


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes on one device; prints as a table. An estimate, from the shapes.

    Attributes:
      parameters: its part of them.
      optimizer: its part of the optimizer's state.
      gathered: all parameters, for a step, where they are split.
      records: its rows of a batch.
      gradients: activations, factors and products of the rows that are differentiated at a time.
      sums: of gradients, with what microbatches add; and its part of the reduced sum.
      noise: while it is drawn.
    """

    parameters: int
    optimizer: int
    gathered: int
    records: int
    gradients: int
    sums: int
    noise: int

    @property
    def total(self) -> int:
        """The sum of all parts: they need not all be there at a time."""
        return sum(getattr(self, field.name) for field in fields(self))

    def __str__(self) -> str:
        rows = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return "\n".join(
            f"{name:12s} {size / 1e6:12.3f} MB" for name, size in [*rows, ("total", self.total)]
        )


def estimate(
    loss_fn: Callable[..., jax.Array],
    params: PyTree,
    example: tuple,
    plan: Plan,
    optimizer: optax.GradientTransformation,
    *,
    layout: Layout | None = None,
    microbatch_size: int | None = None,
    method: Method = "auto",
    shared: PyTree = None,
) -> DeviceMemory:
    """Estimates what a private step holds on each device. Nothing is compiled or run.

    Args:
      loss_fn: the loss of one example, as for `per_example_grads`.
      params: the parameters, or their shapes.
      example: the loss's other arguments for one example, or their shapes.
      plan: its capacity is the number of rows of a batch.
      optimizer: what uses the private gradient.
      layout: of the devices; None: there is one.
      microbatch_size, method, shared: as for `per_example_grads`.

    Raises:
      ValueError: for batch units, whose loss is of many records.
    """
    if plan.num_units is not None:
        raise ValueError(
            f"the plan has {plan.num_units} batch units: estimates are for single examples"
        )
    shapes = jax.eval_shape(lambda tree: tree, params)
    specs = jax.tree.map(lambda _: PartitionSpec(), shapes)
    if layout is not None:
        specs = layout.specs(shapes)
    leaves, split = jax.tree.leaves(shapes), _leaves(specs)
    share = [1 / _parts(spec, layout) for spec in split]
    wide = [leaf.size * accumulation_dtype(leaf.dtype).itemsize for leaf in leaves]
    whole = sum(map(_bytes, leaves))
    own = sum(_bytes(leaf) * part for leaf, part in zip(leaves, share, strict=True))
    # An optimizer's arrays lie as the parameter of the same shape does.
    part_of = {leaf.shape: part for leaf, part in zip(leaves, share, strict=True)}
    state = jax.tree.leaves(jax.eval_shape(optimizer.init, shapes))
    rows = math.ceil(plan.capacity / (1 if layout is None else layout.parts))
    at_once = min(microbatch_size or rows, rows)
    program = program_of(loss_fn, shapes, example, shared)
    taken = default_method(program, at_once) if method == "auto" else method
    gradients = need_of(program, taken, at_once)(at_once)
    reduced = sum(size * part for size, part in zip(wide, share, strict=True))
    return DeviceMemory(
        parameters=round(own),
        optimizer=round(sum(_bytes(leaf) * part_of.get(leaf.shape, 1) for leaf in state)),
        gathered=0 if min(share) == 1 else whole,
        records=rows * sum(map(_bytes, jax.tree.leaves(jax.eval_shape(lambda x: x, example)))),
        gradients=gradients,
        sums=round(sum(wide) * (1 if at_once == rows else 3) + (reduced if layout else 0)),
        noise=round(NOISE * reduced),
    )


def _bytes(leaf: Any) -> int:
    return int(leaf.size * jnp.dtype(leaf.dtype).itemsize)


def _leaves(specs: PyTree) -> list[PartitionSpec]:
    return jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, PartitionSpec))


def _parts(spec: PartitionSpec, layout: Layout | None) -> int:
    """Into how many parts a parameter is split."""
    names = [name for entry in spec for name in axes_of(entry)]
    return math.prod(layout.mesh.shape[name] for name in names) if layout is not None else 1
