"""The command `python -m jaxdp.runs`: all runs with their state, and what they spent together."""

import os
import re
import shutil
import subprocess
import sys

import pytest

for module in ("tyro", "rich", "sklearn", "safetensors"):
    pytest.importorskip(module)
from helpers.small_runs import make_run  # noqa: E402

import jaxdp  # noqa: E402
from jaxdp import runs  # noqa: E402
from jaxdp.accounting import round_up  # noqa: E402
from jaxdp.trainer.run.files import locked  # noqa: E402
from jaxdp.trainer.run.ledger import Ledger  # noqa: E402


@pytest.fixture
def show(tmp_path, monkeypatch, capsys):
    """Runs the command on a number of columns: (exit status, what it said, errors)."""

    def run(*args, columns=200):
        monkeypatch.setenv("COLUMNS", str(columns))
        status = runs.main([str(tmp_path), *args])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def row_of(said, name):
    """The cells of a run's row."""
    (line,) = [line for line in said.splitlines() if line.startswith(f"{name} ")]
    return re.split(r"\s{2,}", line)[1:]


def test_a_row_for_every_run(tmp_path, show):
    make_run(tmp_path / "first", scores={"accuracy": 0.93333, "loss": 0.3})
    status, said, _ = show()
    spent = f"{round_up(jaxdp.compose(tmp_path / 'first').epsilon):g}"
    state, epsilon, steps, score, age = row_of(said, "first")
    assert (status, state, steps, score) == (0, "finished", "20 of 20", "accuracy 0.9333")
    assert epsilon == f"{spent} of {spent} at δ = 0.000502"
    assert re.fullmatch(r"\d+ s", age)
    assert f"visits: 1 run has spent ε = {spent} at δ = 0.000502 (add_remove, record)" in said


def test_every_state_is_told(tmp_path, show):
    make_run(tmp_path / "finished")
    make_run(tmp_path / "stopped", taken=7, epsilon=3.0, noise_multiplier=None)
    make_run(tmp_path / "unreleased", released=False)
    make_run(tmp_path / "seeded", seed=1)
    sealed = Ledger.open(make_run(tmp_path / "sealed") / "private" / "ledger.txt")
    sealed.seal()
    sealed.close()
    (tmp_path / "empty" / "private").mkdir(parents=True)
    (tmp_path / "empty" / "private" / "lock").touch()
    begun = make_run(tmp_path / "begun", released=False)
    ledger = begun / "private" / "ledger.txt"
    ledger.write_text(ledger.read_text().splitlines(keepends=True)[0])  # only the budget
    make_run(tmp_path / "deep" / "down" / "running", taken=5, released=False)
    shutil.copytree(make_run(tmp_path / "x") / "release", tmp_path / "received")
    shutil.rmtree(tmp_path / "x")
    with locked(tmp_path / "deep" / "down" / "running"):
        status, said, _ = show()
    states = {
        "finished": "finished",
        "stopped": "stopped: can go on",
        "unreleased": "stopped: can go on",
        "seeded": "finished, NOT PRIVATE: a seed",
        "sealed": "sealed",
        "empty": "never began",
        "begun": "never began",
        os.path.join("deep", "down", "running"): "running",
        "received": "release without its run",
    }
    assert {name: row_of(said, name)[0] for name in states} == states
    assert row_of(said, "stopped")[2] == "7 of 20"
    assert status == 0


def test_a_run_whose_budget_is_used_up_is_finished(tmp_path, show):
    folder = make_run(tmp_path / "short", taken=20)
    ledger = folder / "private" / "ledger.txt"
    segment = folder / "private" / "segment-1.json"
    segment.write_text(segment.read_text().replace('"steps": 20', '"steps": 99'))
    _, said, _ = show()
    assert row_of(said, "short")[0] == "finished: its budget is used up"
    assert row_of(said, "short")[2] == "20 of 99"
    assert Ledger.read(ledger).steps == 20


def test_runs_with_one_name_are_composed_and_others_are_not(tmp_path, show):
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b", noise_multiplier=2.0)
    make_run(tmp_path / "c", name="patients-2026")
    _, said, _ = show()
    total = round_up(jaxdp.compose(first, second).epsilon)
    assert f"visits: 2 runs together have spent ε = {total:g} at δ = 0.000502" in said
    assert "patients-2026: 1 run has spent ε = " in said


def test_a_name_that_nobody_declared_is_told(tmp_path, show):
    make_run(tmp_path / "a", name="own data")
    _, said, _ = show()
    assert "No name was declared for these records, so all such runs count as on the" in said


def test_seeded_runs_are_not_hidden_in_the_sum(tmp_path, show):
    first = make_run(tmp_path / "a")
    make_run(tmp_path / "b", seed=1)
    _, said, _ = show()
    total = round_up(jaxdp.compose(first).epsilon)
    assert (
        "visits: no ε holds for its 2 runs (add_remove, record), because a seed makes a run NOT "
        f"PRIVATE: b. 1 run without a seed has spent ε = {total:g} at δ" in said
    )


def test_other_neighbours_are_told_apart(tmp_path, show):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", adjacency="replace_one")
    make_run(tmp_path / "c", adjacency="replace_one", window=8)
    _, said, _ = show()
    assert "visits: its runs have guarantees about different neighbours, whose ε do not add" in said
    for kind in ("add_remove, record", "replace_one, record", "replace_one, window of 8 char"):
        assert f" ({kind}" in " ".join(said.split())
    assert "2 runs" not in said


def test_copies_count_once(tmp_path, show):
    first = make_run(tmp_path / "a")
    shutil.copytree(first, tmp_path / "b")
    shutil.copytree(first / "release", tmp_path / "c")
    shutil.copytree(first / "release", tmp_path / "d")
    _, said, _ = show()
    assert f"visits: 1 run has spent ε = {round_up(jaxdp.compose(first).epsilon):g} at" in said
    assert "one spending, which counts once: b with a, c with a, d with a" in said
    shutil.rmtree(tmp_path / "a")
    shutil.rmtree(tmp_path / "b")
    _, said, _ = show()
    assert "visits: 1 run has spent" in said
    assert "counts once: d with c" in said


def test_copies_that_both_went_on_have_no_sum(tmp_path, show):
    first = make_run(tmp_path / "a")
    second = shutil.copytree(first, tmp_path / "b")
    for folder, last in ((first, 24), (second, 29)):
        ledger = Ledger.open(folder / "private" / "ledger.txt")
        ledger.charge(20, last)
        ledger.close()
    _, said, _ = show()
    assert "visits: no ε holds for its 2 runs (add_remove, record): " in said
    assert "the same noise may be in both" in said
    assert "spent ε =" not in said


def test_what_is_damaged_is_told_and_makes_every_sum_a_lower_bound(tmp_path, show):
    make_run(tmp_path / "a")
    (make_run(tmp_path / "b") / "private" / "ledger.txt").write_text("nonsense\n")
    status, said, _ = show()
    assert status == 1
    assert row_of(said, "b")[:2] == ["damaged", "not known"]
    assert "visits: 1 run has spent ε = at least " in said
    assert "NOT COUNTED, because it is not known what it spent: b: " in said
    assert "line 1 is damaged" in said


def test_private_scores_are_told(tmp_path, show):
    make_run(tmp_path / "a", scores={"accuracy": 0.5}, test_is_public=False)
    assert "The scores are PRIVATE" in show()[1]
    shutil.rmtree(tmp_path / "a")
    make_run(tmp_path / "a", scores={"accuracy": 0.5})
    assert "PRIVATE" not in show()[1]


@pytest.mark.parametrize("columns", [40, 60, 80, 100])
def test_no_name_and_no_number_is_cut(tmp_path, show, columns):
    name = "digits_cnn-20261125-020558"
    make_run(tmp_path / name, scores={"accuracy": 0.93333})
    make_run(tmp_path / "seeded", seed=1)
    _, said, _ = show(columns=columns)
    assert max(map(len, said.splitlines())) <= columns
    words = said.replace(",", " ").split()
    spent = f"{round_up(jaxdp.compose(tmp_path / name).epsilon):g}"
    assert {name, spent, "0.000502", "0.9333", "20", "finished"} <= set(words)
    assert ("run " in said.splitlines()[0]) == (columns >= 80)  # a table, where it fits


def test_a_name_that_is_too_long_for_a_line_has_one_of_its_own(tmp_path, show):
    name = "a" * 70
    make_run(tmp_path / name, seed=1)
    _, said, _ = show(columns=60)
    assert said.splitlines()[0] == name
    assert name in said.splitlines()[1:]  # the sum names it, too


def test_usage_and_refusals(tmp_path, show, capsys, monkeypatch):
    assert runs.main(["--help"]) == 0
    assert "usage: python -m jaxdp.runs [FOLDER]" in capsys.readouterr().out
    assert runs.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("jaxdp")
    for args in (["one", "two"], ["--all"], [str(tmp_path / "missing")]):
        assert runs.main(args) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert len(said.splitlines()) == 1
    assert show() == (0, f"There is no run below {tmp_path}.\n", "")
    monkeypatch.chdir(tmp_path)
    assert runs.main([]) == 2
    assert "there is no folder runs" in capsys.readouterr().err
    make_run(tmp_path / "runs" / "mine")
    assert runs.main([]) == 0
    assert "visits: 1 run" in capsys.readouterr().out


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_nobody_may_read_is_refused(tmp_path, show):
    (tmp_path / "hidden").mkdir(mode=0o000)
    status, _, said = show()
    (tmp_path / "hidden").chmod(0o700)
    assert status == 2
    assert "what was spent in it would not be counted" in said


@pytest.mark.slow
def test_it_runs_as_a_program_and_by_the_command_jaxdp(tmp_path):
    make_run(tmp_path / "mine")
    for command in (["jaxdp.runs"], ["jaxdp", "runs"]):
        said = subprocess.run(
            [sys.executable, "-m", *command, str(tmp_path)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert said.stderr == ""
        assert "visits: 1 run has spent" in said.stdout
