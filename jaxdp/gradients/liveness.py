"""Estimates the memory that a gradient's program takes at its peak, without compiling it.

XLA holds a value in memory of its own from the equation that makes it to the last that reads it.
What only elementwise operations and sums read, it computes inside of the loop that reads it. The
rules here are the few of XLA's that decide most of the memory.

The program is that of one example. What depends on the example is there once for each of the m
examples of a batch, so one analysis serves all m.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .buffers import (
    EXPENSIVE,
    IN_PLACE,
    LINEAR,
    NOTHING,
    SUMS,
    WHOLE,
    Bytes,
    called,
    highest,
    relabels,
    size_of,
    varying_results,
)
from .jax_internals import Literal, jaxprs_in_params, needed, open_jaxpr, scan_counts
from .jax_internals import primitives as p


@dataclass
class _Value:
    size: Bytes
    varies: bool
    maker: int | None = None  # the operation that makes it; None: it is there from the beginning
    readers: list[int] = field(default_factory=list)
    stays: bool = False  # whether the program returns it
    free: bool = False  # whether its memory is not this program's: an argument, a result
    summed: bool = False  # whether it is there once, added up over the examples
    fused: bool = False  # whether it is computed where it is read
    stacked: bool = False  # whether a loop stacks it, with the axis of examples behind its own


@dataclass
class _Operation:
    eqn: Any  # None: reads a slice, or writes one
    operands: list[int]
    results: list[int]
    whole: bool  # whether it takes and makes whole arrays, and is in no fusion
    fusable: bool  # whether others may compute its result where they read it
    cheap: bool  # whether they may do so several times
    linear: bool  # whether it may act on a sum over examples as well as on each term
    spread: bool = False  # whether it repeats the numbers of smaller arrays
    early: bool = False  # whether it is run as soon as its operands are there


class Liveness:
    """Which values of a program are in memory at which time.

    Args:
      jaxpr: the program of one example.
      varies: which of its arguments vary with the example.
      summed: which of its results are summed over the examples; None: none.
      returned: which of its results are in memory that is not counted; None: none. The others stay
        until the end.
      products: each of results, by number, from which an array of so many bytes is made for every
        example, as soon as they are there. In place of them that array stays until the end.
    """

    def __init__(
        self,
        jaxpr: Any,
        varies: Sequence[bool],
        summed: Sequence[bool] | None = None,
        returned: Sequence[bool] | None = None,
        products: Sequence[tuple[Sequence[int], int]] = (),
    ) -> None:
        self._values: list[_Value] = []
        self._operations: list[_Operation] = []
        self._repeated: dict[tuple[int, tuple[int, ...]], int] = {}
        jaxpr = open_jaxpr(jaxpr)[0]
        inputs = [
            self._value(var.aval, own, free=True)
            for var, own in zip(jaxpr.invars, varies, strict=True)
        ]
        results = self._inline(jaxpr, inputs)
        made: list[int | None] = []
        for places, size in products:
            self._values.append(_Value(Bytes(0, size), True))
            made.append(len(self._values) - 1)
            read = [i for place in places if (i := results[place]) is not None]
            self._add_early(read, [len(self._values) - 1])
            self._operations[-1].whole = True
        gone = {place for places, _ in products for place in places}
        kept = [None if place in gone else i for place, i in enumerate(results)]
        self._finish([*kept, *made], summed, returned)

    def _finish(
        self,
        results: Sequence[int | None],
        summed: Sequence[bool] | None,
        returned: Sequence[bool] | None,
    ) -> None:
        self.results = results
        for i, result in enumerate(results):
            if result is not None:
                value = self._values[result]
                value.stays = True
                value.summed |= summed is not None and i < len(summed) and summed[i]
                value.free |= returned is not None and i < len(returned) and returned[i]
                value.summed &= value.varies
        self._sum()
        self._fuse()

    def _value(self, aval: Any, varies: bool, free: bool = False) -> int:
        self._values.append(_Value(size_of(aval, varies), varies, free=free))
        return len(self._values) - 1

    def _add(self, eqn: Any, operands: list[int], results: list[int]) -> None:
        primitive = eqn.primitive if eqn is not None else None
        whole = primitive in WHOLE or (eqn is not None and any(jaxprs_in_params(eqn.params)))
        place = len(self._operations)
        fusable = not whole and primitive not in SUMS and len(results) == 1
        linear = primitive in LINEAR
        if primitive in (p.mul_p, p.div_p):
            linear = sum(self._values[i].varies for i in operands) < 2
        cheap = primitive not in EXPENSIVE
        if primitive is p.broadcast_in_dim_p:
            spread = bool(operands) and math.prod(eqn.invars[0].aval.shape) > 1
        else:
            makers = [self._values[i].maker for i in operands]
            spread = fusable and bool(makers)
            spread &= all(m is not None and self._operations[m].spread for m in makers)
        self._operations.append(
            _Operation(eqn, operands, results, whole, fusable, cheap, linear, spread)
        )
        for i in set(operands):
            self._values[i].readers.append(place)
        for i in results:
            self._values[i].maker = place

    def _add_early(self, operands: list[int], results: list[int]) -> None:
        """Adds an operation that is run as soon as its operands are there."""
        self._add(None, operands, results)
        self._operations[-1].early = True
        self._operations[-1].fusable = False

    def _in_order(self) -> list[_Operation]:
        """The operations as they are run."""

        def time(place: int) -> tuple[float, int]:
            operation = self._operations[place]
            if not operation.early:
                return place, place
            makers = [self._values[i].maker for i in operation.operands]
            return max([-1, *[maker for maker in makers if maker is not None]]) + 0.5, place

        return [self._operations[i] for i in sorted(range(len(self._operations)), key=time)]

    def _inline(self, jaxpr: Any, inputs: Sequence[int | None]) -> list[int | None]:
        """Adds the operations of a jaxpr, and of the calls inside; returns its results."""
        known: dict[Any, int | None] = {}
        for var in jaxpr.constvars:
            known[var] = self._value(var.aval, False, free=True)
        known.update(zip(jaxpr.invars, inputs, strict=True))
        look = lambda atom: None if isinstance(atom, Literal) else known[atom]
        for eqn in jaxpr.eqns:
            atoms = list(map(look, eqn.invars))
            operands = [i for i in atoms if i is not None]
            inner = called(eqn)
            if inner is not None:
                known.update(zip(eqn.outvars, self._inline(inner, atoms), strict=True))
            elif relabels(eqn) and operands:
                known[eqn.outvars[0]] = operands[0]
            elif eqn.primitive is p.scan_p or eqn.primitive is p.while_p:
                self._loop(eqn, atoms, known)
            else:
                varies = any(self._values[i].varies for i in operands)
                results = [self._value(var.aval, varies) for var in eqn.outvars]
                known.update(zip(eqn.outvars, results, strict=True))
                if eqn.primitive in WHOLE:
                    self._add(eqn, operands, results)
                else:  # a split is as many slices
                    if len(results) == 1 and eqn.primitive not in SUMS:
                        operands = self._spread(eqn, atoms)
                    for result in results:
                        self._add(eqn, operands, [result])
        return list(map(look, jaxpr.outvars))

    def _spread(self, eqn: Any, atoms: list[int | None]) -> list[int]:
        """The operands, as large as the result where an axis of size 1 is repeated."""
        result, operands = eqn.outvars[0].aval, []
        for atom, i in zip(eqn.invars, atoms, strict=True):
            if i is None:
                continue
            shape = atom.aval.shape
            pairs = list(zip(shape, result.shape, strict=False))
            smaller = any(a == 1 != b for a, b in pairs) and math.prod(shape) > 1
            if len(shape) == len(result.shape) and smaller and all(a in (1, b) for a, b in pairs):
                key = i, result.shape
                if key not in self._repeated:
                    aval = result.update(dtype=atom.aval.dtype)
                    self._repeated[key] = self._value(aval, self._values[i].varies)
                    self._add(None, [i], [self._repeated[key]])
                    self._operations[-1].spread = True
                i = self._repeated[key]
            operands.append(i)
        return operands

    def _loop(self, eqn: Any, atoms: list[int | None], known: dict[Any, int | None]) -> None:
        given = [i is not None and self._values[i].varies for i in atoms]
        varies = varying_results(eqn, given)
        results = [self._value(var.aval, own) for var, own in zip(eqn.outvars, varies, strict=True)]
        known.update(zip(eqn.outvars, results, strict=True))
        self._add(eqn, [i for i in atoms if i is not None], results)
        if eqn.primitive is p.scan_p:
            for i in results[scan_counts(eqn)[1] :]:
                self._values[i].stacked = self._values[i].varies

    def _sum(self) -> None:
        """Finds the values that are there once: terms of sums over the examples."""
        for operation in reversed(self._operations):
            for i in operation.results:
                value = self._values[i]
                if value.varies and value.readers and not value.stays:
                    readers = [self._operations[r] for r in value.readers]
                    value.summed = all(
                        r.linear and all(self._values[j].summed for j in r.results) and r.results
                        for r in readers
                    )
                    if value.summed and len(readers) == 1 and _turns(readers[0]):
                        value.free = self._values[readers[0].results[0]].free
        for value in self._values:
            if value.summed:
                value.size = Bytes(value.size.shared + value.size.each, 0)

    def _fuse(self) -> None:
        into_sums: set[int] = set()
        for operation in reversed(self._operations):
            if not operation.fusable:
                continue
            i = operation.results[0]
            value = self._values[i]
            readers = [self._operations[r] for r in value.readers]
            for r in readers:
                sums = r.eqn is not None and r.eqn.primitive in SUMS
                if sums or any(j in into_sums and self._values[j].fused for j in r.results):
                    into_sums.add(i)
            spread = operation.spread
            value.fused = (
                not value.stays
                and not any(r.whole for r in readers)
                and (operation.cheap or len(readers) <= 1)
                and not (spread and i in into_sums and len(readers) > 1)
            )
            if not value.fused and spread and not value.summed:
                # Next to what varies with the example, it is spread over the examples, too.
                beside = any(self._values[j].varies for r in readers for j in r.results)
                if beside and not value.varies:
                    value.size = Bytes(0, value.size.shared)

    def peaks(self) -> list[Bytes]:
        """The memory at its peak: the largest of these, for a number of examples."""
        sources: dict[int, frozenset[int]] = {}

        def reads(operation: _Operation) -> frozenset[int]:
            return frozenset().union(*[sources.get(i, frozenset([i])) for i in operation.operands])

        steps: list[tuple[_Operation, frozenset[int]]] = []
        last: dict[int, int] = {}
        for operation in self._in_order():
            read = reads(operation)
            if operation.results and self._values[operation.results[0]].fused:
                sources[operation.results[0]] = read
                continue
            for i in read:
                last[i] = len(steps)
            steps.append((operation, read))
        live, points = NOTHING, []
        ending: dict[int, list[int]] = {}
        for i, step in last.items():
            ending.setdefault(step, []).append(i)
        for at, (operation, _) in enumerate(steps):
            dying = [i for i in ending.get(at, []) if self._counts(i)]
            made = [i for i in operation.results if not self._values[i].free]
            reused: list[int] = []
            if not operation.whole or (operation.eqn and operation.eqn.primitive in IN_PLACE):
                for i in made:
                    same = [
                        j
                        for j in dying
                        if j not in reused and self._values[j].size == self._values[i].size
                    ]
                    reused += same[:1]
            for i in made:
                live = live.plus(self._values[i].size)
            for i in reused:
                live = live.minus(self._values[i].size)
            points += [live.plus(point) for point in self._inside(operation)]
            for i in dying:
                if i not in reused:
                    live = live.minus(self._values[i].size)
            for i in made:
                if not self._values[i].readers and not self._values[i].stays:
                    live = live.minus(self._values[i].size)
        return highest(points)

    def kept(self) -> Bytes:
        """The memory of what is returned, and of copies with the axis of examples in front."""
        total = NOTHING
        for i in {i for i in self.results if i is not None}:
            value = self._values[i]
            if not value.free:
                total = total.plus(value.size)
                if value.stacked:
                    total = total.plus(value.size)
        return total

    def _counts(self, i: int) -> bool:
        value = self._values[i]
        return not value.free and not value.stays

    def _inside(self, operation: _Operation) -> list[Bytes]:
        """The memory that an operation takes besides its operands and results."""
        eqn = operation.eqn
        if eqn is None and operation.whole:  # a product
            return [self._copies(i for i in set(operation.operands) if self._values[i].stacked)]
        if eqn is None or not operation.whole:
            return [NOTHING]
        if eqn.primitive is p.scan_p:
            return self._in_scan(operation)
        if eqn.primitive is p.dot_general_p:
            return [self._transposed(operation)]
        if eqn.primitive is p.conv_general_dilated_p:
            return [self._reordered(operation)]
        if eqn.primitive is p.select_and_scatter_add_p:
            return [self._indices(operation)]
        inner = list(jaxprs_in_params(eqn.params))
        points: list[Bytes] = []
        varies = any(self._values[i].varies for i in operation.operands)
        for each in inner:
            body = needed(open_jaxpr(each)[0])
            all_vary = [varies] * len(body.invars)
            points += Liveness(body, all_vary, returned=[True] * len(body.outvars)).peaks()
        return highest(points)

    def _transposed(self, operation: _Operation) -> Bytes:
        """The copy that a product makes of an operand whose axes are in another order."""
        eqn = operation.eqn
        (contracting, _), (batch, _) = eqn.params["dimension_numbers"]
        left = eqn.invars[0]
        ndim = len(left.aval.shape)
        last = tuple(range(ndim - len(contracting), ndim))
        free = ndim - len(contracting) - len(batch)
        summed = any(self._values[i].summed for i in operation.results)
        if isinstance(left, Literal) or (tuple(contracting) == last and not summed) or not free:
            return NOTHING
        return self._values[operation.operands[0]].size

    def _reordered(self, operation: _Operation) -> Bytes:
        """The copies that a convolution makes of operands whose axes are in another order."""
        ndim = len(operation.eqn.invars[0].aval.shape)
        numbers = operation.eqn.params["dimension_numbers"]
        usual = (0, ndim - 1, *range(1, ndim - 1))
        if numbers.lhs_spec == usual and not self._values[operation.results[0]].summed:
            return NOTHING
        return self._copies(operation.operands)

    def _copies(self, values: Iterable[int]) -> Bytes:
        total = NOTHING
        for i in values:
            total = total.plus(self._values[i].size)
        return total

    def _indices(self, operation: _Operation) -> Bytes:
        """The places that the gradient of a maximum over windows goes to."""
        source = operation.eqn.invars[0].aval
        numbers = math.prod(source.shape) * (len(source.shape) + 2)
        return Bytes(0, 4 * numbers)

    def _in_scan(self, operation: _Operation) -> list[Bytes]:
        eqn = operation.eqn
        num_consts, num_carry = scan_counts(eqn)
        read = iter(operation.operands)
        given = [
            not isinstance(atom, Literal) and self._values[next(read)].varies for atom in eqn.invars
        ]
        results = [self._values[i] for i in operation.results]
        given[num_consts : num_consts + num_carry] = [r.varies for r in results[:num_carry]]
        return _Body(eqn, given, [r.summed for r in results], num_consts, num_carry).peaks()


class _Body(Liveness):
    """One iteration of a scan."""

    def __init__(
        self, eqn: Any, varies: Sequence[bool], summed: Sequence[bool], consts: int, carry: int
    ) -> None:
        self._values = []
        self._operations = []
        self._repeated = {}
        jaxpr = needed(open_jaxpr(eqn.params["jaxpr"])[0])
        inputs: list[int] = []
        for place, (var, own) in enumerate(zip(jaxpr.invars, varies, strict=True)):
            inputs.append(self._value(var.aval, own, free=True))
            if place >= consts + carry:  # a slice of an array
                inputs[-1] = self._value(var.aval, own)
                self._add(None, [], [inputs[-1]])
            elif consts <= place and summed[place - consts]:
                self._values[inputs[-1]].summed = True
        results = self._inline(jaxpr, inputs)
        slices = results[carry:]
        # What is written into a slice of an array.
        for i, own in zip(slices, summed[carry:], strict=True):
            if i is not None:
                self._values[i].summed |= own and self._values[i].varies
                self._add_early([i], [])
        self._finish(results[:carry], summed[:carry], None)


def _turns(operation: _Operation) -> bool:
    """Whether it brings axes into another order: a product makes them in that order at once."""
    return operation.eqn is not None and operation.eqn.primitive is p.transpose_p
