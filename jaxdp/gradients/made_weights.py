"""Uses of weights that are made of leaves by standardisation, or by any function of parameters."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax

from .convolution import Conv, ConvShape, conv_shape
from .matmul import Known, Matmul, MatmulShape, Norms, matmul_form
from .program import Program
from .pulled import Pulled
from .representations import Dense
from .standardise import Place, Standardisation, Standardised, Values, place
from .standardise_match import match
from .uses import Derived, Use

RESULT = -1  # in place of an operand's position: the equation's result

# Above so many numbers, an array of each example's gradient is too large to be held.
LARGE = 2**22

Inner = MatmulShape | ConvShape


@dataclass(frozen=True)
class StandardisedShape:
    """How a leaf is the raw weight, or the gain, of a standardised weight in a product."""

    inner: Inner  # of the standardised weight
    standardisation: Standardisation
    place: Place
    leaf: int
    gain: int | None  # which of the gains it is; None: it is the weight

    one_term: ClassVar[bool] = False

    @property
    def recorded(self) -> tuple[int, ...]:
        return (*self.inner.recorded, RESULT) if self.gain is not None else self.inner.recorded

    def make(
        self,
        found: "Source",
        operands: tuple[jax.Array, ...],
        c: jax.Array,
        norms: Norms,
        narrow: bool,
    ) -> Standardised | Pulled | Dense:
        """The gradients, from what was recorded."""
        made_of = lambda c, narrow: _made(self.inner, operands[:1], c, norms, narrow, found.known)
        inner = made_of(c, narrow)
        weight = found.value(self.standardisation.base)
        gains = [found.value(gain.var) for gain in self.standardisation.gains]
        values = Values.make(self.standardisation, weight, gains)
        made = Standardised(inner, self.standardisation, self.place, values)
        if self.gain is None:
            # Factors in bfloat16 would be rounded again after they are centred and scaled.
            return Pulled.make(inner, made.raw_gradient) if inner.narrow else made
        results = made_of(operands[1], False).cotangents
        rows = made.gain_gradients(results)[self.gain].gradients
        pull = found.pull(self.standardisation.gains[self.gain].var, self.leaf)
        return Dense(jax.vmap(pull)(rows))


@dataclass(frozen=True)
class PulledShape:
    """How a leaf is used through any function of parameters."""

    inner: Inner
    source: Derived
    leaf: int

    one_term: ClassVar[bool] = True

    @property
    def recorded(self) -> tuple[int, ...]:
        return self.inner.recorded

    def make(
        self,
        found: "Source",
        operands: tuple[jax.Array, ...],
        c: jax.Array,
        norms: Norms,
        narrow: bool,
    ) -> Pulled:
        """The gradients, from what was recorded."""
        inner = _made(self.inner, operands, c, norms, narrow, found.known)
        return Pulled.make(inner, found.pull(_variable(self.source), self.leaf))


@dataclass(frozen=True)
class Source:
    """Where values that depend on parameters alone come from."""

    program: Program
    leaves: Sequence[jax.Array]
    known: Known

    def value(self, var: Any) -> jax.Array:
        return self.program.value(var, self.leaves)

    def pull(self, var: Any, leaf: int) -> Callable[[jax.Array], jax.Array]:
        """The VJP of a variable with respect to a leaf."""

        def of_leaf(value: jax.Array) -> jax.Array:
            inputs = [value if i == leaf else own for i, own in enumerate(self.leaves)]
            return self.program.value(var, inputs)

        made, vjp = jax.vjp(of_leaf, self.leaves[leaf])
        return lambda c: vjp(c.astype(made.dtype))[0]


def made_shapes(program: Program, use: Use) -> dict[int, StandardisedShape | PulledShape]:
    """By leaf, how a use takes a value that is made of it; without those that it can't tell."""
    source = use.view.source
    if not isinstance(source, Derived) or len(source.path) > 1 or use.of_number:
        return {}
    inner = _inner(use)
    if inner is None:
        return {}
    found: dict[int, StandardisedShape | PulledShape] = {}
    inputs, sizes = program.jaxpr.invars, {}
    for leaf in source.leaves:
        sizes[leaf] = inputs[leaf].aval.size
        standard = match(program.jaxpr, _variable(source), inputs[leaf])
        if standard is None or standard.base is not inputs[leaf]:
            continue
        where = place(standard, inner)
        reached = [program.made_of(gain.var) for gain in standard.gains]
        own = [leaf, *(one for each in reached for one in each)]
        if where is None or len(set(own)) != len(own):
            continue
        found[leaf] = StandardisedShape(inner, standard, where, leaf, None)
        for i, each in enumerate(reached):
            for gain_leaf in each:
                found[gain_leaf] = StandardisedShape(inner, standard, where, gain_leaf, i)
        break
    for leaf, size in sizes.items():
        # The gradient of each row's kernel is slow, and one that is not finite spoils the others.
        if leaf not in found and (size >= LARGE or isinstance(inner, ConvShape)):
            found[leaf] = PulledShape(inner, source, leaf)
    return found


def _variable(source: Derived) -> Any:
    return source.eqn.outvars[source.result]


def _inner(use: Use) -> Inner | None:
    """How the use takes the value itself."""
    if use.view.with_loops.blocks(use.view.shape) is None:
        return None
    product = matmul_form(use)
    if product is None:
        return conv_shape(use)
    form, last = product[0].sort(turn=False)
    return MatmulShape(form, (product[1], last), (1 - use.operand,))


def _made(
    inner: Inner,
    operands: tuple[jax.Array, ...],
    c: jax.Array,
    norms: Norms,
    narrow: bool,
    known: Known,
) -> Matmul | Conv:
    if isinstance(inner, MatmulShape):
        return Matmul.joined([inner.factors(operands, c, known)], inner, norms, narrow)
    return inner.make(operands, c, norms, narrow)
