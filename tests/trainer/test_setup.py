"""What is decided before the first step."""

import jax
import numpy as np
import pytest

for module in ("tyro", "sklearn", "safetensors"):
    pytest.importorskip(module)
from jaxdp.datasets.augmentation import crop_and_flip, record_keys  # noqa: E402
from jaxdp.dpsgd import keys  # noqa: E402
from jaxdp.models.build import init_params  # noqa: E402
from jaxdp.trainer import parsing, setup  # noqa: E402


def test_without_a_seed_every_stream_is_secret():
    config = parsing.parse(["--model.name", "linear"])
    one, other = setup.start_run(config), setup.start_run(config)
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
    run = setup.start_run(parsing.parse(["--model.name", "linear", "--data.augment", "crop_flip"]))
    secrets, records = run.saved.secrets, run.dataset.private
    params = init_params(run.model, keys.jax_key(secrets.init, "init"), run.dataset)
    jax.tree.map(np.testing.assert_array_equal, run.state.params, params)
    sampled = run.plan.batches(key=secrets.sampling)
    for step, ((inputs, _), _) in zip(range(2), run.batches(), strict=False):
        rows = np.minimum(next(sampled)[0], len(records) - 1)
        step_key = keys.jax_key(secrets.augmentation, "augmentation", step)
        own = record_keys(step_key, records.numbers()[rows])
        np.testing.assert_array_equal(inputs, jax.vmap(crop_and_flip)(own, records.inputs[rows]))
        assert not np.array_equal(inputs, records.inputs[rows])


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
    run = setup.start_run(parsing.parse(["--model.name", "linear", *args.split()]))
    assert run.plan.num_parameters == numbers
    assert run.plan.mechanism().noise_draws_per_step == numbers


@pytest.mark.parametrize(
    ("args", "kind"),
    [
        ("--model.name linear --training.microbatch-size 8", "bound"),
        ("--model.name linear", "too large"),
        ("--clipping.kind batch --clipping.units 4", "bound"),
        ("--model.name cnn --model.widths 32 64", "none"),
        ("--model.name cnn --model.widths 32 64 --training.microbatch-size 1", "bound"),
    ],
)
def test_the_rounding_of_the_sum_is_bounded_where_a_bound_is_proved(args, kind):
    plan = setup.start_run(parsing.parse(args.split())).plan
    assert (plan.rounding_bound is None) == (kind == "none")
    assert plan.rounding_is_bounded == (kind == "bound")
    if kind == "bound":
        assert plan.rounding_slack == plan.rounding_bound
    else:
        assert plan.rounding_slack == plan.rounding_estimate


def test_parameters_that_cannot_learn_are_told(monkeypatch):
    def over_itself(params, x, y):
        h = x.reshape(1, -1) @ params["Dense_0"]["kernel"]
        logits = (h - h.mean(0))[0] + params["Dense_0"]["bias"]
        return -jax.nn.log_softmax(logits)[y]

    def told(args):
        lines = []
        setup.start_run(parsing.parse(["--model.name", *args.split()]), lines.append)
        return [line for line in lines if "exactly zero" in line]

    assert told("linear") == told("cnn --model.widths 2") == []
    monkeypatch.setattr(setup, "make_loss", lambda model, dataset: over_itself)
    (line,) = told("linear")
    assert "The gradient of ['Dense_0']['kernel'] is exactly zero" in line
    assert "statistics over one example?" in line
    # The records of a unit are normalised together, and may be.
    of_unit = lambda params, x, y, mask: over_itself(params, x[0], y[0]) * mask[0]
    monkeypatch.setattr(setup, "make_unit_loss", lambda model, dataset, size: of_unit)
    assert told("linear --clipping.kind batch --clipping.units 4") == []
