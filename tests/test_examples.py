"""The example programs run, and print what their headers say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


FITS = sorted(EXAMPLES.glob("fit_*.py"))
SOURCE = EXAMPLES / "own_source.py"
LOOPS = sorted({*EXAMPLES.glob("*.py")} - {*FITS, SOURCE})


def run(path, folder=None):
    """What a program prints, in a process of its own: JAX makes its devices when it starts."""
    program = [sys.executable, "-W", "error", str(path)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


# What differs in every run, since every run draws new secrets.
DRAWN = re.compile(
    r"(?<=test accuracy )[\d.]+|(?<=clipped )[\d.]+|(?<=norm )[\d.]+|(?<=noise )[\d.]+"
)
EXTRA = {"equinox_model": "equinox", "haiku_model": "haiku"}
EXTRA |= {"fit_equinox": "equinox", "fit_haiku": "haiku"}


@pytest.mark.slow  # 5 to 10 s each; the programs of the README run by default
@pytest.mark.parametrize("path", LOOPS, ids=lambda path: path.stem)
def test_it_prints_what_its_header_says(path):
    if path.stem in EXTRA:
        pytest.importorskip(EXTRA[path.stem])
    printed, header = run(path), path.read_text(encoding="utf-8").split('"""')[1]
    for part in (f"Command: python examples/{path.name}", "Time: ", "Prints: "):
        assert part in header, part
    fixed = [" ".join(part.split()) for part in DRAWN.split(printed.strip())]
    assert [part for part in fixed if part not in " ".join(header.split())] == []
    assert float(re.search(r"test accuracy ([\d.]+)", printed)[1]) > 0.8
    assert 2.99 < float(re.search(r"ε = ([\d.]+)", printed)[1]) <= 3


@pytest.mark.slow
@pytest.mark.parametrize("path", FITS, ids=lambda path: path.stem)
def test_a_model_of_any_library_becomes_a_release_in_25_lines(path, tmp_path):
    if path.stem in EXTRA:
        pytest.importorskip(EXTRA[path.stem])
    pytest.importorskip("tyro")
    _, header, code = path.read_text(encoding="utf-8").split('"""')
    assert f"Command: python examples/{path.name}" in header
    assert len([line for line in code.splitlines() if line.strip()]) <= 25
    last = run(path, tmp_path).splitlines()[-1]
    assert DRAWN.split(last)[0] in header
    assert float(re.search(r"test accuracy ([\d.]+)", last)[1]) > 0.8
    (made,) = (tmp_path / "runs").iterdir()
    assert (made / "release" / "privacy.json").is_file()


@pytest.mark.slow
def test_a_source_of_ones_own_is_trained_on(tmp_path, monkeypatch):
    for module in ("flax", "safetensors", "sklearn"):
        pytest.importorskip(module)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = SOURCE.read_text(encoding="utf-8")
    header = text.split('"""')[1]
    assert f"Command: python examples/{SOURCE.name}" in header
    methods = text[text.index("    def __init__") : text.index("\n\n\npath = ")]
    assert len([line for line in methods.splitlines() if line.strip()]) <= 10
    printed = run(SOURCE, tmp_path)
    last = printed.splitlines()[-1]
    assert DRAWN.split(last)[0] in header
    assert float(re.search(r"test accuracy ([\d.]+)", last)[1]) > 0.8
    (made,) = (tmp_path / "runs").iterdir()
    statement = (made / "release" / "PRIVACY.md").read_text()
    assert "| declared fields | pixels: 64 bytes of 0 to 16; label: a digit |" in statement
    page = (EXAMPLES.parent / "docs/guides/data.md").read_text(encoding="utf-8")
    assert f"{{literalinclude}} ../../examples/{SOURCE.name}\n:pyobject: RecordFile\n" in page


@pytest.mark.slow
def test_the_notebook_runs_and_prints_few_lines(tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(EXAMPLES / "fit_notebook.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len("\n".join(cell.source for cell in code).splitlines()) <= 25
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    again = [*code[:2], code[1], code[2]]  # the same cell twice: two runs, two folders
    notebook.cells = [nbformat.v4.new_code_cell(cell.source) for cell in again]
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"notebook", "notebook-2"}
    said = "".join(output.get("text", "") for output in notebook.cells[1].outputs)
    assert "\x1b" not in said
    assert 10 < len(said.splitlines()) < 40
    assert "dtype=int32" in notebook.cells[-1].outputs[0]["data"]["text/plain"]


def test_the_page_on_loops_shows_every_program():
    page = (EXAMPLES.parent / "docs/guides/your-loop.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^```\{literalinclude\} \.\./\.\./examples/(\w+)\.py$", page, re.M))
    assert shown == {path.stem for path in LOOPS} - {"by_hand", "several_devices"}
