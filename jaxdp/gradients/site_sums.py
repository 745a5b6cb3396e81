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


_STATIC = {"static": True}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Weight:
    """With what an example's gradient of one leaf is added to the sum, known beforehand."""

    coefficient: Any
    kept: Any  # False: the example is left out, whatever its numbers are
    all_kept: Any  # the same for all examples (`sum_of_kept`)

    def of(self, squared_norms: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        del squared_norms
        return self.coefficient, self.kept, self.all_kept

    def map_rows(self, row: Callable[[Any], Any], same: Callable[[Any], Any]) -> "Weight":
        return Weight(row(self.coefficient), row(self.kept), same(self.all_kept))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Limit:
    """To which norm an example's gradient of one leaf is clipped, where it arises."""

    clipping_norm: Any  # the same for all examples
    kept: Any
    clip: Callable[[jax.Array, jax.Array], jax.Array] = field(metadata=_STATIC)  # `Clip.coefficient`
    constant_time: bool = field(metadata=_STATIC)

    def of(self, squared_norms: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        kept = self.kept & jnp.isfinite(squared_norms)
        coefficients = self.clip(squared_norms, self.clipping_norm)
        return coefficients, kept, None if self.constant_time else jnp.all(kept)

    def map_rows(self, row: Callable[[Any], Any], same: Callable[[Any], Any]) -> "Limit":
        return replace(self, clipping_norm=same(self.clipping_norm), kept=row(self.kept))


class Account(NamedTuple):
    """Where one site puts the norm of its gradient and, if it has a weight, the sum."""

    slot: jax.Array
    sink: jax.Array | None = None
    weight: Weight | Limit | None = None


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

    def of_rows(arrays: Sequence[jax.Array], weight: Any) -> tuple[jax.Array, Any]:
        gradients = represent(*arrays)
        squared = gradients.squared_norms().astype(slot.dtype)
        if weight is None or sink is None:
            return squared, None
        return squared, sum_of_kept(gradients, *weight.of(squared)).astype(sink.dtype)

    @jax.custom_batching.custom_vmap
    def settle(arrays: Sequence[jax.Array], weight: Any) -> tuple[jax.Array, Any]:
        one = lambda array: array[None]
        if weight is not None:
            weight = weight.map_rows(one, lambda array: array)
        squared, total = of_rows(jax.tree.map(one, arrays), weight)
        return squared[0], total

    @settle.def_vmap
    def _(size: int, in_batched: Any, arrays: Sequence[jax.Array], weight: Any) -> tuple[Any, Any]:
        def row_each(array: jax.Array, has_rows: bool) -> jax.Array:
            return array if has_rows else jnp.broadcast_to(array, (size, *array.shape))

        squared, total = of_rows(jax.tree.map(row_each, arrays, in_batched[0]), weight)
        return (squared, total), (True, None if total is None else False)

    return Account(*settle(arrays, weight))
