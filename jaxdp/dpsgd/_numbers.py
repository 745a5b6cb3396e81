"""Checks of the numbers that users give."""

import math
import numbers


def real(name: str, value: object) -> float:
    """The number as a float; raises an error unless it is a finite Python number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is {value!r}, a {type(value).__name__}: give a Python number")
    if math.isnan(value) or math.isinf(value):
        raise ValueError(f"{name} is {value}: give a finite number")
    return float(value)


def whole(name: str, value: object, meaning: str) -> int:
    """The number as an int; raises a ValueError unless it is whole and at least 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"{name} is {value!r}: it is {meaning}, a whole number of at least 1")
    return int(value)
