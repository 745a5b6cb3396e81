"""What is decided before the first step."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

for module in ("tyro", "sklearn", "safetensors"):
    pytest.importorskip(module)
from helpers.cases import slow  # noqa: E402
from helpers.trainer import start  # noqa: E402

import jaxdp  # noqa: E402
from jaxdp.datasets.dataset import Dataset  # noqa: E402
from jaxdp.datasets.feeding import record_keys  # noqa: E402
from jaxdp.dpsgd import keys  # noqa: E402
from jaxdp.tasks.task import Task  # noqa: E402
from jaxdp.trainer import command, parsing, setup  # noqa: E402
from jaxdp.trainer.job import Job, RunOptions  # noqa: E402
from jaxdp.trainer.learner import shape_of_batch  # noqa: E402
from jaxdp.trainer.plan_settings import PlanSettings  # noqa: E402


def test_without_a_seed_every_stream_is_secret():
    config = parsing.parse(["--model.name", "linear"])
    one, other = start(config), start(config)
    streams = [
        {k: jax.random.key_data(v) for k, v in vars(r.saved.secrets).items()} for r in (one, other)
    ]
    assert all(not np.array_equal(streams[0][name], streams[1][name]) for name in streams[0])
    noise_keys = [jax.random.key_data(r.state.privatize.privatize_key) for r in (one, other)]
    assert not np.array_equal(*noise_keys)
    kernels = [r.state.params["Dense_0"]["kernel"] for r in (one, other)]
    assert not np.array_equal(*kernels)
    assert all(words.shape == (4,) for one in streams for words in one.values())  # 128 bits


def test_jax_keys_are_derived_for_one_use_and_step():
    run = start(parsing.parse(["--model.name", "linear"]))
    secrets, job = run.saved.secrets, run.job
    params = job.task.init(keys.jax_key(secrets.init, "init"), job.data.private.zero())
    jax.tree.map(np.testing.assert_array_equal, run.state.params, params)
    sampled = run.plan.batches(key=secrets.sampling)
    for step, (batch, mask) in zip(range(2), run.batches(), strict=False):
        rows = next(sampled)[0][mask]
        for got, array in zip(batch.records, job.data.private.fields, strict=True):
            np.testing.assert_array_equal(got[mask], array[rows])
        np.testing.assert_array_equal(batch.ids[mask], job.data.private.numbers()[rows])
        words = [
            jax.random.key_data(key)
            for key in (batch.key, keys.jax_key(secrets.loss, "loss", step))
        ]
        np.testing.assert_array_equal(*words)


def test_a_model_may_compute_in_bfloat16_with_float32_parameters_and_noise():
    run = start(parsing.parse(["--model.name", "linear", "--training.compute-dtype", "bfloat16"]))
    batch, mask = shape_of_batch(run.job.data.private, run.plan)
    program = run.train_step.trace(run.state, batch, mask, run.learner.frozen)
    assert "bf16" in str(program.jaxpr)
    state, facts = program.out_info
    numbers = jax.tree.leaves((state.params, state.optimizer, facts.diagnostics, facts.strength))
    floats = {leaf.dtype for leaf in numbers if jnp.issubdtype(leaf.dtype, jnp.floating)}
    assert floats == {np.dtype(np.float32)}


@pytest.mark.parametrize("unit", ["example", "batch"])
def test_a_loss_gets_the_key_of_its_record_at_its_step(unit):
    """The gradient is the sum of what the records draw, so the update tells their keys."""
    draw = lambda key: jax.random.uniform(key)
    task = Task(
        init=lambda key, record: jax.numpy.zeros(()),
        loss=lambda params, record, key: params * draw(key),
    )
    data = Dataset(np.zeros((40, 1), np.float32))
    clip = jaxdp.clip_individual(10.0) if unit == "example" else jaxdp.clip_batch(10.0)
    plan = PlanSettings(
        expected_batch_size=10,
        steps=3,
        noise_multiplier=1e-6,
        clipping=clip,
        num_units=None if unit == "example" else 2,
    )
    run = setup.start_run(
        Job(task, data, plan, optax.sgd(1.0), RunOptions(seed=1, microbatch_size=8))
    )
    state = run.state
    for step, (batch, mask) in enumerate(run.batches()):
        drawn = jax.vmap(draw)(record_keys(batch.key, batch.ids).reshape(-1)).reshape(mask.shape)
        # A unit's gradient is the mean over its records.
        shares = mask if unit == "example" else mask / np.maximum(mask.sum(1, keepdims=True), 1)
        expected = float(np.sum(drawn * shares)) / run.plan.divisor
        before = float(state.params)
        state, _ = run.take_step(state, batch, mask)
        assert before - float(state.params) == pytest.approx(expected, rel=1e-3), step


@pytest.mark.parametrize(
    ("args", "numbers"),
    [
        ("", 650),
        ("--clipping.kind quantile --clipping.layer tensor", 652),  # and two counts
        ("--clipping.kind quantile --clipping.layer model", 651),
        ("--training.frozen Dense_0/bias", 640),
    ],
)
def test_the_plan_pays_for_all_numbers_that_get_noise(args, numbers):
    run = start(parsing.parse(["--model.name", "linear", *args.split()]))
    assert run.plan.num_parameters == numbers
    assert run.plan.mechanism().noise_draws_per_step == numbers


@pytest.mark.parametrize(
    ("args", "kind"),
    [
        ("--model.name linear --training.microbatch-size 8", "bound"),
        ("--model.name linear", "too large"),
        ("--clipping.kind batch --clipping.units 4", "bound"),
        slow("--model.name cnn --model.widths 32 64", "none"),
        slow("--model.name cnn --model.widths 32 64 --training.microbatch-size 1", "bound"),
        slow("--model.name cnn --training.microbatch-size 8 --training.method factored", "none"),
        ("--model.name cnn --training.microbatch-size 8 --training.method vmap", "bound"),
        ("--model.name cnn --training.microbatch-size 8 --training.method two_pass", "none"),
    ],
)
def test_the_rounding_of_the_sum_is_bounded_where_a_bound_is_proved(args, kind):
    plan = start(parsing.parse(args.split())).plan
    assert (plan.rounding_bound is None) == (kind == "none")
    assert plan.rounding_is_bounded == (kind == "bound")
    if kind == "bound":
        assert plan.rounding_slack == plan.rounding_bound
    else:
        assert plan.rounding_slack == plan.rounding_estimate


@pytest.mark.slow
def test_parameters_that_cannot_learn_are_told(monkeypatch):
    def over_itself(params, record, key):
        x, y = record
        h = x.reshape(1, -1) @ params["Dense_0"]["kernel"]
        logits = (h - h.mean(0))[0] + params["Dense_0"]["bias"]
        return -jax.nn.log_softmax(logits)[y]

    def told(args):
        lines = []
        start(parsing.parse(["--model.name", *args.split()]), lines.append)
        return [line for line in lines if "exactly zero" in line]

    assert told("linear") == told("cnn --model.widths 2") == []
    make_task = command.make_task
    monkeypatch.setattr(
        command, "make_task", lambda *args: replace(make_task(*args), loss=over_itself)
    )
    (line,) = told("linear")
    assert "The gradient of ['Dense_0']['kernel'] is exactly zero" in line
    assert "statistics over one example?" in line
    # The records of a unit are normalised together, and may be.
    of_unit = lambda params, records, keys, mask: (
        over_itself(params, jax.tree.map(lambda rows: rows[0], records), None) * mask[0]
    )
    monkeypatch.setattr(
        command, "make_task", lambda *args: replace(make_task(*args), unit_loss=of_unit)
    )
    assert told("linear --clipping.kind batch --clipping.units 4") == []
