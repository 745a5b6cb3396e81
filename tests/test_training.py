"""The step and the loop: pure, traced once, counted before they run, stopped when asked."""

import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdp import NORM_BIN_EDGES, Plan, clip_individual, privatize
from jaxdp.models.scores import Scores
from jaxdp.trainer import loop
from jaxdp.trainer.config import TrainingConfig
from jaxdp.trainer.metrics import measure
from jaxdp.trainer.optimizer import make_optimizer
from jaxdp.trainer.scoring import PeriodicScores
from jaxdp.trainer.signals import StopRequest, stop_on_signals
from jaxdp.trainer.step import init_state, make_train_step

N = 40


def loss(params, x, y):
    return (params["w"] @ x + params["b"] - y) ** 2


class SpentSteps:
    """The payment of a run without a ledger: a count."""

    def __init__(self):
        self.count = 0

    def pay(self, step):
        self.count = step + 1

    def may_stop(self, step):
        return True


class Problem:
    """A small regression; `traces` counts how often its loss is traced."""

    def __init__(self, steps=12, key=None, sampling_key=None, batch=10):
        rng = np.random.default_rng(0)
        self.records = (rng.normal(size=(N, 3)).astype("f4"), rng.normal(size=N).astype("f4"))
        self.plan = Plan(
            num_examples=N,
            expected_batch_size=batch,
            steps=steps,
            clipping=clip_individual(1.0),
            noise_multiplier=1.0,
        )
        self.traces = 0
        privatizer = privatize(self.plan, key=key)
        optimizer = make_optimizer(TrainingConfig(learning_rate=0.1), steps)
        params = {"w": jnp.ones(3), "b": jnp.zeros(())}
        self.state = init_state(params, privatizer, optimizer)
        self.step = make_train_step(self._loss, privatizer, optimizer, 4)
        self.samples = lambda: self.plan.batches(sampling_key)
        self.batches = lambda: ((self.take(rows), mask) for rows, mask in self.samples())

    def take(self, rows):
        return tuple(leaf[rows] for leaf in self.records)

    def _loss(self, *args):
        self.traces += 1
        return loss(*args)

    def run(self, stop=None, watch=lambda metrics: None, visitors=()):
        self.spent = SpentSteps()
        stop = stop or StopRequest()
        self.state = loop.train(
            self.step, self.state, self.batches(),
            spent=self.spent, stop=stop, watch=watch, visitors=visitors,
        )  # fmt: skip
        return self.state[0]


def test_a_run_takes_every_step_and_traces_once():
    problem = Problem()
    seen = []
    problem.run(watch=seen.append)
    assert problem.spent.count == 12
    assert [metrics.step for metrics in seen] == list(range(1, 13))
    traced = problem.traces
    problem.run()
    assert problem.traces == traced
    assert problem.plan.epsilon_spent(problem.state) == problem.plan.epsilon(24)


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


def test_scores_on_the_way_change_nothing(tmp_path):
    seen = []

    def score(state):
        seen.append(float(state[0]["b"]))
        return Scores(0.5, seen[-1])

    def run(visitors):
        problem = Problem(key=jax.random.key(1), sampling_key=jax.random.key(1))
        return problem.run(visitors=visitors)

    path = tmp_path / "scores.jsonl"
    scored = run([PeriodicScores(score, path, 12, 5, print)])
    jax.tree.map(np.testing.assert_array_equal, scored, run([]))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 5, 7, 10]  # and after the last, by the command
    assert [line["loss"] for line in lines] == seen
    assert len(set(seen)) == 4


def test_scores_that_fail_do_not_stop_the_run(tmp_path):
    def fails(state):
        raise RuntimeError("RESOURCE_EXHAUSTED: no memory\nmore")

    told = []
    scores = PeriodicScores(fails, tmp_path / "scores.jsonl", 12, 5, told.append)
    problem = Problem()
    problem.run(visitors=[scores])
    assert problem.spent.count == 12
    assert told == [
        "The test records can't be scored while the run trains: RESOURCE_EXHAUSTED: no memory"
    ]


@pytest.mark.parametrize("times", [0, 1, 12, 50])
def test_scores_are_at_most_one_a_step_and_not_the_last(tmp_path, times):
    scores = PeriodicScores(print, tmp_path, 12, times, print)
    due = [step for step in range(14) if scores.due(step)]
    assert due == (list(range(1, 12)) if times >= 12 else [])


def test_an_empty_batch_is_a_step():
    problem = Problem()
    indices, mask = next(problem.samples())
    state, diagnostics = problem.step(problem.state, problem.take(indices), np.zeros_like(mask))
    metrics = measure(1, diagnostics)
    assert (metrics.examples, metrics.loss, metrics.norm_50) == (0, None, None)
    assert (metrics.clipped_fraction, metrics.signal_to_noise) == (None, 0.0)
    assert metrics.norm_counts == (0, [])
    assert problem.plan.epsilon_spent(state) == problem.plan.epsilon(1)
    assert not np.array_equal(state[0]["w"], np.ones(3))  # noise was added


def test_a_step_counts_before_it_is_dispatched():
    problem = Problem()

    def fails(*args):
        raise RuntimeError("the device is gone")

    problem.step = fails
    with pytest.raises(RuntimeError, match="gone"):
        problem.run()
    assert problem.spent.count == 1


def test_a_stop_request_stops_after_the_step():
    problem, stop = Problem(), StopRequest()

    def watch(metrics):
        stop.requested = metrics.step == 3

    problem.run(stop=stop, watch=watch)
    assert problem.spent.count == 4  # metrics come one step late
    assert problem.plan.epsilon_spent(problem.state) == problem.plan.epsilon(4)


def test_the_first_interrupt_asks_and_the_second_interrupts():
    told = []
    before = signal.getsignal(signal.SIGINT)
    with stop_on_signals(lambda: told.append(True)) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert (stop.requested, told) == (True, [True])
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_metrics_are_what_a_loop_over_examples_gives():
    problem = Problem()
    indices, mask = next(problem.samples())
    params = jax.device_get(problem.state[0])
    x, y = (leaf[indices[mask]].astype(np.float64) for leaf in problem.records)
    _, diagnostics = problem.step(problem.state, problem.take(indices), mask)
    metrics = measure(5, diagnostics)
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


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (TrainingConfig(optimizer="sgd", momentum=0.0, schedule="constant"), optax.sgd(0.7)),
        (TrainingConfig(momentum=0.5, schedule="constant"), optax.sgd(0.7, momentum=0.5)),
        (TrainingConfig(optimizer="adam", schedule="constant"), optax.adam(0.7)),
        (
            TrainingConfig(momentum=0.0),
            optax.sgd(optax.cosine_decay_schedule(0.7, 8, alpha=0.1)),
        ),
    ],
    ids=["sgd", "momentum", "adam", "cosine"],
)
def test_optimizers_are_optax_s(config, expected):
    config = TrainingConfig(**{**vars(config), "learning_rate": 0.7})
    params, made = jnp.arange(3.0), make_optimizer(config, 8)
    results = []
    for optimizer in (made, expected):
        p, state = params, optimizer.init(params)
        for _ in range(8):
            updates, state = optimizer.update(jnp.sin(p), state, p)
            p = optax.apply_updates(p, updates)
        results.append(p)
    np.testing.assert_allclose(*results, rtol=1e-6)
