"""Frozen parameters: those that patterns name stay as they were drawn, and cost nothing."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

Params = dict[str, Any]  # nested


def split(params: Params, patterns: Sequence[str]) -> tuple[Params, Params]:
    """Takes nested parameters apart: `(trainable, frozen)`.

    Args:
      params: nested dicts of arrays.
      patterns: over paths such as "Conv_0/kernel", where `*` stands for any text; a pattern also
        takes all that lies below it.

    Raises:
      ValueError: for a pattern that takes nothing, or if nothing is left to train.
    """
    paths = ["/".join(path) for path, _ in _leaves(params)]
    for pattern in patterns:
        if not any(_matches(path, pattern) for path in paths):
            raise ValueError(
                f"training.frozen has {pattern!r}, which no parameter matches: they are "
                + ", ".join(paths)
            )
    trainable: Params = {}
    frozen: Params = {}
    for path, leaf in _leaves(params):
        taken = any(_matches("/".join(path), pattern) for pattern in patterns)
        _put(frozen if taken else trainable, path, leaf)
    if not trainable:
        raise ValueError(f"training.frozen is {tuple(patterns)}: nothing is left to train")
    return trainable, frozen


def merge(trainable: Params, frozen: Params) -> Params:
    """Puts together what `split` took apart."""
    merged: Params = {}
    for part in (trainable, frozen):
        for path, leaf in _leaves(part):
            _put(merged, path, leaf)
    return merged


def _matches(path: str, pattern: str) -> bool:
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"{pattern}/*")


def _leaves(params: Params, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in params.items():
        if hasattr(value, "items"):
            yield from _leaves(value, (*above, name))
        else:
            yield (*above, name), value


def _put(params: Params, path: tuple[str, ...], leaf: Any) -> None:
    for name in path[:-1]:
        params = params.setdefault(name, {})
    params[path[-1]] = leaf
