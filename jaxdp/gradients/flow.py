"""The operations of a gradient's program, as XLA runs them.

What only elementwise operations and sums read, XLA computes inside of the loop that reads it. What
is a term of a sum over the examples is there once.

The program is that of one example. What depends on the example is there once for each of the m
examples of a batch, so one analysis serves all m.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .buffers import (
    EXPENSIVE,
    LINEAR,
    SUMS,
    WHOLE,
    Bytes,
    called,
    relabels,
    size_of,
    varying_results,
)
from .jax_internals import Literal, jaxprs_in_params, needed, open_jaxpr, scan_counts
from .jax_internals import primitives as p


@dataclass
class Value:
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
class Operation:
    eqn: Any  # None: reads a slice, or writes one
    operands: list[int]
    results: list[int]
    whole: bool  # whether it takes and makes whole arrays, and is in no fusion
    fusable: bool  # whether others may compute its result where they read it
    cheap: bool  # whether they may do so several times
    linear: bool  # whether it may act on a sum over examples as well as on each term
    spread: bool = False  # whether it repeats the numbers of smaller arrays
    early: bool = False  # whether it is run as soon as its operands are there


class Flow:
    """The values and the operations of a program, by number."""

    def __init__(self) -> None:
        self.values: list[Value] = []
        self.operations: list[Operation] = []
        self.results: Sequence[int | None] = ()
        self._repeated: dict[tuple[int, tuple[int, ...]], int] = {}

    def finish(
        self,
        results: Sequence[int | None],
        summed: Sequence[bool] | None,
        returned: Sequence[bool] | None,
    ) -> None:
        """Looks through the whole program, whose results are these.

        Args:
          results: their numbers; None for one that is no value of the program.
          summed: which of them are summed over the examples; None: none.
          returned: which of them are in memory that is not counted; None: none.
        """
        self.results = results
        for i, result in enumerate(results):
            if result is not None:
                value = self.values[result]
                value.stays = True
                value.summed |= summed is not None and i < len(summed) and summed[i]
                value.free |= returned is not None and i < len(returned) and returned[i]
                value.summed &= value.varies
        self._sum()
        self._fuse()

    def add_value(self, aval: Any, varies: bool, free: bool = False) -> int:
        """Adds a value, which varies with the example or not; returns its number."""
        self.values.append(Value(size_of(aval, varies), varies, free=free))
        return len(self.values) - 1

    def add(self, eqn: Any, operands: list[int], results: list[int]) -> None:
        """Adds an operation: an equation, or None."""
        primitive = eqn.primitive if eqn is not None else None
        whole = primitive in WHOLE or (eqn is not None and any(jaxprs_in_params(eqn.params)))
        place = len(self.operations)
        fusable = not whole and primitive not in SUMS and len(results) == 1
        linear = primitive in LINEAR
        if primitive in (p.mul_p, p.div_p):
            linear = sum(self.values[i].varies for i in operands) < 2
        cheap = primitive not in EXPENSIVE
        if primitive is p.broadcast_in_dim_p:
            spread = bool(operands) and math.prod(eqn.invars[0].aval.shape) > 1
        else:
            makers = [self.values[i].maker for i in operands]
            spread = fusable and bool(makers)
            spread &= all(m is not None and self.operations[m].spread for m in makers)
        self.operations.append(
            Operation(eqn, operands, results, whole, fusable, cheap, linear, spread)
        )
        for i in set(operands):
            self.values[i].readers.append(place)
        for i in results:
            self.values[i].maker = place

    def add_early(self, operands: list[int], results: list[int]) -> None:
        """Adds an operation that is run as soon as its operands are there."""
        self.add(None, operands, results)
        self.operations[-1].early = True
        self.operations[-1].fusable = False

    def in_order(self) -> list[Operation]:
        """The operations as they are run."""

        def time(place: int) -> tuple[float, int]:
            operation = self.operations[place]
            if not operation.early:
                return place, place
            makers = [self.values[i].maker for i in operation.operands]
            return max([-1, *[maker for maker in makers if maker is not None]]) + 0.5, place

        return [self.operations[i] for i in sorted(range(len(self.operations)), key=time)]

    def inline(self, jaxpr: Any, inputs: Sequence[int | None]) -> list[int | None]:
        """Adds the operations of a jaxpr, and of the calls inside; returns its results."""
        known: dict[Any, int | None] = {}
        for var in jaxpr.constvars:
            known[var] = self.add_value(var.aval, False, free=True)
        known.update(zip(jaxpr.invars, inputs, strict=True))
        look = lambda atom: None if isinstance(atom, Literal) else known[atom]
        for eqn in jaxpr.eqns:
            atoms = list(map(look, eqn.invars))
            operands = [i for i in atoms if i is not None]
            inner = called(eqn)
            if inner is not None:
                known.update(zip(eqn.outvars, self.inline(inner, atoms), strict=True))
            elif relabels(eqn) and operands:
                known[eqn.outvars[0]] = operands[0]
            elif eqn.primitive is p.scan_p or eqn.primitive is p.while_p:
                self._loop(eqn, atoms, known)
            else:
                varies = any(self.values[i].varies for i in operands)
                results = [self.add_value(var.aval, varies) for var in eqn.outvars]
                known.update(zip(eqn.outvars, results, strict=True))
                if eqn.primitive in WHOLE:
                    self.add(eqn, operands, results)
                else:  # a split is as many slices
                    if len(results) == 1 and eqn.primitive not in SUMS:
                        operands = self._spread(eqn, atoms)
                    for result in results:
                        self.add(eqn, operands, [result])
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
                    self._repeated[key] = self.add_value(aval, self.values[i].varies)
                    self.add(None, [i], [self._repeated[key]])
                    self.operations[-1].spread = True
                i = self._repeated[key]
            operands.append(i)
        return operands

    def _loop(self, eqn: Any, atoms: list[int | None], known: dict[Any, int | None]) -> None:
        given = [i is not None and self.values[i].varies for i in atoms]
        varies = varying_results(eqn, given)
        results = [
            self.add_value(var.aval, own) for var, own in zip(eqn.outvars, varies, strict=True)
        ]
        known.update(zip(eqn.outvars, results, strict=True))
        self.add(eqn, [i for i in atoms if i is not None], results)
        if eqn.primitive is p.scan_p:
            for i in results[scan_counts(eqn)[1] :]:
                self.values[i].stacked = self.values[i].varies

    def _sum(self) -> None:
        """Finds the values that are there once: terms of sums over the examples."""
        for operation in reversed(self.operations):
            for i in operation.results:
                value = self.values[i]
                if value.varies and value.readers and not value.stays:
                    readers = [self.operations[r] for r in value.readers]
                    value.summed = all(
                        r.linear and all(self.values[j].summed for j in r.results) and r.results
                        for r in readers
                    )
                    if value.summed and len(readers) == 1 and _turns(readers[0]):
                        value.free = self.values[readers[0].results[0]].free
        for value in self.values:
            if value.summed:
                value.size = Bytes(value.size.shared + value.size.each, 0)

    def _fuse(self) -> None:
        into_sums: set[int] = set()
        for operation in reversed(self.operations):
            if not operation.fusable:
                continue
            i = operation.results[0]
            value = self.values[i]
            readers = [self.operations[r] for r in value.readers]
            for r in readers:
                sums = r.eqn is not None and r.eqn.primitive in SUMS
                if sums or any(j in into_sums and self.values[j].fused for j in r.results):
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
                beside = any(self.values[j].varies for r in readers for j in r.results)
                if beside and not value.varies:
                    value.size = Bytes(0, value.size.shared)


def flow_of(
    jaxpr: Any,
    varies: Sequence[bool],
    summed: Sequence[bool] | None = None,
    returned: Sequence[bool] | None = None,
    products: Sequence[tuple[Sequence[int], int]] = (),
) -> Flow:
    """The flow of a program.

    Args:
      jaxpr: the program of one example.
      varies: which of its arguments vary with the example.
      summed: which of its results are summed over the examples; None: none.
      returned: which of its results are in memory that is not counted; None: none. The others stay
        until the end.
      products: each of results, by number, from which an array of so many bytes is made for every
        example, as soon as they are there. In place of them that array stays until the end.
    """
    flow, jaxpr = Flow(), open_jaxpr(jaxpr)[0]
    inputs = [
        flow.add_value(var.aval, own, free=True)
        for var, own in zip(jaxpr.invars, varies, strict=True)
    ]
    results = flow.inline(jaxpr, inputs)
    made: list[int | None] = []
    for places, size in products:
        flow.values.append(Value(Bytes(0, size), True))
        made.append(len(flow.values) - 1)
        read = [i for place in places if (i := results[place]) is not None]
        flow.add_early(read, [len(flow.values) - 1])
        flow.operations[-1].whole = True
    gone = {place for places, _ in products for place in places}
    kept = [None if place in gone else i for place, i in enumerate(results)]
    flow.finish([*kept, *made], summed, returned)
    return flow


def flow_of_iteration(eqn: Any, varies: Sequence[bool], summed: Sequence[bool]) -> Flow:
    """The flow of one iteration of a scan.

    Args:
      eqn: the scan.
      varies: which of its operands vary with the example.
      summed: which of its results are summed over the examples.
    """
    flow = Flow()
    consts, carry = scan_counts(eqn)
    jaxpr = needed(open_jaxpr(eqn.params["jaxpr"])[0])
    inputs: list[int] = []
    for place, (var, own) in enumerate(zip(jaxpr.invars, varies, strict=True)):
        if place >= consts + carry:  # a slice of an array
            inputs.append(flow.add_value(var.aval, own))
            flow.add(None, [], [inputs[-1]])
            continue
        inputs.append(flow.add_value(var.aval, own, free=True))
        if consts <= place and summed[place - consts]:
            flow.values[inputs[-1]].summed = True
    results = flow.inline(jaxpr, inputs)
    # What is written into a slice of an array.
    for i, own in zip(results[carry:], summed[carry:], strict=True):
        if i is not None:
            flow.values[i].summed |= own and flow.values[i].varies
            flow.add_early([i], [])
    flow.finish(results[:carry], summed[:carry], None)
    return flow


def _turns(operation: Operation) -> bool:
    """Whether it brings axes into another order: a product makes them in that order at once."""
    return operation.eqn is not None and operation.eqn.primitive is p.transpose_p
