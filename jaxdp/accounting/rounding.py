"""Rounding for print: always in the direction that promises less."""

import decimal


def round_up(value: float, digits: int = 5) -> float:
    """Rounds up, so that what is printed never promises too much."""
    context = decimal.Context(prec=digits, rounding=decimal.ROUND_CEILING)
    # Of the digits that Python prints: 1e-5 is a little more than that, and stays as it was typed.
    return float(context.create_decimal(repr(float(value))))


def shown_delta(delta: float) -> float:
    """delta as it is printed everywhere: three digits, rounded up."""
    return round_up(delta, 3)
