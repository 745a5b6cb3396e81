"""Finds random draws of a loss that do not depend on the example: they are the same for all."""

from collections.abc import Sequence
from typing import Any

from .jax_internals import Literal, jaxprs_in_params, needed, open_jaxpr, scan_counts, source_line
from .jax_internals import primitives as p


def shared_draw(jaxpr: Any, num_shared: int) -> str | None:
    """Where there is a draw that no argument after the first `num_shared` reaches, or None.

    What a loop or branch of unknown inputs does with an example is taken to reach all inside.
    """
    reached = [index >= num_shared for index in range(len(jaxpr.invars))]
    lines: list[str] = []
    _follow(needed(jaxpr), reached, lines, "")
    return lines[0] if lines else None


def _follow(jaxpr: Any, reached: Sequence[bool], lines: list[str], outside: str) -> list[bool]:
    """Which results the example reaches; adds the lines of draws that it does not."""
    values = {variable for variable, yes in zip(jaxpr.invars, reached, strict=True) if yes}
    is_reached = lambda atom: not isinstance(atom, Literal) and atom in values
    for eqn in jaxpr.eqns:
        inputs = [is_reached(atom) for atom in eqn.invars]
        results = [any(inputs)] * len(eqn.outvars)
        line = source_line(eqn) or outside  # inside jax.random there is no line of the user's
        if eqn.primitive is p.random_bits_p and not any(inputs):
            lines.append(line)
        for inner in jaxprs_in_params(eqn.params):
            body = open_jaxpr(inner)[0]
            if eqn.primitive is p.scan_p:
                results = _follow_scan(eqn, body, inputs, lines, line)
            elif eqn.primitive in _CALLS and len(body.invars) == len(inputs):
                results = _follow(body, inputs, lines, line)
            else:
                _follow(body, [any(inputs)] * len(body.invars), lines, line)
        values.update(v for v, yes in zip(eqn.outvars, results, strict=True) if yes)
    return [is_reached(atom) for atom in jaxpr.outvars]


_CALLS = {p.jit_p, p.remat_p, p.closed_call_p, p.custom_jvp_call_p, p.custom_vjp_call_p}


def _follow_scan(
    eqn: Any, body: Any, inputs: list[bool], lines: list[str], line: str
) -> list[bool]:
    """What one iteration hands to the next is reached if any iteration reaches it."""
    num_shared, num_carry = scan_counts(eqn)
    carry = slice(num_shared, num_shared + num_carry)
    while True:
        results = _follow(body, inputs, [], line)
        handed = [a or b for a, b in zip(inputs[carry], results[:num_carry], strict=True)]
        if handed == inputs[carry]:
            return _follow(body, inputs, lines, line)
        inputs = [*inputs[: carry.start], *handed, *inputs[carry.stop :]]
