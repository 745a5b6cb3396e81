"""A step on several devices: each sums its own rows, and the sums are added once.

Only the sums run device by device, in `shard_map`. Noise, update and parameters are arrays of the
whole program, in `jit`: the noise of a number is a function of the key, the step and the number's
place, so that it has the same bits however the parameters are laid out.

Several processes see the same arrays: each holds the parts of its own devices.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ..gradients.lazy import PerExampleGrads
from ..types import PyTree
from . import processes
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

    return split_rule({axis: size}, small)


def split_rule(sizes: Mapping[str, int], small: int = SMALL) -> Rule:
    """Splits every large parameter along several mesh axes, each along a dimension of its own.

    Every axis takes the widest dimension that is left and that its devices divide; if there is
    none, the parameter is the same along this axis.

    Args:
      sizes: how many devices are along each mesh axis.
      small: parameters of fewer numbers stay whole.
    """

    def rule(path: str, shape: tuple[int, ...]) -> P:
        del path
        spec: list[str | None] = [None] * len(shape)
        if math.prod(shape) < small:
            return P()
        for axis, size in sizes.items():
            fitting = [i for i, n in enumerate(shape) if spec[i] is None and n % size == 0]
            if fitting:
                spec[max(fitting, key=lambda i: (shape[i], i))] = axis
        return P(*spec) if any(spec) else P()

    return rule


@dataclass(frozen=True)
class Layout:
    """How a step is laid out on the devices of a mesh.

    Attributes:
      mesh: the devices, with named axes of type Auto.
      batch: the mesh axes along which the rows of a batch are dealt.
      params: along which axes each parameter is split; None: all devices have all of them.

    In several processes, call its methods in all of them, with the same arrays: they are compared
    by `place`, by `spread` and, once, by `deal`.

    Raises:
      ValueError: for an axis that the mesh does not have, and for axes that are not Auto.
    """

    mesh: Mesh
    batch: tuple[str, ...] = ("data",)
    params: Rule | None = None
    _dealt: list[bool] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.batch or isinstance(self.batch, str):
            raise ValueError(
                f'batch is {self.batch!r}: give the mesh axes of the rows, as ("data",)'
            )
        self._check_names("batch names", self.batch)
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
        """The parameters on their devices. Make the optimizer's state of these.

        Several processes all give the same whole parameters; each keeps the parts of its devices.
        """
        _check_same(params, "place")
        lay = lambda leaf, spec: put(leaf, NamedSharding(self.mesh, spec))
        return jax.tree.map(lay, params, self.specs(params))

    def spread(self, tree: PyTree) -> PyTree:
        """The same arrays; all devices get those that are not on the mesh yet."""

        def is_placed(leaf: Any) -> bool:
            where = getattr(leaf, "sharding", None)
            return isinstance(where, NamedSharding) and where.mesh == self.mesh

        _check_same([leaf for leaf in jax.tree.leaves(tree) if not is_placed(leaf)], "spread")
        lay = lambda leaf: leaf if is_placed(leaf) else put(leaf, self.everywhere)
        return jax.tree.map(lay, tree)

    @property
    def rows(self) -> NamedSharding:
        """Where the rows of a batch lie."""
        return NamedSharding(self.mesh, P(self.batch))

    @property
    def everywhere(self) -> NamedSharding:
        """Where arrays lie that every device has."""
        return NamedSharding(self.mesh, P())

    @property
    def _shared_out(self) -> tuple[str, ...]:
        """The axes along which rows differ: XLA can't take one along which there is one device."""
        return tuple(name for name in self.batch if self.mesh.shape[name] > 1)

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
        if not self._dealt and processes.speaks():
            self._dealt.append(True)
            _check_same((batch, mask), "deal")
        dealt = lambda array: put(self.order(np.asarray(array), 0), self.rows)
        return jax.tree.map(dealt, batch), dealt(mask)

    def own_rows(self, count: int) -> np.ndarray:
        """The places of the rows that this process's devices have, of `count` rows in `order`."""
        parts = self.rows.addressable_devices_indices_map((count,)).values()
        places = np.arange(count)
        return np.unique(np.concatenate([places[part] for part in parts if part is not None]))

    def from_own_rows(self, own: PyTree, count: int) -> PyTree:
        """A batch of `count` rows on its devices, where each process has only its own.

        Args:
          own: NumPy arrays `[rows of this process, ...]`, those of `own_rows(count)`.
          count: of the whole batch.
        """
        places = self.own_rows(count)

        def lay(array: np.ndarray) -> jax.Array:
            mine = lambda index: array[np.searchsorted(places, np.arange(count)[index[0]])]
            return jax.make_array_from_callback((count, *array.shape[1:]), self.rows, mine)

        return jax.tree.map(lay, own)

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
            axes = self._shared_out
            manual = jax.tree.map(lambda spec: _only(spec, axes), specs)
            lay = lambda leaf, spec: jax.lax.with_sharding_constraint(
                leaf, NamedSharding(self.mesh, spec)
            )
            if not axes:
                options = {} if shared is None else {"shared": shared}
                own = privatizer.sums(grads(params, batch, mask, **options), state)
                return dataclasses.replace(own, gradient=jax.tree.map(lay, own.gradient, specs))

            def of_device(
                params: PyTree,
                batch: PyTree,
                mask: jax.Array,
                state: PrivatizeState,
                shared: PyTree,
            ) -> tuple:
                options = {} if shared is None else {"shared": shared}
                own = privatizer.sums(grads(params, batch, mask, **options), state)
                total = privatizer.psum(own, axes, manual)
                return total.gradient, total.counts, total.diagnostics, total.parts

            rows, same = P(axes), P()
            gradient, counts, diagnostics, parts = jax.shard_map(
                of_device,
                mesh=self.mesh,
                in_specs=(same, rows, rows, same, same),
                out_specs=(manual, same, same, same),
                axis_names=set(axes),
                # JAX's check would refuse loops of the loss that begin with a constant. What
                # differs between devices is known here: the rows, until they are added up.
                check_vma=False,
            )(params, batch, mask, state, shared)
            gradient = jax.tree.map(lay, gradient, specs)
            return Sums(gradient, counts, diagnostics, parts, privatizer.plan.clipping, frozenset())

        return sums


def _check_same(tree: PyTree, method: str) -> None:
    """Refuses arrays that are not the same in all processes, as keys and counters must be."""
    if not processes.several():
        return
    total = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        total.update(f"{array.dtype} {array.shape} ".encode() + array.tobytes())
    processes.check_same(
        f"the arrays that layout.{method} gets",
        total.hexdigest(),
        "give all of them the same parameters, state and batch; load a checkpoint in all",
    )


def put(leaf: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """Puts an array on devices. Several processes all give the same one, and put their parts."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = put(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    array = np.asarray(leaf)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def held(tree: PyTree) -> PyTree:
    """Arrays that this process can read: as they are, or copies on the host if it shares them.

    Several processes all call it. Keys stay as they are.
    """

    def gathered(leaf: jax.Array) -> Any:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        if leaf.is_fully_addressable or leaf.is_fully_replicated:
            return np.array(leaf)
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(gathered, tree) if processes.several() else tree


def _only(spec: P, names: Sequence[str]) -> P:
    """What a `PartitionSpec` says of some axes."""
    kept = [tuple(name for name in axes_of(axes) if name in names) for axes in spec]
    return P(*[axes or None for axes in kept])
