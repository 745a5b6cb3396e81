"""ε is computed again by other code than that of the trainer, with the same theorem."""

import ast
import math
from pathlib import Path

import dp_accounting
import pytest
from helpers.cases import slow
from helpers.statements import make_plan, statement_of

import jaxdp
from jaxdp.accounting import noise_charge
from jaxdp.trainer.release import recomputed
from jaxdp.trainer.release.recomputed import Charge, Recomputed, charge_of

FOLDER = Path(jaxdp.__file__).parent / "trainer" / "release"


@pytest.mark.parametrize("module", ["recomputed", "verification", "clipping_call"])
def test_nothing_of_jaxdp_that_accounts_is_used(module):
    tree = ast.parse((FOLDER / f"{module}.py").read_text())
    used = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    own = {name for name in used if name and not name.startswith(("dp_accounting", "collections"))}
    assert own & {"accounting", "dpsgd", "claims"} == set()
    allowed = {"types", "statement", "recomputed", "clipping_call", "dataclasses", "typing"}
    assert own - {"scipy"} <= allowed


def test_the_tables_are_those_whose_errors_are_proved():
    assert set(recomputed.TABLES) == set(noise_charge.ERRORS.values())
    assert recomputed.MISSING == noise_charge.MISSING


@pytest.mark.slow
@pytest.mark.parametrize("draws", [slow(1.0), 650.0, 1e6, 1e9])
@pytest.mark.parametrize("steps", [1, 20, 10_000])
def test_the_charge_is_that_of_the_theorem(draws, steps):
    statement = statement_of(
        make_plan(num_parameters=int(draws), steps=steps, noise_multiplier=99.0), steps
    )
    found = charge_of(statement)
    used = noise_charge.noise_charge(draws * steps, steps)
    # The trainer tries 901 values of λ; the best one is a little smaller.
    assert 0.999 * used.epsilon <= 2 * found.t <= used.epsilon * (1 + 1e-9)
    for epsilon in (0.0, 1.0, 40.0):
        assert math.isclose(found.delta(epsilon), used.added_delta(epsilon), rel_tol=1e-12)


def test_epsilon_with_a_charge_solves_the_theorem():
    exact = lambda delta: float(dp_accounting.get_epsilon_gaussian(1.0, delta))
    charge = Charge(t=1e-3, once=1e-9, each=1e-10)
    epsilon = charge.epsilon(1e-5, exact)
    left = (1e-5 - charge.delta(epsilon)) * math.exp(-charge.t)
    assert math.isclose(epsilon, exact(left) + 2e-3, rel_tol=1e-7)
    assert epsilon > exact(1e-5) + 2e-3
    assert charge.epsilon(1e-9, exact) == math.inf  # nothing of δ is left
    assert Charge().epsilon(1e-5, exact) == exact(1e-5)


def test_a_record_is_in_one_batch_of_a_shuffled_epoch():
    plan = make_plan(
        num_examples=100,
        expected_batch_size=30,
        sampling="shuffled",
        adjacency="replace_one",
        noise_multiplier=lambda step: 9.0 - step,
        steps=7,
    )
    again = Recomputed(statement_of(plan, 7))
    assert [(z, count) for _, z, count in again.steps] == [(6.0, 1), (3.0, 1)]  # 4 batches each
    assert again.mu == math.hypot(1 / 6, 1 / 3)
