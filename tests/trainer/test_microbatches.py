"""The microbatch size and the method of a run: chosen once, from shapes and a limit on memory."""

import json
import re
from dataclasses import replace

import jax
import numpy as np
import pytest

for module in ("tyro", "sklearn", "safetensors"):
    pytest.importorskip(module)
from helpers.cases import slow  # noqa: E402
from helpers.fits import DATA, PLAN, fitted  # noqa: E402
from helpers.trainer import (  # noqa: E402
    SHORT,
    crash_at,
    go_on,
    ledger_of,
    prepare_resume,
    start,
    stopped_run,
    write_config,
)
from helpers.trees import assert_same  # noqa: E402

import jaxdp  # noqa: E402
from jaxdp import train  # noqa: E402
from jaxdp.gradients.limit import MARGIN  # noqa: E402
from jaxdp.trainer import Config, ModelConfig, TrainingConfig, microbatches, parsing  # noqa: E402
from jaxdp.trainer.config import ClippingConfig  # noqa: E402
from jaxdp.trainer.run.segment import load_segment  # noqa: E402

AUTO = ["--training.microbatch-size", "auto"]
LIMIT = 60_000  # bytes: of the linear model on digits, for some records of 64


def limited(limit=LIMIT):
    return [*AUTO, "--training.memory-limit", str(limit)]


def begun(*args):
    """A run of the command before its first step, and what it told."""
    said = []
    return start(parsing.parse([*SHORT, *args]), said.append), " ".join(said)


def segment_of(folder, number=1):
    return load_segment(folder / "private" / f"segment-{number}.json")


def need(run, size):
    """The estimate for so many records at a time, in words and in bytes."""
    chosen = replace(run.saved.microbatches, size=size)
    told = microbatches.describe(run.job, run.learner, run.plan, chosen, parts=1)
    size, unit = re.search(r"about ([\d.]+)(k?)B", told).groups()
    return float(size) * (1000 if unit else 1)


def test_the_largest_size_that_fits_is_taken():
    whole, said = begun(*AUTO)  # half of what is free is much
    assert whole.job.options.microbatch_size == whole.plan.capacity
    assert re.search(r"to fit into [\d.]+GB \(half of what is free\)", said)
    run, said = begun(*limited())
    size = run.job.options.microbatch_size
    assert size in [run.plan.capacity // 2**k for k in range(1, 6)]
    assert MARGIN * need(run, size) <= LIMIT < MARGIN * need(run, 2 * size)
    told = rf"Gradients: {size} records at a time by method auto, to fit into 60kB \(training.mem"
    assert re.search(told, said)


def test_the_job_and_its_configuration_have_the_numbers():
    """So has the fingerprint: it is that of a run with these numbers."""
    run, _ = begun(*limited())
    size = run.job.options.microbatch_size
    by_hand, _ = begun("--training.microbatch-size", str(size))
    assert run.job.options == by_hand.job.options
    assert run.job.config == by_hand.job.config
    assert run.saved.fingerprint == by_hand.saved.fingerprint
    assert run.plan.rounding_bound == by_hand.plan.rounding_bound
    assert run.plan.rounding_rows == size


@pytest.mark.slow
def test_the_method_is_the_fastest_that_fits():
    args = ["--model.name", "mlp", "--model.widths", "256", "256"]
    for limit, method in (("16MB", "auto"), ("1MB", "two_pass")):
        run, said = begun(*args, *limited(limit))
        assert run.job.options.method == run.job.config.training.method == method
        assert f"{run.plan.capacity} records at a time by method {method}" in said
    with pytest.raises(ValueError, match=r"at least 1\.6MB, or training\.method auto$"):
        begun(*args, *limited("1MB"), "--training.method", "vmap")


@pytest.mark.slow
def test_a_run_gives_what_its_numbers_give_by_hand(tmp_path):
    options = dict(seed=3, evaluations=0, plan=replace(PLAN, steps=3))
    auto = fitted(tmp_path / "auto", microbatch_size="auto", memory_limit="1.5kB", **options)
    chosen = segment_of(auto.folder).microbatches
    assert 1 < chosen.size < 32
    assert (chosen.limit, chosen.limit_from) == (1500, "memory_limit 1.5kB")
    numbers = dict(microbatch_size=chosen.size, method=chosen.method)
    by_hand = fitted(tmp_path / "hand", **numbers, **options)
    assert_same(auto.params, by_hand.params)
    assert auto.plan == by_hand.plan
    # What the machine has stays private.
    for file in (auto.folder / "release").rglob("*"):
        content = file.read_bytes()
        assert b"memory_limit" not in content
        assert b"1.5kB" not in content


@pytest.mark.slow
@pytest.mark.parametrize("method", [slow("factored"), "two_pass", slow("vmap")])
def test_every_method_trains(tmp_path, method):
    options = dict(seed=3, evaluations=0, plan=replace(PLAN, steps=3), microbatch_size=8)
    auto, other = (fitted(tmp_path / name, method=name, **options) for name in ("auto", method))
    assert other.plan.noise_multiplier == auto.plan.noise_multiplier
    for one, two in zip(*map(jax.tree.leaves, (auto.params, other.params)), strict=True):
        np.testing.assert_allclose(one, two, atol=2e-3)
    fingerprints = [segment_of(r.folder).fingerprint for r in (auto, other)]
    assert [f["config"]["method"] for f in fingerprints] == ["auto", method]
    assert (fingerprints[0]["program"] == fingerprints[1]["program"]) == (method == "factored")


@pytest.mark.slow
def test_a_resume_takes_the_same_numbers(tmp_path, monkeypatch, capsys):
    """However much memory there is then."""
    monkeypatch.setattr(microbatches, "free_memory", lambda: 2 * LIMIT)
    folder = stopped_run(tmp_path / "run", "--seed", "1", *AUTO)
    size = segment_of(folder).microbatches.size
    saved = json.loads((folder / "private" / "config.json").read_text())["training"]
    assert (saved["microbatch_size"], saved["memory_limit"]) == (size, None)
    monkeypatch.setattr(microbatches, "free_memory", lambda: 10**12)
    for args in ([], AUTO, limited()):
        run, _, _ = prepare_resume(folder, *args)
        assert run.repeats, args
        assert run.job.options.microbatch_size == size
    # Other numbers are another computation.
    run, _, said = prepare_resume(folder, *limited("1GB"))
    assert run.job.options.microbatch_size == run.plan.capacity
    assert not run.repeats
    assert "config.training.microbatch_size" in said
    assert go_on(folder) == 0
    assert len(ledger_of(folder).segments) == 1


@pytest.mark.slow
def test_what_was_asked_for_outlives_a_new_segment(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(microbatches, "free_memory", lambda: 2 * LIMIT)
    folder = stopped_run(tmp_path / "run", *AUTO)
    first = segment_of(folder).microbatches
    assert go_on(folder, "--training.learning-rate", "1.5") == 0
    assert segment_of(folder, 2).microbatches == first


@pytest.mark.slow
def test_a_resume_of_fit_takes_the_same_numbers(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(microbatches, "free_memory", lambda: 3000)
    with crash_at(5):
        fitted(tmp_path / "run", microbatch_size="auto", seed=1)
    size = segment_of(tmp_path / "run").microbatches.size
    assert 1 < size < 32
    monkeypatch.setattr(microbatches, "free_memory", lambda: 10**12)
    fitted(resume=tmp_path / "run", microbatch_size="auto", seed=1)
    assert f"Gradients as before: {size} records" in " ".join(capsys.readouterr().out.split())
    assert len(ledger_of(tmp_path / "run").segments) == 1


@pytest.mark.slow
def test_a_dry_run_tells_the_numbers_and_the_estimate(tmp_path, capsys):
    assert train.main([*SHORT, "--dry-run", *limited()]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"Gradients: \d+ records at a time by method auto, in about \d\d\.?\dkB", said)
    args = ["--training.microbatch-size", "1", "--training.method", "vmap"]
    assert train.main([*SHORT, "--dry-run", *args]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"Gradients: 1 record at a time by method vmap, in about [\d.]+kB", said)


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "share"), [("1GB", 4), ("60kB", 2), ("30kB", 0.5)])
def test_units_are_taken_whole_or_in_parts(limit, share):
    """As many as fit, of four; and where not even one does, a part of it."""
    run, _ = begun("--clipping.kind", "batch", "--clipping.units", "4", *limited(limit))
    size = run.job.options.microbatch_size / run.plan.capacity
    assert size == share


def batchnorm(limit):
    config = Config(
        model=ModelConfig(name="cnn", widths=(2,), norm="batch"),
        clipping=ClippingConfig(kind="batch"),
        training=TrainingConfig(microbatch_size="auto", memory_limit=limit),
    )
    data = replace(config.data, private="train[:80%]", public="train[80%:]")
    return replace(config, data=data)


@pytest.mark.slow
def test_batchnorm_takes_a_whole_unit():
    run = start(batchnorm("1GB"))
    assert run.job.options.microbatch_size == run.plan.capacity
    says = r"that of a unit of \d+ records may take .*: give training.memory-limit of .*units$"
    with pytest.raises(ValueError, match=says):
        start(batchnorm("100kB"))


@pytest.mark.slow
def test_a_solved_plan_tells_the_size_of_the_batch(tmp_path):
    plan = jaxdp.Plan(
        num_examples=len(DATA.private),
        expected_batch_size=32,
        steps=3,
        clipping=jaxdp.clip_individual(0.5),
        noise_multiplier=2.0,
    )
    result = fitted(plan=plan, microbatch_size="auto", dry_run=True)
    assert result.plan.rounding_rows == plan.capacity


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (limited("4 apples"), "training.memory-limit is '4 apples': give a size, as 4GB or 500MB"),
        (limited()[2:], "training.memory-limit is 60000, but it is for --training.microbatch-si"),
        (limited("1kB"), "1,000 bytes .training.memory-limit 1kB., and that of 1 record may take"),
        (["--training.microbatch-size", "aut"], "microbatch-size is 'aut': give a whole number"),
        (["--training.microbatch-size", "0"], "microbatch-size is 0: give a whole number of at"),
        (["--training.method", "vmaps"], "training.method is 'vmaps': did you mean vmap"),
    ],
)
def test_errors_say_what_to_give(capsys, args, says):
    assert train.main([*SHORT, "--dry-run", *args]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(says, error), error


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(memory_limit="4 apples"), "memory_limit is '4 apples': give a size"),
        (dict(memory_limit="4GB"), "memory_limit is 4GB and microbatch_size is 256: give micro"),
        (dict(microbatch_size="auto", memory_limit=10), r"10 bytes \(memory_limit 10\), .* at lea"),
        (dict(microbatch_size="all"), "microbatch_size is all: give a whole number"),
        (dict(method="fast"), "method is 'fast': give one of auto, factored, two_pass, vmap"),
    ],
)
def test_errors_of_fit_say_what_to_give(options, says):
    with pytest.raises(ValueError, match=says):
        fitted(dry_run=True, **options)


def test_a_device_that_does_not_tell_wants_a_limit(monkeypatch):
    monkeypatch.setattr(microbatches, "free_memory", lambda: None)
    with pytest.raises(ValueError, match=r"does not tell .*: give training\.memory-limit, as 4GB"):
        begun(*AUTO)


def test_a_config_file_may_say_auto(tmp_path):
    config = Config(training=TrainingConfig(microbatch_size="auto", memory_limit="4GB"))
    assert parsing.load_config(write_config(config, tmp_path)).training == config.training
