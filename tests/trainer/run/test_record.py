"""What the files of a run say, for its reports."""

import pytest

for module in ("tyro", "sklearn", "safetensors"):
    pytest.importorskip(module)
from helpers.trainer import STEPS, crash_at, go_on  # noqa: E402

from jaxdp.trainer.run.record import load_record  # noqa: E402


def test_the_record_of_a_run_is_what_its_files_say(reference):
    found = load_record(reference)
    assert (found.name, found.folder) == (reference.name, reference)
    assert (found.config.seed, found.config.plan.steps) == (1, STEPS)
    assert (found.facts.seed, found.facts.mechanism.steps) == (1, STEPS)
    assert (found.facts.task.name, found.facts.task.model.name) == ("classifier", "linear")
    assert [mechanism.steps for mechanism in found.spent] == [STEPS]
    assert found.starts == [0]
    assert [one["step"] for one in found.metrics] == list(range(1, STEPS + 1))
    assert found.scores[-1]["accuracy"] == found.results["scores"]["accuracy"]
    assert found.budget.epsilon == 3.0


def test_a_crash_leaves_a_record_too(secret):
    with (secret / "private" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    found = load_record(secret)
    assert [one["step"] for one in found.metrics] == [1, 2, 3, 4]
    assert found.results == {}


def test_the_facts_are_those_of_the_newest_segment(secret):
    with crash_at(5):
        go_on(secret, "--clipping.norm", "0.2")
    found = load_record(secret)
    assert found.starts == [0, 4]
    assert found.config.clipping.norm == 0.2
    assert found.facts.mechanism.clipping.call == "clip_individual(0.2)"


def test_what_is_no_record_is_refused(tmp_path, secret):
    with pytest.raises(ValueError, match="holds no run"):
        load_record(tmp_path)
    (secret / "private" / "config.json").unlink()  # segments have their own copy
    assert load_record(secret).config.plan.steps == STEPS
    (secret / "private" / "segment-1.json").write_text("{")
    with pytest.raises(ValueError, match=r"segment-1\.json can't be read .*undamaged copy"):
        load_record(secret)
    ledger = secret / "private" / "ledger.txt"
    ledger.write_bytes(ledger.read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(ValueError, match="stopped before its first step"):
        load_record(secret)
