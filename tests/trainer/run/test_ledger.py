"""The budget ledger: what is charged is on disk first, once, for good, and readable by people."""

import os
import time

import pytest

from jaxdp.accounting import guarantee
from jaxdp.accounting.mechanism import Mechanism
from jaxdp.accounting.noise_charge import noise_charge
from jaxdp.trainer import loop
from jaxdp.trainer.run import ledger, lines
from jaxdp.trainer.run.ledger import Budget, Ledger, Payment, Segment
from jaxdp.trainer.run.lines import Position
from jaxdp.trainer.step import TrainState

BUDGET = Budget(epsilon=3.0, delta=1e-4, adjacency="add_remove", unit="example")


def segment(start=0, **changed):
    values = dict(
        start=start,
        noise_multiplier=1.5,
        sampling_probability=0.1,
        num_examples=1000,
        num_parameters=650,
        state="ab",
        fingerprint="cd",
        secrets="12",
    )
    return Segment(**{**values, **changed})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.txt"


@pytest.fixture
def charged(path):
    """A closed ledger with steps 0 to 29 of one segment charged."""
    book = Ledger.create(path, BUDGET)
    book.open_segment(segment())
    book.charge(0, 19)
    book.charge(20, 29)
    book.close()
    return path


def test_what_was_charged_is_read_again(charged):
    for book in (Ledger.read(charged), Ledger.open(charged)):
        assert book.budget == BUDGET
        assert book.segments == [segment()]
        assert (book.steps, book.stop(1), book.torn) == (30, 30, False)


def test_the_lines_are_for_people(charged):
    lines = charged.read_text().splitlines()
    assert lines[0].startswith('{"ledger": 2, "epsilon": 3.0, "delta": 0.0001, "adjacency": "add_r')
    assert lines[1].startswith('{"segment": 1, "start": 0, "noise_multiplier": 1.5, ')
    assert lines[2].startswith('{"charge": 1, "first": 0, "last": 19, "time": "20')


def test_epsilon_is_that_of_the_charged_steps(charged):
    assert Ledger.read(charged).epsilon() == guarantee.epsilon(
        Mechanism(1.5, 30, 0.1, num_examples=1000, noise_draws_per_step=650), 1e-4
    )


def test_a_charge_is_idempotent(charged):
    before = charged.read_bytes()
    book = Ledger.open(charged)
    book.charge(5, 9)
    book.charge(0, 29)
    assert charged.read_bytes() == before
    book.charge(25, 34)  # pays for 30 to 34 only
    assert Ledger.read(charged).steps == 35
    assert '"first": 30, "last": 34' in charged.read_text()


def test_a_new_segment_pays_for_its_steps_again(charged):
    book = Ledger.open(charged)
    assert book.open_segment(segment(start=10, state="ef")) == 2
    book.charge(10, 14)
    assert book.steps == Ledger.read(charged).steps == 35
    assert book.epsilon() == guarantee.epsilon(
        Mechanism(1.5, 35, 0.1, num_examples=1000, noise_draws_per_step=650), 1e-4
    )


def test_noise_is_charged_for_all_charged_steps_of_all_segments(charged):
    book = Ledger.open(charged)
    book.open_segment(segment(start=10, num_parameters=10**11))
    book.charge(10, 14)
    charge = guarantee.charge_of(book.mechanisms())
    assert charge == noise_charge(30 * 650 + 5 * 10**11, 35)
    exact = lambda delta: guarantee.epsilon(Mechanism(1.5, 35, 0.1, num_examples=1000), delta)
    assert book.epsilon() == charge.epsilon_at(1e-4, exact)


def test_steps_are_charged_in_order_without_gaps(charged):
    book = Ledger.open(charged)
    for first, last in ((31, 31), (-1, 3), (30, 29)):
        with pytest.raises(ValueError, match="charge every step, in order"):
            book.charge(first, last)
    book.open_segment(segment(start=10))
    with pytest.raises(ValueError, match="began at step 10"):
        book.charge(9, 12)


def test_a_charge_needs_a_segment(path):
    with pytest.raises(ValueError, match="no segment yet"):
        Ledger.create(path, BUDGET).charge(0, 1)


@pytest.mark.parametrize(
    ("name", "value"), [("epsilon", 0.0), ("epsilon", float("nan")), ("delta", 1.0)]
)
def test_a_senseless_budget_is_refused(path, name, value):
    with pytest.raises(ValueError, match=f"{name} of the budget is"):
        Ledger.create(path, Budget(**{**vars(BUDGET), name: value}))
    assert not path.exists()


def test_a_budget_that_promises_nothing_is_kept_as_that(path):
    endless = Budget(**{**vars(BUDGET), "epsilon": float("inf")})
    Ledger.create(path, endless)
    assert '"epsilon": null' in path.read_text()
    assert Ledger.read(path).budget == endless


def test_a_ledger_is_never_started_over(charged):
    with pytest.raises(FileExistsError):
        Ledger.create(charged, BUDGET)


def test_a_charge_is_synced_before_it_returns(path, monkeypatch):
    book = Ledger.create(path, BUDGET)
    book.open_segment(segment())
    synced = []
    monkeypatch.setattr(
        lines.os, "fsync", lambda descriptor: synced.append(path.read_text().count("\n"))
    )
    book.charge(0, 3)
    assert synced == [3]


@pytest.mark.parametrize("line", [1, 2, 3])
@pytest.mark.parametrize("damage", ["digit", "gone", "garbage"])
def test_a_damaged_line_is_named(charged, line, damage):
    lines = charged.read_bytes().splitlines(keepends=True)
    digits = {1: (b"3.0", b"9.0"), 2: (b"1.5", b"2.5"), 3: (b"19", b"18")}
    changed = {
        "digit": lines[line - 1].replace(*digits[line]),
        "gone": b"",
        "garbage": b"\xff\x00\n",
    }
    lines[line - 1] = changed[damage]
    charged.write_bytes(b"".join(lines))
    with pytest.raises(ValueError, match=rf"ledger.txt, line {line} is damaged .*undamaged copy"):
        Ledger.open(charged)


def test_a_damaged_last_line_is_damaged_too(charged):
    charged.write_bytes(charged.read_bytes()[:-3] + b"00\n")
    with pytest.raises(ValueError, match="line 4 is damaged"):
        Ledger.open(charged)


def test_a_half_written_last_line_was_never_paid_for(charged):
    whole = charged.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for end in (start + 1, start + 30, len(whole) - 2):
        charged.write_bytes(whole[:end])
        book = Ledger.open(charged)
        assert (book.torn, book.steps) == (True, 20)
        book.charge(20, 29)
        assert Ledger.read(charged).steps == 30


def test_a_last_line_that_lacks_its_end_only_counts(charged):
    charged.write_bytes(charged.read_bytes()[:-1])
    book = Ledger.open(charged)
    assert (book.torn, book.steps) == (False, 30)
    book.charge(30, 30)
    assert Ledger.read(charged).steps == 31


@pytest.mark.parametrize("text", [b"", b'{"ledger": 2, "eps'])
def test_a_ledger_without_a_budget_is_refused(path, text):
    path.write_bytes(text)
    with pytest.raises(ValueError, match="line 1 is"):
        Ledger.open(path)


def test_a_missing_ledger_is_refused(path):
    with pytest.raises(ValueError, match="nobody knows what the run has spent"):
        Ledger.open(path)


def test_a_position_is_held_by_its_own_ledger_only(charged, tmp_path):
    book = Ledger.open(charged)
    position = book.position
    book.charge(30, 39)
    assert Ledger.read(charged).holds(position)
    lines = charged.read_bytes().splitlines(keepends=True)
    charged.write_bytes(b"".join(lines[:3]))  # charges were lost
    assert not Ledger.read(charged).holds(position)
    other = Ledger.create(tmp_path / "other.txt", BUDGET)
    for _ in range(9):
        other.open_segment(segment(state="fresh"))
    assert not other.holds(position)
    assert not other.holds(Position(0, ""))


def test_a_position_is_of_all_lines_before_it(tmp_path, monkeypatch):
    """Equal last lines at one place of two ledgers are not the same spending."""
    monkeypatch.setattr(ledger, "now", lambda: "a time")
    books = []
    for state in ("ab", "other"):
        books.append(Ledger.create(tmp_path / f"{state}.txt", BUDGET))
        books[-1].open_segment(segment(state=state))
        books[-1].charge(0, 19)
    one, other = books
    assert one.path.read_text().count("\n") == other.path.read_text().count("\n")
    assert not other.holds(one.position)


def test_nothing_is_written_to_a_deleted_or_replaced_ledger(charged):
    book = Ledger.open(charged)
    with charged.open("ab") as other:
        other.write(b"somebody else\n")
    with pytest.raises(FileExistsError, match="somebody else"):
        book.charge(30, 30)
    charged.unlink()
    with pytest.raises(FileNotFoundError, match="deleted"):
        book.charge(30, 30)
    assert book.steps == 30


def test_a_failed_write_charges_nothing_and_leaves_no_half_line(charged, monkeypatch):
    book = Ledger.open(charged)
    write = os.write
    monkeypatch.setattr(lines.os, "write", lambda fd, line: write(fd, line[:9]))
    with pytest.raises(OSError, match="No space left"):
        book.charge(30, 30)
    monkeypatch.undo()
    assert book.steps == Ledger.open(charged).steps == 30
    book.charge(30, 30)
    assert Ledger.read(charged).steps == 31


def test_a_clock_going_backwards_changes_nothing(charged, monkeypatch):
    book = Ledger.open(charged)
    monkeypatch.setattr(lines.time, "gmtime", lambda: time.struct_time((1999,) + (1,) * 8))
    book.charge(30, 39)
    assert Ledger.read(charged).steps == 40


def test_reading_is_not_writing(charged):
    with pytest.raises(ValueError, match="not open for writing"):
        Ledger.read(charged).charge(30, 30)


def test_a_sealed_segment_can_be_charged_no_more(charged):
    book = Ledger.open(charged)
    book.seal()
    book.seal()  # says nothing new
    lines = charged.read_text().splitlines()
    assert lines[-1].startswith('{"sealed": 1, "time": "20')
    assert len(lines) == 5
    for other in (book, Ledger.read(charged)):
        assert (other.sealed, other.is_sealed, other.steps) == (1, True, 30)
    for first, last in ((30, 30), (5, 9)):
        with pytest.raises(ValueError, match="the secrets of segment 1 are destroyed: open a new"):
            book.charge(first, last)
    book.open_segment(segment(start=30))
    book.charge(30, 34)
    again = Ledger.read(charged)
    assert (again.sealed, again.is_sealed, again.steps) == (1, False, 35)


def test_a_ledger_without_a_segment_has_nothing_to_seal(path):
    with pytest.raises(ValueError, match="there are no secrets to destroy"):
        Ledger.create(path, BUDGET).seal()


@pytest.mark.parametrize(
    "wrong",
    [{"sealed": 1}, {"sealed": 0}, {"sealed": 2}, {"charge": 1, "first": 30, "last": 30}],
)
def test_what_no_seal_allows_is_damage(charged, wrong):
    book = Ledger.open(charged)
    book.seal()
    book._append(wrong)
    with pytest.raises(
        ValueError, match=r"line 6 is damaged \((seals are out of|a step is charged)"
    ):
        Ledger.read(charged)


class Crash(BaseException):
    """Stops the loop where the step would begin."""


@pytest.fixture
def book(path):
    """An open ledger with a segment and no charge."""
    book = Ledger.create(path, BUDGET)
    book.open_segment(segment())
    return book


def test_a_step_is_on_disk_before_it_is_dispatched(book):
    paid = []

    def step(state, batch, mask):
        paid.append(Ledger.read(book.path).stop(1))
        raise Crash

    with pytest.raises(Crash):
        loop.train(
            step,
            TrainState({}, {}, {}),
            [(None, None)],
            payment=Payment(book, 0, 5),
            stop=lambda: False,
            watch=print,
        )
    assert paid
    assert paid[0] >= 1


def test_every_step_is_paid_for_and_none_beyond_the_end(book):
    pays = Payment(book, 0, 50)
    for step in range(50):
        pays.pay(step)
        assert step < Ledger.read(book.path).stop(1) <= 50
        assert pays.count == step + 1
    assert len(book.path.read_text().splitlines()) < 40  # in blocks
    with pytest.raises(ValueError, match="not in the budget"):
        pays.pay(50)


def test_slow_steps_are_paid_for_one_by_one(book, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(ledger.time, "monotonic", lambda: next(clock))
    pays = Payment(book, 0, 50)
    for step in range(9):
        pays.pay(step)
        assert Ledger.read(book.path).stop(1) == step + 1
        assert pays.may_stop(step + 1)


def test_steps_that_are_run_again_can_be_stopped_at_once(book):
    book.charge(0, 30)
    pays = Payment(book, 10, 50)
    pays.pay(10)
    assert pays.may_stop(11)
