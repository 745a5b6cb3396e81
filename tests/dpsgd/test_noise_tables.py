"""The law of the noise, number by number, is as close to the Gaussian as its charge says."""

import dataclasses
import itertools
from collections import Counter
from decimal import Context, Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from helpers import noise_law
from helpers.cases import slow
from helpers.noise_law import errors, position_counts, target_error, target_rounding, weights_of

from jaxdp.accounting.noise_charge import ERRORS, MISSING
from jaxdp.dpsgd._noise_tables import KERNELS, SLOT_BITS, Uniform, cell_weights, tables, weight_bits

SCALES = [22, 24]


def check(table, uniforms, scale, cells=range(noise_law.REACH)):
    """Refuses tables and kernels whose law is not symmetric or has larger errors than charged."""
    weights = weights_of(table, scale)
    assert not any(weights[table.cells :]), "a slot beyond the cells carries weight"
    weights = weights[: table.cells]
    assert weights == weights[::-1], "the weights are not symmetric"
    counts = position_counts(uniforms).tolist()
    assert counts == counts[::-1], "the kernel is not symmetric"
    assert len(counts) % 2 == 1, "the kernel has no middle"
    assert sum(weights) * sum(counts) == 2**noise_law.SAMPLER_BITS, "probabilities add up to 1"
    found = errors(weights, uniforms, scale, cells)
    # The series' own error; 1.3e-15 lies beyond 8. And float64's, in sums without cancellation.
    relative = float(target_error(scale, 8))
    assert relative < 1e-19
    charged = dict(zip(("rms", "largest", "beyond"), ERRORS[scale], strict=True), missing=MISSING)
    slack = dict(rms=relative, largest=relative, beyond=1.3e-34, missing=0.0)
    for name, bound in charged.items():
        value = getattr(found, name) * (1 + 1e-9) + slack[name]
        assert value <= bound, f"{name} error is {value:.5g}, above {bound:g}"
    # Nothing is drawn too seldom. From 10.5 deviations on the target is less than half of what is
    # drawn, and the series' error less than 1e-11 of either.
    assert target_error(scale, 10.5) < 1e-9
    assert float(target_rounding(scale)) < 1e-11 * drawn_in_the_tails(scale)
    assert found.least > 1e-8, f"least is {found.least:.5g}: some number is drawn too seldom"
    return found


def drawn_in_the_tails(scale):
    """About the least probability up to 13 deviations: a unit 2 cells away, where the kernel, a
    piece of x^4/24 from its end at 2.5 cells, has ½^4/24."""
    return 2.0 ** -weight_bits(scale) * (0.5**4 / 24) / (2**scale / 64)


@pytest.mark.slow
@pytest.mark.parametrize("scale", SCALES)
def test_the_errors_of_every_number_are_those_that_are_charged(scale):
    """All numbers that can be drawn: 109 and 437 million. 7 and 23 seconds of one core."""
    found = check(tables(scale), KERNELS[scale], scale)
    print(scale, found)
    values = [found.rms, found.largest, found.beyond]
    np.testing.assert_array_less(0.95 * np.array(ERRORS[scale]), values)  # nor charged too much
    assert found.missing > 0.9 * MISSING


@pytest.mark.parametrize("scale", [SCALES[0], *map(slow, SCALES[1:])])
def test_the_errors_of_every_eighth_cell(scale):
    found = check(tables(scale), KERNELS[scale], scale, range(0, noise_law.REACH, 8))
    assert found.rms > 0.2 * ERRORS[scale][0]  # about 1/√8


@pytest.mark.parametrize("scale", SCALES)
def test_the_alias_table_holds_the_weights_exactly(scale):
    weights = weights_of(tables(scale), scale)
    want = cell_weights(scale)
    assert weights[: len(want)] == want
    assert not any(weights[len(want) :])
    assert min(want) >= 0
    assert sum(want) == 2 ** weight_bits(scale)


def with_entry(column, slot, change):
    def changed(table):
        values = getattr(table, column).copy()
        values[slot] = change(values[slot])
        return dataclasses.replace(table, **{column: values})

    return changed


CHANGED_TABLES = {
    f"{column} {'+' if up else '-'} 1 of slot {slot}": with_entry(
        column, slot, lambda value, up=up: value + 1 if up else value - 1
    )
    for column, slot, up in [
        *itertools.product(["high"], [3, 400, 777, 1900], [True]),
        *itertools.product(["high"], [400, 777], [False]),
        *itertools.product(["low"], [300, 777], [True]),
        *itertools.product(["alias"], [3, 300, 777, 1900], [True, False]),
    ]
}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("changed", CHANGED_TABLES.values(), ids=CHANGED_TABLES)
def test_a_changed_entry_of_the_table_is_found(changed, scale):
    with pytest.raises(AssertionError, match=r"not symmetric|above|carries weight"):
        check(changed(tables(scale)), KERNELS[scale], scale, range(0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "steps", "bits"),
    [(0, 1, -1), (1, 1, -1), (2, 2, 0), (2, 2, -1), (3, 2, 0), (3, 1, 1), (4, 2, -1), (4, 1, -1)],
)
@pytest.mark.parametrize("scale", SCALES)
def test_a_changed_kernel_is_found(number, steps, bits, scale):
    uniforms = list(KERNELS[scale])
    own = uniforms[number]
    uniforms[number] = Uniform(own.step * steps, own.bits + bits)
    with pytest.raises(AssertionError, match=r"above|add up to 1|no middle"):
        check(tables(scale), uniforms, scale, range(3))


@pytest.mark.parametrize("scale", SCALES)
def test_a_kernel_without_one_of_its_uniforms_is_found_by_the_errors(scale):
    check(tables(scale), KERNELS[scale], scale, range(3))
    weights = cell_weights(scale)
    for number in range(1, 4):  # in its place the next one again, so that all stay a cell wide
        uniforms = list(KERNELS[scale])
        uniforms[number] = uniforms[number + 1]
        missing = sum(u.bits for u in KERNELS[scale]) - sum(u.bits for u in uniforms)
        scaled = [w * 2**missing for w in weights]
        assert errors(scaled, uniforms, scale, range(3)).rms > 100 * ERRORS[scale][0]


def test_counts_of_positions_are_those_of_all_choices():
    uniforms = (Uniform(1, 3), Uniform(1, 3), Uniform(2, 2), Uniform(4, 1))
    ranges = [range(0, u.step * 2**u.bits, u.step) for u in uniforms]
    want = Counter(sum(choice) for choice in itertools.product(*ranges))
    counts = position_counts(uniforms).tolist()
    assert counts == [want[k] for k in range(len(counts))]
    assert sum(counts) == 2**9


@pytest.mark.parametrize("scale", SCALES)
def test_both_laws_at_single_numbers(scale):
    """The sampler's by plain fractions; the target's by Gauss-Legendre, without any series."""
    weights, counts = cell_weights(scale), position_counts(KERNELS[scale]).tolist()
    width, middle, rounding = 2**scale // 64, len(weights) // 2, float(target_rounding(scale))
    rng = np.random.default_rng(scale)
    for cell in (0, 1, 100, 511, 600, 642, 700, 834):
        ((first, difference, target),) = noise_law.differences(
            weights, KERNELS[scale], scale, [cell]
        )
        assert first == cell * width
        for k in [0, width - 1, *rng.integers(0, width, 20).tolist()]:
            n = first + k
            p = gaussian(n, scale)
            ways = 0
            for i in range(max(cell - 4, -middle), min(cell + 5, middle + 1)):
                position = n - i * width + len(counts) // 2
                if 0 <= position < len(counts):
                    ways += weights[middle + i] * counts[position]
            q = Fraction(ways, 2**128)
            # Below 1e-19 of p, 64 bits of the difference.
            tolerance = 1e-19 * float(p) + 1e-13 * abs(float(q - p)) + rounding
            assert abs(float(q - p) - difference[k]) <= tolerance
            assert abs(float(p) - target[k]) <= 1e-14 * float(p) + rounding


def gaussian(n, scale):
    """P(round(N(0, 4^scale)) = n), to more than 30 digits."""
    with localcontext(Context(prec=60)):
        s = Decimal(2) ** scale
        far = (Decimal(3) / 20).sqrt()
        parts = [(n - far, 5), (Decimal(n), 8), (n + far, 5)]
        total = sum(weight * (-((at / s) ** 2) / 2).exp() for at, weight in parts) / 18
        pi = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")
        return Fraction(total / s / (2 * pi).sqrt())


@pytest.mark.parametrize("scale", SCALES)
def test_tables_have_their_sizes(scale):
    table, slots = tables(scale), 2 ** SLOT_BITS[scale]
    for column, dtype in (("high", np.uint32), ("low", np.uint32), ("alias", np.int32)):
        values = getattr(table, column)
        assert values.shape == (slots,)
        assert values.dtype == dtype
    assert table.cells == 2 * 13 * 64 + 1
    assert SLOT_BITS[scale] + 64 + sum(u.bits for u in KERNELS[scale]) == 128
