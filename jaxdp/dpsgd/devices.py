"""A step on several devices: each sums its own rows, and the sums are added once.

Only the sums run device by device, in `shard_map`. Noise, update and parameters are arrays of the
whole program, in `jit`: the noise of a number is a function of the key, the step and the number's
place, so that it has the same bits however the parameters are laid out.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ..gradients.lazy import PerExampleGrads
from ..types import PyTree
from ._checks import axes_of
from .privatizer import Privatizer, PrivatizeState
from .sums import Sums

# The axes of the mesh along which a parameter is split, given its path and shape.
Rule = Callable[[str, tuple[int, ...]], P]

# Smaller parameters are the same on all devices: to split them would save nothing.
SMALL = 2**16 + 1  # where the noise of smaller ones is drawn together


def fsdp_rule(axis: str, size: int, small: int = SMALL) -> Rule:
    """Splits every large parameter along one mesh axis: the widest dimension that can be.

    Parameters without a dimension that the devices divide stay whole.

    Args:
      axis: the name of the mesh axis.
      size: how many devices are along it.
      small: parameters of fewer numbers stay whole.
    """

    def rule(path: str, shape: tuple[int, ...]) -> P:
        del path
        fitting = [i for i, length in enumerate(shape) if length % size == 0]
        if math.prod(shape) < small or not fitting:
            return P()
        widest = max(fitting, key=lambda i: (shape[i], i))
        return P(*[axis if i == widest else None for i in range(len(shape))])

    return rule


@dataclass(frozen=True)
class Layout:
    """How a step is laid out on the devices of a mesh.

    Attributes:
      mesh: the devices, with named axes of type Auto.
      batch: the mesh axes along which the rows of a batch are dealt.
      params: along which axes each parameter is split; None: all devices have all of them.

    Raises:
      ValueError: for an axis that the mesh does not have, for axes that are not Auto, and where
        several processes share the devices.
    """

    mesh: Mesh
    batch: tuple[str, ...] = ("data",)
    params: Rule | None = None

    def __post_init__(self) -> None:
        if not self.batch or isinstance(self.batch, str):
            raise ValueError(
                f'batch is {self.batch!r}: give the mesh axes of the rows, as ("data",)'
            )
        self._check_names("batch names", self.batch)
        if jax.process_count() > 1:
            raise ValueError(
                f"JAX runs in {jax.process_count()} processes, and a layout is for one: start one "
                "process, with all devices of a machine"
            )
        types = dict(zip(self.mesh.axis_names, self.mesh.axis_types, strict=True))
        for name, kind in types.items():
            if kind != AxisType.Auto:
                raise ValueError(
                    f"the mesh axis {name!r} has the type {kind.name}: make the mesh with "
                    "jax.make_mesh(..., axis_types=(jax.sharding.AxisType.Auto, ...))"
                )

    def _check_names(self, what: str, names: Sequence[str]) -> None:
        for name in names:
            if name not in self.mesh.axis_names:
                raise ValueError(
                    f"{what} the mesh axis {name!r}, and the mesh has "
                    f"{', '.join(map(repr, self.mesh.axis_names))}"
                )
            if list(names).count(name) > 1:
                raise ValueError(f"{what} the mesh axis {name!r} twice: name it once")

    @property
    def parts(self) -> int:
        """How many devices sum rows of their own, for `Plan.with_rounding_bound(parts=...)`."""
        return math.prod(self.mesh.shape[name] for name in self.batch)

    def specs(self, params: PyTree) -> PyTree:
        """The axes along which each parameter is split: a pytree of `PartitionSpec`."""

        def spec(path: Any, leaf: Any) -> P:
            if self.params is None:
                return P()
            name = jax.tree_util.keystr(path)
            found = self.params(name, leaf.shape)
            if not isinstance(found, P) or len(found) > len(leaf.shape):
                raise ValueError(
                    f"the rule gives {found!r} for the parameter {name} of shape {leaf.shape}: "
                    "give a PartitionSpec with at most one entry for each of its axes"
                )
            self._check_names(
                f"the rule for {name} names", [axis for axes in found for axis in axes_of(axes)]
            )
            for i, axes in enumerate(found):
                count = math.prod(self.mesh.shape[axis] for axis in axes_of(axes))
                if leaf.shape[i] % count:
                    raise ValueError(
                        f"the parameter {name} of shape {leaf.shape} is split into {count} along "
                        f"axis {i}, which does not fit: give another rule for it"
                    )
            return found

        return jax.tree_util.tree_map_with_path(spec, params)

    def place(self, params: PyTree) -> PyTree:
        """The parameters on their devices. Make the optimizer's state of these."""
        put = lambda leaf, spec: jax.device_put(leaf, NamedSharding(self.mesh, spec))
        return jax.tree.map(put, params, self.specs(params))

    def spread(self, tree: PyTree) -> PyTree:
        """The same arrays; all devices get those that are not on the mesh yet."""

        def put(leaf: jax.Array) -> jax.Array:
            placed = isinstance(leaf.sharding, NamedSharding) and leaf.sharding.mesh == self.mesh
            return leaf if placed else jax.device_put(leaf, self.everywhere)

        return jax.tree.map(put, tree)

    @property
    def rows(self) -> NamedSharding:
        """Where the rows of a batch lie."""
        return NamedSharding(self.mesh, P(self.batch))

    @property
    def everywhere(self) -> NamedSharding:
        """Where arrays lie that every device has."""
        return NamedSharding(self.mesh, P())

    def order(self, array: np.ndarray, padding: Any) -> np.ndarray:
        """Puts rows into the order in which the devices have them: dealt one by one, as cards are.

        Args:
          array: `[B, ...]`.
          padding: what is in the rows that are added, if the devices can't have equally many.
        """
        more = -array.shape[0] % self.parts
        filled = np.pad(array, [(0, more), *[(0, 0)] * (array.ndim - 1)], constant_values=padding)
        hands = filled.reshape(-1, self.parts, *array.shape[1:]).swapaxes(0, 1)
        return hands.reshape(filled.shape)

    def deal(self, batch: PyTree, mask: Any) -> tuple[PyTree, jax.Array]:
        """A batch on its devices. Each has about as many records, with its padding last.

        Args:
          batch: NumPy arrays `[B, ...]`.
          mask: `[B] bool`, or `[units, capacity]` for batch units, which are dealt whole.

        Raises:
          ValueError: if they have different numbers of rows, or padding comes before records.
        """
        mask = np.asarray(mask)
        for leaf in jax.tree.leaves(batch):
            if leaf.shape[:1] != mask.shape[:1]:
                raise ValueError(
                    f"the batch has an array of shape {leaf.shape}, and the mask has the shape "
                    f"{mask.shape}: give both one row for each record, as plan.batches() does"
                )
        if not (mask[..., :-1] >= mask[..., 1:]).all():
            raise ValueError(
                "the mask is False for a row before one for which it is True. Padding comes last, "
                "as plan.batches() gives it: is the mask inverted, or of another batch?"
            )
        dealt = lambda array: jax.device_put(self.order(np.asarray(array), 0), self.rows)
        return jax.tree.map(dealt, batch), dealt(mask)

    def sums(
        self, privatizer: Privatizer, grads: Callable[..., PerExampleGrads]
    ) -> Callable[..., Sums]:
        """The first half of a step: `(params, batch, mask, state, *, shared=None) -> Sums`.

        Args:
          privatizer: the owner of the release.
          grads: what `per_example_grads` returned. Its microbatches are those of one device.

        Returns:
          A function to be called in `jit`, of a batch as `deal` gives it. Its sums are those of the
          whole batch: give them to `privatizer.release`, outside of any `shard_map`.
        """

        def sums(
            params: PyTree,
            batch: PyTree,
            mask: jax.Array,
            state: PrivatizeState,
            *,
            shared: PyTree = None,
        ) -> Sums:
            if mask.shape[0] % self.parts:
                raise ValueError(
                    f"the batch has {mask.shape[0]} rows, and {self.parts} devices share them: "
                    "give it as layout.deal(batch, mask) does"
                )
            specs = self.specs(params)
            manual = jax.tree.map(lambda spec: _only(spec, self.batch), specs)

            def of_device(
                params: PyTree,
                batch: PyTree,
                mask: jax.Array,
                state: PrivatizeState,
                shared: PyTree,
            ) -> tuple:
                options = {} if shared is None else {"shared": shared}
                own = privatizer.sums(grads(params, batch, mask, **options), state)
                total = privatizer.psum(own, self.batch, manual)
                return total.gradient, total.counts, total.diagnostics, total.parts

            rows, same = P(self.batch), P()
            gradient, counts, diagnostics, parts = jax.shard_map(
                of_device,
                mesh=self.mesh,
                in_specs=(same, rows, rows, same, same),
                out_specs=(manual, same, same, same),
                axis_names=set(self.batch),
                # JAX's check would refuse loops of the loss that begin with a constant. What
                # differs between devices is known here: the rows, until they are added up.
                check_vma=False,
            )(params, batch, mask, state, shared)
            lay = lambda leaf, spec: jax.lax.with_sharding_constraint(
                leaf, NamedSharding(self.mesh, spec)
            )
            gradient = jax.tree.map(lay, gradient, specs)
            return Sums(gradient, counts, diagnostics, parts, privatizer.plan.clipping, frozenset())

        return sums


def _only(spec: P, names: Sequence[str]) -> P:
    """What a `PartitionSpec` says of some axes."""
    kept = [tuple(name for name in axes_of(axes) if name in names) for axes in spec]
    return P(*[axes or None for axes in kept])
