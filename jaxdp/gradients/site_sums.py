"""Norms and weighted sums that the backward pass takes on its way, where a gradient arises.

At a *site*, the cotangent of a zero scalar, the *slot*, is the squared norm of this example's
gradient; that of a zero array, the *sink*, is the weighted sum of all examples' gradients, so it is
the same for every example. The parameter gets no cotangent of its own. Through loops, calls and
remat, cotangents add up by themselves. Everything here runs under one `vmap` over the examples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .choice import Choice
from .engine import in_factors
from .held import sum_of_kept
from .program import run_equation
from .representations import Dense, Representation
from .tapped import SUBSTITUTES
from .uses import Derived


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Weight:
    """With what an example's gradient of one leaf is added to the sum.

    Attributes:
      coefficient: known beforehand; or, with `clip`, the clipping norm that it is made of.
      kept: False: the example is left out, whatever its numbers are.
      all_kept: the same for all examples (`sum_of_kept`).
      clip: given squared norms and clipping norms, the coefficients (`Clip.coefficient`).
    """

    coefficient: Any
    kept: Any
    all_kept: Any
    clip: Callable[[Any, Any], jax.Array] | None = field(default=None, metadata={"static": True})

    def map(self, rows: Callable[[Any], Any], all_kept: Callable[[Any], Any]) -> "Weight":
        """Maps what every example has, and what is the same for all of them."""
        own = {"coefficient": rows(self.coefficient), "kept": rows(self.kept)}
        return replace(self, **own, all_kept=all_kept(self.all_kept))

    def sum(self, gradients: Representation, squared_norms: jax.Array) -> jax.Array:
        """The sum over the examples, whose squared norms are `[b]`."""
        coefficients = self.coefficient
        if self.clip is not None:
            coefficients = self.clip(squared_norms, coefficients)
        return sum_of_kept(gradients, coefficients, self.kept, self.all_kept)


class Account(NamedTuple):
    """Where one site puts the norm of its gradient and, if it has a weight, the sum."""

    slot: jax.Array
    sink: jax.Array | None = None
    weight: Weight | None = None


@dataclass(frozen=True)
class Site:
    """One operand of an equation, whose gradient arises there."""

    leaf: int
    operand: int
    choice: Choice  # as if the operand were the leaf, without loops around it


def identity(value: jax.Array, account: Account) -> jax.Array:
    """The value; its gradient, dense for every example, is measured and summed."""

    @jax.custom_vjp
    def run(value: jax.Array, account: Account) -> jax.Array:
        return value

    def backward(account: Account, c: jax.Array) -> tuple[None, Account]:
        return None, _settled(Dense, (c,), account)

    run.defvjp(lambda value, account: (value, account), backward)
    return run(value, account)


def product(eqn: Any, operands: Sequence[Any], site: Site, account: Account) -> jax.Array:
    """Runs an equation with a rule; the gradient of the site's operand is measured and summed.

    Only the other operands get cotangents.
    """
    others = [i for i in range(len(operands)) if i != site.operand]

    def result(operands: Sequence[Any]) -> jax.Array:
        return run_equation(eqn, operands, SUBSTITUTES)[0]

    @jax.custom_vjp
    def run(operands: Sequence[Any], account: Account) -> jax.Array:
        return result(operands)

    def backward(residuals: Any, c: jax.Array) -> tuple[Sequence[Any], Account]:
        operands, account = residuals

        def of_others(*values: Any) -> jax.Array:
            filled = list(operands)
            for i, value in zip(others, values, strict=True):
                filled[i] = value
            return result(filled)

        cotangents: list[Any] = [None] * len(operands)
        _, pull = jax.vjp(of_others, *[operands[i] for i in others])
        for i, cotangent in zip(others, pull(c), strict=True):
            cotangents[i] = cotangent
        represent = partial(_represent, site.choice, account.weight is not None)
        recorded = [operands[i] for i in site.choice.parts[0].shape.recorded]
        return cotangents, _settled(represent, (c, *recorded), account)

    run.defvjp(lambda operands, account: (result(operands), (operands, account)), backward)
    return run(list(operands), account)


def _represent(
    choice: Choice, summed: bool, cotangents: jax.Array, *recorded: jax.Array
) -> Representation:
    (part,) = choice.parts
    factors = in_factors(part, [(recorded, cotangents)], _known)
    # Norms of this form multiply the factors: the sum takes the products, which are there.
    return Dense(factors.materialize()) if summed and choice.form == "direct" else factors


def _known(derived: Derived, position: int) -> jax.Array:
    raise AssertionError("the operand of a site is no derived value")


def _settled(
    represent: Callable[..., Representation], arrays: tuple[jax.Array, ...], account: Account
) -> Account:
    """The cotangents of an account: the squared norm, and the sum over the examples.

    Args:
      represent: makes the gradients `[b, ...]` of the arrays `[b, ...]`.
      arrays: what one example has of them.
      account: the account.
    """
    slot, sink, weight = account

    def of_rows(arrays: Sequence[jax.Array], weight: Weight | None) -> tuple[jax.Array, Any]:
        gradients = represent(*arrays)
        squared = gradients.squared_norms().astype(slot.dtype)
        if weight is None or sink is None:
            return squared, None
        return squared, weight.sum(gradients, squared).astype(sink.dtype)

    @jax.custom_batching.custom_vmap
    def settle(arrays: Sequence[jax.Array], weight: Weight | None) -> tuple[jax.Array, Any]:
        one = lambda array: array[None]
        if weight is not None:
            weight = weight.map(one, lambda same: same)
        squared, total = of_rows(jax.tree.map(one, arrays), weight)
        return squared[0], total

    @settle.def_vmap
    def _(size: int, in_batched: Any, arrays: Sequence[jax.Array], weight: Any) -> tuple[Any, Any]:
        def row_each(array: jax.Array, has_rows: bool) -> jax.Array:
            return array if has_rows else jnp.broadcast_to(array, (size, *array.shape))

        squared, total = of_rows(jax.tree.map(row_each, arrays, in_batched[0]), weight)
        return (squared, total), (True, None if total is None else False)

    return Account(*settle(arrays, weight))
