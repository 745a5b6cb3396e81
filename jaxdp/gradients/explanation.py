"""Explains how the gradients of a loss will be held: leaf by leaf, why, and at what cost."""

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import jax

from ..types import PyTree, Unit
from ._checks import check_order, check_params
from ._cures import tell_the_cure
from .choice import Choice, Form
from .costs import costs_of, dense_operations
from .coupling import refuse_coupling
from .limit import default_method, is_alone, program_of
from .memory import forms
from .memory_table import (
    MethodMemory,
    check_batch_size,
    measured,
    memory_of_methods,
    memory_table,
)
from .places import Place, places, scattered
from .shared import shared_last
from .uses import Use
from .zero_gradients import zero_gradients


class ClippingPlan(Protocol):
    """What a `jaxdp.Plan` knows about clipping, and about the rounding of its sums."""

    clipping: Any
    rounding_bound: float | None
    rounding_rows: int | None

    @property
    def rounding_slack(self) -> float: ...

    @property
    def rounding_is_bounded(self) -> bool: ...

    @property
    def rounding_estimate(self) -> float: ...

    def with_rounding_bound(self, microbatch_size: int | None = None) -> Any: ...


@dataclass(frozen=True)
class LeafPlan:
    """How the per-example gradients of one leaf are held.

    `one_term` tells whether an example adds one term to each number of the leaf's sum.

    The costs are estimates for one example, on top of the backward pass: how many numbers are kept,
    and how many floating-point operations norms and weighted sum take. `dense_*` are the costs of
    vmap(grad).
    """

    leaf: str
    shape: tuple[int, ...]
    site: str
    form: Form
    reason: str
    operations: int
    numbers: int
    dense_operations: int
    dense_numbers: int
    one_term: bool


@dataclass(frozen=True)
class Explanation:
    """Prints as a table; iterate over `leaves` for the numbers.

    `memory` tells the temporary memory of a gradient by each method, if a batch size was given.
    `plan` is the one that was given; with the bound of its `with_rounding_bound`, if there is one.
    `scattered` names the groups of the plan's clipping for which one pass of "two_pass" is not
    enough. `without_gradient` names the leaves that the loss uses, and whose gradient is
    exactly zero for random inputs and parameters: these leaves would get noise only.
    """

    leaves: tuple[LeafPlan, ...]
    plan: ClippingPlan | None = None
    without_gradient: tuple[str, ...] = ()
    memory: tuple[MethodMemory, ...] = ()
    scattered: tuple[str, ...] = ()

    @property
    def one_term(self) -> bool:
        """Whether the rounding of the sum is bounded: an example adds one term to each number."""
        return all(leaf.one_term for leaf in self.leaves)

    def __str__(self) -> str:
        head = ("leaf", "shape", "used by", "held as", "why", "Mflop", "vmap", "kB", "vmap")
        rows = [
            (
                leaf.leaf,
                "×".join(map(str, leaf.shape)) or "scalar",
                leaf.site,
                leaf.form,
                leaf.reason,
                f"{leaf.operations / 1e6:.2f}",
                f"{leaf.dense_operations / 1e6:.2f}",
                f"{leaf.numbers * 4 / 1e3:.1f}",
                f"{leaf.dense_numbers * 4 / 1e3:.1f}",
            )
            for leaf in self.leaves
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in [head, *rows]
        ]
        lines += ["", self._summary()]
        if self.scattered:
            lines += ["", self._two_passes()]
        lines += [*memory_table(self.memory), "", self._rounding()]
        return "\n".join([*lines, "", self.warning] if self.warning else lines)

    @property
    def warning(self) -> str:
        """What is probably wrong where gradients are exactly zero; empty if none is."""
        if not self.without_gradient:
            return ""
        *first, last = self.without_gradient
        names = f"{', '.join(first)} and {last}" if first else last
        if len(first) > 3:
            names = f"{', '.join(first[:3])} and of {len(first) - 2} more"
        return (
            f"The gradient of {names} is exactly zero, on random inputs at random parameters: "
            "statistics over one example? BatchNorm of x[None], or GroupNorm of a single number, "
            "returns the same for every input, so layers before it learn nothing and get noise "
            "only. Use LayerNorm, or GroupNorm over several numbers; or clip batch units "
            "(docs/guides/batchnorm.md). If it is meant, as with stop_gradient, let the loss close "
            "over these parameters."
        )

    def _summary(self) -> str:
        total = lambda field: sum(getattr(leaf, field) for leaf in self.leaves)
        slowest = max(self.leaves, key=lambda leaf: leaf.operations)
        largest = max(self.leaves, key=lambda leaf: leaf.numbers)
        return (
            f"Per example, besides the backward pass: {total('operations') / 1e6:.2f} Mflop "
            f"(vmap {total('dense_operations') / 1e6:.2f}) and {total('numbers') * 4 / 1e3:.1f} kB "
            f"(vmap {total('dense_numbers') * 4 / 1e3:.1f}). Most time: {slowest.leaf}; most "
            f"memory: {largest.leaf}."
        )

    def _two_passes(self) -> str:
        first, *more = self.scattered
        others = f" and of {len(more)} more group{'s' if len(more) > 1 else ''}" if more else ""
        return (
            f"Two passes, since the gradient of {first}{others} arises in several places. One pass "
            "is enough where every group is one tensor, without a loop over slices of it."
        )

    def _rounding(self) -> str:
        several = [leaf.leaf for leaf in self.leaves if not leaf.one_term]
        why = "an example adds one term to each number"
        if several:
            more = f" and of {len(several) - 1} more" if len(several) > 1 else ""
            why = (
                f"an example adds several terms to each number of {several[0]}{more} (a single one "
                'with method="vmap")'
            )
        if self.plan is None:
            return f"Rounding of the sum: {'not ' if several else ''}bounded, since {why}."
        bound = self.plan.rounding_bound if self.one_term else None
        told = "no bound" if bound is None else f"at most {bound:.2g}"
        estimate = f"{self.plan.rounding_estimate:.2g}"
        if bound is None:
            raised = "The noise is raised by the estimate."
        elif self.plan.rounding_is_bounded:
            raised = (
                f"A plan made by with_rounding_bound({self.plan.rounding_rows}) raises the noise "
                f"by {self.plan.rounding_slack:.2g}; one without a bound raises it by the estimate."
            )
        else:
            raised = "Above 1 % it is not used: the noise is raised by the estimate."
        return (
            f"Rounding of the sum, as a fraction of the sensitivity: {told}, since {why}; "
            f"estimate {estimate}. {raised}"
        )

    __repr__ = __str__


def explain(
    loss_fn: Callable[..., jax.Array],
    params: PyTree,
    example: tuple,
    *,
    method: Literal["auto", "factored", "two_pass"] = "auto",
    unit: Unit = "example",
    microbatch_size: int | None = None,
    plan: ClippingPlan | None = None,
    shared: PyTree = None,
    batch_size: int | None = None,
    measure: bool = False,
) -> Explanation:
    """Explains how `per_example_grads(loss_fn)` will hold every leaf's gradients.

    Gradients that are always exactly zero are told, too: those of layers before BatchNorm, say.
    They are found by a few gradients of one example, with random inputs at perturbed parameters. It
    is left out for models of more than 2^26 numbers, under `jit`, and if the loss can't be run.

    Args:
      loss_fn: the loss of one example, `loss_fn(params, *example)`.
      params: pytree of parameters, or their shapes.
      example: the tuple of the loss's other arguments, for one example, without a batch axis; or
        their shapes. Of values only whole numbers matter, since random ones may make no sense.
      method: "auto", "factored" or "two_pass", as in `per_example_grads`. What the second pass
        of "two_pass" costs, a forward and backward pass, is not in the table.
      unit: "batch" if the example is a batch unit, with its mask last. BatchNorm is right there, so
        gradients that are zero are not looked for.
      microbatch_size: as in `per_example_grads`.
      plan: a `jaxdp.Plan`. How far rounding may move its sums is told, too; and with "two_pass",
        whether one pass is enough for its clipping.
      shared: as in `per_example_grads`, or its shapes.
      batch_size: tells the temporary memory of the gradient of so many examples, too: an estimate
        for each method.
      measure: also compiles each method, and tells what XLA says of its memory. Takes as long as a
        few compilations of a step.

    Returns:
      An explanation that prints as a table; its `leaves` hold the numbers.

    Raises:
      ValueError: for another method, a loss that is not a scalar, or one that couples examples; for
        parameters that are no parameters: BatchNorm's statistics, or other state; and for a wrong
        batch_size, or measure=True without one.
      TypeError: for parameters that are not real floating arrays.

    Example:
      >>> loss = lambda w, x: jnp.sum(jnp.tanh(x @ w))
      >>> explain(loss, jnp.ones((3, 2)), (jnp.ones(3),)).leaves[0].form
      'gram'
    """
    if method not in ("auto", "factored", "two_pass"):
        raise ValueError(
            f'method is {method!r}: give "auto", "factored" or "two_pass"; "vmap" holds every leaf '
            "as dense"
        )
    check_params(params)
    check_order(params, example)
    if plan is not None and not hasattr(plan, "with_rounding_bound"):
        raise TypeError(f"plan is a {type(plan).__name__}: give a jaxdp.Plan")
    loss, arrays = shared_last(loss_fn, shared)
    with tell_the_cure(example):
        out = jax.eval_shape(loss, params, *example, arrays)
    if getattr(out, "shape", None) != ():
        raise ValueError(
            f"loss_fn returned {out}, not a scalar: give explain one example, without a batch axis"
        )
    check_batch_size(batch_size, measure)
    alone = is_alone(method, microbatch_size)
    refuse_coupling(loss, params, (*example, arrays), alone=alone)
    program = program_of(loss_fn, params, example, shared)
    at_once = microbatch_size or batch_size
    if method == "auto" and at_once and not alone:
        method = default_method(program, at_once)
    choices = forms(program, thrifty=method == "auto")
    if alone:
        choices = [replace(c, form="dense", reason="one example at a time") for c in choices]
    named = jax.tree_util.tree_leaves_with_path(params)
    leaves = [
        _leaf_plan(jax.tree_util.keystr(path) or "params", leaf.shape, choice)
        for (path, leaf), choice in zip(named, choices, strict=True)
    ]
    apart: tuple[str, ...] = ()
    if method == "two_pass" and not alone:
        leaves, apart = _in_passes(leaves, places(program), params, plan)
    explained = Explanation(tuple(leaves), scattered=apart)
    if plan is not None and explained.one_term:
        plan = plan.with_rounding_bound(microbatch_size)
    zero = zero_gradients(program, params, example, arrays) if unit == "example" else []
    names = tuple(explained.leaves[i].leaf for i in zero)
    memory: tuple[MethodMemory, ...] = ()
    if batch_size is not None:
        at_once = min(microbatch_size or batch_size, batch_size)
        memory = memory_of_methods(program, batch_size, at_once)
        if measure:
            memory = measured(memory, loss, params, (*example, arrays), batch_size, at_once)
    return replace(explained, plan=plan, without_gradient=names, memory=memory)


def _leaf_plan(name: str, shape: tuple[int, ...], choice: Choice) -> LeafPlan:
    size = math.prod(shape)
    operations, numbers = costs_of(choice, size)
    return LeafPlan(
        leaf=name,
        shape=shape,
        site=_site(choice),
        form=choice.form,
        reason=choice.reason,
        operations=operations,
        numbers=numbers,
        dense_operations=dense_operations(choice, size),
        dense_numbers=size,
        one_term=choice.one_term,
    )


def _in_passes(
    leaves: list[LeafPlan], found: list[Place], params: PyTree, plan: ClippingPlan | None
) -> tuple[list[LeafPlan], tuple[str, ...]]:
    """The leaves as "two_pass" takes them, and the groups for which one pass is not enough."""
    one_pass, apart = False, ()
    if plan is not None and not plan.clipping.joint:
        groups = plan.clipping.groups(params)
        several = scattered(found, groups.of_leaf)
        one_pass = not several
        if len(groups.names) > 1:
            apart = tuple(groups.names[group] for group in several)
    return [_placed(*leaf, one_pass) for leaf in zip(leaves, found, strict=True)], apart


def _placed(leaf: LeafPlan, place: Place, one_pass: bool) -> LeafPlan:
    return replace(
        leaf,
        form=place.choice.form,
        reason=place.reason(one_pass),
        numbers=leaf.numbers if place.where == "tap" else 0,
        one_term=place.choice.one_term,
    )


def _site(choice: Choice) -> str:
    """What uses a leaf, how often, and where: "dot_general × 20 at cell.py:7, cell.py:9"."""
    counts = Counter(use.what for use in choice.uses)
    return ", ".join(_sites_of(what, count, choice.uses) for what, count in counts.items())


def _sites_of(what: str, count: int, uses: tuple[Use, ...]) -> str:
    told = f"{what} × {count}" if count > 1 else what
    lines = [
        re.search(r"([^/:]+:\d+)(:\d+)?( \(|$)", use.where) for use in uses if use.what == what
    ]
    places = list(dict.fromkeys(line[1] for line in lines if line))
    if not places:
        return told
    more = f" and {len(places) - 3} more" if len(places) > 3 else ""
    return f"{told} at {', '.join(places[:3])}{more}"
