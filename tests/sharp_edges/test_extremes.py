"""Small ε, small δ and rare records: the noise is that of the better accountant."""

import numpy as np
import pytest
from helpers.cases import slow

import jaxdp
from jaxdp.accounting import Mechanism, epsilon, solve_noise_multiplier


@pytest.mark.slow
def test_a_delta_below_the_rounding_errors_of_a_pld_needs_no_more_noise_than_by_rdp():
    numbers = dict(target_epsilon=0.01, delta=1e-12, steps=100_000, sampling_probability=0.01)
    z = solve_noise_multiplier(**numbers)
    # mu of a Gaussian with this ε at this δ is 0.00163, and q√T/mu is 1,940: it was 183,105.
    assert 1500 < z < 2000
    assert z <= solve_noise_multiplier(**numbers, accountant="rdp") * (1 + 1e-5)


@pytest.mark.parametrize("delta", [1e-6, slow(1e-9), 1e-10, slow(1e-11), 1e-12])
@pytest.mark.parametrize("steps", [slow(10), 100_000])
def test_no_plan_is_worse_than_by_either_accountant(delta, steps):
    numbers = dict(target_epsilon=0.5, delta=delta, steps=steps, sampling_probability=0.01)
    by = {name: solve_noise_multiplier(**numbers, accountant=name) for name in ("pld", "rdp")}
    assert by["pld"] <= by["rdp"] * (1 + 1e-4)


@pytest.mark.parametrize("z", [0.01, 0.3, 1.0, 0.02])
def test_a_record_that_is_hardly_ever_used_costs_nothing(z):
    assert epsilon(Mechanism(z, steps=1, sampling_probability=1e-6), 2e-6) == 0
    assert epsilon(Mechanism(z, steps=10, sampling_probability=1e-6), 1.1e-5) == 0
    # It is in one of 11 steps with a chance of almost 1.1e-5.
    if z < 0.1:
        assert epsilon(Mechanism(z, steps=11, sampling_probability=1e-6), 1.09e-5) > 0


def test_numbers_of_numpy_are_taken_in_full_precision():
    """1 - q of a float32 is rounded, which made ε too small."""
    for kind in (np.float16, np.float32):
        q = kind(0.01)
        rounded = Mechanism(1.1, steps=1000, sampling_probability=q)
        assert type(rounded.sampling_probability) is float
        exact = Mechanism(1.1, steps=1000, sampling_probability=float(q))
        assert epsilon(rounded, 1e-11) == epsilon(exact, 1e-11)
        plan = jaxdp.Plan(
            num_examples=1437,
            expected_batch_size=kind(143.7),
            steps=10,
            clipping=jaxdp.clip_individual(1.0),
            noise_multiplier=1.0,
        )
        assert plan.sampling_probability == float(kind(143.7)) / 1437
