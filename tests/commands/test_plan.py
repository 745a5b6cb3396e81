"""The command `python -m jaxdp.plan`."""

import dataclasses
import json
import subprocess
import sys

import pytest

for module in ("tyro", "rich", "matplotlib", "flax"):
    pytest.importorskip(module)
from helpers.cases import slow  # noqa: E402

import jaxdp  # noqa: E402
from jaxdp import plan  # noqa: E402

NUMBERS = dict(
    num_examples=1437,
    num_parameters=650,
    batch_sizes=[64, 719],
    epochs=2,
    sampling="shuffled",  # quick: closed forms
    adjacency="zero_out",
)
RUN = [
    *("--num-examples", "1437", "--num-parameters", "650", "--batch-sizes", "64", "719"),
    *("--epochs", "2", "--sampling", "shuffled", "--adjacency", "zero_out"),
]


@pytest.fixture
def said(capsys, monkeypatch):
    """Runs the command, expects success, returns what it printed."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*args: str) -> str:
        assert plan.main(args) == 0
        return capsys.readouterr().out

    return run


def test_the_table(said):
    printed = said(*RUN)
    assert max(map(len, printed.splitlines())) <= 80
    words = " ".join(printed.split())
    assert "Noise for ε = 3 at δ = 0.000337, by PLD: 1,437 records, 650 parameters" in words
    rows = jaxdp.plan_noise(**NUMBERS, epsilon=3.0).rows
    for row, mark in zip(rows, ("", "*"), strict=True):
        shown = (
            f"{row.batch_size:g} {row.steps} {row.noise_multiplier:g} {row.noise_std:.3g} "
            f"{row.noise_norm:.3g} 1 {mark}{row.signal_to_noise:.3g} 3 {row.epsilon_rdp:.4g}"
        )
        assert shown[:-2] in words  # the last digit is rounded up
    assert "warning" not in words


@pytest.mark.slow
def test_wide_numbers_stay_within_80_columns(said):
    printed = said(
        *("--num-examples", "50000000", "--num-parameters", "12345678", "--steps", "123456"),
        *("--batch-sizes", "12345.5", "--epsilon", "0.0123", "--delta", "1.23e-08"),
    )
    assert max(map(len, printed.splitlines())) <= 80
    assert "12345.5 123456 " in " ".join(printed.split())


def test_a_narrow_terminal_gets_fewer_columns_and_whole_numbers(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert plan.main(RUN) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 60
    assert "…" not in printed
    assert "No room for: ε by RDP, noise std." in " ".join(printed.split())


@pytest.mark.slow
def test_a_reader_that_leaves_gets_no_traceback():
    command = [sys.executable, "-m", "jaxdp.plan", *RUN, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()  # before the command has imported anything
        assert process.stderr.read() == b""
    assert process.returncode == 128 + 13


def test_warnings_are_printed(said):
    words = " ".join(said(*RUN, "--delta", "0.01", "--unit", "batch").split())
    assert "warning: delta is 0.01, not below 1/N" in words
    assert "warning: the noise dwarfs the gradient at batch size 64, 719" in words


def test_json_is_the_librarys_answer(said):
    printed = said(*RUN, "--json", "--unit", "batch", "--units", "4", "--clipping-norm", "0.5")
    table = jaxdp.plan_noise(**NUMBERS, epsilon=3.0, unit="batch", num_units=4, clipping_norm=0.5)
    assert json.loads(printed) == json.loads(json.dumps(dataclasses.asdict(table)))


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_plot(said, tmp_path, ending):
    path = tmp_path / f"noise.{ending}"
    said(*RUN, "--plot", str(path))
    start = path.read_bytes()[:100]
    assert start.startswith(b"\x89PNG" if ending == "png" else b"<?xml")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--epsilon", "-1"], "epsilon is -1.0"),
        (["--batch-sizes", "0"], "batch size 0.0"),
        (["--plot", "nowhere/at/all.png"], "can't be written"),
        (["--plot", "noise.abc"], "end the name in .png, .pdf, .svg"),
    ],
)
def test_errors_are_one_line(capsys, args, says):
    assert plan.main([*RUN, *args]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert says in line


def test_a_missing_config_file_is_named(capsys):
    assert plan.main(["configs/digits_cn.py"]) == 2
    assert "there is no config file configs/digits_cn.py" in capsys.readouterr().err


def test_it_runs_as_a_module_and_says_what_is_missing():
    done = subprocess.run(
        [sys.executable, "-m", "jaxdp.plan"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "--num-examples" in done.stdout + done.stderr
    assert "RuntimeWarning" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("missing", [slow("tyro"), slow("rich"), "matplotlib"])
def test_a_missing_extra_is_one_line_that_names_the_command(missing, tmp_path):
    code = (
        f"import sys, runpy; sys.modules[{missing!r}] = None; "
        "runpy.run_module('jaxdp.plan', run_name='__main__')"
    )
    args = [*RUN, "--plot", str(tmp_path / "noise.png")]
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert missing in done.stderr
    assert "pip install 'jaxdp-privacy[train]'" in done.stderr
    assert "pip install -e '.[train]'" in done.stderr
