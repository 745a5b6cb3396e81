"""Runs as plain data: what is sound, what dp-accounting is told, what the paper's sigma means."""

import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from helpers.mechanisms import ADJACENCIES, SAMPLINGS, SOUND, small_run

from jaxdp.accounting import (
    Mechanism,
    accountants,
    batches_per_epoch,
    dp_event,
    epsilon,
    gaussian_mu,
    paper_noise_multiplier,
    sensitivity_factor,
)

RELATION = dp_accounting.NeighboringRelation


@pytest.mark.parametrize("unit", ["example", "batch"])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("adjacency", ADJACENCIES)
def test_sound_combinations_run_and_all_others_are_refused(sampling, adjacency, unit):
    allowed = SOUND.get((sampling, adjacency), ())
    if not allowed:
        with pytest.raises(ValueError, match=r"no sound accounting.*use adjacency="):
            small_run(sampling, adjacency, unit)
        return
    assert accountants(sampling, adjacency) == allowed
    for accountant in ("pld", "rdp"):
        if accountant in allowed:
            assert 0 < epsilon(small_run(sampling, adjacency, unit), 1e-5, accountant) < 50
        else:
            with pytest.raises(ValueError, match=f"Use accountant='{allowed[0]}'"):
                epsilon(small_run(sampling, adjacency, unit), 1e-5, accountant)


def test_dp_accounting_doubles_replace_one_in_pld_and_not_in_rdp():
    """Our rules rest on this: if it fails, dp-accounting has changed and dp_event must."""
    event = dp_accounting.GaussianDpEvent(1.0)
    pld = PLDAccountant(RELATION.REPLACE_ONE)
    rdp = RdpAccountant(neighboring_relation=RELATION.REPLACE_ONE)
    assert pld.compose(event).get_epsilon(1e-5) == pytest.approx(9.997, abs=2e-3)
    assert rdp.compose(event).get_epsilon(1e-5) == pytest.approx(4.7285, abs=2e-3)


@pytest.mark.parametrize("adjacency", ADJACENCIES)
def test_dp_event_is_what_was_accounted(adjacency):
    run = Mechanism(1.1, 300, 0.02, adjacency=adjacency)
    event, relation = dp_event(run)
    reference = PLDAccountant(relation).compose(event).get_epsilon(1e-5)
    assert epsilon(run, 1e-5) == pytest.approx(reference, rel=2e-3)
    assert (
        relation.name
        == {
            "add_remove": "ADD_OR_REMOVE_ONE",
            "zero_out": "REPLACE_SPECIAL",
            "replace_one": "REPLACE_ONE",
        }[adjacency]
    )
    if adjacency != "replace_one":
        rdp = RdpAccountant(neighboring_relation=relation).compose(event).get_epsilon(1e-5)
        assert epsilon(run, 1e-5, "rdp") == pytest.approx(rdp, rel=1e-6)


def test_the_sensitivity_factor_is_the_whole_number_1_or_2():
    factors = {(u, a): sensitivity_factor(u, a) for u in ("example", "batch") for a in ADJACENCIES}
    assert all(type(factor) is int for factor in factors.values())
    assert {pair for pair, factor in factors.items() if factor == 1} == {
        ("example", "add_remove"),
        ("example", "zero_out"),
    }
    assert set(factors.values()) == {1, 2}
    with pytest.raises(ValueError, match="unit is 'layer': give one of batch, example"):
        sensitivity_factor("layer", "add_remove")
    with pytest.raises(ValueError, match="adjacency is 'replace': give one of add_remove"):
        sensitivity_factor("example", "replace")


def test_the_last_batch_of_an_epoch_may_be_short():
    assert [batches_per_epoch(n, 64) for n in (1, 64, 65, 60_000)] == [1, 1, 2, 938]


def test_a_schedule_over_shuffled_epochs_counts_the_least_noise_of_each():
    # Epochs of 10 batches; z changes in the middle of the second one.
    run = Mechanism(((2.0, 15), (1.0, 15)), 30, 0.1, "shuffled", "zero_out", num_examples=100)
    assert run.exposures == ((1.0, 2), (2.0, 1))
    assert gaussian_mu(run) == pytest.approx(math.sqrt(2 + 0.25))
    short = Mechanism(((3.0, 5), (2.0, 0), (4.0, 1)), 6, 0.1, "shuffled", "zero_out", "batch", 100)
    assert short.exposures == ((3.0, 1),)


@pytest.mark.parametrize(
    ("sigma", "layers", "epochs", "mu", "expected"),
    [
        (0.01875, 1, 50, 377.1, 72718.5),
        (0.01875, 62, 50, 2969.5, 4421552.4),
        (0.01875, 1, 1, None, 1648.72),
        (0.5, 1, 50, None, 159.4415),
        (0.5, 10, 50, None, 1189.777),
        (2.5, 1, 50, None, 15.4562),
        (2.5, 10, 50, None, 77.3297),
    ],
)
def test_what_the_papers_sigmas_mean(sigma, layers, epochs, mu, expected):
    z = paper_noise_multiplier(sigma, "batch", layers, "replace_one", "shuffled")
    run = Mechanism(z, epochs * 704, 64 / 45000, "shuffled", "replace_one", "batch", 45000)
    assert run.epochs_begun == epochs
    assert epsilon(run, 1e-5) == pytest.approx(expected, rel=1e-5)
    if mu:
        assert gaussian_mu(run) == pytest.approx(mu, rel=2e-4)


def test_the_papers_sigma_is_doubled_only_where_one_example_is_added():
    convert = paper_noise_multiplier
    assert convert(0.5, "example", 1, "add_remove", "poisson") == 1.0
    assert convert(0.5, "example", 4, "zero_out", "shuffled") == 0.5
    assert convert(0.5, "example", 1, "replace_one", "shuffled") == 0.5
    for adjacency in ADJACENCIES:
        assert convert(0.5, "batch", 1, adjacency, "poisson") == 0.5
    with pytest.raises(ValueError, match="shifts every later batch"):
        convert(0.5, "batch", 1, "add_remove", "shuffled")


@pytest.mark.parametrize(("sigma", "expected"), [(0.5, 11.2), (1.0, 1.37), (2.5, 0.385)])
def test_the_papers_sigmas_under_poisson_sampling(sigma, expected):
    z = paper_noise_multiplier(sigma, "batch", 1, "add_remove", "poisson")
    assert epsilon(Mechanism(z, 35156, 64 / 45000), 1e-5) == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(noise_multiplier=-1.0), "noise_multiplier is -1"),
        (dict(noise_multiplier=math.nan), "noise_multiplier is nan"),
        (dict(noise_multiplier=math.inf), "noise_multiplier is inf"),
        (dict(noise_multiplier=((1.0, 5), (2.0, 4))), "9 steps and steps is 10"),
        (dict(steps=2.5), r"steps is 2\.5: give a whole number"),
        (dict(steps=-1), "steps is -1"),
        (dict(steps=True), "steps is True"),
        (dict(sampling_probability=1.5), r"sampling_probability is 1\.5"),
        (dict(sampling_probability=math.nan), "sampling_probability is nan"),
        (dict(sampling="random"), "sampling is 'random': give one of fixed_size"),
        (dict(adjacency="replace"), "adjacency is 'replace': give one of add_remove"),
        (dict(unit="microbatch"), "unit is 'microbatch'"),
        (dict(num_examples=0), "num_examples is 0"),
        (dict(sampling="full_batch"), "it must be 1"),
        (dict(sampling="shuffled", adjacency="zero_out"), "num_examples is None"),
        (dict(sampling="shuffled", adjacency="zero_out", num_examples=15), "whole number"),
        (dict(sampling="shuffled"), "shifts every later batch"),
        (dict(sampling="fixed_size"), "one record more or less"),
        (dict(sampling="fixed_size", adjacency="zero_out"), "no amplification is proven"),
    ],
)
def test_mechanisms_without_meaning_are_refused(arguments, message):
    good = dict(noise_multiplier=1.0, steps=10, sampling_probability=0.1)
    with pytest.raises(ValueError, match=message):
        Mechanism(**(good | arguments))


def test_epsilon_of_numpy_numbers():
    run = Mechanism(np.float32(1.5), np.int64(10), np.float64(0.25))
    assert run == Mechanism(1.5, 10, 0.25)
    assert hash(run) == hash(Mechanism(1.5, 10, 0.25))
