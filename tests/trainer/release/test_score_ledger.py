"""The ledger of private test records: one budget for all evaluations, paid before any is told."""

from fractions import Fraction

import pytest

from jaxdp.trainer.release import score_ledger
from jaxdp.trainer.release.score_ledger import ScoreLedger, as_decimal, as_fraction, opened

HALF = Fraction(1, 2)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "visits.txt"


@pytest.fixture
def begun(path):
    """A ledger with a budget of 2, of which 0.5 is spent."""
    with opened(path, "visits", HALF, Fraction(2)) as book:
        book.charge(HALF)
    return path


def test_what_was_charged_is_read_again(begun):
    book = ScoreLedger.read(begun)
    assert (book.records, book.budget, book.spent, book.left) == ("visits", 2, HALF, Fraction(3, 2))
    first, second = begun.read_text().splitlines()
    assert first.startswith('{"test_ledger": 1, "records": "visits", "budget": "2", "adjacency": ')
    assert second.startswith('{"spent": "0.5", "time": "20')


def test_decimal_numbers_are_added_exactly(path):
    tenth = as_fraction("epsilon", 0.1)
    with opened(path, "visits", tenth, as_fraction("budget", 0.3)) as book:
        for _ in range(3):  # 0.1 + 0.1 + 0.1 is more than 0.3 in floats
            book.charge(tenth)
        with pytest.raises(ValueError, match=r"has 0 left of 0.3: its budget is used up for good"):
            book.charge(Fraction(1, 10**9))
    assert ScoreLedger.read(path).left == 0


def test_nothing_is_charged_beyond_the_budget(begun):
    with opened(begun, "visits", HALF, None) as book:
        with pytest.raises(ValueError, match=r"epsilon is 1.6, and .* has 1.5 left of 2: give at"):
            book.charge(Fraction(8, 5))
        assert book.spent == HALF
    assert ScoreLedger.read(begun).spent == HALF


def test_a_charge_is_on_disk_when_it_returns(begun):
    with opened(begun, "visits", HALF, None) as book:
        book.charge(HALF)
        assert ScoreLedger.read(begun).spent == 1


@pytest.mark.parametrize(
    ("records", "epsilon", "budget", "message"),
    [
        ("digits", HALF, None, r"is the ledger of 'visits', and the test records are of 'digits'"),
        ("visits", HALF, Fraction(5), r"exists already, with a budget .*: leave out --budget"),
        ("visits", HALF, Fraction(1, 4), r"epsilon is 0.5, more than the budget 0.25 of the new"),
    ],
)
def test_a_ledger_that_does_not_fit_is_refused(begun, records, epsilon, budget, message):
    before = begun.read_bytes()
    with pytest.raises(ValueError, match=message), opened(begun, records, epsilon, budget):
        pass
    assert begun.read_bytes() == before


def test_a_missing_ledger_is_not_begun_without_a_budget(path):
    missing = pytest.raises(ValueError, match=r"there is no ledger .* give --budget E")
    with missing, opened(path, "visits", HALF, None):
        pass
    assert not path.exists()


def test_a_damaged_ledger_pays_for_nothing(begun):
    begun.write_text(begun.read_text().replace('"budget": "2"', '"budget": "9"'))
    damaged = pytest.raises(ValueError, match=r"line 1 is damaged .*: it no longer says what was")
    with damaged, opened(begun, "visits", HALF, None):
        pass


def test_a_half_written_charge_had_no_noise_drawn(begun):
    whole = begun.read_bytes()
    begun.write_bytes(whole[:-20])
    with opened(begun, "visits", HALF, None) as book:
        assert book.spent == 0
        book.charge(HALF)
    assert ScoreLedger.read(begun).spent == HALF


def test_one_process_at_a_time(begun):
    again = pytest.raises(ValueError, match=r"is being charged by process \d+ on .*: wait until")
    mine, other = (opened(begun, "visits", HALF, None) for _ in range(2))
    with mine, again, other:
        pass


@pytest.mark.parametrize(
    ("value", "digits"),
    [(Fraction(1, 2), "0.5"), (Fraction(3), "3"), (Fraction(1, 1000), "0.001"),
     (Fraction(25, 2), "12.5"), (Fraction(0), "0")],
)  # fmt: skip
def test_fractions_are_written_in_decimal_digits(value, digits):
    assert as_decimal(value) == digits
    assert Fraction(digits) == value


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_a_senseless_epsilon_is_refused(value):
    with pytest.raises(ValueError, match=r"epsilon is .*: give a number above 0"):
        as_fraction("epsilon", value)
    assert as_fraction("epsilon", 1e-7) == Fraction(1, 10**7)


def test_the_ledger_holds_no_digest_of_the_records(begun):
    """Its only text about them is the name that was declared."""
    assert set(vars(ScoreLedger.read(begun))) >= {"records", "budget", "spent"}
    words = begun.read_text().split('"')
    assert [word for word in words if len(word) > 20] == []
    assert score_ledger.__doc__ is not None
