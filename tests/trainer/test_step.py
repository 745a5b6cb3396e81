"""The step: pure, traced once, and a step also without any record."""

import jax
import numpy as np
from helpers.regression import Problem

from jaxdp.trainer.metrics import measure


def test_the_state_is_donated():
    problem = Problem()
    before = problem.state
    problem.run()
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))


def test_the_same_keys_repeat_a_run_bit_for_bit():
    runs = [Problem(key=jax.random.key(1), sampling_key=jax.random.key(1)).run() for _ in range(2)]
    jax.tree.map(np.testing.assert_array_equal, *runs)


def test_runs_without_keys_share_neither_noise_nor_samples():
    first, second = Problem(), Problem()
    assert not np.array_equal(first.run()["w"], second.run()["w"])
    samples = [np.concatenate([m for _, m in p.samples()]) for p in (first, second)]
    assert not np.array_equal(*samples)


def test_an_empty_batch_is_a_step():
    problem = Problem()
    indices, mask = next(problem.samples())
    state, facts = problem.step(problem.state, problem.take(indices), np.zeros_like(mask))
    metrics = measure(1, facts)
    assert (metrics.examples, metrics.loss, metrics.norm_50) == (0, None, None)
    assert (metrics.clipped_fraction, metrics.signal_to_noise) == (None, 0.0)
    assert metrics.norm_counts == (0, [])
    assert problem.plan.epsilon_spent(state) == problem.plan.epsilon(1)
    assert not np.array_equal(state.params["w"], np.ones(3))  # noise was added
