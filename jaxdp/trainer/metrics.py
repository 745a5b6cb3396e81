"""Numbers about every step's batch, for the owner of the data."""

import json
from typing import NamedTuple, TextIO

import jax
import numpy as np

from ..dpsgd.sums import NORM_BIN_EDGES
from .step import StepFacts


class Metrics(NamedTuple):
    """Facts about one step's batch, without noise: private."""

    step: int
    examples: int  # examples that took part; with batch units, the units that were not empty
    loss: float | None  # mean; None for an empty batch, and for a step that measures
    clipped: int
    clipped_fraction: float | None  # of the examples (units) with a finite gradient
    nonfinite: int
    norm_10: float | None  # upper bounds on quantiles of the gradients' norms
    norm_50: float | None
    norm_90: float | None
    norm_counts: tuple[int, list[int]]  # first bin; the numbers of norms in it and in the next ones
    clipping_norm: float  # of all groups together: root of the sum of squares
    clipped_mean_norm: float  # norm of the clipped sum over the divisor, before the noise
    noise_norm: float  # expected norm of the noise on it
    signal_to_noise: float | None  # clipped_mean_norm / noise_norm; None without noise


def measure(step: int, facts: StepFacts) -> Metrics:
    """Turns the facts about a step's batch into numbers for people."""
    d, strength, clipping_norms, _, measures = jax.device_get(facts)
    signal, noise = float(strength.clipped_mean_norm), float(strength.noise_norm)
    finite = d.count - d.nonfinite
    cumulated = np.cumsum(d.norm_histogram)
    used = np.flatnonzero(d.norm_histogram)
    counts = d.norm_histogram[used[0] : used[-1] + 1] if used.size else used

    def norm_quantile(share: float) -> float | None:
        if not finite:
            return None
        bin_ = int(np.searchsorted(cumulated, share * cumulated[-1]))
        return float(NORM_BIN_EDGES[min(bin_, len(NORM_BIN_EDGES) - 1)])

    return Metrics(
        step=step,
        examples=int(d.count),
        loss=float(d.loss_sum / finite) if finite and not measures else None,
        clipped=int(d.clipped),
        clipped_fraction=float(d.clipped / finite) if finite else None,
        nonfinite=int(d.nonfinite),
        norm_10=norm_quantile(0.1),
        norm_50=norm_quantile(0.5),
        norm_90=norm_quantile(0.9),
        norm_counts=(int(used[0]) if used.size else 0, counts.astype(int).tolist()),
        clipping_norm=float(np.linalg.norm(clipping_norms)),
        clipped_mean_norm=signal,
        noise_norm=noise,
        signal_to_noise=signal / noise if noise else None,
    )


def write_metrics(file: TextIO, metrics: Metrics) -> None:
    """Appends one line of JSON."""
    file.write(json.dumps(metrics._asdict()) + "\n")
    file.flush()
