"""Rounding for print: always up, so that what is printed never promises too much."""

import decimal


def round_up(value: float, digits: int = 5) -> float:
    """Returns `value` rounded up to `digits` significant decimal digits.

    Example:
      >>> round_up(2.38171), round_up(2.38171, 3)
      (2.3818, 2.39)
    """
    context = decimal.Context(prec=digits, rounding=decimal.ROUND_CEILING)
    # The digits that Python prints are rounded: the float 1e-5 is a little above 1e-5, and stays.
    return float(context.create_decimal(repr(float(value))))


def shown_delta(delta: float) -> float:
    """Returns delta as it is printed everywhere: three significant digits, rounded up.

    Example:
      >>> shown_delta(1437**-1.1)
      0.000337
    """
    return round_up(delta, 3)
