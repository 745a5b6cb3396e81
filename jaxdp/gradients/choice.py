"""Chooses the form in which the gradients of each leaf are held."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from .convolution import ConvShape, conv_shape
from .descent import descend
from .factors import Factors, Step
from .jax_internals import primitives as p
from .layout import in_order, merged
from .lookup import LookupShape, lookup_shape
from .made_weights import PulledShape, StandardisedShape, made_shapes
from .matmul import MatmulShape, Norms, matmul_form
from .number import NumberShape
from .program import Program
from .ragged import RaggedShape, ragged_shape
from .uses import Derived, Use

Form = Literal["gram", "direct", "product", "lookup", "several", "dense", "zero"]

Made = StandardisedShape | PulledShape

Shape = MatmulShape | ConvShape | RaggedShape | LookupShape | NumberShape | Made


@dataclass(frozen=True)
class Part:
    """Uses of a leaf whose factors are one longer product: their positions side by side."""

    uses: tuple[Use, ...]
    shapes: tuple[Shape, ...]
    norms: Norms
    reason: str
    narrow: bool  # whether factors are in bfloat16

    @property
    def shape(self) -> Shape:
        return self.shapes[0]

    @property
    def one_term(self) -> bool:
        """Whether an example adds one term to each number of the sum (`Representation`)."""
        tensor_cores = isinstance(self.shape, Products) and self.narrow
        return len(self.shapes) == 1 and self.shape.one_term and not tensor_cores

    @property
    def numbers(self) -> int:
        """How many numbers of one example are held."""
        if isinstance(self.shape, NumberShape):
            return 1
        if isinstance(self.shape, LookupShape):
            t, p = self.shape.sizes
            return len(self.shapes) * t * (p + 1)
        s, t, d, p = joint_sizes(self.shapes)
        # A convolution keeps its input, not the patches of it.
        shape = inner_of(self.shape)
        kept = d // shape.window if isinstance(shape, ConvShape) else d
        return s * t * (kept + p)


@dataclass(frozen=True)
class Choice:
    """How the gradients of one leaf are held, and why.

    `parts` are added up; where two of them `meet`, they are gradients of the same numbers.
    """

    form: Form
    reason: str
    uses: tuple[Use, ...] = ()  # all of them
    parts: tuple[Part, ...] = ()
    meet: tuple[tuple[int, int], ...] = ()

    @property
    def one_term(self) -> bool:
        """Whether an example adds one term to each number of the sum (`Representation`)."""
        stored = self.form in ("zero", "dense", "product") or self.made_twice
        return stored or (not self.meet and all(part.one_term for part in self.parts))

    @property
    def made_twice(self) -> bool:
        """Whether a product of narrow factors is made for the norm, and again for the sum."""
        narrow = [part.narrow and isinstance(part.shape, Products) for part in self.parts]
        return self.form == "direct" and all(narrow)


def choose(program: Program, thrifty: bool) -> list[Choice]:
    """Chooses a form for every leaf's gradients.

    Args:
      program: the loss.
      thrifty: whether a product may be stored where that is cheaper than its factors.
    """
    ways: dict[Use, _Ways] = {}
    for use in {use: None for uses in program.uses for use in uses}:
        ways[use] = _ways(program, use)
    return [
        _choose(leaf, uses, ways, thrifty, program.narrow)
        if uses
        else Choice("zero", _idle(program.reads[leaf]))
        for leaf, uses in enumerate(program.uses)
    ]


def _idle(read: bool) -> str:
    return "no gradient goes there" if read else "the loss does not use it"


Products = MatmulShape | ConvShape | RaggedShape

_CUSTOM_DERIVATIVES = (p.custom_jvp_call_p, p.custom_vjp_call_p)

# By leaf, the factors of its gradient that a use makes; None where it makes none.
_Ways = dict[int, tuple[Factors, list[Step]] | Made | None]


def _ways(program: Program, use: Use) -> _Ways:
    made = matmul_form(use)
    found: _Ways = {}
    if made is not None:
        found.update(descend(use.view, made[0], [made[1]]))
    left = [leaf for leaf in use.view.leaves if found.get(leaf) is None]
    if left:
        shapes = made_shapes(program, use)
        found.update({leaf: shapes[leaf] for leaf in left if leaf in shapes})
    return found


def _choose(
    leaf: int, uses: list[Use], ways: dict[Use, _Ways], thrifty: bool, narrow: bool
) -> Choice:
    everything = tuple(uses)
    shapes: list[tuple[Use, Shape]] = []
    for use in uses:
        shape = _shape(leaf, use, ways[use])
        if isinstance(shape, str):
            return Choice("dense", shape, everything)
        shapes.append((use, shape))
    groups: dict[object, list[tuple[Use, Shape]]] = {}
    for use, shape in shapes:
        groups.setdefault(_key(shape), []).append((use, shape))
    parts = tuple(_part(group, narrow) for group in groups.values())
    meet = []
    for (i, one), (j, two) in combinations(enumerate(parts), 2):
        if (together := _meet(one.shape, two.shape)) is None:
            return Choice("dense", f"used {len(uses)} times, in several ways", everything)
        meet += [(i, j)] if together else []
    if len(parts) > 1:
        reason = f"used {len(uses)} times" if meet else "every use has its own part of it"
        return Choice("several", reason, everything, parts, tuple(meet))
    (part,) = parts
    if isinstance(part.shape, NumberShape):
        return Choice("dense", f"no rule for {part.uses[0].what}", everything)
    if isinstance(part.shape, LookupShape):
        return Choice("lookup", part.reason, everything, parts)
    (group,) = groups.values()
    form, reason = _cheapest(group, thrifty, narrow)
    if isinstance(part.shape, PulledShape):
        return Choice(part.norms, "made by a function: a few rows at a time", everything, parts)
    if isinstance(part.shape, StandardisedShape):
        if part.shape.gain is not None:
            return Choice("product", "the gain of a standardised weight", everything, parts)
        reason = f"standardised, {reason}"
    return Choice(form, reason, everything, parts)


def _shape(leaf: int, use: Use, ways: _Ways) -> Shape | str:
    """How a use makes a gradient of a leaf in factors; or why it does not."""
    if use.of_number:
        assert isinstance(use.view.source, Derived)
        if len(use.path) > 1:
            return f"no rule for {use.what} in a loop"
        return NumberShape(use.view.source, leaf)
    if leaf in ways:
        way = ways[leaf]
        if way is None:
            return "made into a weight in a way without a rule"
        if isinstance(way, Made):
            return way
        form, last = way[0].sort()
        if form.layout.blocks(form.shape) is None:
            return "no blocks of it are used"
        return MatmulShape(form, (*way[1], last), (1 - use.operand,))
    view = use.view
    if isinstance(view.source, Derived):
        return f"made into another value before {use.what}"
    if view.with_loops.blocks(view.shape) is None:
        return f"no rule for {use.what}"
    if use.primitive in _CUSTOM_DERIVATIVES:
        return "inside a function with a custom derivative"
    shape = lookup_shape(use) or conv_shape(use) or ragged_shape(use)
    return shape or f"no rule for {use.what}"


def _key(shape: Shape) -> object:
    """Equal for shapes whose factors can be put side by side."""
    if isinstance(shape, MatmulShape):
        return shape.form.key
    if isinstance(shape, LookupShape):
        return shape.view.with_loops, tuple(shape.row_axes), tuple(shape.other_axes)
    return id(shape)


def _part(group: list[tuple[Use, Shape]], narrow: bool) -> Part:
    uses, shapes = zip(*group, strict=True)
    if isinstance(shapes[0], LookupShape | NumberShape):
        return Part(uses, shapes, "direct", "look-up", narrow)
    form, reason = _cheapest(group, False, narrow)
    return Part(uses, shapes, "gram" if form == "gram" else "direct", reason, narrow)


def _meet(one: Shape, two: Shape) -> bool | None:
    """Whether two uses make gradients of the same numbers; None if it can't be dealt with."""
    if isinstance(one, Made) or isinstance(two, Made):
        return None
    if isinstance(one, NumberShape) or isinstance(two, NumberShape):
        known = NumberShape | MatmulShape | LookupShape
        return True if isinstance(one, known) and isinstance(two, known) else None
    if all(a.meets(b) for a, b in zip(_blocks(one), _blocks(two), strict=True)):
        kinds = {type(one), type(two)}
        if kinds != {MatmulShape, LookupShape}:
            return None
        matmul, lookup = (one, two) if isinstance(one, MatmulShape) else (two, one)
        assert isinstance(matmul, MatmulShape)
        assert isinstance(lookup, LookupShape)
        return True if _same_rows(matmul, lookup) else None
    return False


def _blocks(shape: MatmulShape | ConvShape | RaggedShape | LookupShape) -> tuple:
    if isinstance(shape, MatmulShape):
        layout, of = shape.form.layout, shape.form.shape
    else:
        layout, of = shape.view.with_loops, shape.view.shape
    blocks = layout.blocks(of)
    assert blocks is not None
    return blocks


def _same_rows(matmul: MatmulShape, lookup: LookupShape) -> bool:
    """Whether one factor of a product runs along the rows of a table, and the other across them."""
    rows, rest = lookup.row_axes, lookup.other_axes
    d, width = merged(matmul.form.d), merged(matmul.form.p)
    aligned = not matmul.form.s and matmul.form.offset == lookup.view.layout.offset
    in_rows = all(in_order(axes) == list(range(len(axes))) for axes in (rows, rest))
    return aligned and in_rows and {d, width} == {merged(rows), merged(rest)}


# Writing a number of a stored product and reading it twice costs about as much time as this many
# floating point operations of a matrix product. Measured on CPUs; the choice is not sensitive.
OPERATIONS_PER_NUMBER = 100


def _cheapest(group: list[tuple[Use, Shape]], thrifty: bool, narrow: bool) -> tuple[Form, str]:
    _, t, d, width = joint_sizes([shape for _, shape in group])
    several = f", used {len(group)} times" if len(group) > 1 else ""
    if t == 1:
        return "gram", "one position: norms are products of norms"
    shape, whole = group[0][1], len(group) == 1
    numbers = d * width * (shape.experts if isinstance(shape, RaggedShape) else 1)
    gram, direct = 2 * t * t * (d + width), 2 * t * numbers
    stored = OPERATIONS_PER_NUMBER * numbers
    if thrifty and whole and numbers <= t * (d + width) and stored < gram:
        return "product", "smaller than its factors"
    # The sum of narrow factors takes two products; made twice, the product takes two in all, and is
    # written and read. So all matrix work is 1.5 times that of plain training, at most.
    if (2 * gram if narrow else gram) <= direct:
        return "gram", f"few positions{several}"
    return "direct", f"many positions{several}"


def joint_sizes(shapes: Iterable[Shape]) -> tuple[int, int, int, int]:
    """s, t, d and p of the product of several uses together."""
    sizes = [shape.sizes for shape in map(inner_of, shapes) if isinstance(shape, Products)]
    s, _, d, width = sizes[0]
    return s, sum(t for _, t, _, _ in sizes), d, width


def inner_of(shape: Shape) -> Products | LookupShape | NumberShape:
    """The shape itself; for a leaf that is made into a weight, that of the weight."""
    return shape.inner if isinstance(shape, Made) else shape
