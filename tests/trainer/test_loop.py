"""The loop: every step is taken, counted before it runs, and a stop is heard."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.regression import Problem

from jaxdp.trainer.signals import StopRequest


def test_a_run_takes_every_step_and_traces_once():
    problem = Problem()
    seen = []
    problem.run(watch=seen.append)
    assert problem.payment.count == 12
    assert [metrics.step for metrics in seen] == list(range(1, 13))
    traced = problem.traces
    # Back to the first step: the plan has no more of them.
    first = problem.state.privatize._replace(privatize_step=jnp.int32(0))
    problem.state = problem.state._replace(privatize=first)
    problem.run()
    assert problem.traces == traced
    assert problem.plan.epsilon_spent(problem.state) == problem.plan.epsilon()


def test_a_step_counts_before_it_is_dispatched():
    problem = Problem()

    def fails(*args):
        raise RuntimeError("the device is gone")

    problem.step = fails
    with pytest.raises(RuntimeError, match="gone"):
        problem.run()
    assert problem.payment.count == 1


def test_a_stop_request_stops_after_the_step():
    problem, stop = Problem(), StopRequest()

    def watch(metrics):
        stop.requested = metrics.step == 3

    problem.run(stop=stop, watch=watch)
    assert problem.payment.count == 4  # metrics come one step late
    assert problem.plan.epsilon_spent(problem.state) == problem.plan.epsilon(4)


def test_an_empty_batch_is_paid_for_and_taken():
    """A step without its noise would tell that nobody was sampled (rule 7)."""
    problem = Problem()
    ((indices, mask),) = list(problem.samples())[:1]
    problem.batches = lambda: [(problem.take(indices), np.zeros_like(mask))] * 2
    params = problem.run()
    assert problem.payment.count == 2
    assert problem.plan.epsilon_spent(problem.state) == problem.plan.epsilon(2)
    assert not np.array_equal(params["w"], np.ones(3))  # noise was added
