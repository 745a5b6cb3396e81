"""Files of a run that are damaged anywhere: one line, or a sound run; never fewer charges."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

for module in ("tyro", "rich", "safetensors"):
    pytest.importorskip(module)
from helpers.damage import FEW, MANY, damages, examples, one_line  # noqa: E402
from helpers.small_runs import make_run  # noqa: E402

from jaxdp.trainer import parsing, spending  # noqa: E402
from jaxdp.trainer.config import Config  # noqa: E402
from jaxdp.trainer.metrics import Metrics  # noqa: E402
from jaxdp.trainer.release import report, verification_report  # noqa: E402
from jaxdp.trainer.release.parameters import load_release  # noqa: E402
from jaxdp.trainer.release.score_ledger import ScoreLedger  # noqa: E402
from jaxdp.trainer.release.statement import read_statement  # noqa: E402
from jaxdp.trainer.run.checkpoint import Checkpoint, Checkpoints, digest  # noqa: E402
from jaxdp.trainer.run.evidence import check_paid  # noqa: E402
from jaxdp.trainer.run.ledger import Ledger  # noqa: E402
from jaxdp.trainer.run.lines import Position  # noqa: E402
from jaxdp.trainer.run.record import load_record  # noqa: E402
from jaxdp.trainer.run.segment import load_segment  # noqa: E402

STEPS = 20


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that took 20 steps, with scores and metrics, and its release."""
    folder = tmp_path_factory.mktemp("damaged") / "run"
    make_run(folder, noise_multiplier=4.0, scores={"accuracy": 0.5})
    private = folder / "private"
    numbers = dict.fromkeys(Metrics._fields, 0.5) | {"loss": None, "norm_counts": [3, [1, 2]]}
    facts = [json.dumps(numbers | {"step": step + 1}) for step in range(STEPS)]
    (private / "metrics.jsonl").write_text("\n".join(facts) + "\n")
    (private / "scores.jsonl").write_text('{"step": 10, "time": 1.5, "accuracy": 0.5}\n')
    config = json.dumps({"name": "visits", "seed": None, "plan": {"steps": STEPS}}, indent=2)
    (private / "config.json").write_text(config + "\n")
    return folder


def in_run(run, file, examples, check):
    """Runs a check of the folder for damaged contents of a file, which is put back at the end."""
    path = run / file
    whole = path.read_bytes()

    @examples
    @given(damages(whole))
    def every_damage(data):
        path.write_bytes(data)
        check(data)

    try:
        every_damage()
    finally:
        path.write_bytes(whole)


@examples
def test_a_damaged_ledger_never_has_fewer_charges(run, examples):
    path = run / "private" / "ledger.txt"
    whole = path.read_bytes()

    def check(data):
        book = one_line(Ledger.read, path)
        if book is None:
            return
        # What can be read is a beginning of what was written: its checksums say so.
        lines = whole.splitlines()
        read = book.position.lines
        assert data.splitlines()[:read] == lines[:read]
        if one_line(spending.read_spending, run) is not None:
            assert book.steps == STEPS
        if one_line(load_record, run) is not None:
            assert book.steps == STEPS
        opened = one_line(Ledger.open, path)
        if opened is not None:
            opened.close()
            assert Ledger.read(path).steps == book.steps  # and nothing of it is torn now

    in_run(run, "private/ledger.txt", examples, check)


@pytest.mark.parametrize("witness", ["metrics", "release"])
def test_one_file_is_enough_to_know_of_lost_charges(run, tmp_path, witness):
    copy = shutil.copytree(run, tmp_path / "copy")
    path = copy / "private" / "ledger.txt"
    check_paid(copy, Ledger.read(path))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))  # the charge of all steps
    shutil.rmtree(copy / "release") if witness == "metrics" else None
    if witness == "release":
        (copy / "private" / "metrics.jsonl").unlink()
    for read in (load_record, spending.read_spending):
        with pytest.raises(
            ValueError, match=f"the {witness}.* ahead of the ledger .* 20 were taken"
        ):
            read(copy)


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_shows_charges_of_a_segment_that_took_steps_again(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    path = copy / "private" / "ledger.txt"
    before = path.read_bytes()
    ledger = Ledger.open(path)
    ledger.open_segment(replace(ledger.segments[0], start=5))
    ledger.charge(5, 7)  # fewer steps than the first segment took
    checkpoints = Checkpoints(copy / "private" / "checkpoints", 3)
    checkpoints.save(saved(8, 2)._replace(position=ledger.position))
    checkpoints.wait()
    checkpoints.close()
    ledger.close()
    assert Ledger.read(path).steps == STEPS + 3
    check_paid(copy, Ledger.read(path))
    path.write_bytes(before)
    for read in (load_record, spending.read_spending):
        with pytest.raises(ValueError, match="the checkpoint of step 8 is ahead of the ledger"):
            read(copy)


@examples
@pytest.mark.parametrize("name", ["metrics.jsonl", "scores.jsonl", "results.json"])
def test_damaged_numbers_of_a_run(run, examples, name):
    def check(data):
        record = one_line(load_record, run)
        if record is not None:
            assert all(fact.keys() == set(Metrics._fields) for fact in record.metrics)
            assert report.compare([record], 80)
        one_line(spending.read_spending, run)

    in_run(run, f"private/{name}", examples, check)


@examples
def test_a_damaged_segment(run, examples):
    path = run / "private" / "segment-1.json"

    def check(data):
        if one_line(load_segment, path) is not None:
            one_line(spending.read_spending, run)

    in_run(run, "private/segment-1.json", examples, check)


@pytest.mark.parametrize("word", [2**32, -1, 1.5, True, "7", None, [1]])
def test_a_damaged_key_is_told_without_a_word_of_it(run, tmp_path, word):
    path = tmp_path / "segment-1.json"
    fact = json.loads((run / "private" / "segment-1.json").read_text())
    words = list(fact["secrets"]["noise"])
    fact["secrets"]["noise"][2] = word
    path.write_text(json.dumps(fact))
    with pytest.raises(ValueError, match="a key is not four words of 32 bits") as refused:
        load_segment(path)
    assert not any(str(word) in str(refused.value) for word in words)


@examples
def test_a_damaged_configuration(run, examples):
    path = run / "private" / "config.json"

    def check(data):
        config = one_line(parsing.read_config, path)
        assert config is None or isinstance(config, Config)

    in_run(run, "private/config.json", examples, check)


@examples
def test_a_damaged_statement(run, examples):
    path = run / "release" / "privacy.json"
    good = read_statement(path)

    def check(data):
        statement = one_line(read_statement, path)
        one_line(spending.read_spending, run)
        if statement is None or statement == good:
            return
        found = one_line(verification_report.verify, str(path), 80)
        if found is not None and found[1]:  # nothing that a number follows from has changed
            assert statement.epsilon == good.epsilon
            assert statement.mechanisms[0].steps == STEPS

    in_run(run, "release/privacy.json", examples, check)


@examples
def test_damaged_parameters(run, examples):
    in_run(
        run, "release/params.safetensors", examples, lambda data: one_line(load_release, str(run))
    )


@examples
def test_a_damaged_ledger_of_scores(tmp_path_factory, examples):
    from fractions import Fraction

    path = tmp_path_factory.mktemp("scores") / "visits.txt"
    book = ScoreLedger.create(path, "visits", Fraction(2))
    for _ in range(3):
        book.charge(Fraction(1, 2))
    book.close()
    whole = path.read_bytes()

    @examples
    @given(damages(whole))
    def every_damage(data):
        path.write_bytes(data)
        read = one_line(ScoreLedger.read, path)
        if read is not None:
            lines = read.position.lines
            assert data.splitlines()[:lines] == whole.splitlines()[:lines]
            assert read.spent == Fraction(lines - 1, 2)

    every_damage()


def saved(step, segment):
    arrays = {
        "params.w": np.arange(600, dtype=np.float32) + step,
        "step": np.asarray(step, np.int32),
    }
    return Checkpoint(step, segment, Position(step + 1, f"{step:016x}"), arrays)


# Orbax's threads may still call back when a file was missing: that is its affair.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "examples",
    [
        settings(FEW, max_examples=15),
        pytest.param(settings(MANY, max_examples=200), marks=pytest.mark.slow),
    ],
    ids=["few", "many"],
)
def test_a_damaged_checkpoint_is_never_used(tmp_path, examples):
    folder = tmp_path / "checkpoints"
    checkpoints = Checkpoints(folder, 3)
    both = {3: saved(3, 1), 4: saved(4, 2)}
    for checkpoint in both.values():
        checkpoints.save(checkpoint)
    checkpoints.wait()
    checkpoints.close()
    files = sorted(p for p in (folder / "4").rglob("*") if p.is_file())

    @examples
    @given(st.data())
    def damaged(drawn):
        path = drawn.draw(st.sampled_from(files))
        whole = path.read_bytes()
        path.write_bytes(drawn.draw(damages(whole)))
        told = []
        reader = Checkpoints(folder, 3)
        try:
            found = reader.newest(told.append)
        finally:
            reader.close()
            path.write_bytes(whole)
        assert found is not None
        true = both[found.step]
        assert (found.segment, found.position) == (true.segment, true.position)
        assert digest(found.arrays) == digest(true.arrays)
        assert len(told) == (found.step == 3)
        assert all(len(line.splitlines()) == 1 for line in told)

    damaged()


@pytest.mark.parametrize(("old", "new"), [('"segment": 2', '"segment": 0'), ('[5, "', '[1, "')])
def test_what_paid_for_a_checkpoint_is_in_its_checksum(tmp_path, old, new):
    checkpoints, told = Checkpoints(tmp_path / "checkpoints", 3), []
    checkpoints.save(saved(4, 2))
    checkpoints.wait()
    assert checkpoints.newest(told.append).segment == 2
    about = (tmp_path / "checkpoints" / "4" / "about").glob("*")
    (path,) = [file for file in about if b'"segment"' in file.read_bytes()]
    changed = path.read_text().replace(old, new)
    assert changed != path.read_text()
    path.write_text(changed)
    assert checkpoints.newest(told.append) is None
    checkpoints.close()
    assert "its checksum is wrong" in told[0]
