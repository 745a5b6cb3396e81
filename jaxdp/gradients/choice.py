"""Chooses the form in which the gradients of each leaf are held."""

from dataclasses import dataclass
from typing import Literal

from .convolution import ConvShape, conv_shape
from .jax_internals import primitives as p
from .lookup import LookupShape, lookup_shape
from .matmul import MatmulShape, matmul_shape
from .program import Program
from .ragged import RaggedShape, ragged_shape
from .uses import Use

Form = Literal["gram", "direct", "product", "lookup", "dense", "zero"]

Shape = MatmulShape | ConvShape | RaggedShape | LookupShape


@dataclass(frozen=True)
class Choice:
    """How the gradients of one leaf are held, and why."""

    form: Form
    reason: str
    uses: tuple[Use, ...] = ()  # all of them; a form with a shape has a single one
    shape: Shape | None = None

    @property
    def use(self) -> Use:
        """The use that a rule reads."""
        (use,) = self.uses
        return use

    @property
    def one_term(self) -> bool:
        """Whether an example adds one term to each number of the sum (`Representation`)."""
        stored = self.form in ("zero", "dense", "product")
        return stored or (self.shape is not None and self.shape.one_term)


_CUSTOM_DERIVATIVES = (p.custom_jvp_call_p, p.custom_vjp_call_p)


def choose(program: Program, thrifty: bool) -> list[Choice]:
    """Chooses a form for every leaf's gradients.

    Args:
      program: the loss.
      thrifty: whether a product may be stored where that is cheaper than its factors.
    """
    return [_choose(uses, thrifty) for uses in program.uses]


def _choose(uses: list[Use], thrifty: bool) -> Choice:
    if not uses:
        return Choice("zero", "the loss does not use it")
    if len(uses) > 1:
        return Choice("dense", f"used {len(uses)} times", tuple(uses))
    (use,) = uses
    if (lookup := lookup_shape(use)) is not None:
        return Choice("lookup", "look-up", (use,), lookup)
    shape = matmul_shape(use) or conv_shape(use) or ragged_shape(use)
    if shape is None and use.primitive in _CUSTOM_DERIVATIVES:
        return Choice("dense", "inside a function with a custom derivative", (use,))
    if shape is None:
        return Choice("dense", f"no rule for {use.what}", (use,))
    form, reason = _cheapest(shape, thrifty)
    return Choice(form, reason, (use,), shape)


# Writing a number of a stored product and reading it twice costs about as much time as this many
# floating point operations of a matrix product. Measured on CPUs; the choice is not sensitive.
OPERATIONS_PER_NUMBER = 100


def _cheapest(shape: MatmulShape | ConvShape | RaggedShape, thrifty: bool) -> tuple[Form, str]:
    _, t, d, p = shape.sizes
    if t == 1:
        return "gram", "one position: norms are products of norms"
    numbers = d * p
    if isinstance(shape, RaggedShape):
        numbers *= shape.experts
    gram, direct = 2 * t * t * (d + p), 2 * t * numbers
    stored = OPERATIONS_PER_NUMBER * numbers
    if thrifty and numbers <= t * (d + p) and stored < gram:
        return "product", "smaller than its factors"
    if gram <= direct:
        return "gram", "few positions"
    return "direct", "many positions"
