"""Discrete Laplace noise for counts, drawn exactly: from random bits to a whole number.

P(n) is proportional to exp(-ε·|n|), for a rational ε. Only whole numbers are compared, so that the
law is exact: nothing is charged for it. The bits are the operating system's, and are kept nowhere.
The method is algorithms 1 and 2 of Canonne, Kamath and Steinke, arXiv 2004.00010.

With it, a count that one record changes by at most 1 is released with pure ε-differential privacy.
So is a vector of counts of which one record changes one, by 1.
"""

import math
import secrets
from collections.abc import Callable
from fractions import Fraction

Below = Callable[[int], int]
"""`below(n)` draws a whole number from 0 to n - 1, each with the same probability."""


def discrete_laplace(epsilon: Fraction, below: Below = secrets.randbelow) -> int:
    """Draws one number.

    Args:
      epsilon: above 0.
      below: where random numbers come from; the default is secret.
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon is {epsilon}: give a number above 0")
    numerator, denominator = epsilon.numerator, epsilon.denominator
    while True:
        # |n|·numerator is a geometric number with the ratio exp(-1/denominator).
        fine = below(denominator)
        if not _bernoulli_exp(fine, denominator, below):
            continue
        whole = 0
        while _bernoulli_exp(1, 1, below):
            whole += 1
        size = (fine + denominator * whole) // numerator
        negative = below(2) == 1
        if not (negative and size == 0):  # else 0 would be drawn twice as often
            return -size if negative else size


def discrete_laplace_std(epsilon: Fraction) -> float:
    """The standard deviation of the noise."""
    return math.sqrt(2 * math.exp(-epsilon)) / -math.expm1(-epsilon)


def _bernoulli_exp(numerator: int, denominator: int, below: Below) -> bool:
    """True with probability exp(-numerator/denominator), for a fraction from 0 to 1."""
    k = 1
    while below(denominator * k) < numerator:
        k += 1
    return k % 2 == 1
