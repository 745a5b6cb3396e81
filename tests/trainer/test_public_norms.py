"""Clipping norms from public records: their inputs, their epochs, and that runs resume."""

import copy
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

for module in ("tyro", "sklearn", "safetensors"):
    pytest.importorskip(module)
from helpers.cases import slow  # noqa: E402
from helpers.trainer import (  # noqa: E402
    crash_at,
    ledger_of,
    prepare_resume,
    start,
    write_config,
)

import jaxdp  # noqa: E402
from jaxdp import train  # noqa: E402
from jaxdp.datasets.config import DataConfig  # noqa: E402
from jaxdp.datasets.records import Records  # noqa: E402
from jaxdp.models.config import ModelConfig  # noqa: E402
from jaxdp.trainer import setup  # noqa: E402
from jaxdp.trainer.command import make_job  # noqa: E402
from jaxdp.trainer.config import ClippingConfig, Config, PlanConfig  # noqa: E402
from jaxdp.trainer.release.claims import SpentSegment, make_statement  # noqa: E402
from jaxdp.trainer.release.markdown import as_markdown  # noqa: E402
from jaxdp.trainer.run import resume  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

DATA = DataConfig(private="train[:1200]", public="train[1200:]")
PLAN = PlanConfig(expected_batch_size=400.0, steps=10)  # epochs of 3 steps
ADAPTIVE = Config(
    name="adaptive",
    data=DATA,
    model=ModelConfig(name="linear"),
    clipping=ClippingConfig(
        kind="layerwise", norms_from="public", decay=0.9, pretraining_epochs=1, norm=0.3
    ),
    plan=PLAN,
    seed=1,
)
EVERY_STEP = ["--checkpoint.every-seconds", "0", "--checkpoint.keep", "9"]


def with_clipping(**changes):
    return replace(ADAPTIVE, clipping=replace(ADAPTIVE.clipping, **changes))


def norms_of(state):
    return np.asarray(state.privatize.clipping.clipping_norms)


@pytest.mark.parametrize(
    "changes",
    [
        slow({}),
        slow({"kind": "multiplied", "unit": "batch", "units": 4}),
        {"norms_from": "public_norms", "decay": 1.0, "groups": 1},
    ],
    ids=["ALC", "BC+MF+BatchNorm", "AN"],
)
def test_private_records_have_no_path_into_the_clipping_norms(changes):
    config = with_clipping(**changes)
    if config.clipping.unit == "batch":  # then with BatchNorm, whose statistics are the unit's
        config = replace(config, model=ModelConfig(widths=(2,), norm="batch"))
    job = make_job(config)
    before = setup.start_run(job, lambda line: None)
    rng = np.random.default_rng(0)
    images, labels = job.data.private.fields
    others = rng.integers(0, 17, images.shape).astype(np.uint8), rng.permutation(labels)
    data = copy.copy(job.data)
    data.private = Records(others, job.data.private.numbers())
    after = setup.start_run(replace(job, data=data), lambda line: None)
    assert not np.array_equal(*(run.job.data.private.fields[0] for run in (before, after)))
    np.testing.assert_array_equal(norms_of(before.state), norms_of(after.state))
    # Other weights, the same in both: the released ones are the only other input.
    if config.clipping.kind == "multiplied":
        spent = SpentSegment(before.saved.facts, before.plan.mechanism(1))
        page = as_markdown(make_statement(before.plan, [spent]))
        assert "every layer are in proportion to its norm" in page
        np.testing.assert_allclose(before.plan.clipping.sensitivity("add_remove"), 0.6, rtol=1e-5)
    for step in (3, 6):
        moved = [
            run.state._replace(params=jax.tree.map(lambda p: p + 0.1 * step, run.state.params))
            for run in (before, after)
        ]
        first, second = (
            norms_of(run.before_step(step, state))
            for run, state in zip((before, after), moved, strict=True)
        )
        np.testing.assert_array_equal(first, second)
        assert not np.array_equal(first, norms_of(before.state))


def test_epochs_decay_the_largest_norm_and_the_noise_follows():
    run = start(ADAPTIVE)
    for step, epoch in ((0, 0), (1, 0), (2, 0), (3, 1), (4, 0), (9, 3)):
        norms = norms_of(run.before_step(step, run.state))
        np.testing.assert_allclose(norms.max(), 0.3 * 0.9**epoch, rtol=1e-5)
    assert norms.min() < 0.9 * norms.max()
    fixed = start(with_clipping(refresh=False, decay=1.0))
    assert fixed.refresh is None
    given = start(with_clipping(norms_from="given"))
    np.testing.assert_allclose(norms_of(given.before_step(3, given.state)), [0.27, 0.27], rtol=1e-5)


def test_norms_that_cannot_be_measured_or_vanish_end_no_run():
    run = start(with_clipping(decay=1e-90))
    assert norms_of(run.before_step(9, run.state)).min() > 0
    lost = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), run.state.params)
    diverged = run.state._replace(params=lost)
    np.testing.assert_array_equal(norms_of(run.before_step(9, diverged)), norms_of(run.state))


def test_without_public_records_it_is_refused():
    with pytest.raises(ValueError, match=r"no public records: name .*--data\.public"):
        start(replace(ADAPTIVE, data=DataConfig()))
    few = replace(ADAPTIVE, data=replace(DATA, public="train[1400:]"))
    units = replace(few.clipping, unit="batch")
    with pytest.raises(ValueError, match=r"data\.public has 37 records where a unit has 400"):
        start(replace(few, clipping=units))


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    args = [write_config(ADAPTIVE, folder), "--output", str(folder / "run"), *EVERY_STEP]
    assert train.main(args) == 0
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("step", [5, 6])  # in the middle of an epoch, and before the first of one
def test_a_resumed_run_is_the_uninterrupted_one(whole_run, tmp_path, step):
    folder = shutil.copytree(whole_run, tmp_path / "run")
    shutil.rmtree(folder / "release")
    for checkpoint in (folder / "private" / "checkpoints").iterdir():
        if int(checkpoint.name) > step:
            shutil.rmtree(checkpoint)
    assert prepare_resume(folder)[1].step == step
    assert train.main(["--resume", str(folder)]) == 0
    expected, got = jaxdp.load_release(whole_run), jaxdp.load_release(folder)
    jax.tree.map(np.testing.assert_array_equal, expected.params, got.params)
    assert got.statement == expected.statement
    assert len(ledger_of(folder).segments) == 1


def test_the_statement_says_where_the_norms_come_from(whole_run):
    statement = jaxdp.load_release(whole_run).statement
    said = statement.mechanisms[-1].clipping.clipping_norms
    assert "C·e/max e, at least 0.01 of the largest, from 237 public records" in said
    assert "again after every epoch of 3 steps" in said
    assert "C times 0.9 each time" in said
    assert statement.epsilon["pld"] <= 3
    page = " ".join((whole_run / "release" / "PRIVACY.md").read_text().split())
    assert said in page


@pytest.mark.slow
def test_other_public_records_are_another_computation(whole_run):
    run, history, _ = prepare_resume(whole_run, "--data.public", "train[1201:]")
    assert not run.repeats
    assert ", public data" in resume.why_not_free(history, run.saved.fingerprint, run.state)
    same = prepare_resume(whole_run)[0]
    assert same.repeats
    # The loop refreshed: the norms in the last checkpoint are those of epoch 3.
    np.testing.assert_allclose(norms_of(same.state).max(), 0.3 * 0.9**3, rtol=1e-5)


def test_a_new_segment_measures_again_and_the_same(whole_run):
    changed = ("--clipping.floor", "0.5")
    first, second = (prepare_resume(whole_run, *changed)[0] for _ in range(2))
    np.testing.assert_array_equal(norms_of(first.state), norms_of(second.state))
    assert norms_of(first.state).min() >= 0.5 * norms_of(first.state).max()
    assert norms_of(first.state).max() == pytest.approx(0.3 * 0.9**3, rel=1e-5)


@pytest.mark.slow
def test_a_new_segment_with_kept_norms_measures_its_own_records(tmp_path):
    with crash_at(5):
        config = write_config(with_clipping(refresh=False, decay=1.0), tmp_path)
        train.main([config, "--output", str(tmp_path / "run"), "--checkpoint.every-seconds", "0"])
    run = prepare_resume(tmp_path / "run", "--data.public", "train[1350:]")[0]
    said = run.plan.clipping.init(run.state.params).clipping_norms  # what the statement tells
    np.testing.assert_array_equal(norms_of(run.state), said)
