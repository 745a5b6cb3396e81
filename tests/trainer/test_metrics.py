"""The numbers about a step: those of a loop over its examples."""

import jax
import numpy as np
import pytest
from helpers.regression import Problem

from jaxdp import NORM_BIN_EDGES
from jaxdp.trainer.metrics import measure


def test_metrics_are_what_a_loop_over_examples_gives():
    problem = Problem()
    indices, mask = next(problem.samples())
    params = jax.device_get(problem.state.params)
    x, y = (leaf[indices[mask]].astype(np.float64) for leaf in problem.records)
    _, facts = problem.step(problem.state, problem.take(indices), mask)
    metrics = measure(5, facts)
    residual = x @ params["w"] + params["b"] - y
    norms = np.abs(2 * residual) * np.sqrt((x**2).sum(1) + 1)
    assert (metrics.step, metrics.examples, metrics.nonfinite) == (5, mask.sum(), 0)
    assert metrics.loss == pytest.approx(np.mean(residual**2), rel=1e-5)
    assert metrics.clipped == np.sum(norms > 1)
    assert metrics.clipped_fraction == pytest.approx(np.mean(norms > 1))
    grads = 2 * residual[:, None] * np.append(x, np.ones((len(x), 1)), axis=1)
    clipped_mean = (grads / np.maximum(norms, 1)[:, None]).sum(0) / 10
    noise = 1.0 * 1.0 * 2 / 10  # z·C·√d/B with d = 4 parameters
    assert metrics.clipped_mean_norm == pytest.approx(np.linalg.norm(clipped_mean), rel=1e-5)
    assert metrics.noise_norm == pytest.approx(noise, rel=1e-4)
    assert metrics.signal_to_noise == pytest.approx(
        metrics.clipped_mean_norm / metrics.noise_norm, rel=1e-5
    )
    quantiles = np.quantile(norms, [0.1, 0.5, 0.9], method="inverted_cdf")
    for got, expected in zip(
        (metrics.norm_10, metrics.norm_50, metrics.norm_90), quantiles, strict=True
    ):
        assert expected <= got <= expected * 2**0.25 * (1 + 1e-5)
        assert got in NORM_BIN_EDGES
    first, counts = metrics.norm_counts
    expected = np.histogram(norms, [0, *NORM_BIN_EDGES, np.inf])[0]
    assert counts == expected[first : first + len(counts)].tolist()
    assert sum(counts) == len(norms)
    assert metrics.clipping_norm == pytest.approx(1.0)
