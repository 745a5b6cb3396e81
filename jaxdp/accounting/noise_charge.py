"""The price of randomness that is not exactly as it is accounted: a little ε and δ, by a theorem.

D numbers get noise in each of T steps: that is M = D·T independent draws. Their law q is close to
p, the law of a rounded Gaussian. Let |q(n)/p(n) − 1| have the root mean square r under p and the
maximum e, both over n within 8 standard deviations, and let V be the sum of |q(n) − p(n)| beyond
them. From there to 13 deviations q(n) is at least p(n); W is the mass of p beyond 13. Records are
sampled with a law within S of the accounted one, in total variation over the run. Then a run that
is (ε, δ)-DP with draws from p and the accounted sampling is, as it is,

    (ε + 2t, e^t·δ + M·V + (1 + e^(ε + 2t))·(M·W + S + δ₁))-DP

with t = ln(1/δ₁)/λ + ½(λ + 1)·M·r²·(1 − e)^−(λ + 2) + 2·M·V, for any λ ≥ 1. Adaptive steps and
the data play no part: all runs are one function of data, draws and sampling. The proof is in
docs/design.md.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Bounds on (r, e, V) for the two tables of `dpsgd._noise_tables`, and on W:
# tests/dpsgd/test_noise_tables.py computes the values by exact arithmetic.
ERRORS: dict[int, tuple[float, float, float]] = {
    22: (3.9e-12, 7.0e-8, 2.45e-21),
    24: (1.85e-11, 1.72e-7, 8.0e-21),
}
MISSING = 1.3e-38
SAMPLING = 2.0**-99  # total variation of a Poisson step: `dpsgd.binomial`
UNKNOWN_DRAWS = 1e11  # what is charged for where the number of parameters is not known
_DELTA_1 = 1e-32
_LAMBDAS = np.geomspace(1.0, 1e9, 901)  # the best of them is within 1 in 1,000 of the best t


@dataclass(frozen=True)
class NoiseCharge:
    """What is added to a mechanism's guarantee.

    Attributes:
      epsilon: 2t.
      delta_once: M·V, which counts once in δ.
      delta_each: M·W + S + δ₁, which counts 1 + e^ε times.
    """

    epsilon: float
    delta_once: float
    delta_each: float

    def delta_at(self, epsilon: float, exact: Callable[[float], float]) -> float:
        """δ at an epsilon, given the δ of the exact mechanism as a function of ε."""
        if self == FREE:
            return exact(epsilon)
        if epsilon < self.epsilon:
            return 1.0
        delta = exact(epsilon - self.epsilon)
        return min(1.0, math.exp(self.epsilon / 2) * delta + self.added_delta(epsilon))

    def epsilon_at(self, delta: float, exact: Callable[[float], float]) -> float:
        """ε at a delta, given the ε of the exact mechanism as a function of δ."""
        if self == FREE:
            return exact(delta)
        found = 0.0
        for _ in range(100):
            # A little beyond the last ε, so that the answer below it is sound.
            beyond = found + 1e-9 * (1 + found)
            left = (delta - self.added_delta(beyond)) * math.exp(-self.epsilon / 2)
            if left <= 0:
                return math.inf
            new = exact(left) + self.epsilon
            if new <= beyond:
                return new
            found = new
        return math.inf

    def exact_target(self, epsilon: float, delta: float) -> tuple[float, float]:
        """The (ε, δ) to meet with the exact mechanism, so that with the charge both hold.

        For a large ε the charge may be more than δ: then a smaller ε is the target. If the charge
        is more than the target in any case, one of the two is not above 0.
        """
        if self == FREE:
            return epsilon, delta
        # At most a thousandth of δ goes into what grows with e^ε.
        most = math.log(max(delta / (1e3 * self.delta_each), 1.0))
        epsilon = min(epsilon, most)
        left = (delta - self.added_delta(epsilon)) * math.exp(-self.epsilon / 2)
        # 1e-8: more than the little that `epsilon_at` goes beyond its last ε.
        return epsilon - self.epsilon - 1e-8 * (1 + epsilon), left

    def tradeoff_of(
        self, alphas: NDArray[np.float64], exact: Callable[[NDArray[np.float64]], NDArray]
    ) -> NDArray[np.float64]:
        """Type II errors at `alphas`, given those of the exact mechanism.

        A test with type I error α has at most e^t·(α + M·W + S + δ₁) there, and its power is at
        most e^t times its power there, plus M·V + M·W + S + δ₁.
        """
        if self == FREE:
            return exact(alphas)
        grown = math.exp(self.epsilon / 2)
        betas = exact(np.minimum(grown * (alphas + self.delta_each), 1.0))
        return np.maximum(1 - grown * (1 - betas) - self.delta_once - self.delta_each, 0.0)

    def added_delta(self, epsilon: float) -> float:
        """The part of δ at an epsilon that is for the randomness alone."""
        return self.delta_once + (1 + math.exp(min(epsilon, 700.0))) * self.delta_each


FREE = NoiseCharge(0.0, 0.0, 0.0)  # of a mechanism that is exact


def noise_charge(draws: float, sampled_steps: int = 0) -> NoiseCharge:
    """The charge for a number of draws M, whichever of the two tables they come from.

    Args:
      draws: M; 0: the noise and the sampling are exact.
      sampled_steps: in how many steps records are sampled by Poisson sampling.
    """
    if draws == 0:
        return FREE
    charges = [_charge(draws, *errors, MISSING) for errors in ERRORS.values()]
    return NoiseCharge(
        max(c.epsilon for c in charges),
        max(c.delta_once for c in charges),
        max(c.delta_each for c in charges) + sampled_steps * SAMPLING,
    )


def _charge(draws: float, rms: float, largest: float, beyond: float, missing: float) -> NoiseCharge:
    grown = draws * rms**2 * np.exp(-(_LAMBDAS + 2) * math.log1p(-largest))
    t = np.min(math.log(1 / _DELTA_1) / _LAMBDAS + (_LAMBDAS + 1) / 2 * grown) + 2 * draws * beyond
    return NoiseCharge(float(2 * t), draws * beyond, draws * missing + _DELTA_1)
