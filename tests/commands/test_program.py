"""The commands as programs: versions, help, and ends without a traceback."""

import os
import signal
import subprocess
import sys

import pytest
from helpers.cases import slow
from helpers.interrupts import interrupts_raise

for module in ("tyro", "rich", "sklearn", "matplotlib", "safetensors"):
    pytest.importorskip(module)
import jaxdp  # noqa: E402
from jaxdp.__main__ import COMMANDS, main  # noqa: E402


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_tells_its_version(command, capsys):
    assert main([*command.split(), "--version"]) == 0
    assert capsys.readouterr().out == f"jaxdp-privacy {jaxdp.__version__}\n"


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_ends_with_examples(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    try:
        status = main([*command.split(), "--help"])
    except SystemExit as end:
        status = end.code
    assert status == 0
    said, examples = capsys.readouterr().out.split("\nexamples:\n")
    assert "usage: " in said
    example = f"python -m jaxdp.{command} " if command else "jaxdp "
    assert 2 <= examples.count(example.rstrip()) <= 3
    assert max(map(len, examples.splitlines())) <= 100


def test_the_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert [command for command in COMMANDS if f"\n  {command} " not in said] == []


def test_an_interrupt_while_a_command_imports_leaves_no_traceback():
    command = [sys.executable, "-X", "importtime", "-m", "jaxdp.train", "--dry-run"]
    with interrupts_raise():
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    for line in process.stderr:  # a line for every import
        if line.rstrip().endswith(" jax.version"):
            break
    os.kill(process.pid, signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == ""
    assert "Traceback" not in errors
    assert "KeyboardInterrupt" not in errors


@pytest.mark.parametrize("command", ["train", slow("plan configs/digits_linear.py")])
def test_a_platform_that_is_not_there_is_one_line(command):
    done = subprocess.run(
        [sys.executable, "-m", "jaxdp", *command.split()],
        env=os.environ | {"JAX_PLATFORMS": "cuda"},
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        pytest.skip("this machine has a GPU")
    assert done.returncode == 2
    *_, line = done.stderr.splitlines()
    assert line.startswith("error: JAX_PLATFORMS is 'cuda', and JAX finds no such device")
    assert "unset it" in line
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
