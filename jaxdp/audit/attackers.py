"""The attackers of an audit: a score of a release, and thresholds of the score."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import special

from .bounds import Errors


class Features(NamedTuple):
    """Features of releases with the canary and of as many without it, `[releases, features]`."""

    with_it: np.ndarray
    without: np.ndarray


class Attackers:
    """Each says that the canary was there if the score is above a threshold of its own.

    Args:
      shift: `[features]`, how far the canary moves them.
      pilot: features of releases that are not counted later.
    """

    def __init__(self, shift: np.ndarray, pilot: Features) -> None:
        apart = np.concatenate([_centred(rows) for rows in pilot])
        # A feature without noise tells all, and no number is divided by zero.
        scale = np.maximum(_std(apart), 1e-9 * np.abs(shift) + 1e-30)
        scaled = apart / scale
        covariance = scaled.T @ scaled / max(1, len(scaled))
        covariance += 1e-9 * np.eye(len(shift))
        self._weights = np.linalg.solve(covariance, shift / scale) / scale
        self._pilot = pilot
        scores = np.sort(np.concatenate([self._finite_scores(rows) for rows in pilot]))
        n = len(scores)
        ends = np.unique(np.geomspace(1, n, 40).astype(int)) - 1
        places = np.unique(np.concatenate([ends, n - 1 - ends, np.linspace(0, n - 1, 81)]))
        self._thresholds = scores[places.astype(int)]

    def errors(self, found: Features) -> Errors:
        """How often each attacker is wrong."""
        scores = [np.sort(self._scores(rows)) for rows in found]
        quiet = [np.searchsorted(some, self._thresholds, side="right") for some in scores]
        return Errors(len(found.without) - quiet[1], quiet[0], len(found.without))

    def best(self, bound: Callable[[Errors], np.ndarray], trials: int) -> int:
        """The attacker with the largest bound, by the pilot releases.

        Counts of few releases would choose by chance. So scores are taken for Gaussian, unless an
        attacker has shown more than a Gaussian could.
        """
        moments = [
            (np.mean(some), np.std(some) or 1.0) for some in map(self._finite_scores, self._pilot)
        ]
        quiet = [special.ndtr((self._thresholds - mean) / std) for mean, std in moments]
        smooth = bound(Errors(trials * (1 - quiet[1]), trials * quiet[0], trials))
        counted = bound(self.errors(self._pilot))
        return int(np.argmax(counted if np.max(counted) > np.max(smooth) else smooth))

    def _scores(self, rows: np.ndarray) -> np.ndarray:
        """A release that is not finite shows itself."""
        finite = np.isfinite(rows).all(axis=1)
        return np.where(finite, np.where(finite[:, None], rows, 0) @ self._weights, np.inf)

    def _finite_scores(self, rows: np.ndarray) -> np.ndarray:
        scores = self._scores(rows)
        finite = scores[np.isfinite(scores)]
        return finite if len(finite) else np.zeros(1)


def _centred(rows: np.ndarray) -> np.ndarray:
    """The finite rows, less their mean."""
    finite = rows[np.isfinite(rows).all(axis=1)]
    return finite - np.mean(finite, axis=0) if len(finite) else finite


def _std(rows: np.ndarray) -> np.ndarray:
    return np.std(rows, axis=0) if len(rows) else np.zeros(rows.shape[1])
