"""Epsilon and delta of every sound combination against closed forms, dp-accounting, brute force."""

import dataclasses
import logging
import math
import time

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from helpers.mechanisms import small_run
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdp.accounting import Mechanism, delta, dp_event, epsilon, gaussian_mu, gdp

RELATION = dp_accounting.NeighboringRelation

runs = st.builds(
    lambda z, steps, q, adjacency: Mechanism(z, steps, q, adjacency=adjacency),
    st.floats(0.6, 30.0),
    st.integers(1, 3000),
    st.floats(1e-4, 0.5),
    st.sampled_from(["add_remove", "replace_one"]),
)
deltas = st.floats(-9, -2).map(lambda x: 10**x)


@pytest.mark.parametrize(
    ("q", "z", "steps", "rdp", "pld"),
    [
        (0.01, 4.0, 10000, 1.0355, 0.9470),
        (0.04, 1.5, 2250, 7.3291, 6.7688),
        (0.0025, 1.3, 6000, 0.7242, 0.6401),
        (256 / 60000, 1.1, 14063, 2.5967, 2.3818),
        (64 / 60000, 2.0, 201, 0.125, 0.023),
    ],
)
def test_published_epsilons(q, z, steps, rdp, pld):
    run = Mechanism(z, steps, q)
    assert epsilon(run, 1e-5, "rdp") == pytest.approx(rdp, abs=5e-4)
    assert epsilon(run, 1e-5, "pld") == pytest.approx(pld, abs=2e-3)
    assert epsilon(dataclasses.replace(run, adjacency="zero_out"), 1e-5) == epsilon(run, 1e-5)


def test_a_long_run_on_a_grid_no_coarser_than_1e_4():
    # 0.476 at 1e-3, 0.3846 at 1e-4, 0.3836 at 1e-5.
    assert 0.3835 < epsilon(Mechanism(2.5, 35156, 64 / 45000), 1e-5) < 0.3847


def test_analytic_gaussian_and_the_ends():
    assert epsilon(Mechanism(1.0, 1, 1.0), 1e-5) == pytest.approx(4.37718, abs=1e-5)
    assert epsilon(Mechanism(0.0, 1, 0.1), 1e-5) == math.inf
    assert delta(Mechanism(0.0, 1, 0.1), 3.0) == 1
    for nothing in (Mechanism(1.0, 0, 0.1), Mechanism(1.0, 5, 0.0), Mechanism(0.0, 0, 0.1)):
        for accountant in ("pld", "rdp"):
            assert epsilon(nothing, 1e-5, accountant) == 0
            assert delta(nothing, 0.0, accountant) == 0


@pytest.mark.parametrize("sampling", ["poisson", "full_batch"])
@pytest.mark.parametrize("unit", ["example", "batch"])
def test_replace_one_of_the_whole_data_is_a_gaussian_of_twice_the_sensitivity(sampling, unit):
    # std = C, so that z = std / 2C = 1/2 whether by replacing an example or by a batch unit.
    run = Mechanism(0.5, 1, 1.0, sampling, "replace_one", unit)
    assert epsilon(run, 1e-5) == pytest.approx(9.99726, abs=1e-4)
    if sampling == "full_batch":
        assert 9.99726 <= epsilon(run, 1e-5, "rdp") < 11


def test_sampled_replace_one_is_given_std_over_c():
    # z = std / 2C = 1: dp-accounting gets 2 and doubles the sensitivity itself.
    run = Mechanism(1.0, 500, 0.01, adjacency="replace_one")
    event = dp_accounting.PoissonSampledDpEvent(0.01, dp_accounting.GaussianDpEvent(2.0))
    reference = PLDAccountant(RELATION.REPLACE_ONE).compose(event, 500)
    assert epsilon(run, 1e-5) == pytest.approx(reference.get_epsilon(1e-5), rel=2e-3)


def test_batch_units_under_replace_one_are_not_under_counted():
    """q = 0.01, std = 2C, 1000 steps: std/C would give 1.205, where 1.828 is attained.

    It is attained where a unit that is otherwise sure to have clipped mean -C turns to +C.
    """
    run = Mechanism(1.0, 1000, 0.01, adjacency="replace_one", unit="batch")
    attained = epsilon(Mechanism(1.0, 1000, 0.01), 1e-5)
    assert attained == pytest.approx(1.828, abs=2e-3)
    assert epsilon(run, 1e-5) >= attained
    under_counted = Mechanism(1.0, 1000, 0.01, adjacency="replace_one", unit="example")
    assert epsilon(under_counted, 1e-5) == pytest.approx(1.205, abs=2e-3)


def test_shuffled_epochs_are_unamplified_gaussians_one_per_epoch_begun():
    # 60,000 examples in batches of 64 are 938 batches; 201 steps begin one epoch.
    zero_out = Mechanism(2.0, 201, 64 / 60000, "shuffled", "zero_out", num_examples=60000)
    replace = Mechanism(1.0, 201, 64 / 60000, "shuffled", "replace_one", num_examples=60000)
    assert epsilon(zero_out, 1e-5) == pytest.approx(1.99, abs=5e-3)
    assert epsilon(replace, 1e-5) == pytest.approx(4.38, abs=5e-3)
    for steps, begun in [(0, 0), (1, 1), (938, 1), (939, 2), (1876, 2), (1877, 3)]:
        run = dataclasses.replace(zero_out, steps=steps)
        assert run.epochs_begun == begun
        mu = math.sqrt(begun) / 2
        expected = gdp.epsilon_from_mu(mu, 1e-5) if begun else 0
        assert epsilon(run, 1e-5) == pytest.approx(expected, rel=1e-12)


def test_gaussians_without_amplification_agree_with_both_accountants():
    for run in (
        small_run("full_batch", "add_remove", z=5.0, steps=30),
        small_run("full_batch", "zero_out", z=5.0, steps=30),
        small_run("shuffled", "replace_one", z=5.0, steps=3000),  # 30 epochs of 100 batches
    ):
        event, relation = dp_event(run)
        assert relation == RELATION.ADD_OR_REMOVE_ONE
        pld = PLDAccountant(relation).compose(event).get_epsilon(1e-5)
        rdp = RdpAccountant(neighboring_relation=relation).compose(event).get_epsilon(1e-5)
        assert epsilon(run, 1e-5) == pytest.approx(pld, rel=1e-3)
        assert epsilon(run, 1e-5) <= pld * (1 + 1e-9)
        assert epsilon(run, 1e-5, "rdp") == pytest.approx(rdp, rel=1e-6)


@pytest.mark.parametrize(("q", "z", "steps"), [(0.01, 1.0, 500), (0.1, 3.0, 100)])
def test_fixed_size_batches_are_between_what_is_attained_and_no_amplification(q, z, steps):
    run = small_run("fixed_size", "replace_one", z=z, steps=steps, q=q)
    found = epsilon(run, 1e-5, "rdp")
    # Other records at rest, the replaced one's gradient turned round: attained, P and Q in full.
    attained = epsilon(Mechanism(z, steps, q, adjacency="replace_one"), 1e-5)
    assert attained < found < gdp.epsilon_from_mu(math.sqrt(steps) / z, 1e-5)
    event, relation = dp_event(run)
    assert relation == RELATION.REPLACE_ONE
    reference = RdpAccountant(neighboring_relation=relation).compose(event).get_epsilon(1e-5)
    assert found == pytest.approx(reference, rel=1e-6)


def test_fixed_size_is_never_more_than_unamplified():
    run = small_run("fixed_size", "replace_one", z=2.0, steps=10, q=0.9)
    plain = gdp.epsilon_from_mu(math.sqrt(10) / 2, 1e-5)
    event, relation = dp_event(run)
    loose = RdpAccountant(neighboring_relation=relation).compose(event).get_epsilon(1e-5)
    assert loose > plain
    assert epsilon(run, 1e-5, "rdp") == pytest.approx(plain, rel=1e-12)


@pytest.mark.slow
def test_a_schedule_composes_the_real_sequence():
    run = Mechanism(((0.8, 100), (1.6, 200)), 300, 0.02)
    event, relation = dp_event(run)
    reference = PLDAccountant(relation).compose(event).get_epsilon(1e-5)
    assert epsilon(run, 1e-5) == pytest.approx(reference, rel=2e-3)
    assert epsilon(Mechanism(1.6, 300, 0.02), 1e-5) < epsilon(run, 1e-5)
    assert epsilon(run, 1e-5) < epsilon(Mechanism(0.8, 300, 0.02), 1e-5)
    same = Mechanism(((0.8, 100), (0.8, 200)), 300, 0.02)
    assert epsilon(same, 1e-5) == pytest.approx(epsilon(Mechanism(0.8, 300, 0.02), 1e-5), rel=1e-6)


def test_full_batch_schedules_have_the_closed_form():
    run = Mechanism(((1.0, 1), (2.0, 4)), 5, 1.0, "full_batch", "zero_out")
    assert epsilon(run, 1e-5) == pytest.approx(gdp.epsilon_from_mu(math.sqrt(2), 1e-5))


def never_costs_more(run, d, factor):
    """With more noise, fewer steps or a larger delta; and epsilon's own delta is no larger."""
    here = epsilon(run, d)
    tiny = 1e-6 * here + 1e-9
    more_noise = dataclasses.replace(run, noise_multiplier=run.noise_multiplier * factor)
    assert epsilon(more_noise, d) <= here + tiny
    assert epsilon(dataclasses.replace(run, steps=run.steps // 2), d) <= here + tiny
    assert epsilon(run, d * factor) <= here + tiny
    assert delta(run, here) <= d * (1 + 1e-6)


@pytest.mark.parametrize("adjacency", ["add_remove", "replace_one"])
def test_more_noise_fewer_steps_or_a_larger_delta_cost_no_more(adjacency):
    never_costs_more(Mechanism(1.1, 400, 0.02, adjacency=adjacency), 1e-5, 1.3)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(runs, deltas, st.floats(1.05, 2.0))
def test_more_noise_fewer_steps_or_a_larger_delta_never_cost_more(run, d, factor):
    never_costs_more(run, d, factor)


@settings(max_examples=15, deadline=None)
@given(runs, deltas)
@pytest.mark.slow
def test_pld_is_never_above_rdp_or_the_plain_gaussian(run, d):
    found = epsilon(run, d)
    assert found <= gdp.epsilon_from_mu(gaussian_mu(run), d) * (1 + 1e-12)
    if run.adjacency == "add_remove":
        assert found <= epsilon(run, d, "rdp") + 1e-9


def test_an_epsilon_takes_less_than_2_seconds():
    """On an idle machine, by processor time; twice that is allowed."""
    for q, z, steps in [(64 / 45000, 2.5, 35156), (64 / 45000, 0.55, 35156), (0.9, 5.0, 1000)]:
        start = time.process_time()
        epsilon(Mechanism(z, steps, q), 1e-5)
        assert time.process_time() - start < 2 * 2


def test_tiny_probabilities_and_losses_stay_meaningful():
    assert epsilon(Mechanism(1.0, 10**6, 1e-6), 1e-5) == pytest.approx(0.0027, abs=2e-4)
    assert epsilon(Mechanism(1.0, 1000, 1e-15), 1e-5) == 0
    assert 0 < epsilon(Mechanism(1000.0, 1000, 0.01), 1e-6) < 2e-3
    assert epsilon(Mechanism(1.0, 100, 1 - 1e-9), 1e-5) <= gdp.epsilon_from_mu(10.0, 1e-5)


def test_deltas_below_the_rounding_of_the_pld_fall_back_to_rdp():
    run = Mechanism(1.0, 1000, 0.01)
    assert epsilon(run, 1e-15) == epsilon(run, 1e-15, "rdp")
    assert epsilon(run, 1e-12) <= epsilon(run, 1e-15)
    assert epsilon(run, 1e-300) < math.inf


def test_losses_beyond_the_grid_fall_back_to_bounds_that_hold():
    run = Mechanism(0.1, 1000, 0.01)
    assert epsilon(run, 1e-5) == min(
        epsilon(run, 1e-5, "rdp"), gdp.epsilon_from_mu(math.sqrt(1000) / 0.1, 1e-5)
    )
    replace = dataclasses.replace(run, adjacency="replace_one")
    assert epsilon(replace, 1e-5) == gdp.epsilon_from_mu(math.sqrt(1000) / 0.1, 1e-5)


def test_rounding_of_small_divergences_is_not_taken_for_none():
    # dp-accounting treats a divergence that rounding made negative as no loss at all.
    run = Mechanism(1e6, 10**6, 1e-6)
    assert delta(run, 0.0, "rdp") > 0


def test_left_out_orders_are_not_logged(caplog):
    with caplog.at_level(logging.WARNING, logger="absl"):
        epsilon(Mechanism(1.0, 1000, 0.3), 1e-5, "rdp")
    assert not caplog.records


@pytest.mark.parametrize("d", [0.0, 1.0, -1e-5, 2.0, math.nan])
def test_deltas_outside_0_to_1_are_refused(d):
    with pytest.raises(ValueError, match="between 0 and 1"):
        epsilon(Mechanism(1.0, 10, 0.1), d)


def test_a_delta_of_1_over_n_warns_only_where_n_is_known():
    epsilon(Mechanism(1.0, 10, 0.1), 0.01)
    epsilon(Mechanism(1.0, 10, 0.1, num_examples=100), 0.0099)
    with pytest.warns(UserWarning, match=r"1/N = 0\.01"):
        epsilon(Mechanism(1.0, 10, 0.1, num_examples=100), 0.01)
