"""The measuring of methods against the plain gradient, on a problem of a few numbers."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.engine import measuring, methods
from benchmarks.engine.problems import PROBLEMS, SUITES, Problem


@pytest.fixture(scope="module")
def small():
    x, y = jax.random.normal(jax.random.key(0), (8, 3)), jnp.arange(8) % 2
    loss = lambda params, x, y: -jax.nn.log_softmax(x @ params["w"])[y]
    return Problem(loss, {"w": jnp.eye(3, 2)}, (x, y))


def test_all_methods_agree_and_are_timed(small):
    names = list(methods.available())
    results = measuring.measure(small, names, rounds=1)
    assert list(results) == names
    assert all(facts["error"] < measuring.AGREEMENT for facts in results.values())
    assert results["plain"]["ratio"] == 1
    lines = measuring.table("small", results).splitlines()
    assert [line.split()[0] for line in lines[2:]] == names


def test_a_method_that_disagrees_is_not_timed(small, monkeypatch, capsys):
    wrong = methods.available() | {"auto": methods.plain}
    monkeypatch.setattr(methods, "available", lambda: wrong)
    results = measuring.measure(small, ["plain", "auto"], rounds=1)
    assert results["auto"]["error"] > measuring.AGREEMENT
    assert "ms" not in results["auto"]
    assert "auto disagrees" in capsys.readouterr().out


def test_only_methods_without_per_example_gradients_measure_a_problem_too_large_for_them(small):
    results = measuring.measure(replace(small, dense_fits=False), ["plain", "auto", "vmap"], 1)
    assert list(results) == ["plain", "auto"]


def test_the_plain_gradient_in_microbatches_is_the_plain_gradient(small):
    whole = methods.plain(small)(small.params, small.batch)
    parts = methods.plain(replace(small, microbatch_size=2))(small.params, small.batch)
    np.testing.assert_allclose(parts["w"], whole["w"], rtol=1e-5)


def test_suites_name_problems():
    assert all(name in PROBLEMS for suite in SUITES.values() for name in suite)
