"""The example programs run, and print what their headers say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(path):
    """What a program prints, in a process of its own: JAX makes its devices when it starts."""
    program = [sys.executable, "-W", "error", str(path)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


# What differs in every run, since every run draws new secrets.
DRAWN = re.compile(
    r"(?<=test accuracy )[\d.]+|(?<=clipped )[\d.]+|(?<=norm )[\d.]+|(?<=noise )[\d.]+"
)
EXTRA = {"equinox_model": "equinox", "haiku_model": "haiku"}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
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


def test_the_page_on_loops_shows_every_program():
    page = (EXAMPLES.parent / "docs/guides/your-loop.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^```\{literalinclude\} \.\./\.\./examples/(\w+)\.py$", page, re.M))
    assert shown == {path.stem for path in EXAMPLES.glob("*.py")} - {"by_hand", "several_devices"}
