"""Numbers for print are rounded up, by the digits that Python prints."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdp.accounting.rounding import round_up, shown_delta


@pytest.mark.parametrize(
    ("value", "rounded"),
    [(1.00001, 1.0001), (3.0, 3.0), (2.99999999, 3.0), (1e-7, 1e-7), (float("inf"), float("inf"))],
)
def test_rounding_is_up(value, rounded):
    assert round_up(value) == rounded


@pytest.mark.parametrize("delta", [1e-5 / 3, 1437**-1.1, 0.1 + 2e-17, 1.0000000000000002e-5])
def test_no_delta_is_rounded_down(delta):
    assert delta <= shown_delta(delta) <= 1.01 * delta
    assert shown_delta(delta) == round_up(delta, 3)


def test_a_delta_of_three_digits_stays_as_it_is():
    assert [shown_delta(delta) for delta in (1e-5, 0.1, 3.37e-4)] == [1e-5, 0.1, 3.37e-4]


@given(st.floats(1e-12, 1e12), st.integers(1, 8))
def test_no_number_is_rounded_down(value, digits):
    rounded = round_up(value, digits)
    assert value <= rounded <= value * (1 + 10.0 ** (1 - digits)) * (1 + 1e-15)
    assert round_up(rounded, digits) == rounded
