"""The problems of the benchmark, with a few numbers each."""

import jax
import jax.numpy as jnp
import pytest

import jaxdp
from benchmarks.engine import measuring, methods
from benchmarks.engine.problems import LONG, PROBLEMS, SUITES


def test_suites_name_problems():
    assert all(name in PROBLEMS for suite in SUITES.values() for name in suite)
    assert sorted(SUITES["full"] + SUITES["long"]) == sorted(PROBLEMS)
    assert SUITES["long"] == LONG


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_problem_can_be_traced_and_explained(name):
    def trace():  # nothing is compiled: in all these tests take seconds
        problem = PROBLEMS[name](small=True)
        example = jax.tree.map(lambda leaf: leaf[0], problem.batch)
        explained.append(jaxdp.explain(problem.loss, problem.params, example))
        return problem.params, problem.loss(problem.params, *example)

    explained = []
    params, value = jax.eval_shape(trace)
    assert value.shape == ()
    assert [leaf.shape for leaf in explained[0].leaves] == [
        p.shape for p in jax.tree.leaves(params)
    ]
    assert all(leaf.form != "zero" for leaf in explained[0].leaves)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
def test_auto_agrees_with_vmap_on_a_small_problem(name):
    problem = PROBLEMS[name](small=True)
    gradient, reference = (
        jax.jit(methods.available()[method].gradient(problem))(problem.params, problem.batch)
        for method in ("auto", "vmap")
    )
    assert measuring.distance(gradient, reference) < problem.agreement
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(reference))
