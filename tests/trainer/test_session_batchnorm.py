"""BatchNorm through the trainer: no private record has a way past the noise."""

import copy
import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

for module in ("tyro", "sklearn", "safetensors"):
    pytest.importorskip(module)
from helpers.trainer import start, write_config  # noqa: E402

import jaxdp  # noqa: E402
from jaxdp import evaluate, train  # noqa: E402
from jaxdp.datasets import loading  # noqa: E402
from jaxdp.datasets.config import DataConfig  # noqa: E402
from jaxdp.datasets.feeding import Batch  # noqa: E402
from jaxdp.datasets.records import Records  # noqa: E402
from jaxdp.models import batchnorm  # noqa: E402
from jaxdp.models.build import make_model  # noqa: E402
from jaxdp.models.config import ModelConfig  # noqa: E402
from jaxdp.trainer import setup  # noqa: E402
from jaxdp.trainer.config import (  # noqa: E402
    ClippingConfig,
    Config,
    PlanConfig,
    TrainingConfig,
)
from jaxdp.trainer.run import checkpoint  # noqa: E402

SMALL = Config(
    data=DataConfig(private="train[:200]", public="train[1300:]", test="test[:50]"),
    model=ModelConfig(widths=(4,), norm="batch"),
    # A small norm: what got past the clipping would be far larger than the sensitivity.
    clipping=ClippingConfig(kind="batch", units=2, norm=1e-3),
    plan=PlanConfig(expected_batch_size=100.0, steps=4),
    training=TrainingConfig(ema=0.9),
    seed=0,
)


def swapped(records, count=1):
    """The records, the first of them replaced by others that are as different as can be."""
    inputs, labels = (array.copy() for array in records.fields)
    inputs[:count] = 16 - 16 * (inputs[:count] > 8)
    labels[:count] = (labels[:count] + 5) % 10
    return Records((inputs, labels), records.numbers())


def scaled(inputs):
    return (inputs.astype(np.float32) - 8) / 8


def first_step(run, records, without_first=False):
    """The state after a step on these records that the first takes part in, or is taken out of."""
    indices, mask = next(run.plan.batches(key=run.saved.secrets.sampling))
    padding = tuple(np.argwhere(~mask)[0])
    mask[padding] = not without_first
    state = jax.tree.map(jnp.copy, run.state)  # the step is given its memory
    rows = np.where(indices == len(records), 0, indices)  # in one such place it counts now
    key = next(run.batches())[0].key
    batch = Batch(
        jax.tree.map(lambda array: array[rows], records.fields), records.numbers()[rows], key
    )
    return run.take_step(state, batch, mask)[0]


@pytest.fixture(scope="module")
def one():
    return start(SMALL)


@pytest.fixture(scope="module")
def dataset(one):
    return one.job.data


@pytest.mark.parametrize("change", ["swap", "remove"])
def test_one_record_moves_the_update_by_at_most_the_sensitivity(one, change):
    records = one.job.data.private
    other = swapped(records) if change == "swap" else records
    states = first_step(one, records), first_step(one, other, change == "remove")
    norms = states[0].privatize.clipping.clipping_norms
    allowed = one.plan.clipping.sensitivity(one.plan.adjacency, norms) / one.plan.divisor
    rate = SMALL.training.learning_rate
    pairs = zip(*(jax.tree.leaves(state.params) for state in states), strict=True)
    squares = [np.sum(np.square((np.asarray(a, np.float64) - b) / rate)) for a, b in pairs]
    moved = np.sqrt(sum(squares))
    assert 1e-2 * allowed < moved <= allowed * (1 + 2e-3)  # parameters round
    # Beside the parameters, the state holds what follows from them, or what is the same in both.
    privates = [checkpoint.to_arrays(state.privatize) for state in states]
    jax.tree.map(np.testing.assert_array_equal, *privates)
    like = {x.shape for x in jax.tree.leaves(one.state.params)} | {()}
    assert {x.shape for x in jax.tree.leaves(states[0].optimizer)} <= like


def test_statistics_do_not_depend_on_private_records(one, dataset):
    changed = copy.copy(dataset)
    changed.private = swapped(dataset.private, 200)
    other = setup.start_run(replace(one.job, data=changed), lambda line: None)
    params = one.released(one.state)
    found = [jax.device_get(run.statistics(params)) for run in (one, other)]
    jax.tree.map(np.testing.assert_array_equal, *found)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    assert train.main([write_config(SMALL, folder), "--output", str(folder / "run")]) == 0
    return folder / "run"


@pytest.mark.slow
def test_what_is_released_is_the_average_with_public_statistics(finished, dataset):
    released = jaxdp.load_release(finished)
    model = make_model(SMALL.model, loading.load(SMALL.data)[1])
    images, labels = dataset.test.fields
    public = scaled(dataset.public.fields[0])
    expected = batchnorm.public_statistics(model)(released.params, public)
    for got, want in zip(
        jax.tree.leaves(released.batch_stats), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    logits = model.apply(released.variables, scaled(images))
    results = json.loads((finished / "private" / "results.json").read_text())
    assert np.mean(np.argmax(logits, 1) == labels) == results["scores"]["accuracy"]
    assert released.statement.batch_norm.public == "train[1300:]"
    page = (finished / "release" / "PRIVACY.md").read_text(encoding="utf-8")
    said = "the statistics are those of train[1300:], which needs no protection"
    assert f"| BatchNorm | {said}" in page
    assert "The loss of a record depends" not in "".join(released.statement.assumptions)
    assert sorted(released.params) == ["BatchNorm_0", "Conv_0", "Dense_0"]


def test_checkpoints_hold_no_statistics(finished, one):
    keeper = checkpoint.Checkpoints(finished / "private" / "checkpoints", 2)
    names = set(keeper.newest(print).arrays)
    keeper.close()
    assert names == set(checkpoint.to_arrays(one.state))
    assert not [name for name in names if name.rpartition(".")[2] in ("mean", "var")]


def test_evaluate_scores_the_released_statistics(finished, capsys):
    results = json.loads((finished / "private" / "results.json").read_text())
    assert evaluate.main([str(finished / "release"), "--data.test", "test[:50]"]) == 0
    assert f"accuracy {results['scores']['accuracy']:.4f}" in capsys.readouterr().out


def test_a_resumed_run_finds_the_same_statistics(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "release")
    assert train.main(["--resume", str(folder)]) == 0
    both = [jaxdp.load_release(path).variables for path in (finished, folder)]
    jax.tree.map(np.testing.assert_array_equal, *both)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"clipping": ClippingConfig()}, r"the model has BatchNorm: .*--model\.norm group"),
        ({"data": DataConfig()}, r"no public ones: set some apart, as --data\.private"),
    ],
    ids=["individual clipping", "no public records"],
)
def test_batch_norm_is_refused_where_it_leaks(change, says):
    with pytest.raises(ValueError, match=says):
        start(replace(SMALL, **change))


def test_units_larger_than_a_microbatch_are_told_of():
    told = []
    config = replace(SMALL, training=TrainingConfig(microbatch_size=8))
    start(config, told.append)
    assert [line for line in told if "BatchNorm takes a whole unit at once" in line]
