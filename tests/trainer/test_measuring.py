"""The first step of a run may measure a mean, privately, in the place of a gradient."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.cases import slow

for module in ("tyro", "safetensors", "sklearn"):
    pytest.importorskip(module)
from helpers.trainer import SHORT, assert_same_run, crash_at, go_on  # noqa: E402
from scipy import stats  # noqa: E402

import jaxdp  # noqa: E402
from jaxdp import evaluate, train  # noqa: E402
from jaxdp.datasets.feeding import Batch  # noqa: E402
from jaxdp.datasets.sources import digits  # noqa: E402
from jaxdp.trainer.step import init_state, make_train_step  # noqa: E402

SIZE = 500  # numbers of a record
ROWS = 8
NORM = 0.1
OPTIMIZER = optax.sgd(1.0, momentum=0.9)


def loss(params, record, key, *, shared):
    _, measured = shared
    return jnp.sum(params["w"] * (record - measured["mean"])[:3] ** 2)


def plan(noise_multiplier):
    return jaxdp.Plan(
        num_examples=100,
        expected_batch_size=ROWS,
        steps=4,
        clipping=jaxdp.clip_individual(NORM),
        noise_multiplier=noise_multiplier,
    )


def taken(records, steps=1, noise_multiplier=0.0, mask=None):
    """The states before and after each of some steps on these records."""
    privatizer = jaxdp.privatize(plan(noise_multiplier), key=jax.random.key(3))
    measured = {"mean": jnp.zeros(SIZE)}
    state = init_state({"w": jnp.ones(3)}, privatizer, OPTIMIZER, measured)
    step = make_train_step(
        loss, privatizer, OPTIMIZER, 4, numbers_of=lambda record: {"mean": record}
    )
    mask = np.ones(len(records), bool) if mask is None else mask
    batch = Batch(records, np.arange(len(records), dtype=np.int32), jax.random.key(5))
    states = [jax.tree.map(np.asarray, state._replace(privatize=None))]
    for _ in range(steps):
        state, _ = step(state, batch, mask, None)
        states.append(jax.tree.map(np.asarray, state._replace(privatize=None)))
    return states


def short_records(seed=0):
    """Records with a root mean square below 1."""
    return np.random.default_rng(seed).uniform(-1, 1, (ROWS, SIZE)).astype(np.float32)


def test_the_first_step_measures_and_the_others_train():
    records = short_records()
    before, first, second = taken(records, steps=2)
    np.testing.assert_allclose(first.measured["mean"], records.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(second.measured["mean"], first.measured["mean"])
    unchanged = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)
    unchanged((first.params, first.optimizer), (before.params, before.optimizer))
    moved = ((records - first.measured["mean"])[:, :3] ** 2).astype(np.float64)
    longest = np.maximum(np.linalg.norm(moved, axis=1, keepdims=True) / NORM, 1)
    np.testing.assert_allclose(second.params["w"], 1 - (moved / longest).mean(0), rtol=1e-4)


@pytest.mark.parametrize("size", [1e-3, 1.0, 3.0, 1e6, np.nan])
def test_a_record_moves_the_mean_by_at_most_its_share(size):
    """A mean of vectors of root mean square at most 1, over the *expected* batch size."""
    records = short_records()
    mean = lambda mask: taken(records, mask=mask)[1].measured["mean"].astype(np.float64)
    records[-1] *= size
    mask = np.arange(ROWS) < ROWS - 1
    moved = np.linalg.norm(mean(np.ones(ROWS, bool)) - mean(mask)) * ROWS / np.sqrt(SIZE)
    assert moved <= 1 + 1e-5
    if size > 1:
        assert moved > 0.999


def test_the_mean_has_the_noise_of_a_step():
    """Of standard deviation z·C in the sum. False alarms: 1 in 1e6 for each of the two bounds."""
    z = 2.0
    records, nobody = np.zeros((ROWS, SIZE), np.float32), np.zeros(ROWS, bool)
    first, second = taken(records, steps=2, noise_multiplier=z, mask=nobody)[1:]
    noise = first.measured["mean"] * ROWS / np.sqrt(SIZE) / z
    low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], SIZE)
    assert low < np.sum(noise.astype(np.float64) ** 2) < high * 1.05  # it is raised for rounding
    # The next step's noise is other noise.
    other = (second.params["w"] - first.params["w"]) * ROWS / NORM / z
    assert np.all(np.abs(np.abs(other[:3]) - np.abs(noise[:3])) > 1e-4)


def test_numbers_of_several_parameters_share_one_root_mean_square():
    records = short_records()[:, :6]
    records[:, :2] *= 3
    measured = {"layer": {"mean": jnp.zeros(2), "w": None}, "mean": jnp.zeros(4)}
    privatizer = jaxdp.privatize(plan(0.0), key=jax.random.key(3))
    state = init_state({"w": jnp.ones(3)}, privatizer, OPTIMIZER, measured)
    parts = lambda x: {"layer": {"mean": x[:2], "w": None}, "mean": x[2:]}
    flat = lambda params, record, key, *, shared: jnp.sum(params["w"]) * jnp.sum(record)
    step = make_train_step(flat, privatizer, OPTIMIZER, 4, numbers_of=parts)
    batch = Batch(records, np.arange(ROWS, dtype=np.int32), jax.random.key(5))
    state, _ = step(state, batch, np.ones(ROWS, bool), None)
    size = np.sqrt(np.mean(records**2, axis=1, keepdims=True))
    want = parts((records / np.maximum(size, 1)).mean(0))
    assert np.max(size) > 1
    for found, exact in zip(*map(jax.tree.leaves, (state.measured, want)), strict=True):
        np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-6)


CENTRED = (*SHORT, "--model.centred", "--seed", "0")


def statement_of(folder):
    return json.loads((folder / "release" / "privacy.json").read_text())


def test_a_run_with_a_measured_mean(tmp_path, capsys):
    centred, plain = tmp_path / "centred", tmp_path / "plain"
    assert train.main([*CENTRED, "--output", str(centred)]) == 0
    assert train.main([*SHORT, "--seed", "0", "--output", str(plain)]) == 0
    assert statement_of(centred)["epsilon"] == statement_of(plain)["epsilon"]
    assert statement_of(centred)["mechanisms"] == statement_of(plain)["mechanisms"]
    assert statement_of(centred)["task"]["measures"]
    assert "What the first step measures" in " ".join(statement_of(centred)["assumptions"])
    assert not statement_of(plain)["task"]["measures"]
    release = jaxdp.load_release(centred)
    found = np.asarray(release.params["mean"])
    images = digits().read("train").fields[0]
    scaled = images / 8.0 - 1
    lengths = np.sqrt(np.mean(scaled**2, axis=(1, 2, 3), keepdims=True))
    exact = np.mean(scaled / np.maximum(lengths, 1), axis=0)
    assert np.corrcoef(found.ravel(), exact.ravel())[0, 1] > 0.9
    assert np.abs(found - exact).max() > 1e-3  # it has noise
    said = capsys.readouterr().out
    assert "measures, no update" in said
    assert "loss 0.000" not in said
    assert evaluate.main([str(centred)]) == 0


@pytest.mark.parametrize("step", [1, slow(2), slow(5)])
def test_it_goes_on_bit_for_bit(tmp_path, step):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train.main([*CENTRED, "--output", str(whole)]) == 0
    with crash_at(step):
        train.main([*CENTRED, "--output", str(stopped)])
    assert go_on(stopped) == 0
    assert_same_run(whole, stopped)


def test_a_run_can_not_begin_to_measure_when_it_goes_on(tmp_path, capsys):
    folder = tmp_path / "run"
    with crash_at(5):
        train.main([*SHORT, "--seed", "0", "--output", str(folder)])
    capsys.readouterr()
    assert go_on(folder, "--model.centred") == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--clipping.kind", "layerwise"), "give individual clipping to one norm"),
        (("--clipping.kind", "normalised"), "give individual clipping to one norm"),
        (("--plan.steps", "1"), "give at least 2"),
    ],
)
def test_what_it_needs(tmp_path, capsys, options, message):
    assert train.main([*CENTRED, "--output", str(tmp_path / "run"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        (lambda record: {"mean": record[0]}, "give the path of one"),
        (lambda record: {"w": record[0][:1]}, "and real numbers of its shape"),
        (lambda record: {"w": record[2]}, r"the task's measured\(record\) fails"),
        (lambda record: record[0], r"measured\(record\) returns .*: return {path"),
        (lambda record: {"w": {"x": record[0]}}, r"measured\(record\) returns"),
        (lambda record: {}, r"measured\(record\) returns"),
        (lambda record: {"none": record[0][:0]}, "the task measures no number"),
        (lambda record: {"w": 1j * record[0]}, "real numbers of its shape"),
        (lambda record: {"number": record[1]}, "real numbers of its shape"),
    ],
)
def test_tasks_that_measure_what_does_not_fit(measured, message):
    more = {"none": jnp.zeros(0), "number": jnp.zeros((), jnp.int32)}
    with pytest.raises(ValueError, match=message) as error:
        tried({"w": jnp.zeros(3), "v": jnp.zeros(3), **more}, measured)
    assert "\n" not in str(error.value)


def test_something_is_left_to_train():
    both = lambda record: {"w": record[0], "v": record[0]}
    with pytest.raises(ValueError, match="leave some to train"):
        tried({"w": jnp.zeros(3), "v": jnp.zeros(3)}, both)
    with pytest.raises(ValueError, match="parameters share a path"):
        tried({"w": jnp.zeros(3), "v": {"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}}}, W)
    with pytest.raises(ValueError, match="frozen has 'w', which takes 'w'"):
        tried({"w": jnp.zeros(3), "v": jnp.zeros(3)}, W, frozen=["w"])


def test_other_clippings_are_refused_before_anything_else():
    for clipping in (jaxdp.clip_layerwise({"v": 1.0}), jaxdp.clip_individual(lambda step: 1.0)):
        with pytest.raises(ValueError, match="give individual clipping to one norm"):
            tried({"w": jnp.zeros(3), "v": jnp.zeros(3)}, W, clipping=clipping)


@pytest.mark.slow
def test_parameters_of_two_dtypes():
    with jax.enable_x64(True):
        tried({"w": jnp.zeros(3), "v": jnp.zeros(3, jnp.float32)}, W)


def test_a_path_is_no_pattern():
    rename = lambda record: {"w[0]": record[0]}
    loss = lambda params, record, key: jnp.sum((params["w[0]"] - record[0]) * params["v"])
    tried({"w[0]": jnp.zeros(3), "v": jnp.zeros(3)}, rename, loss=loss)


def product(params, record, key):
    return jnp.sum((params["w"] - record[0]) * jax.tree.leaves(params["v"])[0])


def W(record):
    return {"w": record[0]}


def tried(params, measured, *, loss=product, frozen=(), clipping=None):
    """A dry run of a task with these parameters."""
    task = jaxdp.Task(init=lambda key, record: params, loss=loss, measured=measured)
    data = jaxdp.Dataset(private=(np.ones((20, 3), np.float32), np.zeros(20, np.int32)))
    clipping = clipping or jaxdp.clip_individual(1.0)
    settings = jaxdp.PlanSettings(epsilon=3.0, expected_batch_size=5, steps=4, clipping=clipping)
    jaxdp.fit(task, data, settings, optimizer=OPTIMIZER, frozen=frozen, dry_run=True)
