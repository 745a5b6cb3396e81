"""The command `python -m jaxdp.verify`, as whoever receives a model uses it."""

import json
import shutil
import subprocess
import sys

import pytest

for module in ("tyro", "safetensors", "rich"):
    pytest.importorskip(module)
from helpers.small_runs import make_run  # noqa: E402

from jaxdp import verify  # noqa: E402


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify") / "run"
    return make_run(folder, noise_multiplier=4.0)


@pytest.fixture
def run(original, tmp_path):
    return shutil.copytree(original, tmp_path / "run")


def change(run, **values):
    file = run / "release" / "privacy.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_run_a_release_and_a_statement_hold(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    alone = tmp_path / "privacy.json"
    shutil.copy(run / "release" / "privacy.json", alone)
    for path in (run, run / "release", alone):
        assert verify.main([str(path)]) == 0
        said, errors = capsys.readouterr()
        assert errors == ""
        first, *lines = said.splitlines()
        assert first == str(run / "release" / "privacy.json" if path != alone else alone)
        assert max(map(len, lines)) <= 80
        assert {line[:9].strip() for line in lines[:10]} == {"ok"}
        assert any(line.startswith("  ok     PRIVACY.md  ") for line in lines) == (path != alone)
        told = " ".join(said.split())
        assert "ε by PLD" in told
        assert "The statement holds: " in told
        assert "Not checked, since it can't be seen from outside" in told


def test_a_changed_number_has_a_line_and_a_status(run, capsys):
    change(run, steps=21)
    assert verify.main([str(run)]) == 1
    said = capsys.readouterr().out
    assert "WRONG  steps" in said
    assert "21 stated, and the mechanisms have 20" in said
    assert "The statement does NOT hold: steps, ε, PRIVACY.md." in said


def test_a_changed_page_is_found(run, capsys):
    page = run / "release" / "PRIVACY.md"
    page.write_text(page.read_text().replace("0.", "0.0", 1))
    assert verify.main([str(run)]) == 1
    assert "The statement does NOT hold: PRIVACY.md." in capsys.readouterr().out
    # Other versions have other words.
    change(run, library={"name": "jaxdp-privacy", "version": "0.0.1"})
    assert verify.main([str(run)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "ok PRIVACY.md NOT compared: jaxdp-privacy 0.0.1 wrote it" in told


def test_a_field_that_is_there_twice_is_refused(run, capsys):
    file = run / "release" / "privacy.json"
    file.write_text('{"steps": 1,' + file.read_text().lstrip()[1:])
    assert verify.main([str(run)]) == 2
    assert "the field 'steps' is there twice" in capsys.readouterr().err


def test_words_of_a_statement_can_not_look_like_those_of_the_command(run, capsys):
    file = run / "release" / "privacy.json"
    fact = json.loads(file.read_text())
    fact["mechanisms"][0]["clipping"]["call"] += " #\n  ok     all\x1b[2J\ud800"
    file.write_text(json.dumps(fact))
    verify.main([str(run)])
    said = capsys.readouterr().out
    assert "#?" in said
    assert not {"\x1b", "\ud800"} & set(said)
    assert "  ok     all" not in said.splitlines()


REFUSED = {
    "another format": ({"format": 4}, "format is 4: expected 3"),
    "an unknown mechanism": (
        {"mechanisms": [{"kind": "tree"}]},
        "the field mechanisms[0].steps is missing",
    ),
    "an unknown field": ({"salt": 1}, "the field salt is not known"),
    "an unknown adjacency": ({"adjacency": "add"}, "adjacency is 'add': expected"),
    "an unknown noise": ({"noise": {}}, "the field noise.distribution is missing"),
    "a number that is too large": ({"steps": 2**70}, "expected an integer of 64 bits"),
}


@pytest.mark.parametrize(("values", "says"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_known_is_refused_in_one_line(run, values, says, capsys):
    change(run, **values)
    assert verify.main([str(run)]) == 2
    said, errors = capsys.readouterr()
    assert said == ""
    assert says in errors
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize(("field", "kind"), [("sampling", "cyclic"), (None, "tree")])
def test_unknown_kinds_are_refused(run, field, kind, capsys):
    file = run / "release" / "privacy.json"
    fact = json.loads(file.read_text())
    mechanism = fact["mechanisms"][0]
    (mechanism[field] if field else mechanism)["kind"] = kind
    file.write_text(json.dumps(fact))
    assert verify.main([str(run)]) == 2
    assert f"kind is '{kind}': expected" in capsys.readouterr().err


def test_the_worst_of_several_is_the_status(run, tmp_path, capsys):
    wrong = shutil.copytree(run, tmp_path / "wrong")
    change(wrong, target_epsilon=0.01)
    assert verify.main([str(run), str(wrong)]) == 1
    assert verify.main([str(tmp_path / "none"), str(wrong), str(run)]) == 2
    said, errors = capsys.readouterr()
    assert said.count("The statement holds") == 2
    assert f"error: {tmp_path / 'none'} holds no release (privacy.json): give" in errors


@pytest.mark.parametrize("args", [[], ["--data"]])
def test_wrong_arguments(args, capsys):
    assert verify.main(args) == 2
    assert "give folders, as python -m jaxdp.verify" in capsys.readouterr().err


@pytest.mark.slow
def test_it_runs_as_a_program(run):
    command = [sys.executable, "-m", "jaxdp.verify", str(run)]
    assert subprocess.run(command, capture_output=True, check=True).stderr == b""
