"""Runs that were stopped go on as if they never had been, or pay again: in one process."""

import errno
import itertools
import json
import os
import re
import resource
import shutil
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import jaxdp
from jaxdp.accounting import composition
from jaxdp.accounting.mechanism import Mechanism
from jaxdp.trainer.run.ledger import Ledger

pytest.importorskip("tyro")
pytest.importorskip("sklearn")
train = pytest.importorskip("jaxdp.train")
from trainer import crash_at, prepare_resume  # noqa: E402  (they need the extra)

from jaxdp.datasets import loading  # noqa: E402
from jaxdp.trainer.run import fingerprint, resume  # noqa: E402
from jaxdp.trainer.run.checkpoint import Checkpoints, without_leftovers  # noqa: E402
from jaxdp.trainer.run.files import locked  # noqa: E402
from jaxdp.trainer.run.fingerprint import _version, changes, make_fingerprint, steps_repeat_exactly  # noqa: E402
from jaxdp.trainer.run.segment import load_segment  # noqa: E402

# Orbax's threads may still call back when a file was missing or the disk full: that is its affair.
orbax_fails = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

STEPS = 8
SHORT = [
    *("--plan.steps", str(STEPS), "--plan.expected-batch-size", "64", "--model.name", "linear"),
    *("--checkpoint.every-seconds", "0", "--checkpoint.keep", "3"),
]


def stopped_run(folder, *args, at=5):
    with crash_at(at):
        train.main([*SHORT, "--output", str(folder), *args])
    return folder


def resume_run(folder, *args):
    return train.main(["--resume", str(folder), *args])


def book(folder):
    return Ledger.read(folder / "private" / "ledger.txt")


def steps_on_disk(folder):
    names = [path.name for path in (folder / "private" / "checkpoints").iterdir()]
    return sorted(int(name) for name in names if name.isdigit())


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference") / "run"
    assert train.main([*SHORT, "--seed", "1", "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def seeded_original(tmp_path_factory):
    return stopped_run(tmp_path_factory.mktemp("seeded") / "run", "--seed", "1")


@pytest.fixture(scope="module")
def secret_original(tmp_path_factory):
    return stopped_run(tmp_path_factory.mktemp("secret") / "run")


@pytest.fixture
def seeded(seeded_original, tmp_path):
    """A run with a seed that crashed after step 4 of 8."""
    return shutil.copytree(seeded_original, tmp_path / "run")


@pytest.fixture
def secret(secret_original, tmp_path):
    """The same without a seed."""
    return shutil.copytree(secret_original, tmp_path / "run")


def same_as(reference, folder):
    expected, got = jaxdp.load_release(reference), jaxdp.load_release(folder)
    jax.tree.map(np.testing.assert_array_equal, expected.params, got.params)
    assert got.statement == expected.statement
    for name in ("metrics.jsonl", "scores.jsonl"):
        lines = [(f / "private" / name).read_text() for f in (reference, folder)]
        assert lines[0] == lines[1]
        assert len(lines[0].splitlines()) == STEPS
    assert book(folder).steps == STEPS


def test_a_resumed_run_is_the_uninterrupted_one(reference, seeded, capsys):
    assert steps_on_disk(seeded) == [2, 3, 4]
    assert resume_run(seeded) == 0
    same_as(reference, seeded)
    assert "Resuming after step 4, in segment 1" in " ".join(capsys.readouterr().out.split())
    assert steps_on_disk(seeded)[-1] == STEPS
    results = json.loads((seeded / "private" / "results.json").read_text())
    assert results["seconds_of_first_step"] > 0  # of this process: it compiled


def test_without_checkpoints_it_begins_again_for_free(secret):
    shutil.rmtree(secret / "private" / "checkpoints")
    run, history, said = prepare_resume(secret)
    assert (history.step, run.repeats, said) == (0, True, "")


@orbax_fails
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(secret, capsys, damage):
    newest = secret / "private" / "checkpoints" / "4"
    files = sorted((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    if damage == "truncate":
        for file in files:
            os.truncate(file, file.stat().st_size // 2)
    elif damage == "flip":
        data = bytearray(files[-1].read_bytes())
        data[len(data) // 2] ^= 1
        files[-1].write_bytes(data)
    else:
        files[-1].unlink()
    run, history, _ = prepare_resume(secret)
    assert "checkpoint of step 4 is damaged, so the one before is used" in capsys.readouterr().out
    assert (history.step, run.repeats) == (3, True)
    assert run.state[1][0].privatize_step == 3


def test_a_secret_run_goes_on_in_its_segment(secret):
    run, history, _ = prepare_resume(secret)
    assert run.repeats
    for name, old in vars(history.last.secrets).items():
        new = getattr(run.saved.secrets, name)
        np.testing.assert_array_equal(*(jax.random.key_data(key) for key in (old, new)))


def test_secrets_are_in_one_file_that_only_the_owner_reads(secret):
    path = secret / "private" / "segment-1.json"
    assert path.stat().st_mode & 0o777 == 0o600
    secrets = load_segment(path).secrets
    words = {name: jax.random.key_data(key).tobytes() for name, key in vars(secrets).items()}
    assert len(set(words.values())) == 4
    assert len(words["sampling"]) == 16  # as many bits as the sampler takes
    checkpoints = Checkpoints(secret / "private" / "checkpoints", 3)
    names = checkpoints.newest(print).arrays.keys()
    checkpoints.close()
    assert "clipping.privatize_step" in names
    assert not any("key" in name for name in names)
    noise = jax.random.key_data(jaxdp.keys.stream(secrets.noise, "noise")).tobytes()
    for file in secret.rglob("*"):
        assert not file.is_file() or noise not in file.read_bytes()


def change_option(patch):
    return ["--training.learning-rate", "1.5"]


def change_clipping(patch):
    return ["--clipping.norm", "0.2"]


def change_jax(patch):
    version = _version
    patch.setattr(fingerprint, "_version", lambda name: "0.99" if name == "jax" else version(name))
    return []


def change_device(patch):
    patch.setattr(fingerprint, "describe_device", lambda: "1 x tpu v9")
    return []


def change_code(patch):
    patch.setattr(fingerprint, "_code_digest", lambda: "other")
    return []


def change_data(patch):
    return ["--data.private", "train[:1436]"]


def change_batch(patch):
    return ["--plan.expected-batch-size", "80"]


def soften(patch):
    """Fewer records and a larger batch: a larger sampling probability."""
    return ["--data.private", "train[:1200]", "--plan.expected-batch-size", "80"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (change_option, "config.training.learning_rate"),
        (change_jax, "versions.jax"),
        (change_device, "device"),
        (change_code, "code"),
        (change_data, "config.data.private, data, sampler, shapes"),
        (change_batch, "config.plan.expected_batch_size, sampler, shapes"),
    ],
)
def test_the_fingerprint_tells_computations_apart(monkeypatch, change, named):
    prints = []
    for args in ([], change(monkeypatch)):
        config = train.parsing.parse([*SHORT, *args])
        dataset = loading.load(config.data)
        plan = jaxdp.Plan(
            num_examples=len(dataset.private),
            expected_batch_size=config.plan.expected_batch_size,
            steps=STEPS,
            clipping=jaxdp.clip_individual(1.0),
            noise_multiplier=1.0,
            delta=1e-5,
        )
        prints.append(make_fingerprint(config, dataset, plan))
    if change in (change_option, change_data, change_batch):
        assert changes(*prints) == named
        return
    # The first was made under the change, too: compare with one that was not.
    monkeypatch.undo()
    prints[0] = make_fingerprint(config, dataset, plan)
    assert changes(*prints) == named


@pytest.mark.parametrize(
    ("platform", "flags", "exactly"),
    [
        ("cpu", "", True),
        ("gpu", "", False),
        ("gpu", "--xla_gpu_autotune_level=0", False),
        ("gpu", "--xla_a=1 --xla_gpu_deterministic_ops=true", True),
        ("gpu", "--xla_gpu_deterministic_ops=false", False),
        ("tpu", "", False),
    ],
)
def test_only_some_devices_give_the_same_bits_again(monkeypatch, platform, flags, exactly):
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(platform=platform)])
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert steps_repeat_exactly() == exactly


def test_without_the_same_bits_charged_steps_are_not_repeated_for_free(secret, monkeypatch):
    monkeypatch.setattr(fingerprint, "steps_repeat_exactly", lambda: False)
    run, history, said = prepare_resume(secret)
    stop = book(secret).stop(1)
    assert history.step == 4 < stop
    assert not run.repeats
    assert f"steps 5 to {stop} would be repeated, and this device may give other bits" in said

    # Without any step after the checkpoint there is none to repeat.
    path = secret / "private" / "ledger.txt"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:6]))
    assert book(secret).stop(1) == 4
    run, _, said = prepare_resume(secret)
    assert (run.repeats, said) == (True, "")


def test_how_often_a_run_is_scored_may_change(secret):
    run, _, said = prepare_resume(secret, "--evaluations", "3")
    assert (run.repeats, said) == (True, "")


@pytest.mark.parametrize(
    ("change", "named"),
    [(change_jax, "versions.jax"), (change_clipping, "config.clipping.norm")],
)
def test_another_computation_gets_new_secrets(secret, monkeypatch, change, named):
    run, history, said = prepare_resume(secret, *change(monkeypatch))
    assert not run.repeats
    assert named in said
    for name, old in vars(history.last.secrets).items():
        new = getattr(run.saved.secrets, name)
        keys = [jax.random.key_data(key) for key in (old, new)]
        assert np.array_equal(*keys) == (name == "init"), name
    private = run.state[1][0]
    assert private.privatize_step == 4
    np.testing.assert_allclose(private.clipping.clipping_bounds, run.config.clipping.norm)
    in_use = jax.random.key_data(run.state[1][0].privatize_key)
    assert not np.array_equal(in_use, jax.random.key_data(history.last.secrets.noise))


@pytest.mark.parametrize("change", [change_option, soften])
def test_a_new_segment_pays_again_and_stops_in_time(secret, capsys, change):
    charged = book(secret).steps
    with pytest.MonkeyPatch.context() as patch:
        assert resume_run(secret, *change(patch)) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "a new segment begins, with new secrets" in said

    ledger = book(secret)
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

    _, statement = jaxdp.load_release(secret)
    assert statement["delta"] == ledger.budget.delta
    assert statement["steps"] == ledger.steps
    assert [part["steps"] for part in statement["segments"]] == [first.steps, second.steps]
    assert ledger.epsilon() <= statement["epsilon"]["pld"] <= ledger.epsilon() * (1 + 1e-4)
    assert re.search(r"segment 2 .* records", (secret / "release" / "PRIVACY.md").read_text())


def test_what_was_promised_cannot_be_changed(secret, capsys):
    before = book(secret).position
    assert resume_run(secret, "--plan.epsilon", "8") == 2
    assert "epsilon is 8.0, and the run began with 3.0" in capsys.readouterr().err
    assert book(secret).position == before


def test_records_that_no_step_would_use_are_refused(secret, capsys):
    assert resume_run(secret) == 0
    before = (secret / "release" / "PRIVACY.md").read_text()
    capsys.readouterr()
    changed = ("--data.private", "train[:1400]", "--plan.steps", str(STEPS + 2))
    assert resume_run(secret, *changed) == 2
    assert "none is left to take with N = 1,400" in capsys.readouterr().err
    assert (secret / "release" / "PRIVACY.md").read_text() == before
    assert len(book(secret).segments) == 1


def test_what_was_protected_stays_so(secret):
    split = ("--data.private", "train[:1200]", "--data.public", "train[1200:]")
    with pytest.raises(ValueError, match=r"data\.private = 'train' in an earlier segment"):
        prepare_resume(secret, *split)


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
    history = resume.History(secret, book(secret), None, None, last)
    config = replace(last.config, seed=changed.pop("seed", None))
    numbers = dict(
        num_examples=1437,
        expected_batch_size=64,
        steps=STEPS,
        clipping=jaxdp.clip_individual(1.0),
        epsilon=3.0,
    )
    with pytest.raises(ValueError, match=says):
        resume.check_budget(history, config, jaxdp.Plan(**{**numbers, **changed}))
    resume.check_budget(history, last.config, jaxdp.Plan(**numbers))


def test_a_checkpoint_ahead_of_its_ledger_is_refused(secret, capsys):
    path = secret / "private" / "ledger.txt"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]))
    assert resume_run(secret) == 2
    said = capsys.readouterr().err
    assert "the checkpoint of step 4 is ahead of its ledger" in said
    assert "has 3 lines" in said
    assert path.read_bytes() == b"".join(lines[:3])


def test_a_ledger_begun_anew_is_refused(secret, capsys):
    path = secret / "private" / "ledger.txt"
    old = Ledger.read(path)
    path.unlink()
    new = Ledger.create(path, old.budget)
    new.open_segment(old.segments[0])
    for step in range(9):
        new.charge(step, step)
    new.close()
    assert resume_run(secret) == 2
    assert "is ahead of its ledger" in capsys.readouterr().err


def test_a_damaged_ledger_is_refused_by_line(secret, capsys):
    path = secret / "private" / "ledger.txt"
    path.write_text(path.read_text().replace('"first": 0', '"first": 1'))
    assert resume_run(secret) == 2
    assert "ledger.txt, line 3 is damaged" in capsys.readouterr().err


def test_only_the_newest_segment_s_own_state_is_free(secret):
    """A segment that began at step 4 can't go on from step 3, though it is the same computation."""
    with crash_at(5):
        resume_run(secret, "--training.learning-rate", "1.5")
    assert book(secret).segments[-1].start == 4
    run, history, _ = prepare_resume(secret)
    assert (run.repeats, history.newest.segment, history.step) == (True, 1, 4)
    shutil.rmtree(secret / "private" / "checkpoints" / "4")
    run, history, said = prepare_resume(secret)
    assert (run.repeats, history.newest.segment, history.step) == (False, 1, 3)
    assert "a new segment begins" in said


def test_a_folder_in_use_is_refused(secret, capsys):
    with locked(secret):
        assert resume_run(secret) == 2
    said = capsys.readouterr().err
    assert f"is being trained in by process {os.getpid()}" in said


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_what_is_no_run_cannot_be_resumed(tmp_path, capsys, name):
    assert resume_run(tmp_path / name) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(
        r"error: \S+ can't be resumed, \S+: no such file or directory. Name the folder that "
        r"`python -m jaxdp.train` made\n",
        said,
    )


def test_a_finished_run_is_left_alone(reference, capsys):
    before = book(reference).position
    assert resume_run(reference) == 0
    assert "All steps were taken: the release is in" in " ".join(capsys.readouterr().out.split())
    assert book(reference).position == before


@orbax_fails
def test_a_full_disk_stops_the_run_and_nothing_is_lost(reference, seeded, capsys):
    """No file may grow beyond the ledger's size now, which is what a full disk does to it."""
    path = seeded / "private" / "ledger.txt"
    text = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(text), hard))
    try:
        assert resume_run(seeded) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1
    assert f"--resume {seeded}" in said
    assert not (seeded / "release").exists()
    assert resume_run(seeded) == 0
    same_as(reference, seeded)


def read_only(patch, folder):
    """Root may write where permissions forbid it, so the file system is what refuses here."""
    really_open = os.open

    def refuse(path, flags, *args, **kwargs):
        if flags & (os.O_WRONLY | os.O_RDWR) and str(path).startswith(str(folder)):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return really_open(path, flags, *args, **kwargs)

    patch.setattr(os, "open", refuse)


def test_a_read_only_folder_is_refused_in_one_line(secret, capsys, monkeypatch):
    read_only(monkeypatch, secret)
    assert resume_run(secret) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "can't be resumed (Read-only file system:" in said
    assert "in a place that you may write to" in said


def test_a_read_only_ledger_is_refused_in_one_line(secret, capsys, monkeypatch):
    read_only(monkeypatch, secret / "private" / "ledger.txt")
    assert resume_run(secret) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "ledger.txt can't be written to (Read-only file system): make the folder" in said


def test_a_folder_that_becomes_read_only_stops_the_run_in_one_line(secret, capsys, monkeypatch):
    charged, write = book(secret).steps, os.write
    path = secret / "private" / "ledger.txt"

    def refuse(descriptor, data):
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", refuse)
    assert resume_run(secret) == 1
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "Read-only file system: stopped, what was spent stays charged. Make the folder" in said
    assert book(secret).steps == charged
    assert not (secret / "release").exists()


def test_a_clock_that_goes_backwards_changes_nothing(reference, seeded, monkeypatch):
    ticks, really = itertools.count(), time.gmtime
    backwards = lambda: 1e9 - 3600 * next(ticks)
    monkeypatch.setattr(time, "time", backwards)
    monkeypatch.setattr(time, "gmtime", lambda *now: really(*(now or (backwards(),))))
    assert resume_run(seeded) == 0
    same_as(reference, seeded)
    lines = (seeded / "private" / "ledger.txt").read_text().splitlines()
    times = [fact["time"] for fact in (json.loads(n.rpartition(" ")[0]) for n in lines[2:])]
    assert times[-1] < times[0]


def test_nan_stops_the_run_and_keeps_the_last_good(secret, capsys):
    assert resume_run(secret, "--training.learning-rate", "3e38", "--clipping.norm", "1e9") == 1
    assert "the parameters are not finite after step" in capsys.readouterr().err
    assert not (secret / "release").exists()
    checkpoints = Checkpoints(secret / "private" / "checkpoints", 3)
    arrays = checkpoints.newest(print).arrays
    checkpoints.close()
    params = [value for name, value in arrays.items() if name.startswith("params.")]
    assert params
    assert all(np.isfinite(value).all() for value in params)


def test_metrics_of_steps_to_come_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": n}) + "\n" for n in (1, 2, 3)) + '{"ste')
    resume.drop_metrics_after(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_what_orbax_leaves_behind_is_not_printed(monkeypatch):
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    failed = lambda error: SimpleNamespace(exc_value=error)
    with without_leftovers():
        sys.unraisablehook(failed(RuntimeError("Event loop is closed")))
        sys.unraisablehook(failed(RuntimeError("something else")))
    assert [str(one.exc_value) for one in printed] == ["something else"]
