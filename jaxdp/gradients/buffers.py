"""What XLA makes buffers for: the rules of `flow` and `liveness`, by primitive."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from .jax_internals import Literal, jaxprs_in_params, open_jaxpr, scan_counts
from .jax_internals import primitives as p


class Bytes(NamedTuple):
    """Bytes that are there once, and bytes that are there for each example."""

    shared: int
    each: int

    def of(self, examples: int) -> int:
        return self.shared + examples * self.each

    def plus(self, other: "Bytes") -> "Bytes":
        return Bytes(self.shared + other.shared, self.each + other.each)

    def minus(self, other: "Bytes") -> "Bytes":
        return Bytes(self.shared - other.shared, self.each - other.each)


NOTHING = Bytes(0, 0)


def size_of(aval: Any, varies: bool) -> Bytes:
    """The size of a value, which varies with the example or not."""
    count = math.prod(aval.shape) * aval.dtype.itemsize
    return Bytes(0, count) if varies else Bytes(count, 0)


def highest(points: Iterable[Bytes]) -> list[Bytes]:
    """Those of which no other is as large for every number of examples; [NOTHING] of none."""
    found: list[Bytes] = []
    for point in sorted(set(points), reverse=True):
        if not found or point.each > found[-1].each:
            found.append(point)
    return found or [NOTHING]


# Fusions end with one of these.
SUMS = {p.reduce_sum_p, p.reduce_max_p, p.reduce_min_p, p.reduce_and_p, p.reduce_or_p}
SUMS |= {p.reduce_prod_p, p.argmax_p, p.argmin_p, p.reduce_p}

WHOLE = {
    p.dot_general_p,
    p.conv_general_dilated_p,
    p.scan_p,
    p.while_p,
    p.cond_p,
    p.sort_p,
    p.scatter_p,
    p.scatter_add_p,
    p.fft_p,
    p.cumsum_p,
    p.reduce_window_sum_p,
    p.reduce_window_max_p,
    p.select_and_scatter_add_p,
    p.select_and_gather_add_p,
    p.top_k_p,
    p.random_bits_p,
    p.threefry2x32_p,
}

EXPENSIVE = {
    p.exp_p,
    p.exp2_p,
    p.expm1_p,
    p.log_p,
    p.log1p_p,
    p.tanh_p,
    p.logistic_p,
    p.sin_p,
    p.cos_p,
    p.pow_p,
    p.erf_p,
    p.erfc_p,
    p.erf_inv_p,
    p.atan2_p,
}

LINEAR = {
    p.add_jaxvals_p,
    p.add_p,
    p.neg_p,
    p.transpose_p,
    p.convert_element_type_p,
    p.pad_p,
    p.mul_p,
    p.div_p,
    p.dynamic_update_slice_p,
    p.concatenate_p,
    p.rev_p,
    p.slice_p,
    p.broadcast_in_dim_p,
}

RELABEL = {p.reshape_p, p.squeeze_p, p.broadcast_in_dim_p, p.convert_element_type_p, p.copy_p}
RELABEL |= {p.stop_gradient_p, p.name_p}

# These may write into the memory of an operand that nothing reads later.
IN_PLACE = {p.scan_p, p.while_p, p.scatter_p, p.scatter_add_p, p.sort_p, p.dynamic_update_slice_p}


def called(eqn: Any) -> Any:
    """The jaxpr that an equation does nothing but call, if there is one."""
    if eqn.primitive in (p.scan_p, p.while_p, p.cond_p):
        return None
    inner = [open_jaxpr(part)[0] for part in jaxprs_in_params(eqn.params)]
    if len(inner) != 1:
        return None
    (jaxpr,) = inner
    same = len(jaxpr.invars) == len(eqn.invars) and len(jaxpr.outvars) == len(eqn.outvars)
    return jaxpr if same else None


def relabels(eqn: Any) -> bool:
    if eqn.primitive not in RELABEL or isinstance(eqn.invars[0], Literal):
        return False
    return size_of(eqn.invars[0].aval, False) == size_of(eqn.outvars[0].aval, False)


def varying_results(eqn: Any, given: Sequence[bool]) -> list[bool]:
    """Which results of a loop vary with the example, if these of its operands do."""
    if eqn.primitive is p.while_p:
        return [any(given)] * len(eqn.outvars)
    num_consts, num_carry = scan_counts(eqn)
    jaxpr = open_jaxpr(eqn.params["jaxpr"])[0]
    given = list(given)
    while True:
        results = varying(jaxpr, given)
        carry = [
            a or b
            for a, b in zip(given[num_consts : num_consts + num_carry], results, strict=False)
        ]
        if carry == given[num_consts : num_consts + num_carry]:
            return [*carry, *results[num_carry:]]
        given[num_consts : num_consts + num_carry] = carry


def varying(jaxpr: Any, given: Sequence[bool]) -> list[bool]:
    """Which results of a jaxpr vary with the example, if these of its arguments do."""
    known = dict(zip(jaxpr.invars, given, strict=True))
    look = lambda atom: not isinstance(atom, Literal) and known.get(atom, False)
    for eqn in jaxpr.eqns:
        operands = list(map(look, eqn.invars))
        inner = called(eqn)
        if inner is not None:
            results = varying(inner, operands)
        elif eqn.primitive is p.scan_p:
            results = varying_results(eqn, operands)
        else:
            results = [any(operands)] * len(eqn.outvars)
        known.update(zip(eqn.outvars, results, strict=True))
    return list(map(look, jaxpr.outvars))
