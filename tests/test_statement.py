"""The privacy statement: complete, rounded to the safe side, honest about seeds and limits."""

import json
from dataclasses import replace

import pytest

from jaxdp import Plan, clip_individual, data, statement
from jaxdp.config import Config, DataConfig

pytest.importorskip("sklearn")


def plan(**changes) -> Plan:
    numbers = dict(
        num_examples=1437,
        expected_batch_size=100,
        steps=20,
        clipping=clip_individual(0.5),
        noise_multiplier=1.5,
    )
    return Plan(**{**numbers, **changes})


def make(plan: Plan, steps: int, config: Config | None = None) -> dict:
    return statement.make_statement(
        plan, config or Config(), data.load(DataConfig()), steps, sensitivity=0.5
    )


def test_the_statement_holds_the_mechanism():
    p = plan()
    s = make(p, 20)
    assert s["unit"] == "one record"
    assert s["adjacency"] == "add_remove"
    assert s["sampling"] == "poisson"
    assert s["sampling_probability"] == 100 / 1437
    assert (s["num_examples"], s["steps"], s["steps_planned"]) == (1437, 20, 20)
    assert (s["noise_multiplier"], s["sensitivity_at_first_step"]) == (1.5, 0.5)
    assert s["delta"] == p.delta
    assert p.epsilon() <= s["epsilon"]["pld"] <= p.epsilon() * (1 + 1e-4)
    assert s["epsilon"]["pld"] < s["epsilon"]["rdp"]
    assert json.loads(json.dumps(s)) == s


def test_epsilon_counts_the_steps_that_were_spent():
    s = make(plan(), 5)
    assert s["epsilon"]["pld"] == pytest.approx(plan().epsilon(5), rel=1e-4)
    assert "stopped after 5 of 20 steps" in " ".join(statement.as_markdown(s).split())


@pytest.mark.parametrize(
    ("value", "rounded"),
    [(1.00001, 1.0001), (3.0, 3.0), (2.99999999, 3.0), (1e-7, 1e-7), (float("inf"), float("inf"))],
)
def test_rounding_is_up(value, rounded):
    assert statement.round_up(value) == rounded


def test_the_page_for_people_says_the_same():
    s = make(plan(), 20)
    page = statement.as_markdown(s)
    for fact in (
        f"{s['epsilon']['pld']:g}",
        "add_remove",
        "poisson",
        "1.5",
        "clip_individual(0.5)",
    ):
        assert fact in page
    words = " ".join(page.split())
    for limit in (*statement.ASSUMPTIONS, *statement.NOT_COVERED):
        assert limit in words
    assert max(map(len, page.splitlines())) <= 100


def test_what_is_not_covered_names_every_limit():
    listed = " ".join(statement.NOT_COVERED).lower()
    for limit in (
        "hyperparameters",
        "other seeds",
        "early stopping",
        "checkpoints",
        "preprocessing constants",
        "vocabularies",
        "group privacy",
        "floating point",
        "timing",
    ):
        assert limit in listed


def test_a_seeded_run_says_that_it_is_not_private():
    secret, seeded = make(plan(), 20), make(plan(), 20, replace(Config(), seed=0))
    assert (secret["private"], seeded["private"]) == (True, False)
    assert seeded["reproducible"]
    says = lambda s: (
        "noise and sampling are reproducible: not private"
        in (" ".join(statement.as_markdown(s).split()).lower())
    )
    assert says(seeded)
    assert not says(secret)


def test_private_test_records_are_declared():
    config = replace(Config(), data=DataConfig(test_is_public=False))
    assert "is a private number" in statement.as_markdown(make(plan(), 20, config))


def test_only_sound_accountants_are_asked():
    assert list(make(plan(adjacency="replace_one"), 20)["epsilon"]) == ["pld"]
