"""PRIVACY.md: it tells people what privacy.json tells programs."""

from dataclasses import replace

import pytest

pytest.importorskip("sklearn")
from helpers.statements import make_plan, segment_of, statement_of

from jaxdp import clip_batch
from jaxdp.accounting.rounding import shown_delta
from jaxdp.datasets.config import DataConfig
from jaxdp.trainer.config import Config
from jaxdp.trainer.release import claims, markdown
from jaxdp.trainer.release.markdown import as_markdown


def words(statement):
    return " ".join(as_markdown(statement).split())


def test_the_page_for_people_says_the_same():
    s = statement_of()
    page = as_markdown(s)
    for fact in (
        f"{s.epsilon['pld']:g}",
        "add_remove",
        "poisson",
        "1.5",
        "clip_individual(0.5)",
        "digits; protected: train; scored: test",
        "| noise | rounded normal on a grid of std/2^22 |",
        "| random bits | from threefry4x32-20 with a key of 128 bits |",
        "| ε and δ that its randomness costs "
        f"| {s.noise.extra_epsilon:g} and {s.noise.extra_delta:g}, ",
        "| privacy against | everyone who can't break the generator: it is computational |",
    ):
        assert fact in page
    assert "The privacy unit is one record of the 1,437 in the private data" in words(s)
    for limit in (*claims.ASSUMPTIONS, *claims.NOT_COVERED):
        assert limit in words(s)
    assert max(map(len, page.splitlines())) <= 100


def test_a_first_step_that_measures_is_told():
    s = statement_of()
    told = "it measured a mean of the records' numbers, with the noise of every step"
    assert told not in words(s)
    assert told in words(replace(s, task=replace(s.task, measures=True)))


def test_a_run_that_was_stopped_says_so():
    assert "stopped after 5 of 20 steps" in words(statement_of(steps=5))


def test_records_that_earlier_segments_used_unprotected_are_named():
    before = Config(data=DataConfig(private="train[:80%]", public="train[80%:]"))
    s = statement_of(earlier=[segment_of(make_plan(), 5, before)])
    told = "digits; protected: train[:80%], not protected: train[80%:]; scored: test"
    assert f"| data of earlier segments | {told} |" in as_markdown(s)
    assert "| segment 1 | 5 steps, noise multiplier 1.5, sampling probability" in as_markdown(s)
    assert "| segment 2 | 20 steps" in as_markdown(s)
    assert "segment" not in as_markdown(statement_of())


def test_the_rounding_of_the_sum_is_told():
    p = make_plan(num_examples=60_000, expected_batch_size=1000)
    told = lambda plan: f"| rounding of the sum | raises the noise by {plan.rounding_slack:.2g} "
    says = lambda plan, words: (
        f"{told(plan)}of itself, {words} |" in as_markdown(statement_of(plan))
    )
    assert says(p, "an estimate: no bound is proved")
    assert says(p.with_rounding_bound(8), "a proved bound")
    large = p.with_rounding_bound(256)
    too_large = f"the proved bound, {large.rounding_bound:.2g}, is too large to use"
    assert says(large, f"an estimate; {too_large}")


def test_windows_of_a_text_are_told():
    s = statement_of(config=Config(data=DataConfig(name="text", window=16)))
    assert "text, in windows of 17 characters; protected" in as_markdown(s)


def test_where_batch_norm_s_statistics_come_from_is_told():
    public = Config(data=DataConfig(private="train[:80%]", public="train[80%:]"))
    told = "the statistics are those of train[80%:], which needs no protection"
    assert told in as_markdown(statement_of(config=public, has_statistics=True))


def test_a_seeded_run_says_that_it_is_not_private():
    says = lambda s: "noise and sampling are reproducible: not private" in words(s).lower()
    assert says(statement_of(config=replace(Config(), seed=0)))
    assert not says(statement_of())


def test_private_test_records_are_declared():
    config = replace(Config(), data=DataConfig(test_is_public=False))
    assert "is a private number" in as_markdown(statement_of(config=config))


@pytest.mark.parametrize("steps", [20, 7])
def test_epsilon_at_smaller_deltas_is_told(steps):
    s = statement_of(steps=steps)
    for row in s.epsilon_at_smaller_deltas:
        by = f"{row.epsilon['pld']:g} by PLD, {row.epsilon['rdp']:g} by RDP"
        assert f"| ε at δ = {row.delta:g} | {by} |" in words(s)


def test_the_gaussian_equivalent_is_told():
    s = statement_of()
    assert f"μ = {s.gaussian_dp.mu:g}, which has the same ε at δ" in as_markdown(s)


def test_epsilons_above_20_are_called_no_privacy():
    # The paper's batch clipping with sigma 0.5: std = 2C·sigma, z = 0.5 of the sensitivity 2C.
    paper = make_plan(
        clipping=clip_batch(0.1),
        sampling="shuffled",
        adjacency="replace_one",
        noise_multiplier=0.5,
    )
    assert statement_of(paper).epsilon["pld"] < 20
    assert "no meaningful privacy" not in as_markdown(statement_of(paper))
    worse = make_plan(noise_multiplier=0.3, steps=200)
    assert markdown.NO_PRIVACY in words(statement_of(worse, 200))


def test_an_infinite_epsilon_is_told_in_words():
    page = words(statement_of(make_plan(noise_multiplier=0.02, steps=200), 200))
    assert "trained with so little noise that no finite ε can be stated" in page
    assert "more than δ at so large an ε, so that none can be stated" in page
    assert "(inf," not in page


def test_samplings_with_one_accountant_and_noise_schedules_have_a_page():
    fixed = statement_of(make_plan(sampling="fixed_size", adjacency="replace_one"))
    assert f"({fixed.epsilon['rdp']:g}, " in as_markdown(fixed)
    assert "ε at δ by RDP, the claim" in as_markdown(fixed)
    schedule = statement_of(make_plan(noise_multiplier=lambda step: 1.5 if step < 5 else 2.0))
    assert "1.5 for 5 steps, then 2 for 15 steps" in as_markdown(schedule)


def test_the_printed_delta_is_not_below_the_one_accounted():
    assert shown_delta(1e-5) == 1e-5
    assert "1.24e-05)-differential" in as_markdown(statement_of(make_plan(delta=1.2341e-5)))


def test_the_claim_comes_first_and_says_so():
    assert [label for label, _ in markdown.labelled_epsilons(statement_of())] == [
        "PLD, the claim",
        "RDP, a looser bound",
    ]
