"""The privacy statement: complete, rounded to the safe side, honest about seeds and limits."""

import json
from dataclasses import replace

import pytest

from jaxdp import Plan, clip_batch, clip_individual
from jaxdp.accounting import gdp, guarantee
from jaxdp.accounting.rounding import round_up
from jaxdp.datasets import loading
from jaxdp.datasets.config import DataConfig
from jaxdp.trainer.config import Config
from jaxdp.trainer.release import statement

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
        plan, config or Config(), loading.load(DataConfig()), steps, sensitivity=0.5
    )


def test_records_that_earlier_segments_used_unprotected_are_named():
    before = DataConfig(private="train[:80%]", public="train[80%:]")
    facts = statement.make_statement(
        plan(), Config(), loading.load(DataConfig()), 20, 0.5, earlier_data=[before, DataConfig()]
    )
    assert facts["data_before"] == [
        "digits; protected: train[:80%], not protected: train[80%:]; scored: test"
    ]
    assert "| data of earlier segments | digits; protected" in statement.as_markdown(facts)
    assert make(plan(), 20)["data_before"] == []


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
    assert round_up(value) == rounded


@pytest.mark.parametrize("delta", [1e-5 / 3, 1437**-1.1, 0.1 + 2e-17, 1.0000000000000002e-5])
def test_no_delta_is_rounded_down(delta):
    assert delta <= round_up(delta, 3) <= 1.01 * delta


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
        "best accuracy over epochs",
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


@pytest.mark.parametrize("steps", [20, 7])
def test_epsilon_at_smaller_deltas_is_the_accountants(steps):
    p = plan()
    rows = make(p, steps)["epsilon_at_smaller_deltas"]
    assert len(rows) == 3
    for row, ratio in zip(rows, (10, 100, 1000), strict=True):
        assert row["delta"] == pytest.approx(p.delta / ratio, rel=0.5)
        assert float(f"{row['delta']:g}") == row["delta"]  # what is printed is what was accounted
        for name in ("pld", "rdp"):
            exact = guarantee.epsilon(p.mechanism(steps), row["delta"], name)
            assert exact <= row[name] <= exact * (1 + 1e-4)
    page = " ".join(statement.as_markdown(make(p, steps)).split())
    for row in rows:
        said = f"| ε at δ = {row['delta']:g} | {row['pld']:g} by PLD, {row['rdp']:g} by RDP |"
        assert said in page


def test_the_gaussian_equivalent_has_the_same_epsilon_at_delta():
    p = plan()
    found = make(p, 20)["gaussian_dp"]
    assert not found["at_every_delta"]
    same = gdp.epsilon_from_mu(found["mu"], p.delta)
    assert p.epsilon(20) <= same <= p.epsilon(20) * (1 + 1e-3)
    assert f"μ = {found['mu']:g}, which has the same ε at δ" in statement.as_markdown(make(p, 20))


@pytest.mark.parametrize(
    ("changes", "mu"),
    [
        (dict(sampling="shuffled", adjacency="zero_out"), (2 / 1.5**2) ** 0.5),  # two epochs begun
        (dict(expected_batch_size=1437), (20 / 1.5**2) ** 0.5),
    ],
    ids=["shuffled", "everybody"],
)
def test_without_amplification_the_run_is_gaussian_dp_at_every_delta(changes, mu):
    found = make(plan(**changes), 20)["gaussian_dp"]
    assert found["at_every_delta"]
    assert mu <= found["mu"] <= mu * (1 + 1e-4)


def test_epsilons_above_20_are_called_no_privacy():
    # The paper's batch clipping with sigma 0.5: std = 2C·sigma, z = 0.5 of the sensitivity 2C.
    paper = plan(
        clipping=clip_batch(0.1),
        sampling="shuffled",
        adjacency="replace_one",
        noise_multiplier=0.5,
    )
    assert make(paper, 20)["epsilon"]["pld"] < 20
    assert "no meaningful privacy" not in statement.as_markdown(make(paper, 20))
    worse = plan(noise_multiplier=0.3, steps=200)
    page = " ".join(statement.as_markdown(make(worse, 200)).split())
    assert statement.NO_PRIVACY in page


def test_samplings_with_one_accountant_and_noise_schedules_have_a_page():
    fixed = make(plan(sampling="fixed_size", adjacency="replace_one"), 20)
    assert f"({fixed['epsilon']['rdp']:g}, " in statement.as_markdown(fixed)
    assert "ε at δ by RDP, the claim" in statement.as_markdown(fixed)
    schedule = make(plan(noise_multiplier=lambda step: 1.5 if step < 5 else 2.0), 20)
    assert "1.5 for 5 steps, then 2 for 15 steps" in statement.as_markdown(schedule)


def test_the_printed_delta_is_not_below_the_one_accounted():
    assert round_up(1e-5, 3) == 1e-5
    p = plan(delta=1.2341e-5)
    assert "1.24e-05)-differential" in statement.as_markdown(make(p, 20))
