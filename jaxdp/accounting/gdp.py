"""Gaussian differential privacy (GDP): the guarantee of composed Gaussian mechanisms, closed form.

A Gaussian mechanism with noise multiplier z is mu-GDP with mu = 1/z, and mu_1, ..., mu_k compose to
exactly sqrt(mu_1^2 + ... + mu_k^2) (Dong, Roth and Su, arXiv 1905.02383). The conversions work
with logarithms, so that they are as accurate for an epsilon in the millions as for one near 1.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special


def log_delta(mu: float, epsilon: float) -> float:
    """log delta of a mu-GDP mechanism at `epsilon` >= 0; minus infinity if mu is 0.

    delta = Phi(a) - e^epsilon Phi(b) with a = mu/2 - epsilon/mu and b = a - mu. Because
    (b^2 - a^2)/2 is exactly epsilon, both terms have the factor exp(-a^2/2), and their quotient
    needs no large exponent.

    Raises:
      ValueError: if mu or epsilon is negative or not a number.
    """
    _check_mu(mu)
    if not epsilon >= 0:
        raise ValueError(f"epsilon is {epsilon}: it must be at least 0")
    if mu == 0 or epsilon == math.inf:
        return -math.inf if mu < math.inf else 0.0
    if mu == math.inf:
        return 0.0
    a = mu / 2 - epsilon / mu
    second = float(np.log(special.erfcx((mu - a) / math.sqrt(2))))
    if a < 0:
        first = float(np.log(special.erfcx(-a / math.sqrt(2))))
        log_first = first - math.log(2) - a * a / 2
        log_quotient = second - first
    else:
        log_first = float(special.log_ndtr(a))
        log_quotient = second - math.log(2) - a * a / 2 - log_first
    if log_quotient >= 0:  # mu is so small that the two terms are equal to the last bit
        return -math.inf
    return log_first + math.log(-math.expm1(log_quotient))


def delta_from_mu(mu: float, epsilon: float) -> float:
    """The delta at `epsilon` of a mu-GDP mechanism; errors as in `log_delta`."""
    return math.exp(log_delta(mu, epsilon))


def epsilon_from_mu(mu: float, delta: float) -> float:
    """The smallest epsilon at `delta` of a mu-GDP mechanism, never too small by rounding.

    Raises:
      ValueError: if mu is negative or not a number, or delta is not between 0 and 1.
    """
    _check_mu(mu)
    check_delta_range(delta)
    if mu == math.inf:
        return math.inf
    target = math.log(delta)
    if mu == 0 or log_delta(mu, 0.0) <= target:
        return 0.0
    # delta(epsilon) < Phi(a), so Phi(a) = delta solved for epsilon gives an upper end.
    high = mu * (mu / 2 - float(special.ndtri_exp(target)))
    while log_delta(mu, high) > target:
        high *= 1 + 1e-12
    root = optimize.brentq(
        lambda epsilon: log_delta(mu, epsilon) - target, 0.0, high, xtol=1e-15, rtol=1e-14
    )
    while log_delta(mu, root) > target:
        root = root * (1 + 1e-14) + 1e-300
    return root


def mu_from_epsilon(epsilon: float, delta: float) -> float:
    """The largest mu whose mechanisms are all (epsilon, delta)-DP, never too large by rounding.

    1/mu is the smallest noise multiplier of one Gaussian mechanism that is (epsilon, delta)-DP.

    Raises:
      ValueError: if epsilon is negative or infinite, or delta is not between 0 and 1.
    """
    check_delta_range(delta)
    if not 0 <= epsilon < math.inf:
        raise ValueError(f"epsilon is {epsilon}: it must be finite and at least 0")
    target = math.log(delta)
    low, high = 1e-12, 1.0
    while log_delta(high, epsilon) <= target:
        low, high = high, 2 * high
    while log_delta(low, epsilon) > target:
        low /= 16
    root = math.exp(
        optimize.brentq(
            lambda log_mu: max(log_delta(math.exp(log_mu), epsilon), -1e6) - target,
            math.log(low),
            math.log(high),
            xtol=1e-15,
            rtol=1e-14,
        )
    )
    while log_delta(root, epsilon) > target:
        root *= 1 - 1e-14
    return root


def gaussian_tradeoff(mu: float, alphas: ArrayLike) -> NDArray[np.float64]:
    """beta(alpha) of a mu-GDP mechanism: the smallest type II error for a type I error of alpha.

    Args:
      mu: the Gaussian DP parameter, at least 0.
      alphas: type I errors in [0, 1], of any shape.

    Returns:
      Type II errors, of the shape of `alphas`.

    Raises:
      ValueError: if mu is negative, or an alpha is not in [0, 1].
    """
    _check_mu(mu)
    levels = check_alphas(alphas)
    if mu == math.inf:
        return np.zeros_like(levels)
    return np.asarray(special.ndtr(-special.ndtri(levels) - mu), np.float64)


def check_alphas(alphas: ArrayLike) -> NDArray[np.float64]:
    """Returns type I errors as an array, or raises a ValueError if one is not in [0, 1]."""
    levels = np.asarray(alphas, np.float64)
    if not np.all((levels >= 0) & (levels <= 1)):
        raise ValueError(f"the type I errors are {alphas!r}: they must lie in [0, 1]")
    return levels


def _check_mu(mu: float) -> None:
    if not mu >= 0:
        raise ValueError(f"mu is {mu}: it must be at least 0")


def check_delta_range(delta: float) -> None:
    """Raises a ValueError for a delta that is not between 0 and 1."""
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta}: it must lie between 0 and 1, both excluded")
