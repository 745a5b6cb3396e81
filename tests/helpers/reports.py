"""Reports of runs, drawn in little time."""

import numpy as np

from jaxdp.trainer.release import figures


def few_points(monkeypatch):
    """Curves of ε have two points each: all others take seconds."""
    monkeypatch.setattr(figures, "DELTAS", np.array([1e-6, 1e-4]))
    monkeypatch.setattr(figures, "EPSILON_POINTS", 2)
