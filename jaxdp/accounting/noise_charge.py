"""The price of noise that is not exactly Gaussian: a little ε and δ, by a theorem.

D numbers get noise in each of T steps: that is M = D·T independent draws. Their law q is close to
p, the law of a rounded Gaussian. Let |q(n)/p(n) − 1| have the root mean square r under p and the
maximum e, both over n within 8 standard deviations, and let V be the sum of |q(n) − p(n)| beyond
them. Take any mechanism that is a function of the data, of these draws, and of other independent
randomness. If it is (ε, δ)-DP with draws from p, then with draws from q it is

    (ε + 2t, e^t·δ + (1 + e^(ε + 2t))·(M·V + δ₁))-DP

with t = ln(1/δ₁)/λ + ½(λ + 1)·M·r²·(1 − e)^−(λ + 2), for any λ > 0. Adaptive steps, sampling and
the data play no part: all runs are one function of data and draws. The proof is in docs/design.md.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Bounds on (r, e, V) for the two tables of `dpsgd._noise_tables`: tests/dpsgd/test_noise_tables.py
# computes the values by exact arithmetic.
ERRORS: dict[int, tuple[float, float, float]] = {
    22: (3.9e-12, 3.0e-8, 2.9e-22),
    24: (1.85e-11, 9.4e-8, 9.9e-22),
}
UNKNOWN_DRAWS = 1e11  # what is charged for where the number of parameters is not known
_DELTA_1 = 1e-20
_LAMBDAS = np.geomspace(1.0, 1e9, 901)  # the best of them is within 1 in 1,000 of the best t


@dataclass(frozen=True)
class NoiseCharge:
    """What is added to a mechanism's guarantee.

    Attributes:
      epsilon: 2t.
      delta: M·V + δ₁, which counts 1 + e^ε times.
    """

    epsilon: float
    delta: float

    def delta_at(self, epsilon: float, delta: Callable[[float], float]) -> float:
        """δ at an epsilon, given the δ of the mechanism with exact noise as a function of ε."""
        if self == FREE:
            return delta(epsilon)
        if epsilon < self.epsilon:
            return 1.0
        exact = delta(epsilon - self.epsilon)
        return min(1.0, math.exp(self.epsilon / 2) * exact + self.added_delta(epsilon))

    def epsilon_at(self, delta: float, epsilon: Callable[[float], float]) -> float:
        """ε at a delta, given the ε of the mechanism with exact noise as a function of δ."""
        if self == FREE:
            return epsilon(delta)
        found = 0.0
        for _ in range(100):
            # A little beyond the last ε, so that the answer below it is sound.
            beyond = found + 1e-9 * (1 + found)
            left = (delta - self.added_delta(beyond)) * math.exp(-self.epsilon / 2)
            if left <= 0:
                return math.inf
            new = epsilon(left) + self.epsilon
            if new <= beyond:
                return new
            found = new
        return math.inf

    def left_of(self, epsilon: float, delta: float) -> tuple[float, float]:
        """The (ε, δ) to meet with exact noise, so that with the charge both hold."""
        left = (delta - self.added_delta(epsilon)) * math.exp(-self.epsilon / 2)
        return epsilon - self.epsilon, left

    def tradeoff_of(
        self, alphas: NDArray[np.float64], exact: Callable[[NDArray[np.float64]], NDArray]
    ) -> NDArray[np.float64]:
        """Type II errors at `alphas`, given those of the mechanism with exact noise.

        A test with type I error α has at most e^t·(α + M·V + δ₁) with exact noise, and its power is
        at most e^t times its power there, plus M·V + δ₁.
        """
        if self == FREE:
            return exact(alphas)
        grown = math.exp(self.epsilon / 2)
        betas = exact(np.minimum(grown * (alphas + self.delta), 1.0))
        return np.maximum(1 - grown * (1 - betas) - self.delta, 0.0)

    def added_delta(self, epsilon: float) -> float:
        """The part of δ at an epsilon that is for the noise alone."""
        return (1 + math.exp(min(epsilon, 700.0))) * self.delta


FREE = NoiseCharge(0.0, 0.0)  # of noise that is exactly Gaussian


def noise_charge(draws: float) -> NoiseCharge:
    """The charge for a number of draws M, whichever of the two tables they come from."""
    if draws == 0:
        return FREE
    charges = [_charge(draws, *errors) for errors in ERRORS.values()]
    return NoiseCharge(max(c.epsilon for c in charges), max(c.delta for c in charges))


def _charge(draws: float, rms: float, largest: float, beyond: float) -> NoiseCharge:
    grown = draws * rms**2 * np.exp(-(_LAMBDAS + 2) * math.log1p(-largest))
    t = np.min(math.log(1 / _DELTA_1) / _LAMBDAS + (_LAMBDAS + 1) / 2 * grown)
    return NoiseCharge(float(2 * t), draws * beyond + _DELTA_1)
