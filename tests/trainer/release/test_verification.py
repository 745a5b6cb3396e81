"""Statements of jaxdp hold; those of which a number was changed do not."""

import copy
import json
import math

import pytest
from helpers import statements
from helpers.statements import segment_of, statement_of

from jaxdp import (
    clip_batch,
    clip_individual,
    clip_layerwise,
    clip_multiplied,
    clip_normalised,
    clip_quantile,
)
from jaxdp.trainer import Config
from jaxdp.trainer.release import typed_json
from jaxdp.trainer.release.recomputed import NotKnown
from jaxdp.trainer.release.statement import Statement, to_text
from jaxdp.trainer.release.verification import checks


def make_plan(**numbers):
    """So much noise that its grid is small: others take seconds."""
    return statements.make_plan(**{"noise_multiplier": 4.0, **numbers})


SHUFFLED = dict(sampling="shuffled", adjacency="replace_one")
LARGE = dict(num_examples=10**6, expected_batch_size=100, num_parameters=650)
PLANS = {
    "noise for any model": {},
    "noise for a target": dict(noise_multiplier=None, epsilon=0.3, num_parameters=650),
    "zero-out": dict(adjacency="zero_out"),
    "replace-one": dict(adjacency="replace_one"),
    "replace-one of batch units": dict(adjacency="replace_one", clipping=clip_batch(1.0)),
    "fixed size": dict(sampling="fixed_size", adjacency="replace_one"),
    "full batch": dict(
        sampling="full_batch",
        adjacency="zero_out",
        expected_batch_size=1437,
        noise_multiplier=9.0,
    ),
    "all records by chance": dict(expected_batch_size=1437, noise_multiplier=20.0),
    "shuffled": SHUFFLED | dict(clipping=clip_batch(0.1), noise_multiplier=0.5, steps=75),
    "shuffled, with a schedule": SHUFFLED
    | dict(noise_multiplier=lambda step: 3.5 if step < 9 else 2.5, steps=40),
    "a schedule": dict(noise_multiplier=lambda step: 3.5 if step < 5 else 4.5),
    "so little noise that no ε is stated": SHUFFLED
    | dict(clipping=clip_batch(0.1), noise_multiplier=0.01875, steps=750),
    "no noise": dict(noise_multiplier=0.0),
    "losses that a coarse grid is too coarse for": LARGE | dict(noise_multiplier=2.0, steps=5000),
    "a record that hardly ever takes part": LARGE
    | dict(expected_batch_size=1e-3, noise_multiplier=1.0, steps=10),
    "layers": dict(clipping=clip_layerwise(0.5)),
    "groups": dict(clipping=clip_layerwise({"*kernel": 0.5, "*bias": 1.0})),
    "one factor": dict(clipping=clip_multiplied({"*kernel": 0.5, "*bias": 1.0}, unit="batch")),
    "quantiles": dict(clipping=clip_quantile(0.5, layer="tensor")),
    "normalised": dict(clipping=clip_normalised(2.0, unit="batch")),
    "norms with a schedule": dict(clipping=clip_individual(lambda step: 1.0)),
}


def wrong(statement):
    return [check for check in checks(statement) if not check.holds]


@pytest.mark.parametrize("numbers", PLANS.values(), ids=PLANS)
def test_a_statement_of_jaxdp_holds(numbers):
    plan = make_plan(**numbers)
    assert wrong(statement_of(plan, plan.steps)) == []


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 100, 10_000])
@pytest.mark.parametrize("z", [0.3, 0.6, 1.0, 3.0, 30.0])
@pytest.mark.parametrize("batch", [1, 100, 1400])
@pytest.mark.parametrize("adjacency", ["add_remove", "replace_one"])
def test_statements_of_many_plans_hold(adjacency, batch, z, steps):
    numbers = dict(adjacency=adjacency, expected_batch_size=batch, num_parameters=650)
    numbers |= dict(noise_multiplier=z, steps=steps)
    assert wrong(statement_of(make_plan(**numbers), steps)) == []


@pytest.mark.slow
def test_a_statement_of_several_segments_holds():
    before = [segment_of(make_plan(), 7), segment_of(make_plan(noise_multiplier=3.0), 5)]
    plan = make_plan(expected_batch_size=50, noise_multiplier=5.0)
    statement = statement_of(plan, 8, earlier=before)
    assert len(statement.mechanisms) == 3
    assert wrong(statement) == []


def test_a_statement_of_a_run_that_spent_nothing_holds():
    assert wrong(statement_of(make_plan(), 0)) == []


BASE = json.loads(to_text(statement_of(make_plan(num_parameters=650), 20)))


def changed(**places):
    """The statement with other values at some places, as `mechanisms__0__steps`."""
    fact = copy.deepcopy(BASE)
    for place, value in places.items():
        inner, *names = fact, *place.split("__")
        for name in names[:-1]:
            inner = inner[int(name) if name.isdigit() else name]
        assert inner[names[-1]] != value
        inner[names[-1]] = value
    return typed_json.from_json(Statement, fact)


MORE_STEPS = dict(steps=25, steps_planned=25, mechanisms__0__steps=25)
TAMPERED = {
    "a smaller ε": (dict(epsilon__pld=0.15), {"ε by PLD", "μ"}),
    "a slightly smaller ε": (dict(epsilon__pld=0.1924), {"ε by PLD"}),
    "a smaller ε by RDP": (dict(epsilon__rdp=0.228), {"ε by RDP"}),
    "a larger ε": (dict(epsilon__rdp=1.5), {"ε by RDP"}),
    "a smaller ε at another δ": (
        dict(epsilon_at_smaller_deltas__1__epsilon__pld=0.31),
        {"ε by PLD"},
    ),
    "an infinite ε": (dict(epsilon__rdp=None), {"ε by RDP"}),
    "more noise": (
        dict(mechanisms__0__noise_multiplier=4.1),
        {"ε by PLD", "ε by RDP"},
    ),
    "less noise": (dict(mechanisms__0__noise_multiplier=3.95), {"ε by PLD", "ε by RDP"}),
    "no noise": (
        dict(mechanisms__0__noise_multiplier=0.0),
        {"ε by PLD", "ε by RDP"},
    ),
    "negative noise": (dict(mechanisms__0__noise_multiplier=-4.0), {"noise", "ε"}),
    "more steps": (MORE_STEPS, {"ε by PLD", "ε by RDP", "extra ε of noise", "extra δ of noise"}),
    "fewer steps": (
        dict(steps=19, mechanisms__0__steps=19),
        {"ε by PLD", "ε by RDP", "extra δ of noise"},
    ),
    "steps that do not add up": (dict(steps=21), {"steps", "ε"}),
    "more steps than planned": (dict(steps_planned=19), {"steps", "ε"}),
    "replaced records": (dict(adjacency="replace_one"), {"adjacency", "clipping", "ε"}),
    "another sampling": (
        dict(mechanisms__0__sampling__kind="shuffled"),
        {"adjacency", "ε"},
    ),
    "batches of fixed size": (
        dict(mechanisms__0__sampling__kind="fixed_size"),
        {"adjacency", "ε"},
    ),
    "another probability": (dict(mechanisms__0__sampling__probability=0.069), {"sampling", "ε"}),
    "another batch size": (
        dict(
            mechanisms__0__sampling__probability=99 / 1437,
            mechanisms__0__sampling__expected_batch_size=99.0,
        ),
        {"ε by PLD", "ε by RDP"},
    ),
    "more records": (
        dict(
            num_examples=2874,
            mechanisms__0__sampling__probability=100 / 2874,
            mechanisms__0__sampling__num_examples=2874,
        ),
        {"ε by PLD", "ε by RDP"},
    ),
    "another N": (dict(num_examples=1436), {"N"}),
    "a δ above 1/N": (dict(delta=1e-3), {"δ", "ε by PLD", "ε by RDP", "μ"}),
    "a δ of 1": (dict(delta=1.0), {"δ", "ε"}),
    "a smaller δ": (dict(delta=3e-4), {"ε by PLD", "ε by RDP", "μ"}),
    "another unit": (dict(mechanisms__0__clipping__unit="batch"), {"clipping"}),
    "another sensitivity": (
        dict(mechanisms__0__clipping__sensitivity_at_first_step=1),
        {"clipping"},
    ),
    "another clipping norm": (
        dict(mechanisms__0__clipping__call="clip_individual(0.4)"),
        {"clipping"},
    ),
    "another clipping": (dict(mechanisms__0__clipping__kind="normalised"), {"clipping"}),
    "batch units": (dict(mechanisms__0__clipping__batch_units=10), {"clipping"}),
    "one factor": (dict(mechanisms__0__clipping__clipped_together=True), {"clipping"}),
    "less ε for noise": (dict(noise__extra_epsilon=3.6e-6), {"extra ε of noise"}),
    "less δ for noise": (dict(noise__extra_delta=1e-17), {"extra δ of noise"}),
    "fewer numbers with noise": (
        dict(mechanisms__0__noise_draws_per_step=500),
        {"extra ε of noise", "extra δ of noise"},
    ),
    "no numbers with noise": (dict(mechanisms__0__noise_draws_per_step=0), {"noise", "ε"}),
    "an exact sampler": (dict(mechanisms__0__sampling__law_distance=0), {"sampling", "ε"}),
    "a smaller μ": (dict(gaussian_dp__mu=0.083), {"μ"}),
    "μ at every δ": (dict(gaussian_dp__at_every_delta=True), {"μ"}),
    "a target that was missed": (dict(target_epsilon=0.192), {"target"}),
    "a looser claim": (dict(accountant="rdp"), {"claim", "μ"}),
    "a negative sensitivity of norms that can't be told": (
        dict(
            mechanisms__0__clipping__call="clip_individual(norms)",
            mechanisms__0__clipping__sensitivity_at_first_step=-1,
        ),
        {"clipping"},
    ),
    "a sensitivity beyond all layers": (
        dict(
            mechanisms__0__clipping__call="clip_individual(1e-300, layer='tensor')",
            mechanisms__0__clipping__sensitivity_at_first_step=1e300,
        ),
        {"clipping"},
    ),
    "layers that are clipped to nothing": (
        dict(mechanisms__0__clipping__call="clip_individual(0, layer='tensor')"),
        {"clipping"},
    ),
    "more canaries than records": (dict(data__canaries=1437), {"N"}),
    "fewer canaries than none": (dict(data__canaries=-1), {"N"}),
    "more numbers than any model has": (
        dict(mechanisms__0__noise_draws_per_step=1.7e308),
        {"noise", "ε"},
    ),
    "a μ beyond all": (dict(gaussian_dp__mu=1e300), {"μ"}),
    "a seed": (dict(reproducible=True), {"keys"}),
    "a short key": (dict(noise__key_bits=32), {"keys"}),
    "a statement that says there is none": (dict(private=False), {"keys"}),
}


@pytest.mark.parametrize(("places", "names"), TAMPERED.values(), ids=TAMPERED)
def test_a_changed_number_is_found(places, names):
    found = wrong(changed(**places))
    assert {check.name for check in found} == names


def test_both_values_are_told():
    told = {check.name: check.told for check in wrong(changed(epsilon__pld=0.15))}
    assert told["ε by PLD"] == (
        "0.15 stated, 0.19267 recomputed, at δ = 0.000336: it promises too much"
    )
    told = {check.name: check.told for check in wrong(changed(mechanisms__0__noise_multiplier=5.0))}
    assert told["ε by PLD"].endswith("it is not that of these mechanisms")


def test_a_seeded_run_has_no_guarantee():
    found = wrong(statement_of(make_plan(), 20, Config(seed=0)))
    assert [check.name for check in found] == ["keys"]
    assert "there is NO guarantee" in found[0].told


def test_several_samplings_are_refused():
    other = make_plan(sampling="full_batch", expected_batch_size=1437, noise_multiplier=50.0)
    fact = copy.deepcopy(BASE)
    fact["mechanisms"].append(json.loads(to_text(statement_of(other)))["mechanisms"][0])
    fact["steps"] = 40
    with pytest.raises(NotKnown, match="sampled in several ways"):
        list(checks(typed_json.from_json(Statement, fact)))


def test_extreme_numbers_end():
    for z in (1e-9, 1e-3, 1e9, math.nextafter(0, 1)):
        for steps in (1, 10**9):
            places = dict(MORE_STEPS, mechanisms__0__noise_multiplier=z)
            places |= dict.fromkeys(MORE_STEPS, steps)
            assert wrong(changed(**places))


def test_norms_that_are_no_floats_are_not_told():
    call = f"clip_individual(1{'0' * 400})"
    assert not wrong(changed(mechanisms__0__clipping__call=call))


def test_more_steps_than_can_be_composed_are_refused():
    with pytest.raises(NotKnown, match="steps, more than 1,000,000,000"):
        list(checks(changed(**dict.fromkeys(MORE_STEPS, 2**62))))
