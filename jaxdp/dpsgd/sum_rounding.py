"""How far float32 rounding may raise the sensitivity of a clipped sum: an estimate, and a bound.

docs/design.md, "The rounding of the sum", has the proof of the bound and says when it holds.
"""

import math

from ..gradients.precision import ACCUMULATOR

ROUNDOFF = 2.0**-24  # the largest relative error of one float32 rounding

CONTRIBUTION = 1e-5  # a contribution is at most C·(1 + this), since norms are upper bounds

DEVIATIONS = 1e-5  # how far float32 may round the noise's standard deviation down

LARGEST_SLACK = 0.01  # a bound above this does not raise the noise: the estimate does


def estimate(rows: int, narrow: bool = False) -> float:
    """Estimates by which fraction rounding raises the sensitivity of a sum of so many rows.

    A sum of B aligned clipped gradients has norm up to B·C. Adding one record moves each of the few
    rounding errors at that size by up to 2^-24·B·C. Scaling the sum to the grid of the noise rounds
    it once more, by up to 2^-24·B·C for either of two neighbours.

    Args:
      rows: B.
      narrow: whether an accelerator adds up products of bfloat16 numbers, and rounds further.
    """
    return CONTRIBUTION + 6 * rows * (ACCUMULATOR if narrow else ROUNDOFF)


def bound(rows: int, rows_at_once: int, parts: int, moved: float) -> float:
    """Bounds what `estimate` estimates, where every row adds one term to each number of the sum.

    Args:
      rows: the most rows (examples, or batch units) that a sum may have.
      rows_at_once: how many of them are in a microbatch.
      parts: in how many parts the sum is taken, on devices or otherwise, that are then added.
      moved: by how many clipping norms one record moves the sum, in the pair of neighbours that the
        accountant compares.

    Returns:
      The fraction; infinite for sums of 2^24 terms.
    """
    microbatches = math.ceil(rows / rows_at_once)
    factor = 1 + _gamma(min(rows_at_once, rows) + 1)
    if microbatches > 1:
        factor *= 1 + ROUNDOFF + (1 + ROUNDOFF) * _gamma(microbatches - 1) ** 2
    factor *= 1 + _gamma(parts - 1)
    factor *= 1 + ROUNDOFF  # scaled to the grid of the noise
    off = rows * (1 + CONTRIBUTION) * (factor - 1)
    return CONTRIBUTION + DEVIATIONS + 2 * off / moved


def slack(estimated: float, bounded: float | None) -> float:
    """The fraction by which the noise is raised: the bound, if that is not too much."""
    if bounded is None or bounded > LARGEST_SLACK:
        return estimated
    return max(estimated, bounded)


def _gamma(count: int) -> float:
    """The relative error that so many roundings, one after the other, can add up to."""
    lost = count * ROUNDOFF
    return lost / (1 - lost) if lost < 1 else math.inf
