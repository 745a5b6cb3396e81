"""The measuring of methods against the plain gradient and step, on a problem of a few numbers."""

import json
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.engine import __main__ as program
from benchmarks.engine import measuring, methods, table
from benchmarks.engine.problems import Problem


@pytest.fixture(scope="module")
def small():
    x, y = jax.random.normal(jax.random.key(0), (8, 3)), jnp.arange(8) % 2
    loss = lambda params, x, y: -jax.nn.log_softmax(x @ params["w"])[y]
    return Problem(loss, {"w": jnp.eye(3, 2)}, (x, y), title="a small one")


@pytest.fixture
def without_jax_privacy(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax_privacy", None)


def only(monkeypatch, **changed):
    known = methods.available() | changed
    monkeypatch.setattr(measuring, "available", lambda: known)


@pytest.mark.slow
def test_all_methods_agree_and_their_gradients_and_steps_are_timed(small, without_jax_privacy):
    names = list(methods.available())
    results = measuring.measure(small, names, rounds=1)
    assert list(results) == names
    absent = results["jax_privacy"]
    assert absent == {"why": "can't be imported: import of jax_privacy halted; None in sys.modules"}
    run = [facts for name, facts in results.items() if name != "jax_privacy"]
    assert results["plain"]["ratio"] == results["plain"]["step"]["ratio"] == 1
    for facts in run:
        assert facts["error"] < small.agreement
        assert {"compile_s", "temp_mb", "ms", "ms_quartiles", "ratio"} <= facts["step"].keys()
        assert min(facts["ms"], facts["step"]["ms"]) > 0

    lines = table.lines("small", results).splitlines()
    told = [line.split()[0] for line in lines[1:]]
    assert told == ["gradient", *names, "step", *(n for n in names if n != "jax_privacy")]
    assert "can't be imported" in lines[1 + len(names)]


def test_a_method_that_disagrees_is_not_timed(small, monkeypatch):
    only(monkeypatch, auto=methods.available()["plain"])
    results = measuring.measure(small, ["plain", "auto"], rounds=1)
    assert results["auto"]["error"] > small.agreement
    assert results["auto"]["why"].startswith("disagrees with vmap(grad) by ")
    assert results["auto"].keys().isdisjoint({"ms", "step"})


def test_a_gradient_that_is_not_a_number_disagrees(small, monkeypatch):
    nan = lambda problem: lambda params, batch: {"w": jnp.full((3, 2), jnp.nan)}
    only(monkeypatch, auto=replace(methods.available()["plain"], grads=nan))
    results = measuring.measure(small, ["plain", "auto"], rounds=1)
    assert results["auto"]["why"] == "disagrees with vmap(grad) by nan"


def test_a_method_that_fails_stops_no_other(small, monkeypatch):
    def broken(problem):
        raise NotImplementedError("no rule\nand a long story")

    rival = methods.available()["optax.contrib"]
    only(monkeypatch, first=replace(rival, grads=broken), second=replace(rival, release=broken))
    results = measuring.measure(small, ["plain", "first", "second"], rounds=1)
    assert results["first"] == {"why": "fails: NotImplementedError: no rule"}
    assert results["second"]["ms"] > 0  # its gradient works
    assert results["second"]["step"] == results["first"]


def test_a_plain_gradient_that_fails_is_an_error(small, monkeypatch):
    def broken(problem):
        raise NotImplementedError("no rule")

    only(monkeypatch, plain=replace(methods.available()["plain"], grads=broken))
    with pytest.raises(NotImplementedError, match="no rule"):
        measuring.measure(small, ["plain", "auto"], rounds=1)


def test_where_not_all_gradients_fit_only_methods_without_them_are_run(small):
    large = replace(small, dense_fits=False)
    results = measuring.measure(large, ["plain", "auto", "vmap"], rounds=1)
    assert results["vmap"]["why"] == "needs 0 GB"
    assert results["vmap"]["temp_mb"] is not None
    assert min(results[name]["ms"] for name in ("plain", "auto")) > 0


def test_what_needs_more_memory_than_the_machine_has_is_not_run(small, monkeypatch):
    needed = {  # in GB
        name: measuring.compile_program(
            methods.available()[name].gradient(small), small.params, small.batch
        ).needed_gb
        for name in ("plain", "optax.contrib")
    }
    assert 0 < needed["plain"] < needed["optax.contrib"]
    between = np.mean(list(needed.values())) / measuring.SHARE
    monkeypatch.setattr(measuring, "machine_gb", lambda: between)
    results = measuring.measure(small, list(needed), rounds=1)
    assert results["plain"]["ms"] > 0
    assert results["optax.contrib"]["why"] == "needs 0 GB"


def test_the_plain_gradient_in_microbatches_is_the_plain_gradient(small):
    whole = methods.mean_gradient(small)(small.params, small.batch)
    parts = methods.mean_gradient(replace(small, microbatch_size=2))(small.params, small.batch)
    np.testing.assert_allclose(parts["w"], whole["w"], rtol=1e-5)


@pytest.mark.parametrize("name", ["plain", "auto", "optax.contrib"])
def test_a_step_moves_the_parameters_as_adam_does(small, name):
    step, state = methods.available()[name].step(small)
    step = jax.jit(step)
    params, state = step(small.params, state, small.batch)
    moved = jnp.abs(params["w"] - small.params["w"])
    np.testing.assert_allclose(moved, 1e-3, rtol=0.01)  # Adam's first step has its rate's size
    again, _ = step(params, state, small.batch)
    assert not np.array_equal(again["w"], params["w"])


@pytest.mark.slow
def test_results_are_written_problem_by_problem_and_become_a_table(
    small, monkeypatch, tmp_path, capsys, without_jax_privacy
):
    def stopped():
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "PROBLEMS", {"one": lambda: small, "two": stopped})
    arguments = ["--only", "one,two", "--methods", "plain,vmap,jax_privacy", "--rounds", "1"]
    with pytest.raises(KeyboardInterrupt):
        program.main([*arguments, "--results", str(tmp_path)])
    (path,) = tmp_path.iterdir()
    report = json.loads(path.read_text())
    assert list(report["problems"]) == ["one"]
    capsys.readouterr()
    table.main([str(path)])
    printed = capsys.readouterr().out
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| a small")]
    assert len(rows) == 2  # gradient and step
    assert f"optax {report['rivals']['optax']}" in printed.splitlines()[0]
    assert rows[0][-1] == "can't be imported |"
    assert all(float(row[5].split()[0]) > 0 for row in rows)


def test_a_table_tells_time_and_memory_of_results():
    fact = lambda ratio, mb: {"ms": 10 * ratio, "ratio": ratio, "temp_mb": mb}
    results = {
        "plain": fact(1.0, 100.0),
        "auto": fact(1.1, 104.0),
        "vmap": {"why": "needs 17 GB"},
        "jax_privacy": {"why": "can't be imported: No module named 'chex'"},
    }
    row = table.markdown({"mlp": {"methods": results}}, of_steps=False).splitlines()[-1]
    assert row == "| mlp | 10 | 1.10 (1.04) | – | – | needs 17 GB | can't be imported |"
    steps = table.markdown({"mlp": {"methods": results}}, of_steps=True)
    assert "mlp" not in steps  # results without steps have no row
