"""Per-example gradients of any JAX function at nearly the cost of plain ones.

The loss of one example is traced. Every parameter leaf whose uses all have a rule (matrix product,
convolution, look-up) gets a tap at each, and one vmapped backward pass with respect to the taps
gives all cotangents. The gradients of such a leaf are then held as the factors of a product. Every
other leaf is differentiated per example, as by vmap(grad).

References:
  Bu et al. 2023, Differentially Private Optimization on Large Model at Small Cost (2210.00038).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from .choice import Choice, Made, Part
from .isolation import each_on_its_own, mixes_rows
from .jax_internals import Literal, one_example, vary, varying_axes
from .lookup import Lookup, LookupShape
from .made_weights import Source
from .matmul import Known, Matmul, MatmulShape
from .memory import forms
from .number import Number, NumberShape
from .program import Program, Recorded, Sites, trace
from .pulled import Pulled
from .representations import Dense, Representation, Zero, accumulation_dtype
from .several import Several
from .tapped import Tapped, found_at
from .uses import Derived, Use


def factored_engine(
    loss_fn: Callable[..., jax.Array],
    params: Any,
    batch: tuple,
    constant_time: bool = False,
    convolves: bool = True,
    narrow: bool = False,
) -> tuple[jax.Array, list[Representation]]:
    """Losses `[b]`, and every leaf's gradients, held as factors wherever there is a rule.

    `convolves` is False if the gradient has no convolution, in which rows might mix. `narrow`:
    whether factors are in bfloat16.
    """
    return _engine(loss_fn, params, batch, constant_time, convolves, narrow, thrifty=False)


def auto_engine(
    loss_fn: Callable[..., jax.Array],
    params: Any,
    batch: tuple,
    constant_time: bool = False,
    convolves: bool = True,
    narrow: bool = False,
) -> tuple[jax.Array, list[Representation]]:
    """Losses `[b]`, and every leaf's gradients, held in the form that its shapes make cheapest."""
    return _engine(loss_fn, params, batch, constant_time, convolves, narrow, thrifty=True)


def _engine(
    loss_fn: Callable[..., jax.Array],
    params: Any,
    batch: tuple,
    constant_time: bool,
    convolves: bool,
    narrow: bool,
    thrifty: bool,
) -> tuple[jax.Array, list[Representation]]:
    axes = varying_axes((params, batch))
    params = vary(params, axes)
    program = trace(loss_fn, params, one_example(batch), narrow=narrow)
    leaves = jax.tree.leaves(params)
    choices = forms(program, thrifty)
    size = jax.tree.leaves(batch)[0].shape[0]
    tapped = Tapped(program, choices, axes)
    differentiate = lambda example: tapped.differentiate(leaves, example)

    examples = jax.tree.leaves(batch)
    # What is known does not depend on the example: it is held once.
    outputs = ((0, 0), (0, Recorded(0, None)))  # type: ignore[arg-type]
    together = jax.vmap(differentiate, out_axes=outputs)
    if convolves and mixes_rows(together, examples):
        own = lambda example: _without_known(differentiate(example))
        found_apart = each_on_its_own(own, examples, constant_time)
        (cotangents, gradients), (values, operands) = found_apart
        first = differentiate([x[0] for x in examples])
        recorded = Recorded(operands, first[1][1].known)
    else:
        (cotangents, gradients), (values, recorded) = together(examples)
    rows = dict(zip(tapped.dense, gradients, strict=True))
    found = Found(program, leaves, tapped.sites, cotangents, recorded)
    representations: list[Representation] = []
    for i, (choice, leaf) in enumerate(zip(choices, leaves, strict=True)):
        if choice.form == "zero":
            representations.append(Zero(size, leaf.shape, accumulation_dtype(leaf.dtype)))
        elif choice.form == "dense":
            representations.append(Dense(rows[i]))
        else:
            representations.append(found.represent(choice))
    return values, representations


# The recorded operands and the cotangents of a use.
Each = tuple[tuple[jax.Array, ...], jax.Array]


def _without_known(found: Any) -> Any:
    (cotangents, gradients), (value, recorded) = found
    return (cotangents, gradients), (value, recorded.operands)


@dataclass(frozen=True)
class Found:
    """What the replay of a program found at its sites."""

    program: Program
    leaves: list[jax.Array]
    sites: Sites
    cotangents: Any
    recorded: Recorded

    @property
    def source(self) -> Source:
        return Source(self.program, self.leaves, self.known)

    def represent(self, choice: Choice) -> Representation:
        parts = [self.part(part) for part in choice.parts]
        if choice.form == "product":
            (product,) = parts
            return product if isinstance(product, Dense) else Dense(product.materialize())
        if choice.made_twice:
            return Pulled.make(parts[0], lambda product: product)
        return Several(tuple(parts), choice.meet) if len(parts) > 1 else parts[0]

    def part(self, part: Part) -> Any:
        each = [self.at(use, own.recorded) for use, own in zip(part.uses, part.shapes, strict=True)]
        shape = part.shape
        if isinstance(shape, NumberShape):
            number = shape.source.eqn.outvars[shape.source.result]
            pull = self.source.pull(number, shape.leaf)
            one = vary(jnp.ones([]), varying_axes(self.leaves))
            return Number.joined([c for _, c in each], pull(one))
        if isinstance(shape, Made):
            ((x, c),) = each
            return shape.make(self.source, x, c, part.norms, part.narrow)
        return in_factors(part, each, self.known)

    def at(self, use: Use, record: tuple[int, ...]) -> Each:
        """The recorded operands and the cotangent of a use."""
        return found_at(self.sites, use, record, self.cotangents, self.recorded)

    def known(self, derived: Derived, position: int) -> jax.Array:
        atom, path = derived.eqn.invars[position], derived.path[:-1]
        if isinstance(atom, Literal):
            return jnp.asarray(atom.val, derived.eqn.outvars[derived.result].aval.dtype)
        return self.recorded.known[path][self.sites.at(path).known.index(atom)]


def in_factors(part: Part, each: Sequence[Each], known: Known) -> Any:
    """The gradients that uses of a leaf make, from what was found at each of them."""
    shape: Any = part.shape
    if isinstance(shape, LookupShape):
        return Lookup.joined(
            [
                own.make(x, c)
                for own, (x, c) in zip(part.shapes, each, strict=True)
                if isinstance(own, LookupShape)
            ]
        )
    if not isinstance(shape, MatmulShape):
        ((x, c),) = each
        return shape.make(x, c, part.norms, part.narrow)
    factors = [
        own.factors(x, c, known)
        for own, (x, c) in zip(part.shapes, each, strict=True)
        if isinstance(own, MatmulShape)
    ]
    return Matmul.joined(factors, shape, part.norms, part.narrow)
