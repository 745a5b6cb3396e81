"""What a resume may change, what that costs, and what is promised for good."""

import re
import shutil

import jax
import numpy as np
import pytest

for module in ("tyro", "sklearn", "safetensors"):
    pytest.importorskip(module)
from helpers.cases import slow  # noqa: E402
from helpers.trainer import (  # noqa: E402
    STEPS,
    crash_at,
    go_on,
    ledger_of,
    prepare_resume,
    write_config,
)

import jaxdp  # noqa: E402
from jaxdp import train  # noqa: E402
from jaxdp.accounting import composition  # noqa: E402
from jaxdp.accounting.mechanism import Mechanism, paper_noise_multiplier  # noqa: E402
from jaxdp.datasets import sources  # noqa: E402
from jaxdp.trainer import (  # noqa: E402
    CheckpointConfig,
    Config,
    DataConfig,
    ModelConfig,
    PlanConfig,
)
from jaxdp.trainer.run import fingerprint, resume  # noqa: E402
from jaxdp.trainer.run.segment import load_segment  # noqa: E402

OPTION = ["--training.learning-rate", "1.5"]
CLIPPING = ["--clipping.norm", "0.2"]
# Fewer records and a larger batch: a larger sampling probability.
SOFTER = ["--data.private", "train[:1200]", "--plan.expected-batch-size", "80"]


def another_jax(patch):
    version = fingerprint._version
    patch.setattr(fingerprint, "_version", lambda name: "0.99" if name == "jax" else version(name))


@pytest.mark.slow
def test_how_often_a_run_is_scored_may_change(secret):
    run, _, said = prepare_resume(secret, "--evaluations", "3")
    assert (run.repeats, said) == (True, "")


@pytest.mark.parametrize(
    ("change", "args", "named"),
    [
        (another_jax, [], "versions.jax"),
        (lambda patch: None, CLIPPING, "config.clipping.norm"),
    ],
    ids=["JAX", "clipping"],
)
def test_another_computation_gets_new_secrets(secret, monkeypatch, change, args, named):
    change(monkeypatch)
    run, history, said = prepare_resume(secret, *args)
    assert not run.repeats
    assert named in said
    for name, old in vars(history.last.secrets).items():
        new = getattr(run.saved.secrets, name)
        keys = [jax.random.key_data(key) for key in (old, new)]
        assert np.array_equal(*keys) == (name == "init"), name
    private = run.state.privatize
    assert private.privatize_step == 4
    np.testing.assert_allclose(private.clipping.clipping_norms, run.job.config.clipping.norm)
    in_use = jax.random.key_data(private.privatize_key)
    assert not np.array_equal(in_use, jax.random.key_data(history.last.secrets.noise))


@pytest.mark.parametrize("args", [OPTION, slow(SOFTER)], ids=["option", "softer"])
def test_a_new_segment_pays_again_and_stops_in_time(secret, capsys, args):
    charged = ledger_of(secret).steps
    assert go_on(secret, *args) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "a new segment begins, with new secrets" in said

    ledger = ledger_of(secret)
    first, second = ledger.mechanisms()
    assert first.steps == charged  # also those after the checkpoint
    assert ledger.segments[1].start == 4

    # It stopped where the next step would have exceeded the target.
    assert ledger.epsilon() <= 3.0
    end = ledger.stop(2)
    assert end < STEPS
    one_more = Mechanism(**{**vars(second), "steps": second.steps + 1})
    assert composition.epsilon([first, one_more], ledger.budget.delta) > 3.0
    assert f"The budget ends before step {end + 1}" in said

    statement = jaxdp.load_release(secret).statement
    assert statement.delta == ledger.budget.delta
    assert statement.steps == ledger.steps
    assert [part.steps for part in statement.mechanisms] == [first.steps, second.steps]
    assert ledger.epsilon() <= statement.epsilon["pld"] <= ledger.epsilon() * (1 + 1e-4)
    assert re.search(r"segment 2 .* records", (secret / "release" / "PRIVACY.md").read_text())


def test_what_was_promised_cannot_be_changed(secret, capsys):
    before = ledger_of(secret).position
    assert go_on(secret, "--plan.epsilon", "8") == 2
    assert "epsilon is 8.0, and the run began with 3.0" in capsys.readouterr().err
    assert ledger_of(secret).position == before


@pytest.mark.slow
def test_records_that_no_step_would_use_are_refused(secret, capsys):
    assert go_on(secret) == 0
    before = (secret / "release" / "PRIVACY.md").read_text()
    capsys.readouterr()
    changed = ("--data.private", "train[:1400]", "--plan.steps", str(STEPS + 2))
    assert go_on(secret, *changed) == 2
    assert "no step is left with N = 1,400" in capsys.readouterr().err
    assert (secret / "release" / "PRIVACY.md").read_text() == before
    assert len(ledger_of(secret).segments) == 1


@pytest.mark.slow
def test_a_segment_without_a_step_changes_nothing(secret, capsys):
    assert go_on(secret) == 0
    before = {path: path.read_bytes() for path in secret.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert go_on(secret, "--plan.steps", str(STEPS + 2), "--training.ema", "0.5") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "No step is left in the budget: the release is in" in said
    after = {path: path.read_bytes() for path in secret.rglob("*") if path.is_file()}
    lock = secret / "private" / "lock"
    assert {p for p in before.keys() | after.keys() if before.get(p) != after.get(p)} <= {lock}


def test_what_was_protected_stays_so(secret):
    split = ("--data.private", "train[:1200]", "--data.public", "train[1200:]")
    with pytest.raises(ValueError, match=r"data\.private = 'train' in an earlier segment"):
        prepare_resume(secret, *split)


def test_other_records_are_refused(secret, monkeypatch):
    """The run knows its records by their content, whatever they are called."""
    monkeypatch.setattr(sources, "arrays_digest", lambda arrays: "other")
    with pytest.raises(ValueError, match="records of 'test' are not those that the run began"):
        prepare_resume(secret)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (dict(delta=1e-5), "delta is 1e-05, and the run began with 0.000336"),
        (dict(adjacency="zero_out"), "adjacency is zero_out, and the run began with add_remove"),
        (dict(clipping=jaxdp.clip_batch(1.0)), "unit is batch, and the run began with example"),
        (dict(seed=3), "seed is 3, and the run began with None"),
    ],
)
def test_every_part_of_the_promise_is_fixed(secret, changed, says):
    last = load_segment(secret / "private" / "segment-1.json")
    history = resume.History(secret, ledger_of(secret), None, None, last)
    seed = changed.pop("seed", None)
    numbers = dict(
        num_examples=1437,
        expected_batch_size=64,
        steps=STEPS,
        clipping=jaxdp.clip_individual(1.0),
        epsilon=3.0,
    )
    with pytest.raises(ValueError, match=says):
        resume.check_budget(history, seed, jaxdp.Plan(**{**numbers, **changed}))
    resume.check_budget(history, None, jaxdp.Plan(**numbers))


def test_only_the_newest_segment_s_own_state_is_free(secret):
    """A segment that began at step 4 can't go on from step 3, though it is the same computation."""
    with crash_at(5):
        go_on(secret, *OPTION)
    assert ledger_of(secret).segments[-1].start == 4
    run, history, _ = prepare_resume(secret)
    assert (run.repeats, history.newest.segment, history.step) == (True, 1, 4)
    shutil.rmtree(secret / "private" / "checkpoints" / "4")
    run, history, said = prepare_resume(secret)
    assert (run.repeats, history.newest.segment, history.step) == (False, 1, 3)
    assert "a new segment begins" in said


def test_without_the_same_bits_charged_steps_are_not_repeated_for_free(secret, monkeypatch):
    monkeypatch.setattr(resume, "steps_repeat_exactly", lambda: False)
    run, history, said = prepare_resume(secret)
    stop = ledger_of(secret).stop(1)
    assert history.step == 4 < stop
    assert not run.repeats
    assert f"steps 5 to {stop} would be repeated, and this device may give other bits" in said

    # Without any step after the checkpoint there is none to repeat.
    path = secret / "private" / "ledger.txt"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:6]))
    assert ledger_of(secret).stop(1) == 4
    run, _, said = prepare_resume(secret)
    assert (run.repeats, said) == (True, "")


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
    config = Config(
        data=DataConfig(private="train[:1200]", public="train[1200:]"),
        model=ModelConfig(name="linear"),
        plan=plan,
        checkpoint=CheckpointConfig(every_seconds=0, keep=9),
    )
    folder = tmp_path / "run"
    with crash_at(3):
        train.main([write_config(config, tmp_path), "--output", str(folder)])
    run, history, _ = prepare_resume(folder, *OPTION)
    assert (history.step, run.first_step, run.repeats) == (2, 2, False)
    taken = run.plan.batches(key=run.saved.secrets.sampling)
    batches = list(run.batches(2, 5))
    assert len(batches) == 3
    seen = np.zeros(1200, int)
    images, _ = run.job.data.private.fields
    for (got, mask), (indices, _) in zip(batches, taken, strict=False):
        np.testing.assert_array_equal(got.records[0][mask], images[indices[mask]])
        np.add.at(seen, indices[mask], 1)
    # Three steps are one epoch, and are charged as one: nobody takes part twice.
    assert (seen == 1).all()

    assert go_on(folder, *OPTION) == 0
    ledger = ledger_of(folder)
    assert [m.epochs_begun for m in ledger.mechanisms()] == [1, 1]
    statement = jaxdp.load_release(folder).statement
    assert statement.gaussian_dp.at_every_delta
    assert statement.gaussian_dp.mu == pytest.approx(np.sqrt(2) / z, rel=1e-4)
    assert ledger.budget.epsilon >= statement.epsilon["pld"]

    # Steps of the second segment that are repeated, with its noise, see the same records again.
    shutil.rmtree(folder / "private" / "checkpoints" / "5")
    again, history, _ = prepare_resume(folder)
    assert (history.step, again.first_step, again.repeats) == (4, 2, True)
    (got, mask), *_ = again.batches(4, 5)
    taken = again.plan.batches(key=again.saved.secrets.sampling, start=4 - again.first_step)
    np.testing.assert_array_equal(got.records[0][mask], images[next(taken)[0][mask]])


def test_a_state_that_a_segment_did_not_begin_with_is_not_free(secret):
    """Its steps would be other ones, with the noise of those that were charged."""
    with crash_at(5):
        go_on(secret, *OPTION)
    run, history, _ = prepare_resume(secret)
    free = lambda state: resume.why_not_free(history, run.saved.fingerprint, state) is None
    assert (history.newest.segment, len(history.ledger.segments)) == (1, 2)
    assert free(run.state)
    params = jax.tree.map(lambda leaf: leaf.at[(0,) * leaf.ndim].add(1), run.state.params)
    assert not free(run.state._replace(params=params))
