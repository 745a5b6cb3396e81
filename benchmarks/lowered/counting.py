"""Counts the matrix products and convolutions of a lowered program, however deep inside it.

The program is StableHLO, before any compiler of a device has seen it: what a user's code asks for.
"""

import math
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from jax.extend.mlir import ir


class Kind(NamedTuple):
    """What the operands of a product are, and how exactly it is asked for."""

    operation: str  # product, convolution or ragged product
    types: tuple[str, str]  # of the operands: f32, bf16
    precision: str  # DEFAULT, HIGH or HIGHEST: that of the more precise operand


class Work(NamedTuple):
    """Products of a program.

    Attributes:
      calls: how many there are in its text.
      flops: how many additions and multiplications they take, with the trips of their loops.
    """

    calls: Counter[Kind]
    flops: Counter[Kind]


PRECISIONS = ("DEFAULT", "HIGH", "HIGHEST")


def work(module: ir.Module, cost: Callable[[Kind], float], open_trips: int) -> Work:
    """Returns the products of a program.

    Args:
      module: StableHLO, for one platform.
      cost: of an operation of a kind: of the branches of a case, the one that costs most counts.
      open_trips: how often a loop runs whose trips depend on data: one over microbatches.
    """
    return _Counting(module, cost, open_trips).function("main")


class _Counting:
    def __init__(self, module: ir.Module, cost: Callable[[Kind], float], open_trips: int):
        self._functions = {op.attributes["sym_name"].value: op for op in module.body.operations}
        self._cost = cost
        self._open_trips = open_trips
        self._known: dict[str, Work] = {}

    def function(self, name: str) -> Work:
        if name not in self._known:
            self._known[name] = self._inside(self._functions[name].operation)
        return self._known[name]

    def _inside(self, operation: ir.Operation) -> Work:
        total = Work(Counter(), Counter())
        for region in operation.regions:
            _add(total, self._region(region))
        return total

    def _region(self, region: ir.Region) -> Work:
        total = Work(Counter(), Counter())
        for block in region.blocks:
            for operation in block.operations:
                _add(total, self._of(operation.operation))
        return total

    def _of(self, operation: ir.Operation) -> Work:
        name = operation.name
        if name in FLOPS:
            kind = Kind(FLOPS[name][0], _types(operation), _precision(operation))
            return Work(Counter({kind: 1}), Counter({kind: FLOPS[name][1](operation)}))
        if name == "func.call":
            return self.function(operation.attributes["callee"].value)
        if name == "stablehlo.case":
            branches = [self._region(region) for region in operation.regions]
            return max(branches, key=lambda branch: weighted(branch.flops, self._cost))
        found = self._inside(operation)
        if name != "stablehlo.while" or not found.calls:
            return found
        trips = _trips(operation)
        trips = self._open_trips if trips is None else trips
        return Work(found.calls, Counter({k: n * trips for k, n in found.flops.items()}))


def weighted(flops: Counter[Kind], cost: Callable[[Kind], float]) -> float:
    """Returns what operations cost together."""
    return sum(n * cost(kind) for kind, n in flops.items())


def _add(total: Work, more: Work) -> None:
    total.calls.update(more.calls)
    total.flops.update(more.flops)


def _shape(value: ir.Value) -> list[int]:
    return list(ir.RankedTensorType(value.type).shape)


def _types(operation: ir.Operation) -> tuple[str, str]:
    left, right = (str(ir.RankedTensorType(x.type).element_type) for x in operation.operands[:2])
    return left, right


def _precision(operation: ir.Operation) -> str:
    if "precision_config" not in operation.attributes:
        return PRECISIONS[0]
    asked = str(operation.attributes["precision_config"])
    return max(
        PRECISIONS, key=lambda name: f"precision {name}>" in asked and PRECISIONS.index(name)
    )


def _dot_flops(operation: ir.Operation) -> int:
    numbers = str(operation.attributes["dot_dimension_numbers"])
    contracted = numbers.split("lhs_contracting_dimensions = [")[1].split("]")[0]
    shape = _shape(operation.operands[0])
    terms = math.prod(shape[int(axis)] for axis in contracted.split(",") if axis)
    return 2 * math.prod(_shape(operation.results[0])) * terms


def _convolution_flops(operation: ir.Operation) -> int:
    # [b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]: of the kernel all but its outputs, for each result.
    numbers = str(operation.attributes["dimension_numbers"])
    kernel = numbers.split("x[")[1].split("]")[0].replace(" ", "").split(",")
    shape = _shape(operation.operands[1])
    shape.pop(kernel.index("o"))
    return 2 * math.prod(_shape(operation.results[0])) * math.prod(shape)


def _ragged_flops(operation: ir.Operation) -> int:
    # Every row of the left operand belongs to one group: it is multiplied once.
    left, right, result = map(_shape, (*operation.operands[:2], operation.results[0]))
    grouped_result = len(result) > len(left)  # [groups, d, p] of [t, d] and [t, p]
    return 2 * math.prod(left) * (right[-1] if grouped_result else result[-1])


FLOPS: dict[str, tuple[str, Callable[[ir.Operation], int]]] = {
    "stablehlo.dot_general": ("product", _dot_flops),
    "stablehlo.convolution": ("convolution", _convolution_flops),
    "chlo.ragged_dot": ("ragged product", _ragged_flops),
}


def _trips(loop: ir.Operation) -> int | None:
    """How often a loop runs that counts from a constant to a constant, else None."""
    (condition,) = loop.regions[0].blocks
    *_, end = condition.operations
    compare = end.operands[0].owner
    if isinstance(compare, ir.Block):
        return None
    if compare.name != "stablehlo.compare" or "LT" not in str(
        compare.attributes["comparison_direction"]
    ):
        return None
    counter, bound = (_constant(value, loop, condition) for value in compare.operands)
    return None if counter is None or bound is None else bound - counter


def _constant(value: ir.Value, loop: ir.Operation, condition: ir.Block) -> int | None:
    """An integer that is known: a constant, or what a loop's variable begins with."""
    for place, argument in enumerate(condition.arguments):
        if argument == value:
            value = loop.operands[place]
            break
    owner = value.owner
    if isinstance(owner, ir.Block) or owner.name != "stablehlo.constant":
        return None
    return int(ir.DenseIntElementsAttr(owner.attributes["value"])[0])
