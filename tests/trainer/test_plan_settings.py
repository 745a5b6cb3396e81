"""The plan before the number of records is known: the same as `Plan` once it is."""

import pytest

import jaxdp
from jaxdp.trainer.config import ClippingConfig
from jaxdp.trainer.plan_settings import PlanSettings

CLIPPING = jaxdp.clip_individual(1.0)
NUMBERS = dict(expected_batch_size=10, steps=5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        dict(epsilon=2.0),
        dict(noise_multiplier=1.5, delta=1e-4),
        dict(epsilon=2.0, sampling="shuffled", adjacency="zero_out"),
        dict(epsilon=2.0, sampling="fixed_size", adjacency="replace_one"),
    ],
    ids=lambda more: " ".join(more),
)
def test_it_solves_to_the_plan_of_the_same_numbers(more):
    made = PlanSettings(**NUMBERS, clipping=CLIPPING, **more).solve(100, CLIPPING, 650, None)
    plan = jaxdp.Plan(num_examples=100, num_parameters=650, clipping=CLIPPING, **NUMBERS, **more)
    assert made.noise_multiplier == plan.noise_multiplier
    assert (made.delta, made.target_epsilon) == (plan.delta, plan.target_epsilon)
    assert made.mechanism() == plan.mechanism()


@pytest.mark.slow
def test_a_delta_of_its_own_comes_first():
    settings = PlanSettings(**NUMBERS, clipping=CLIPPING, epsilon=2.0, delta=1e-3)
    assert settings.solve(100, CLIPPING, 650, 1e-4).delta == 1e-3
    settings = PlanSettings(**NUMBERS, clipping=CLIPPING, epsilon=2.0)
    assert settings.solve(100, CLIPPING, 650, 1e-4).delta == 1e-4


def test_units_come_from_where_the_clipping_does():
    batch = jaxdp.clip_batch(1.0)
    settings = PlanSettings(**NUMBERS, clipping=batch, num_units=4, epsilon=2.0)
    assert settings.solve(100, batch, 650, None).num_units == 4
    options = ClippingConfig(kind="batch", units=3)
    settings = PlanSettings(**NUMBERS, clipping=options, epsilon=2.0)
    assert settings.solve(100, batch, 650, None).num_units == 3
    assert settings.solve(100, CLIPPING, 650, None).num_units is None


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        (dict(clipping="individual"), TypeError, "clipping is 'individual': pass a jaxdp clipping"),
        (dict(clipping=1.0), TypeError, r"as jaxdp\.clip_individual\(1\.0\)"),
        (
            dict(clipping=ClippingConfig(kind="batch", units=3), num_units=4),
            ValueError,
            "num_units is 4, and the clipping is a ClippingConfig: give its units instead",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(changes, error, says):
    with pytest.raises(error, match=says) as raised:
        PlanSettings(**{**NUMBERS, "clipping": CLIPPING, "epsilon": 2.0, **changes})
    assert len(str(raised.value).splitlines()) == 1


def test_what_the_plan_refuses_is_refused_when_it_is_solved():
    settings = PlanSettings(**NUMBERS, clipping=CLIPPING)
    with pytest.raises(ValueError, match="epsilon"):
        settings.solve(100, CLIPPING, 650, None)
    for changes, says in (
        (dict(expected_batch_size=200), "expected_batch_size is 200"),
        (dict(steps=0), "steps is 0"),
    ):
        settings = PlanSettings(**{**NUMBERS, **changes}, clipping=CLIPPING, epsilon=2.0)
        with pytest.raises(ValueError, match=says):
            settings.solve(100, CLIPPING, 650, None)
