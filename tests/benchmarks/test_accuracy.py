"""The rows of docs/accuracy.md: their commands, their results, the table and the figure."""

import dataclasses
import json
import shlex
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tyro")

from benchmarks.accuracy import __main__ as program
from benchmarks.accuracy import results, runs, training
from benchmarks.accuracy.figure import LAYOUT, LINES, MARKERS, draw
from benchmarks.accuracy.results import Result
from benchmarks.accuracy.rows import BAO, ROWS, TRAMER, Published, Row
from benchmarks.accuracy.runs import Case
from benchmarks.accuracy.table import markdown
from benchmarks.runs import without_privacy
from jaxdp import train
from jaxdp.trainer.parsing import parse

ROOT = Path(__file__).parents[2]
TINY = Row(
    name="tiny",
    set="MNIST",
    method="linear",
    config="digits_linear",
    options={"plan.steps": 2, "evaluations": 0},
    at={1: {"training.learning-rate": 0.5}},
    epsilons=(1, 3),
    plain={"training.optimizer": "adam", "training.learning-rate": 0.01},
    theirs=[Published(1, 0.9, BAO), Published(3, 0.95, TRAMER)],
)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(ROWS, "tiny", TINY)
    monkeypatch.chdir(ROOT)
    return TINY


def made_up(case, accuracy):
    private = dict(epsilon_spent=case.epsilon, delta=1e-5, noise_multiplier=2.0)
    return Result(
        row=case.row.name,
        seed=case.seed,
        command=case.command,
        config=case.config_digest,
        accuracy=accuracy,
        loss=0.5,
        steps=1200,
        expected_batch_size=8192.0,
        seconds=60.0 * (case.seed + 1),
        hardware="a machine",
        jax="0.12",
        jaxdp="0.1.0",
        epsilon=case.epsilon,
        **({} if case.epsilon is None else private),
    )


def write(folder, row, epsilon, *accuracies):
    """Writes made-up results with seeds 0, 1, ..."""
    for seed, accuracy in enumerate(accuracies):
        case = Case(row, epsilon, seed)
        results.save(folder, case, made_up(case, accuracy))


def table_of(folder, row):
    """Returns the cells of a row's table, line by line, what was told, and the note below."""
    told = []
    lines = markdown(folder, {row.name: row}, told.append).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:-2]]
    return cells, told, lines[-1]


def test_rows_fit_the_figure_and_their_own_epsilons():
    for name, row in ROWS.items():
        assert name == row.name
        assert any(row.set in line for line in LAYOUT)
        assert len([other for other in ROWS.values() if other.set == row.set]) <= len(LINES)
        assert {published.source for published in row.theirs} <= MARKERS.keys()
        assert set(row.at) <= set(row.epsilons)
        assert row.plain_at in row.epsilons
        assert bool(row.theirs) != (row.within is not None)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_every_command_of_every_row_parses(row, monkeypatch):
    monkeypatch.chdir(ROOT)
    for epsilon in row.epsilons:
        config = parse(Case(row, epsilon, 2).args)
        assert (config.plan.epsilon, config.seed) == (epsilon, 2)
        assert config.plan.delta == 1e-5
    assert parse(Case(row, None, 2).args).seed == 2


def test_options_reach_the_config(monkeypatch):
    monkeypatch.chdir(ROOT)
    row = dataclasses.replace(
        TINY,
        options={"plan.steps": 7, "training.schedule-options": ("init_value", 0, "peak_value", 1.5)}
        | {"training.schedule": "warmup_cosine_decay", "training.constant-time": True},
    )
    one, three, plain = (parse(Case(row, epsilon, 1).args) for epsilon in (1, 3, None))
    assert (one.plan.epsilon, three.plan.epsilon) == (1, 3)
    assert (one.training.learning_rate, three.training.learning_rate) == (0.5, 2.3)
    assert (plain.training.learning_rate, plain.training.optimizer) == (0.01, "adam")
    for config in (one, three, plain):
        assert (config.plan.steps, config.seed) == (7, 1)
        assert config.training.schedule_options == {"init_value": 0, "peak_value": 1.5}
        assert config.training.constant_time


@pytest.mark.slow
def test_a_private_run_is_that_of_its_command(tiny, tmp_path, monkeypatch, capsys):
    configs, train_config = [], train.command.train
    monkeypatch.setattr(
        train.command, "train", lambda config: configs.append(config) or train_config(config)
    )
    folder = tmp_path / "results"
    asked = ["run", "tiny", "--epsilon", "1", "--seeds", "2", "--results", str(folder)]
    assert program.main(asked) == 0
    assert "tiny, epsilon 1, seed 2: accuracy" in capsys.readouterr().out
    (path,) = folder.rglob("*.*")
    assert path == folder / "tiny" / "epsilon-1-seed-2.json"
    found = json.loads(path.read_text())
    assert found["command"] == (
        "python -m jaxdp.train configs/digits_linear.py --plan.steps 2 --evaluations 0 "
        "--training.learning-rate 0.5 --plan.epsilon 1 --seed 2"
    )
    words = shlex.split(found["command"])[3:]
    assert dataclasses.replace(configs[0], output=None) == parse(words)
    assert (found["row"], found["seed"], found["epsilon"], found["steps"]) == ("tiny", 2, 1, 2)
    assert found["expected_batch_size"] == 719
    assert found["delta"] == pytest.approx(1437**-1.1, rel=1e-4)
    assert 0.99 < found["epsilon_spent"] <= 1
    assert found["noise_multiplier"] > 1
    assert found["seconds"] > 0

    assert train.main([*words, "--output", str(tmp_path / "run")]) == 0
    scores = json.loads((tmp_path / "run" / "private" / "results.json").read_text())["scores"]
    assert (found["accuracy"], found["loss"]) == (scores["accuracy"], scores["loss"])

    # It has a result now.
    monkeypatch.setattr(training, "result_of", lambda case, files: pytest.fail("trained again"))
    assert program.main(asked) == 0
    assert "has a result" in capsys.readouterr().out
    again = Result(**{**found, "accuracy": 0.5})
    monkeypatch.setattr(training, "result_of", lambda case, files: again)
    assert program.main([*asked, "--again"]) == 0
    assert json.loads(path.read_text())["accuracy"] == 0.5


@pytest.mark.slow
def test_a_run_without_privacy_is_that_of_its_command(tiny, tmp_path, capsys):
    asked = ["run", "tiny", "--without-privacy", "--seeds", "0", "--results", str(tmp_path)]
    assert program.main(asked) == 0
    (path,) = tmp_path.rglob("*.json")
    assert path == tmp_path / "tiny" / "without-privacy-seed-0.json"
    found = json.loads(path.read_text())
    assert found["command"] == (
        "python -m benchmarks.runs.without_privacy configs/digits_linear.py --plan.steps 2 "
        "--evaluations 0 --training.optimizer adam --training.learning-rate 0.01 --seed 0"
    )
    assert found["epsilon"] is found["epsilon_spent"] is found["noise_multiplier"] is None
    assert (found["steps"], found["expected_batch_size"]) == (2, 719)
    capsys.readouterr()
    without_privacy.main(shlex.split(found["command"])[3:])
    assert (
        f"test accuracy {found['accuracy']:.4f}, loss {found['loss']:.4f}"
        in capsys.readouterr().out
    )


def test_a_run_that_stops_leaves_no_result(tiny, tmp_path, monkeypatch, capsys):
    asked = ["run", "tiny", "--results", str(tmp_path)]
    monkeypatch.setattr(train, "main", lambda args: 130)
    assert program.main(asked) == 130
    assert "stopped, without a result" in capsys.readouterr().err

    def interrupted(case, files):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "result_of", interrupted)
    assert program.main(asked) == 130
    assert list(tmp_path.rglob("*.json")) == []


def test_every_missing_run_is_trained_in_order(tiny, tmp_path, monkeypatch):
    trained = []

    def result_of(case, files):
        trained.append((case.epsilon, case.seed))
        return made_up(case, 0.91)

    monkeypatch.setattr(training, "result_of", result_of)
    write(tmp_path, TINY, 1, 0.9)
    assert program.main(["run", "tiny", "--results", str(tmp_path)]) == 0
    assert trained == [(1, 1), (1, 2), (3, 0), (3, 1), (3, 2)]
    assert len(list(tmp_path.rglob("*.json"))) == 6


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["none"], "no row none: there are "),
        (["tiny", "--epsilon", "8"], "tiny has no ε = 8: it has 1, 3"),
        (["tiny", "--without-privacy", "--epsilon", "1"], "leave one of them out"),
        (["tiny", "--files", "no-such-folder"], "there is no folder no-such-folder"),
    ],
)
def test_wrong_options_are_refused(tiny, args, message, capsys):
    with pytest.raises(SystemExit):
        program.main(["run", *args])
    assert message in capsys.readouterr().err


def test_options_that_the_config_refuses_are_one_line(tiny, tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(ROWS, "tiny", dataclasses.replace(TINY, options={"plan.stepz": 2}))
    for more in ([], ["--without-privacy"]):
        assert program.main(["run", "tiny", *more, "--results", str(tmp_path)]) == 2
        assert "error: there is no option --plan.stepz" in capfd.readouterr().err


def test_results_of_an_edited_config_are_not_used(tiny, tmp_path, monkeypatch):
    write(tmp_path, TINY, 1, 0.90)
    configs = tmp_path / "configs"
    configs.mkdir()
    text = (ROOT / "configs" / f"{TINY.config}.py").read_text()
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    for edited, used in ((text.replace('"""', '"""Well: ', 1), True), (text + "\n1\n", False)):
        (configs / f"{TINY.config}.py").write_text(edited)
        cells, told, _ = table_of(tmp_path, TINY)
        assert (cells[0][3] != "not run") == used
        assert used or "other options than the row has now" in told[0]


def test_results_of_other_options_or_damaged_are_not_used(tiny, tmp_path, monkeypatch, capsys):
    write(tmp_path, TINY, 1, 0.90, 0.91, 0.92)
    changed = dataclasses.replace(TINY, options={"plan.steps": 3})
    cells, told, _ = table_of(tmp_path, changed)
    assert [line[3] for line in cells] == ["not run", "not run"]
    assert len(told) == 3
    assert "other options than the row has now" in told[0]
    monkeypatch.setitem(ROWS, "tiny", changed)
    assert program.main(["run", "tiny", "--results", str(tmp_path)]) == 2
    assert "run tiny --again" in capsys.readouterr().err

    results.path_of(tmp_path, Case(TINY, 1, 1)).write_text('{"row": ')
    cells, told, _ = table_of(tmp_path, TINY)
    assert cells[0][3] == "0.9100 (0.9000 to 0.9200, 2 seeds)"
    assert "is damaged" in told[0]


def test_the_table_of_made_up_results(tmp_path):
    write(tmp_path, TINY, 1, 0.93, 0.91, 0.92)
    write(tmp_path, TINY, 3, 0.94)
    write(tmp_path, TINY, None, 0.97, 0.96, 0.98)
    cells, told, note = table_of(tmp_path, TINY)
    assert told == []
    plain = "0.9700 (0.9600 to 0.9800, 3 seeds)"
    assert cells == [
        ["MNIST, linear", "1", "1e-05", "0.9200 (0.9100 to 0.9300, 3 seeds)",
         "0.9 (Bao and Bindschaedler 2024)", "yes, by 0.0200", "1,200", "8,192", "2.0", plain],
        ["MNIST, linear", "3", "1e-05", "0.9400 (one seed)",
         "0.95 (Tramèr and Boneh 2021)", "fell short by 0.0100", "1,200", "8,192", "1.0", plain],
    ]  # fmt: skip
    assert note == (
        "- MNIST, linear: `python -m benchmarks.accuracy run tiny` (a machine, JAX 0.12, jaxdp "
        "0.1.0)"
    )


def test_the_table_says_what_was_not_run(tmp_path):
    row = dataclasses.replace(TINY, epsilons=(1, 2, 3))
    cells, _, note = table_of(tmp_path, row)
    assert [line[1] for line in cells] == ["1", "3"]  # at ε = 2 there is nothing to beat
    assert all((line[3], line[5], line[9]) == ("not run", "–", "not run") for line in cells)
    assert note.endswith("(not run)")
    write(tmp_path, row, 2, 0.93)
    assert table_of(tmp_path, row)[0][1][3:6] == ["0.9300 (one seed)", "–", "–"]


@pytest.mark.parametrize(
    ("accuracy", "verdict"),
    [
        (0.846, "yes, by 0.0010"),
        (0.8453, "equal (+0.0003)"),
        (0.845, "equal (+0.0000)"),
        (0.84, "fell short by 0.0050"),
    ],
)
def test_a_row_may_be_compared_with_the_same_without_privacy(tmp_path, accuracy, verdict):
    row = dataclasses.replace(TINY, theirs=(), within=0.005, plain_at=1)
    write(tmp_path, row, 1, accuracy)
    assert table_of(tmp_path, row)[0][0][5] == "without privacy is not run"
    write(tmp_path, row, None, 0.85)
    ((*_, theirs, found, _, _, _, _),) = table_of(tmp_path, row)[0]
    assert (theirs, found) == ("at most 0.005 below without privacy", verdict)


def test_the_figure_of_made_up_results(tmp_path):
    write(tmp_path, TINY, 1, 0.93, 0.91, 0.92)
    write(tmp_path, TINY, 3, 0.94)
    axes = {axes.get_title(): axes for axes in draw(tmp_path, {"tiny": TINY}, print).axes}
    assert axes.keys() == {name for line in LAYOUT for name in line}
    (ours,) = axes["MNIST"].containers
    line, _, (bars,) = ours
    np.testing.assert_allclose(line.get_xydata(), [(1, 0.92), (3, 0.94)])
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [
        pytest.approx([0.91, 0.93]),
        pytest.approx([0.94, 0.94]),
    ]
    points = [line for line in axes["MNIST"].lines if line.get_marker() in MARKERS.values()]
    assert [tuple(point.get_xydata()[0]) for point in points] == [(1, 0.9), (3, 0.95)]
    assert [text.get_text() for text in axes["MNIST"].texts] == ["0.9", "0.95"]


def test_the_command_draws(tiny, tmp_path, capsys):
    path = tmp_path / "accuracy.png"
    asked = ["plot", "--results", str(tmp_path / "results"), "--figure", str(path)]
    assert program.main(asked) == 2
    assert "error: there is no result in" in capsys.readouterr().err
    write(tmp_path / "results", ROWS["adult"], 1, 0.85)
    write(tmp_path / "results", ROWS["adult"], None, 0.86)
    assert program.main(asked) == 0
    assert path.stat().st_size > 10_000


def test_the_command_prints_the_table(tmp_path, capsys):
    write(tmp_path, ROWS["adult"], 1, 0.85)
    assert program.main(["table", "--results", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "| Adult, logistic regression | 1 | 1e-05 | 0.8500 (one seed) |" in printed
    assert all(f"accuracy run {name}`" in printed for name in ROWS)


def test_the_page_has_the_table_of_the_results():
    page = (ROOT / "docs" / "accuracy.md").read_text(encoding="utf-8")
    told = []
    table = markdown(results.RESULTS, ROWS, told.append)
    assert table in page, "put what `python -m benchmarks.accuracy table` prints into the page"
    assert told == []
