"""Groups: the layers that are clipped separately, and their clipping norms."""

import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..gradients.trees import without_variables
from ..types import Layer

ClippingNorm = float | Callable[[Any], Any]  # a number, or a schedule `step -> C`
Patterns = str | tuple[str, ...]  # over parameter paths; all that they match is one group

# Below this norm, the squares of a gradient's entries underflow float32.
SMALLEST_CLIPPING_NORM = 1e-12


class Groups(NamedTuple):
    """A partition of the parameters' leaves.

    Attributes:
      of_leaf: the group of every leaf, in `jax.tree.leaves` order; None where it is frozen.
      names: the names of the groups: paths or patterns.
      clipping_norms: C of every group, or a schedule `step -> C`.
      sizes: number of parameters in every group.
    """

    of_leaf: tuple[int | None, ...]
    names: tuple[str, ...]
    clipping_norms: tuple[ClippingNorm, ...]
    sizes: tuple[int, ...]

    def add_up(self, of_leaves: Iterable[jax.Array]) -> jax.Array:
        """Adds up one array `[...]` per leaf to one per group: `[groups, ...]`."""
        totals: list[Any] = [0.0] * len(self.names)
        for group, value in zip(self.of_leaf, of_leaves, strict=True):
            if group is not None:
                totals[group] += value
        return jnp.stack(totals)


def group_leaves(params: Any, clipping_norms: Any, layer: Layer | None) -> Groups:
    """Sorts the leaves of `params` into groups.

    Args:
      params: pytree of anything that has a shape.
      clipping_norms: a number (or schedule) for every layer; or `{pattern: C}` over parameter paths
        such as "Conv_0/kernel", where `*` stands for any text and a pattern also takes everything
        below it; or a prefix pytree of `params`. A pattern, a tuple of patterns or a prefix leaf
        is one group. 0 freezes its group.
      layer: what a layer is, if there is one number: every "tensor", every "module" (tensors with
        the same parent), or None for all parameters as one.

    Raises:
      ValueError: if no group, or more than one, takes a parameter, or if a pattern takes none. The
        message names them.
    """
    params = without_variables(params)
    if not isinstance(clipping_norms, dict):  # patterns are no tree: JAX can't sort their keys
        clipping_norms = without_variables(clipping_norms)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    paths = [path_name(path) for path, _ in leaves]
    if is_clipping_norm(clipping_norms):
        layer_of = {
            None: lambda path: "all parameters",
            "tensor": lambda path: path,
            "module": lambda path: path.rpartition("/")[0],
        }[layer]
        labels = [layer_of(path) for path in paths]
        norm_of = dict.fromkeys(labels, clipping_norms)
    elif isinstance(clipping_norms, Mapping) and all(
        is_clipping_norm(norm) for norm in clipping_norms.values()
    ):
        labels = _match(paths, {_label(patterns): patterns for patterns in clipping_norms})
        norm_of = {_label(patterns): norm for patterns, norm in clipping_norms.items()}
    else:
        labels, norm_of = _prefix(params, clipping_norms)
    frozen = {label for label, norm in norm_of.items() if norm == 0}
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
        tuple(norm_of[name] for name in names),
        tuple(sizes.values()),
    )


def group_alike(
    clipping_norms: Mapping[Any, float], num_groups: int
) -> dict[tuple[str, ...], float]:
    """Sorts layers into groups with similar clipping norms.

    For `clip_layerwise` and `clip_multiplied`. Each group is clipped as one, to the largest of its
    clipping norms. So with `clip_layerwise` the noise on a layer is about √num_groups times its own
    clipping norm. Without groups it is √layers times that. (With the root of the sum of squares in
    place of the largest, no group would be clipped more than its layers were, but all that grouping
    gains would be lost.)

    Args:
      clipping_norms: `{pattern: C}`, as for `clip_layerwise`. Layers with C = 0 stay frozen, each
        on its own.
      num_groups: K, at most the number of clipping norms above 0.

    Returns:
      `{(pattern, ...): largest C}`: the partition for which the sum over the layers of
      log(group's C / layer's C)² is least.

    References:
      Nguyen et al. 2023 (arXiv 2307.11939): √K in place of √L.

    Example:
      >>> group_alike({"a": 0.9, "b": 0.01, "c": 1.0}, 2)
      {('b',): 0.01, ('a', 'c'): 1.0}
    """
    for norm in clipping_norms.values():
        check_clipping_norm(norm, zero_freezes=True)
        if callable(norm) or math.isinf(norm):
            raise ValueError(f"the clipping norm is {norm!r}: only finite numbers can be grouped")
    frozen = {_as_tuple(patterns): 0.0 for patterns, norm in clipping_norms.items() if norm == 0}
    layers = sorted(
        (p for p in clipping_norms if clipping_norms[p] != 0), key=lambda p: clipping_norms[p]
    )
    n = len(layers)
    if type(num_groups) is not int or not 1 <= num_groups <= n:
        raise ValueError(
            f"num_groups is {num_groups!r}: give a whole number from 1 to {n}, the layers with "
            "clipping norms above 0"
        )
    logs = np.log([clipping_norms[layer] for layer in layers])
    # cost[k, j]: the cost of the first j layers in k groups. The last group begins at begins[k, j].
    cost = np.full((num_groups + 1, n + 1), math.inf)
    begins = np.zeros((num_groups + 1, n + 1), int)
    cost[0, 0] = 0
    for j in range(1, n + 1):
        # apart[i]: the cost of the layers i to j - 1 as one group.
        apart = np.cumsum(np.square(logs[j - 1] - logs[:j])[::-1])[::-1]
        for k in range(1, num_groups + 1):
            totals = cost[k - 1, :j] + apart
            begins[k, j] = np.argmin(totals)
            cost[k, j] = totals[begins[k, j]]
    groups: dict[tuple[str, ...], float] = {}
    stop = n
    for k in range(num_groups, 0, -1):
        start = begins[k, stop]
        own = [layer for layer in clipping_norms if layer in layers[start:stop]]
        members = tuple(pattern for layer in own for pattern in _as_tuple(layer))
        groups[members] = float(clipping_norms[layers[stop - 1]])
        stop = start
    return frozen | dict(reversed(groups.items()))


def path_name(path: tuple) -> str:
    """A parameter's path as text: "Conv_0/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def takes(pattern: str, path: str) -> bool:
    """Whether a pattern takes a path: it matches the path or a parent; `*` stands for any text."""
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"{pattern}/*")


def is_clipping_norm(norm: object) -> bool:
    return callable(norm) or (isinstance(norm, numbers.Real) and not isinstance(norm, bool))


def all_clipping_norms(clipping_norms: Any) -> list[Any]:
    """Every clipping norm, in whichever form they are given."""
    if isinstance(clipping_norms, Mapping):  # JAX can't sort keys that are text and tuples
        return [leaf for value in clipping_norms.values() for leaf in jax.tree.leaves(value)]
    return jax.tree.leaves(clipping_norms)


def check_clipping_norm(norm: Any, *, zero_freezes: bool = False) -> None:
    """Refuses everything except a Python number of at least 1e-12 and a schedule."""
    if not is_clipping_norm(norm):
        raise TypeError(
            f"the clipping norm is {norm!r}, a {type(norm).__name__}: give a Python number. It "
            "can't be injected as a hyperparameter, because noise and accounting depend on it"
        )
    if callable(norm) or (zero_freezes and norm == 0):
        return
    if math.isnan(norm) or norm < SMALLEST_CLIPPING_NORM:
        raise ValueError(
            f"the clipping norm is {norm}: give a number of at least {SMALLEST_CLIPPING_NORM} "
            "(1.0 is a common start), or inf for no clipping and no privacy"
        )


def _as_tuple(patterns: Patterns) -> tuple[str, ...]:
    return patterns if isinstance(patterns, tuple) else (patterns,)


def _label(patterns: Any) -> str:
    """The name of the group that these patterns make."""
    if not all(isinstance(pattern, str) for pattern in _as_tuple(patterns)) or patterns == ():
        raise TypeError(
            f"the group {patterns!r} is not a pattern over parameter paths: give a text, or a "
            "tuple of texts for one group"
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
            'parameter needs exactly one (a clipping norm of 0 freezes it; "*" takes all)'
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


def _prefix(params: Any, clipping_norms: Any) -> tuple[list[str], dict[str, Any]]:
    entries = jax.tree_util.tree_leaves_with_path(clipping_norms)
    for path, norm in entries:
        if not is_clipping_norm(norm):
            raise TypeError(f"the clipping norm at {path_name(path)} is {norm!r}: give a number")
    try:
        counts = jax.tree.map(
            lambda _, subtree: len(jax.tree.leaves(subtree)), clipping_norms, params
        )
    except ValueError as error:
        raise ValueError(
            f"the clipping norms {clipping_norms!r} are not a prefix of the parameters: {error}"
        ) from None
    labels = []
    for (path, _), count in zip(entries, jax.tree.leaves(counts), strict=True):
        labels += [path_name(path)] * count
    return labels, {path_name(path): norm for path, norm in entries}
