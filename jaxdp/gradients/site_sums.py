"""Norms and weighted sums that the backward pass takes on its way, where a gradient arises.

At a *site*, the cotangent of a zero scalar, the *slot*, is the squared norm of this example's
gradient; that of a zero array, the *sink*, is the weighted sum of all examples' gradients, so it is
the same for every example. The parameter gets no cotangent of its own. Through loops, calls and
remat, cotangents add up by themselves. Everything here runs under one `vmap` over the examples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .choice import Choice
from .convolution import SUBSTITUTES
from .engine import in_factors
from .held import sum_of_kept
from .program import run_equation
from .representations import Dense, Representation


class Weight(NamedTuple):
    """With what an example's gradient of one leaf is added to the sum."""

    coefficient: jax.Array
    kept: jax.Array  # False: the example is left out, whatever its numbers are
    all_kept: jax.Array | None  # the same for all examples (`sum_of_kept`)


class Account(NamedTuple):
    """Where one site puts the norm of its gradient and, if there is a weight, the sum."""

    slot: jax.Array
    sink: jax.Array | None = None
    weight: Weight | None = None


@dataclass(frozen=True)
class Site:
    """One operand of an equation, whose gradient arises there."""

    leaf: int
    operand: int
    choice: Choice  # as if the surrounding loops were not there

    @property
    def in_factors(self) -> bool:
        return self.choice.shape is not None


def identity(value: jax.Array, account: Account) -> jax.Array:
    """The value; its gradient, dense for every example, is measured and summed."""

    @jax.custom_vjp
    def run(value: jax.Array, account: Account) -> jax.Array:
        return value

    def backward(account: Account, c: jax.Array) -> tuple[None, Account]:
        return None, _settled(Dense, (c,), account)

    run.defvjp(lambda value, account: (value, account), backward)
    return run(value, account)


def product(
    eqn: Any, operands: Sequence[Any], sites: Sequence[Site], accounts: Sequence[Account]
) -> jax.Array:
    """Runs an equation with a rule; the gradients of the sites' operands are measured and summed.

    Only the other operands get cotangents.
    """
    taken = [site.operand for site in sites]
    others = [i for i in range(len(operands)) if i not in taken]

    def result(operands: Sequence[Any]) -> jax.Array:
        return run_equation(eqn, operands, SUBSTITUTES)[0]

    @jax.custom_vjp
    def run(operands: Sequence[Any], accounts: Sequence[Account]) -> jax.Array:
        return result(operands)

    def backward(residuals: Any, c: jax.Array) -> tuple[Sequence[Any], Sequence[Account]]:
        operands, accounts = residuals

        def of_others(*values: Any) -> jax.Array:
            filled = list(operands)
            for i, value in zip(others, values, strict=True):
                filled[i] = value
            return result(filled)

        cotangents: list[Any] = [None] * len(operands)
        _, pull = jax.vjp(of_others, *[operands[i] for i in others])
        for i, cotangent in zip(others, pull(c), strict=True):
            cotangents[i] = cotangent
        settled = [
            _settled(
                partial(_represent, site.choice, account.weight is not None),
                (operands[1 - site.operand], c),
                account,
            )
            for site, account in zip(sites, accounts, strict=True)
        ]
        return cotangents, settled

    run.defvjp(lambda operands, accounts: (result(operands), (operands, accounts)), backward)
    return run(list(operands), list(accounts))


def _represent(
    choice: Choice, summed: bool, operand: jax.Array, cotangents: jax.Array
) -> Representation:
    factors = in_factors(choice, operand, cotangents)
    # Norms of this form multiply the factors: the sum takes the products, which are there.
    return Dense(factors.materialize()) if summed and choice.form == "direct" else factors


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
        return squared, sum_of_kept(gradients, *weight).astype(sink.dtype)

    @jax.custom_batching.custom_vmap
    def settle(arrays: Sequence[jax.Array], weight: Weight | None) -> tuple[jax.Array, Any]:
        one = lambda array: array[None]
        if weight is not None:
            weight = Weight(one(weight.coefficient), one(weight.kept), weight.all_kept)
        squared, total = of_rows(jax.tree.map(one, arrays), weight)
        return squared[0], total

    @settle.def_vmap
    def _(
        size: int, in_batched: Any, arrays: Sequence[jax.Array], weight: Weight | None
    ) -> tuple[Any, Any]:
        def row_each(array: jax.Array, has_rows: bool) -> jax.Array:
            return array if has_rows else jnp.broadcast_to(array, (size, *array.shape))

        squared, total = of_rows(jax.tree.map(row_each, arrays, in_batched[0]), weight)
        return (squared, total), (True, None if total is None else False)

    return Account(*settle(arrays, weight))
