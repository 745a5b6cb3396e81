"""The trainer's adaptive layerwise clipping: its inputs, its epochs, and that runs resume."""

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdp
from jaxdp.accounting.mechanism import paper_noise_multiplier
from jaxdp.datasets.config import DataConfig
from jaxdp.models.config import ModelConfig
from jaxdp.trainer.config import ClippingConfig, Config, PlanConfig
from jaxdp.trainer.release import statement
from jaxdp.trainer.run.ledger import Ledger

pytest.importorskip("tyro")
pytest.importorskip("sklearn")
train = pytest.importorskip("jaxdp.train")
from trainer import crash_at, prepare_resume, write_config  # noqa: E402  (they need the extra)

from jaxdp.datasets import loading  # noqa: E402
from jaxdp.trainer import setup  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

DATA = DataConfig(private="train[:1200]", public="train[1200:]")
PLAN = PlanConfig(expected_batch_size=400.0, steps=10)  # epochs of 3 steps
ADAPTIVE = Config(
    name="adaptive",
    data=DATA,
    model=ModelConfig(name="linear"),
    clipping=ClippingConfig(
        kind="layerwise", bounds="public", decay=0.9, pretraining_epochs=1, norm=0.3
    ),
    plan=PLAN,
    seed=1,
)
EVERY_STEP = ["--checkpoint.every-seconds", "0", "--checkpoint.keep", "9"]


def with_clipping(**changes):
    return replace(ADAPTIVE, clipping=replace(ADAPTIVE.clipping, **changes))


def bounds_of(state):
    return np.asarray(state[1][0].clipping.clipping_bounds)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kind": "multiplied", "unit": "batch", "units": 4},
        {"bounds": "public_norms", "decay": 1.0, "groups": 1},
    ],
    ids=["ALC", "BC+MF+BatchNorm", "AN"],
)
def test_private_records_have_no_path_into_the_bounds(changes, monkeypatch):
    config = with_clipping(**changes)
    if config.clipping.unit == "batch":  # then with BatchNorm, whose statistics are the unit's
        config = replace(config, model=ModelConfig(widths=(2,), norm="batch"))
    before = setup.prepare(config, lambda line: None)
    load = loading.load

    def others(*args):
        dataset = load(*args)
        rng = np.random.default_rng(0)
        private = replace(
            dataset.private,
            inputs=rng.integers(0, 17, dataset.private.inputs.shape).astype(np.uint8),
            labels=rng.permutation(dataset.private.labels),
        )
        return replace(dataset, private=private)

    monkeypatch.setattr(loading, "load", others)
    after = setup.prepare(config, lambda line: None)
    assert not np.array_equal(before.dataset.private.inputs, after.dataset.private.inputs)
    np.testing.assert_array_equal(bounds_of(before.state), bounds_of(after.state))
    # Other weights, the same in both: the released ones are the only other input.
    if config.clipping.kind == "multiplied":
        facts = statement.make_statement(before.plan, config, before.dataset, 1, 0.6)
        assert "every layer are in proportion to its norm" in statement.as_markdown(facts)
        np.testing.assert_allclose(before.plan.clipping.sensitivity("add_remove"), 0.6, rtol=1e-5)
    for step in (3, 6):
        moved = [
            (jax.tree.map(lambda p: p + 0.1 * step, run.state[0]), run.state[1])
            for run in (before, after)
        ]
        first, second = (
            bounds_of(run.before_step(step, state))
            for run, state in zip((before, after), moved, strict=True)
        )
        np.testing.assert_array_equal(first, second)
        assert not np.array_equal(first, bounds_of(before.state))


def test_epochs_decay_the_master_constant_and_the_noise_follows():
    run = setup.prepare(ADAPTIVE, lambda line: None)
    for step, epoch in ((0, 0), (1, 0), (2, 0), (3, 1), (4, 0), (9, 3)):
        bounds = bounds_of(run.before_step(step, run.state))
        np.testing.assert_allclose(bounds.max(), 0.3 * 0.9**epoch, rtol=1e-5)
    assert bounds.min() < 0.9 * bounds.max()
    fixed = setup.prepare(with_clipping(refresh=False, decay=1.0), lambda line: None)
    assert fixed.refresh is None
    given = setup.prepare(with_clipping(bounds="given"), lambda line: None)
    np.testing.assert_allclose(
        bounds_of(given.before_step(3, given.state)), [0.27, 0.27], rtol=1e-5
    )


def test_norms_that_cannot_be_measured_or_vanish_end_no_run():
    run = setup.prepare(with_clipping(decay=1e-90), lambda line: None)
    assert bounds_of(run.before_step(9, run.state)).min() > 0
    params, rest = run.state
    diverged = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), params), rest
    np.testing.assert_array_equal(bounds_of(run.before_step(9, diverged)), bounds_of(run.state))


def test_without_public_records_it_is_refused():
    with pytest.raises(ValueError, match=r"no public records: name .*--data\.public"):
        setup.prepare(replace(ADAPTIVE, data=DataConfig()))
    few = replace(ADAPTIVE, data=replace(DATA, public="train[1400:]"))
    units = replace(few.clipping, unit="batch")
    with pytest.raises(ValueError, match=r"data\.public has 37 records where a unit has 400"):
        setup.prepare(replace(few, clipping=units), lambda line: None)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    args = [write_config(ADAPTIVE, folder), "--output", str(folder / "run"), *EVERY_STEP]
    assert train.main(args) == 0
    return folder / "run"


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
    assert len(Ledger.read(folder / "private" / "ledger.txt").segments) == 1


def test_the_statement_says_where_the_norms_come_from(whole_run):
    facts = json.loads((whole_run / "release" / "privacy.json").read_text())
    said = facts["clipping_norms"]
    assert "C·e/max e, at least 0.01 of the largest, from 237 public records" in said
    assert "again after every epoch of 3 steps" in said
    assert "C times 0.9 each time" in said
    assert facts["epsilon"]["pld"] <= 3
    page = " ".join((whole_run / "release" / "PRIVACY.md").read_text().split())
    assert said in page


def test_other_public_records_are_another_computation(whole_run):
    run, _, said = prepare_resume(whole_run, "--data.public", "train[1201:]")
    assert not run.repeats
    assert ", public data" in said
    same = prepare_resume(whole_run)[0]
    assert same.repeats
    # The loop refreshed: the bounds in the last checkpoint are those of epoch 3.
    np.testing.assert_allclose(bounds_of(same.state).max(), 0.3 * 0.9**3, rtol=1e-5)


def test_a_new_segment_measures_again_and_the_same(whole_run):
    changed = ("--clipping.floor", "0.5")
    first, second = (prepare_resume(whole_run, *changed)[0] for _ in range(2))
    np.testing.assert_array_equal(bounds_of(first.state), bounds_of(second.state))
    assert bounds_of(first.state).min() >= 0.5 * bounds_of(first.state).max()
    assert bounds_of(first.state).max() == pytest.approx(0.3 * 0.9**3, rel=1e-5)


def test_a_new_segment_with_kept_norms_measures_its_own_records(tmp_path):
    with crash_at(5):
        config = write_config(with_clipping(refresh=False, decay=1.0), tmp_path)
        train.main([config, "--output", str(tmp_path / "run"), "--checkpoint.every-seconds", "0"])
    run = prepare_resume(tmp_path / "run", "--data.public", "train[1350:]")[0]
    said = run.plan.clipping.init(run.state[0]).clipping_bounds  # what the statement tells
    np.testing.assert_array_equal(bounds_of(run.state), said)


def test_a_new_segment_begins_new_shuffled_epochs(tmp_path):
    z = paper_noise_multiplier(4.0, "example", 1, "replace_one", "shuffled")
    plan = PlanConfig(
        epsilon=None,
        noise_multiplier=z,
        sampling="shuffled",
        adjacency="replace_one",
        expected_batch_size=400,
        steps=5,
    )
    config = replace(ADAPTIVE, clipping=ClippingConfig(), plan=plan, seed=None)
    folder = tmp_path / "run"
    with crash_at(3):
        train.main([write_config(config, tmp_path), "--output", str(folder), *EVERY_STEP])
    run, history, _ = prepare_resume(folder, "--training.learning-rate", "1.5")
    assert (history.step, run.first_step, run.repeats) == (2, 2, False)
    taken = run.plan.batches(run.saved.secrets.sampling, 0)
    batches = list(run.batches(2, 5))
    assert len(batches) == 3
    seen = np.zeros(1200, int)
    for (got, mask), (indices, _) in zip(batches, taken, strict=False):
        np.testing.assert_array_equal(got[0][mask], run.dataset.private.inputs[indices[mask]])
        np.add.at(seen, indices[mask], 1)
    # Three steps are one epoch, and are charged as one: nobody takes part twice.
    assert (seen == 1).all()

    assert train.main(["--resume", str(folder), "--training.learning-rate", "1.5"]) == 0
    ledger = Ledger.read(folder / "private" / "ledger.txt")
    assert [m.epochs_begun for m in ledger.mechanisms()] == [1, 1]
    facts = json.loads((folder / "release" / "privacy.json").read_text())
    assert facts["gaussian_dp"]["at_every_delta"]
    assert facts["gaussian_dp"]["mu"] == pytest.approx(np.sqrt(2) / z, rel=1e-4)
    assert ledger.budget.epsilon >= facts["epsilon"]["pld"]

    # Steps of the second segment that are repeated, with its noise, see the same records again.
    shutil.rmtree(folder / "private" / "checkpoints" / "5")
    again, history, _ = prepare_resume(folder)
    assert (history.step, again.first_step, again.repeats) == (4, 2, True)
    (got, mask), *_ = again.batches(4, 5)
    taken = again.plan.batches(again.saved.secrets.sampling, 4 - again.first_step)
    np.testing.assert_array_equal(got[0][mask], again.dataset.private.inputs[next(taken)[0][mask]])


def test_the_papers_noise_is_told_with_what_it_is_worth(tmp_path, capsys):
    z = paper_noise_multiplier(0.01875, "batch", 1, "replace_one", "shuffled")
    plan = PlanConfig(
        epsilon=None,
        noise_multiplier=z,
        delta=1e-5,
        sampling="shuffled",
        adjacency="replace_one",
        expected_batch_size=64,
        steps=2,
    )
    config = replace(ADAPTIVE, clipping=ClippingConfig(kind="batch", norm=0.095), plan=plan)
    assert train.main([write_config(config, tmp_path), "--output", str(tmp_path / "run")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "noise multiplier 0.01875" in said
    assert said.count("no meaningful privacy") == 2
    ledger = Ledger.read(tmp_path / "run" / "private" / "ledger.txt")
    # A single release costs about 1,650 (PAPER: μ = 1/0.01875 = 53.3).
    assert ledger.epsilon() == pytest.approx(1650, rel=0.01)
    assert ledger.budget.epsilon == pytest.approx(ledger.epsilon(), rel=1e-4)
    assert "μ = 53.33" in said


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PlanConfig(noise_multiplier=1.0), "exactly one of it and plan.epsilon"),
        (lambda: PlanConfig(epsilon=None), "exactly one"),
        (lambda: ClippingConfig(bounds="public"), r'clipping\.bounds is public.*"layerwise"'),
        (lambda: ClippingConfig(kind="batch", units=0), r"clipping\.units is 0"),
        (lambda: ClippingConfig(kind="layerwise", groups=2), r"clipping\.groups is 2"),
        (lambda: with_clipping(refresh=False), r"clipping\.decay is 0\.9: give 1"),
        (lambda: ClippingConfig(kind="quantile", decay=0.9), r"clipping\.decay"),
        (
            lambda: ClippingConfig(kind="multiplied", allocation="dimension"),
            "no layer can do with less",
        ),
    ],
)
def test_settings_that_make_no_sense_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
