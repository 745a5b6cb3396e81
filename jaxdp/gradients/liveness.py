"""Estimates the memory that a gradient's program takes at its peak, without compiling it.

XLA holds a value in memory of its own from the equation that makes it to the last that reads it.
The rules here, and in `flow`, are the few of XLA's that decide most of the memory.
"""

import math
from collections.abc import Iterable

from .buffers import IN_PLACE, NOTHING, Bytes, highest
from .flow import Flow, Operation, flow_of, flow_of_iteration
from .jax_internals import Literal, jaxprs_in_params, needed, open_jaxpr, scan_counts
from .jax_internals import primitives as p


class Liveness:
    """Which values of a program are in memory at which time."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._values = flow.values

    def peaks(self) -> list[Bytes]:
        """The memory at its peak: the largest of these, for a number of examples."""
        sources: dict[int, frozenset[int]] = {}

        def reads(operation: Operation) -> frozenset[int]:
            return frozenset().union(*[sources.get(i, frozenset([i])) for i in operation.operands])

        steps: list[tuple[Operation, frozenset[int]]] = []
        last: dict[int, int] = {}
        for operation in self._flow.in_order():
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
        for i in {i for i in self._flow.results if i is not None}:
            value = self._values[i]
            if not value.free:
                total = total.plus(value.size)
                if value.stacked:
                    total = total.plus(value.size)
        return total

    def _counts(self, i: int) -> bool:
        """Whether a value's memory is the program's, and is given back."""
        value = self._values[i]
        return not value.free and not value.stays

    def _inside(self, operation: Operation) -> list[Bytes]:
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
            flow = flow_of(body, all_vary, returned=[True] * len(body.outvars))
            points += Liveness(flow).peaks()
        return highest(points)

    def _transposed(self, operation: Operation) -> Bytes:
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

    def _reordered(self, operation: Operation) -> Bytes:
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

    def _indices(self, operation: Operation) -> Bytes:
        """The places that the gradient of a maximum over windows goes to."""
        source = operation.eqn.invars[0].aval
        numbers = math.prod(source.shape) * (len(source.shape) + 2)
        return Bytes(0, 4 * numbers)

    def _in_scan(self, operation: Operation) -> list[Bytes]:
        eqn = operation.eqn
        num_consts, num_carry = scan_counts(eqn)
        read = iter(operation.operands)
        given = [
            not isinstance(atom, Literal) and self._values[next(read)].varies for atom in eqn.invars
        ]
        results = [self._values[i] for i in operation.results]
        given[num_consts : num_consts + num_carry] = [r.varies for r in results[:num_carry]]
        return Liveness(flow_of_iteration(eqn, given, [r.summed for r in results])).peaks()
