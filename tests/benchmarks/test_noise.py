"""The release and whole steps are measured beside those with `jax.random.normal`."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks.engine import noise, step
from benchmarks.engine.problems import Problem


def cells_of(printed):
    rows = [line for line in printed.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]


@pytest.mark.slow
def test_a_release_is_measured(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["noise", "--largest", "10000", "--rounds", "1"])
    noise.main()
    head, *rows = cells_of(capsys.readouterr().out)
    assert [row[0] for row in rows] == ["10,000", "10,000"]
    for row in rows:
        assert len(row) == len(head)
        assert all(float(cell) > 0 for cell in row[3:8])


def test_a_step_is_measured():
    def loss(params, x, y):
        return jnp.square(x @ params["w"] - y)

    rows = jax.random.normal(jax.random.key(0), (8, 3))
    problem = Problem(loss, {"w": jnp.zeros(3)}, (rows, rows[:, 0]))
    times = step.measure(problem, rounds=2)
    (cells,) = cells_of(step.line("small", times))
    assert len(times) == 3
    assert all(len(each) == 2 for each in times.values())
    assert all(float(cell) >= 0 for cell in cells[1:])
