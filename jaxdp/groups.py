"""Layers: the disjoint groups of parameters that are clipped separately, and their bounds."""

import math
import numbers
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple

import jax

Schedule = Callable[[Any], Any]
Bound = float | Schedule
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


def group_leaves(params: Any, bounds: Any, layer: Layer | None) -> Groups:
    """Sorts the leaves of `params` into groups.

    Args:
      params: pytree of anything with a shape.
      bounds: a number (or schedule) for every layer; or `{pattern: bound}` over parameter paths
        such as "Conv_0/kernel", where `*` stands for any text and a pattern also takes all that
        lies below it; or a prefix pytree of `params`. A pattern or a prefix leaf is one group. A
        bound of 0 freezes its group.
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
        labels = _match(paths, list(bounds))
        bound_of = dict(bounds)
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


def path_name(path: tuple) -> str:
    """A parameter's path as text: "Conv_0/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def is_bound(bound: object) -> bool:
    return callable(bound) or (isinstance(bound, numbers.Real) and not isinstance(bound, bool))


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


def _match(paths: list[str], patterns: list[str]) -> list[str]:
    takers = {
        path: [p for p in patterns if fnmatchcase(path, p) or fnmatchcase(path, f"{p}/*")]
        for path in paths
    }
    missed = [path for path in paths if not takers[path]]
    if missed:
        raise ValueError(
            f"no pattern of {patterns} takes the parameters {', '.join(missed)}: every parameter "
            'needs exactly one (a bound of 0 freezes it; "*" takes all)'
        )
    twice = [f"{path} ({', '.join(takers[path])})" for path in paths if len(takers[path]) > 1]
    if twice:
        raise ValueError(f"several patterns take the same parameters: {'; '.join(twice)}")
    idle = [p for p in patterns if not any(p in taken for taken in takers.values())]
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
