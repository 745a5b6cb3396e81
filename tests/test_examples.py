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


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_it_prints_what_its_header_says(path):
    printed, header = run(path), path.read_text(encoding="utf-8").split('"""')[1]
    for part in (f"Command: python examples/{path.name}", "Time: ", "Prints: "):
        assert part in header, part
    # The accuracy of every run is another one, everything else is the same.
    fixed = re.split(r"(?<=test accuracy )[\d.]+", printed.strip())
    assert [" ".join(part.split()) in " ".join(header.split()) for part in fixed] == [True, True]
    assert float(re.search(r"test accuracy ([\d.]+)", printed)[1]) > 0.8
    assert 2.99 < float(re.search(r"ε = ([\d.]+)", printed)[1]) <= 3
