"""Chooses method and microbatch size so that the gradient fits into a given memory."""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax

from ..types import Method, PyTree
from .choice import choose
from .costs import costs_of
from .memory import (
    Estimate,
    accumulators,
    form_memory,
    forms,
    lightened,
    plain_memory,
    two_pass_memory,
    vmap_memory,
)
from .precision import multiplies_narrow
from .program import Program, trace
from .shared import shared_last

# From the fastest to the slowest. A slower one is taken if it lets so many times as many examples
# be differentiated at a time.
ORDER: tuple[Method, ...] = ("auto", "two_pass", "vmap")
WORTH = 4

# A limit holds for the estimate times this: XLA takes up to so much more.
MARGIN = 1.2

# "auto" takes two passes where factors would take more than so many times the memory of plain
# training, and so many bytes more.
TWICE = 2
MUCH = 2**26


def default_method(program: Program, microbatch_size: int) -> Literal["auto", "two_pass"]:
    """What "auto" is without a limit on memory: "auto", or "two_pass". Shapes alone decide."""
    if is_alone("auto", microbatch_size):
        return "auto"
    choices = choose(program, thrifty=True)
    sizes = [math.prod(var.aval.shape) for var in program.jaxpr.invars[: len(choices)]]
    kept = sum(costs_of(c, size)[1] for c, size in zip(choices, sizes, strict=True))
    if 4 * kept * microbatch_size <= MUCH:
        return "auto"
    own = form_memory(program, lightened(program, choices)).of(microbatch_size)
    if own <= MUCH:
        return "auto"
    plain = plain_memory(program).of(microbatch_size)
    return "two_pass" if own > TWICE * plain and own - plain > MUCH else "auto"


def is_alone(method: str, microbatch_size: int | None) -> bool:
    """Whether one row is differentiated at a time, without an axis of rows.

    Its gradient is its weighted sum, up to a factor: there is nothing to save.
    """
    return method in ("auto", "two_pass") and microbatch_size == 1


class DoesNotFit(ValueError):
    """No method fits into a limit. `least` is the smallest limit into which one does, in bytes."""

    def __init__(self, message: str, least: int) -> None:
        super().__init__(message)
        self.least = least


def program_of(
    loss_fn: Callable[..., Any], params: PyTree, example: tuple, shared: PyTree = None
) -> Program:
    """The loss of one example, as the estimates take it. All arguments may be shapes."""
    loss, arrays = shared_last(loss_fn, shared)
    narrow = multiplies_narrow("default")
    count = len(jax.tree.leaves(arrays))
    return trace(loss, params, (*example, arrays), shared=count, narrow=narrow)


def memory_of(program: Program, method: str) -> Estimate:
    """The temporary memory that a method needs."""
    if method == "vmap":
        return vmap_memory(program)
    if method == "two_pass":
        return two_pass_memory(program)
    return form_memory(program, forms(program, thrifty=method == "auto"))


def need_of(program: Program, method: str, size: int) -> Callable[[int], int]:
    """The bytes that the gradient of `size` examples needs, by how many are taken at a time."""
    if method == "plain":
        return plain_memory(program).of
    estimate, total = memory_of(program, method), accumulators(program)

    def need(microbatch_size: int) -> int:
        held = vmap_memory(program) if is_alone(method, microbatch_size) else estimate
        return held.of(microbatch_size) + (total if microbatch_size < size else 0)

    return need


def within_limit(
    program: Program,
    limit: int,
    method: Method,
    size: int,
    microbatch_size: int | None,
    what: str,
) -> tuple[Method, int]:
    """The fastest method, and the largest microbatch size, whose estimate is within the limit.

    Args:
      program: the loss.
      limit: the limit in bytes.
      method: the only one to take; "auto": any of `ORDER`.
      size: of the batch. The microbatch size is that, its half, a quarter, ...
      microbatch_size: the only one to take; None: any.
      what: "example" or "batch unit", for the error.

    Raises:
      DoesNotFit: if nothing does.
    """
    all_sizes = [size // 2**k for k in range(size.bit_length())]
    sizes = all_sizes if microbatch_size is None else [min(microbatch_size, size)]
    methods = ORDER if method == "auto" else (method,)
    needs = {one: need_of(program, one, size) for one in methods}
    fitting = {
        one: next((m for m in sizes if MARGIN * need(m) <= limit), 0) for one, need in needs.items()
    }
    largest = max(fitting.values())
    if largest == 0:
        # One row at a time need not be the least: it may be held as an array.
        cheapest = lambda sizes: min((need(m), -m) for need in needs.values() for m in sizes)
        bytes_needed, rows = cheapest(sizes)
        least = math.ceil(MARGIN * bytes_needed)
        at_a_time = f"{-rows} {what}{'s' if rows < -1 else ''} at a time"
        other_sizes_help = cheapest(all_sizes)[0] < bytes_needed
        cure = "leave microbatch_size out" if other_sizes_help else "make the examples smaller"
        raise DoesNotFit(
            f"memory_limit is {limit} bytes, and the gradient of {at_a_time} may take {least}: "
            f"give at least that, or {cure}",
            least,
        )
    fastest = next(one for one in methods if WORTH * fitting[one] >= largest)
    return fastest, fitting[fastest]
