"""The step: pure, traced once, and a step also without any record."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from helpers.regression import N, Problem

import jaxdp
from jaxdp import privatize
from jaxdp.datasets.feeding import Batch
from jaxdp.trainer.metrics import measure
from jaxdp.trainer.step import init_state, make_train_step


def make_plan(noise_multiplier):
    return jaxdp.Plan(
        num_examples=N,
        expected_batch_size=8,
        steps=3,
        clipping=jaxdp.clip_individual(1.0),
        noise_multiplier=noise_multiplier,
    )


def drawing_loss(params, record, key, *, shared):
    """A loss that draws, as with dropout."""
    return jnp.sum(params["w"] * record * jax.random.normal(key, (3,)))


def drawn_batch(rows):
    """Some records of a data set, in this order, and their mask."""
    records = np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)
    batch = Batch(records[rows], rows.astype(np.int32), jax.random.key(5))
    return batch, np.ones(len(rows), bool)


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


def test_the_optimizer_sees_the_released_gradient_only():
    """What it keeps, such as momentum or an average, would else be without noise."""
    plan = make_plan(noise_multiplier=1.0)
    keep = optax.GradientTransformation(
        lambda params: params,
        lambda gradient, _, params: (jax.tree.map(jnp.negative, gradient),) * 2,
    )
    privatizer = privatize(plan, key=jax.random.key(0))
    params = {"w": jnp.zeros(3)}
    state = init_state(params, privatizer, keep)
    step = make_train_step(drawing_loss, privatizer, keep, 4)
    batch, mask = drawn_batch(np.arange(8))
    ids = jax.vmap(lambda i: jax.random.fold_in(batch.key, i))(batch.ids)
    grads = jaxdp.per_example_grads(drawing_loss)(
        params, (batch.records, ids), mask, shared=(None,)
    )
    released, _ = privatizer.update(grads, privatizer.init(params), params)
    after, _ = step(state, batch, mask, None)
    np.testing.assert_allclose(after.params["w"], -released["w"], rtol=1e-5)
    np.testing.assert_array_equal(after.optimizer["w"], after.params["w"])


def test_a_record_draws_the_same_wherever_it_is():
    plan = make_plan(noise_multiplier=0)
    moved = []
    for order in (np.arange(8), np.arange(8)[::-1]):
        privatizer, optimizer = privatize(plan), optax.sgd(1.0)
        state = init_state({"w": jnp.zeros(3)}, privatizer, optimizer)
        step = make_train_step(drawing_loss, privatizer, optimizer, 4)
        moved.append(step(state, *drawn_batch(order), None)[0].params["w"])
    assert np.any(moved[0])
    np.testing.assert_allclose(*moved, rtol=1e-5)
