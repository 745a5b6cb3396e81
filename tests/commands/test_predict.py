"""The command `python -m jaxdp.predict`: predictions of a release as CSV."""

import subprocess
import sys

import numpy as np
import pytest
from helpers.cases import slow

for module in ("tyro", "sklearn", "safetensors"):
    pytest.importorskip(module)
from helpers.small_releases import CASES, make_release  # noqa: E402

import jaxdp  # noqa: E402
from jaxdp import predict  # noqa: E402


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a classifier's run, a file of inputs, and what it predicts for them."""
    folder, case = tmp_path_factory.mktemp("predict"), CASES["custom_pytree"]()
    make_release(folder / "run", case)
    np.save(folder / "x.npy", case.inputs)
    return folder, case


def rows(text):
    head, *lines = text.splitlines()
    return head, [[float(cell) for cell in line.split(",")] for line in lines]


def test_it_prints_a_line_for_every_record(made, capsys):
    folder, case = made
    assert predict.main([str(folder / "run"), str(folder / "x.npy")]) == 0
    head, lines = rows(capsys.readouterr().out)
    assert head == "class,scores_0,scores_1,scores_2"
    np.testing.assert_array_equal([line[0] for line in lines], case.expected["class"])
    np.testing.assert_allclose([line[1:] for line in lines], case.expected["scores"], rtol=1e-5)


def test_it_writes_a_file(made, tmp_path, capsys):
    folder, _ = made
    args = [str(folder / "run" / "release"), str(folder / "x.npy")]
    assert predict.main(args) == 0
    printed = capsys.readouterr().out
    assert predict.main(["--output", str(tmp_path / "y.csv"), *args]) == 0
    assert capsys.readouterr().out == ""
    assert (tmp_path / "y.csv").read_text().splitlines() == printed.splitlines()


def test_usage(capsys):
    for args in (["--help"], ["-h"], ["run", "--help"]):
        assert predict.main(args) == 0
        assert "usage: python -m jaxdp.predict RELEASE FILE" in capsys.readouterr().out
    assert predict.main(["--version"]) == 0
    assert jaxdp.__version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "nothing is given: give a release and a file, as python -m jaxdp.predict"),
        (["run"], "'run' is given: give a release and a file"),
        (["run", "x.npy", "y.csv"], "'run x.npy y.csv' is given: give a release and a file"),
        (["run", "x.npy", "--output"], "--output is given no value: give the name of a file"),
        (["run", "x.npy", "--outptu", "y"], "no option --outptu: did you mean --output?"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(args, message, capsys):
    assert predict.main(args) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": "none"}, "none holds no release"),
        ({"x.npy": "none.npy"}, "none.npy can't be read (no such file or directory)"),
        ({"x.npy": "wrong.npy"}, "the inputs have shape (5, 2): give float32[n, 3]"),
        ({"y.csv": "none/y.csv"}, "No such file or directory"),
    ],
)
def test_refusals_are_one_line(made, changes, message, capsys, monkeypatch):
    folder, case = made
    monkeypatch.chdir(folder)
    np.save("wrong.npy", case.inputs[:, :2])
    args = ["run", "x.npy", "--output", "y.csv"]
    assert predict.main([changes.get(arg, arg) for arg in args]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert len(said.splitlines()) == 1
    assert not (folder / "y.csv").exists()


@pytest.mark.parametrize("command", [["jaxdp.predict"], slow(["jaxdp", "predict"])])
def test_it_runs_as_a_program(made, command):
    folder, case = made
    done = subprocess.run(
        [sys.executable, "-m", *command, str(folder / "run"), str(folder / "x.npy")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert len(rows(done.stdout)[1]) == len(case.inputs)
