"""The memory of a gradient by each method, as `explain` tells it: estimated, and by XLA."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from .clip import Clip
from .lazy import PerExampleGrads
from .limit import ORDER, default_method, need_of
from .per_example import per_example_grads
from .program import Program
from .representations import accumulation_dtype


@dataclass(frozen=True)
class MethodMemory:
    """The temporary memory, in bytes, of the gradient of a batch by one method.

    `plain` is the gradient of the mean loss; "auto" may be the same as "two_pass". `measured` is
    what XLA says of the compiled gradient; None if it was not compiled, or the device does not
    tell.
    """

    method: str
    examples: int
    at_once: int  # how many of them are differentiated at a time
    estimate: int
    measured: int | None = None
    compiled: bool = False


def check_batch_size(size: int | None, measure: bool) -> None:
    """Raises a ValueError unless the size is None or a whole number of at least 1."""
    if size is None:
        if measure:
            raise ValueError("measure is True without a batch_size: give batch_size=64, say")
    elif isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(
            f"batch_size is {size!r}: it counts examples, so give a whole number of at least 1"
        )


def memory_of_methods(program: Program, examples: int, at_once: int) -> tuple[MethodMemory, ...]:
    """The estimates for all methods."""
    taken = default_method(program, at_once)
    need = lambda method: need_of(program, taken if method == "auto" else method, examples)(at_once)
    return tuple(
        MethodMemory(method, examples, at_once, need(method)) for method in ("plain", *ORDER)
    )


def measured(
    rows: Sequence[MethodMemory],
    loss: Callable[..., jax.Array],
    params: Any,
    arguments: tuple,
    examples: int,
    at_once: int,
) -> tuple[MethodMemory, ...]:
    """The same with what XLA says. All examples share the last of the loss's arguments."""
    *example, shared = arguments
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((examples, *leaf.shape), leaf.dtype), tuple(example)
    )
    found = []
    for row in rows:
        gradient = _gradient(row.method, loss, at_once)
        compiled = jax.jit(gradient).lower(params, batch, shared).compile()
        analysis = compiled.memory_analysis()
        size = None if analysis is None else int(analysis.temp_size_in_bytes)
        found.append(replace(row, measured=size, compiled=True))
    return tuple(found)


def _gradient(method: str, loss: Callable[..., jax.Array], at_once: int) -> Callable[..., Any]:
    """A gradient of the whole batch: of the mean loss, or clipped."""

    def plain(params: Any, batch: tuple, shared: Any) -> Any:
        rows = jax.tree.map(lambda leaf: leaf[:at_once], batch)
        each = lambda params, row: loss(params, *row, shared)
        mean = lambda params: jnp.mean(jax.vmap(each, (None, 0))(params, rows))
        return jax.grad(mean)(params)

    def clipped(params: Any, batch: tuple, shared: Any) -> Any:
        of_example = lambda params, *row: loss(params, *row, shared)
        known: Any = method
        made = per_example_grads(of_example, method=known, microbatch_size=at_once)
        return _clipped_sum(made(params, batch))

    return plain if method == "plain" else clipped


def _clipped_sum(grads: PerExampleGrads) -> Any:
    leaves, structure = jax.tree.flatten(grads.like)
    like = [jax.ShapeDtypeStruct(x.shape, accumulation_dtype(x.dtype)) for x in leaves]

    def coefficients(squared: Sequence[jax.Array]) -> list[jax.Array]:
        return [1 / jnp.maximum(jnp.sqrt(sum(squared)), 1)] * len(leaves)

    short = lambda _, squared, longest: sum(squared) <= longest
    clip = Clip([0] * len(leaves), jnp.ones(1), coefficients, None, short, strict=True)
    total = grads.sum(lambda microbatch: microbatch.clipped_sum(clip)[0], like)
    return jax.tree.unflatten(structure, total)


def memory_table(rows: Sequence[MethodMemory]) -> list[str]:
    """Lines of text; none without rows."""
    if not rows:
        return []
    one = rows[0]
    some = f", {one.at_once} at a time" if one.at_once < one.examples else ""
    head = f"Temporary memory of the gradient of {one.examples} examples{some}, in MB:"
    lines = ["", head]
    for row in rows:
        told = f"  {row.method:9s} estimate {row.estimate / 1e6:9.1f}"
        if row.compiled:
            xla = "does not tell" if row.measured is None else f"{row.measured / 1e6:9.1f}"
            told += f"   XLA {xla}"
        lines.append(told)
    return lines
