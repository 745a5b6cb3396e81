"""Layers: the disjoint groups of parameters that are clipped separately, and their bounds."""

import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Schedule = Callable[[Any], Any]

Bound = float | Schedule

Patterns = str | tuple[str, ...]  # over parameter paths; what any of them takes is one group

Layer = Literal["tensor", "module"]

SMALLEST_BOUND = 1e-12  # squares of the entries of a gradient shorter than this underflow float32


class Groups(NamedTuple):
    """A partition of the parameters' leaves.

    Attributes:
      of_leaf: the group of every leaf, in `jax.tree.leaves` order; None where it is frozen.
      names: of the groups, as paths or patterns.
      bounds: clipping norm of every group, or a schedule `step -> norm`.
      sizes: number of parameters in every group.
    """

    of_leaf: tuple[int | None, ...]
    names: tuple[str, ...]
    bounds: tuple[Bound, ...]
    sizes: tuple[int, ...]

    def add_up(self, of_leaves: Iterable[jax.Array]) -> jax.Array:
        """Adds up an array `[...]` of every leaf to one of every group, `[groups, ...]`."""
        totals: list[Any] = [0.0] * len(self.names)
        for group, value in zip(self.of_leaf, of_leaves, strict=True):
            if group is not None:
                totals[group] += value
        return jnp.stack(totals)


def group_leaves(params: Any, bounds: Any, layer: Layer | None) -> Groups:
    """Sorts the leaves of `params` into groups.

    Args:
      params: pytree of anything with a shape.
      bounds: a number (or schedule) for every layer; or `{pattern: bound}` over parameter paths
        such as "Conv_0/kernel", where `*` stands for any text and a pattern also takes all that
        lies below it; or a prefix pytree of `params`. A pattern, a tuple of patterns or a prefix
        leaf is one group. A bound of 0 freezes its group.
      layer: what a layer is where `bounds` is one number: every "tensor", every "module" (tensors
        with the same parent), or None for all parameters as one.

    Raises:
      ValueError: naming the parameters that no group or several groups take, and the patterns
        that take none.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    paths = [path_name(path) for path, _ in leaves]
    if is_bound(bounds):
        layer_of = {
            None: lambda path: "all parameters",
            "tensor": lambda path: path,
            "module": lambda path: path.rpartition("/")[0],
        }[layer]
        labels = [layer_of(path) for path in paths]
        bound_of = dict.fromkeys(labels, bounds)
    elif isinstance(bounds, Mapping) and all(is_bound(bound) for bound in bounds.values()):
        labels = _match(paths, {_label(patterns): patterns for patterns in bounds})
        bound_of = {_label(patterns): bound for patterns, bound in bounds.items()}
    else:
        labels, bound_of = _prefix(params, bounds)
    frozen = {label for label, bound in bound_of.items() if bound == 0}
    names = tuple(label for label in dict.fromkeys(labels) if label not in frozen)
    if not names:
        raise ValueError("every clipping norm is 0, which freezes all parameters: nothing is left")
    sizes = dict.fromkeys(names, 0)
    for label, (_, leaf) in zip(labels, leaves, strict=True):
        if label not in frozen:
            sizes[label] += math.prod(leaf.shape)
    return Groups(
        tuple(None if label in frozen else names.index(label) for label in labels),
        names,
        tuple(bound_of[name] for name in names),
        tuple(sizes.values()),
    )


def group_alike(bounds: Mapping[Any, float], num_groups: int) -> dict[tuple[str, ...], float]:
    """Sorts layers into groups with like bounds, for `clip_layerwise` and `clip_multiplied`.

    Each group is clipped as one, to the largest of its bounds. So the noise on a layer is
    proportional to √num_groups times about its own bound, where layers that are clipped apart have
    √layers times it. (The root of the sum of a group's squared bounds would never clip more than
    the layers' own bounds, but it would give back all that grouping gains.)

    Args:
      bounds: `{pattern: bound}`, as for `clip_layerwise`. What a bound of 0 freezes stays apart.
      num_groups: K, at most the number of bounds above 0.

    Returns:
      `{(pattern, ...): largest bound}`: the partition with the least sum, over the layers, of the
      squared log(group's bound / layer's bound).

    References:
      Nguyen et al. 2023 (arXiv 2307.11939): √K for √L.

    Example:
      >>> group_alike({"a": 0.9, "b": 0.01, "c": 1.0}, 2)
      {('b',): 0.01, ('a', 'c'): 1.0}
    """
    for bound in bounds.values():
        check_bound(bound, zero_freezes=True)
        if callable(bound) or math.isinf(bound):
            raise ValueError(f"the clipping norm is {bound!r}: only finite numbers can be alike")
    frozen = {_as_tuple(patterns): 0.0 for patterns, bound in bounds.items() if bound == 0}
    layers = sorted((p for p in bounds if bounds[p] != 0), key=lambda p: bounds[p])
    n = len(layers)
    if type(num_groups) is not int or not 1 <= num_groups <= n:
        raise ValueError(
            f"num_groups is {num_groups!r}: give a whole number from 1 to {n}, the layers with "
            "bounds above 0"
        )
    logs = np.log([bounds[layer] for layer in layers])
    # cost[k, j]: of the first j layers in k groups; the last of these begins at begins[k, j].
    cost = np.full((num_groups + 1, n + 1), math.inf)
    begins = np.zeros((num_groups + 1, n + 1), int)
    cost[0, 0] = 0
    for j in range(1, n + 1):
        apart = np.cumsum(np.square(logs[j - 1] - logs[:j])[::-1])[::-1]  # of the layers i to j - 1
        for k in range(1, num_groups + 1):
            totals = cost[k - 1, :j] + apart
            begins[k, j] = np.argmin(totals)
            cost[k, j] = totals[begins[k, j]]
    groups: dict[tuple[str, ...], float] = {}
    stop = n
    for k in range(num_groups, 0, -1):
        start = begins[k, stop]
        own = [layer for layer in bounds if layer in layers[start:stop]]
        members = tuple(pattern for layer in own for pattern in _as_tuple(layer))
        groups[members] = float(bounds[layers[stop - 1]])
        stop = start
    return frozen | dict(reversed(groups.items()))


def path_name(path: tuple) -> str:
    """A parameter's path as text: "Conv_0/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def takes(pattern: str, path: str) -> bool:
    """Whether a pattern, in which `*` stands for any text, names a path or what it lies below."""
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"{pattern}/*")


def is_bound(bound: object) -> bool:
    return callable(bound) or (isinstance(bound, numbers.Real) and not isinstance(bound, bool))


def bound_values(bounds: Any) -> list[Any]:
    """Every bound, however they are given. (JAX could not sort keys of different types.)"""
    if isinstance(bounds, Mapping):
        return [leaf for value in bounds.values() for leaf in jax.tree.leaves(value)]
    return jax.tree.leaves(bounds)


def check_bound(bound: Any, *, zero_freezes: bool = False) -> None:
    """Refuses what is no clipping norm: a Python number of at least 1e-12, or a schedule."""
    if not is_bound(bound):
        raise TypeError(
            f"the clipping norm is {bound!r}, a {type(bound).__name__}: give a Python number. It "
            "can't be injected as a hyperparameter, because noise and accounting rest on it"
        )
    if callable(bound) or (zero_freezes and bound == 0):
        return
    if math.isnan(bound) or bound < SMALLEST_BOUND:
        raise ValueError(
            f"the clipping norm is {bound}: give a number of at least {SMALLEST_BOUND} (1.0 is a "
            "common start), or inf for no clipping and no privacy"
        )


def _as_tuple(patterns: Patterns) -> tuple[str, ...]:
    return patterns if isinstance(patterns, tuple) else (patterns,)


def _label(patterns: Any) -> str:
    """The name of the group that some patterns take."""
    if not all(isinstance(pattern, str) for pattern in _as_tuple(patterns)) or patterns == ():
        raise TypeError(
            f"the group {patterns!r} is no pattern over parameter paths: give text, or a tuple of "
            "texts for one group"
        )
    return " + ".join(_as_tuple(patterns))


def _match(paths: list[str], groups: dict[str, Patterns]) -> list[str]:
    """The label of the group that takes each path."""
    takers = {
        path: [
            label
            for label, patterns in groups.items()
            if any(takes(p, path) for p in _as_tuple(patterns))
        ]
        for path in paths
    }
    missed = [path for path in paths if not takers[path]]
    if missed:
        raise ValueError(
            f"no pattern of {list(groups)} takes the parameters {', '.join(missed)}: every "
            'parameter needs exactly one (a bound of 0 freezes it; "*" takes all)'
        )
    twice = [f"{path} ({', '.join(takers[path])})" for path in paths if len(takers[path]) > 1]
    if twice:
        raise ValueError(f"several patterns take the same parameters: {'; '.join(twice)}")
    idle = [
        p
        for patterns in groups.values()
        for p in _as_tuple(patterns)
        if not any(takes(p, path) for path in paths)
    ]
    if idle:
        raise ValueError(
            f"the patterns {', '.join(idle)} take no parameter; there are {', '.join(paths)}"
        )
    return [takers[path][0] for path in paths]


def _prefix(params: Any, bounds: Any) -> tuple[list[str], dict[str, Any]]:
    entries = jax.tree_util.tree_leaves_with_path(bounds)
    for path, bound in entries:
        if not is_bound(bound):
            raise TypeError(f"the clipping norm at {path_name(path)} is {bound!r}: give a number")
    try:
        counts = jax.tree.map(lambda _, subtree: len(jax.tree.leaves(subtree)), bounds, params)
    except ValueError as error:
        raise ValueError(
            f"the clipping norms {bounds!r} are no prefix of the parameters: {error}"
        ) from None
    labels = []
    for (path, _), count in zip(entries, jax.tree.leaves(counts), strict=True):
        labels += [path_name(path)] * count
    return labels, {path_name(path): bound for path, bound in entries}
