"""Steps are paid for before they are dispatched."""

import pytest

from jaxdp.trainer import loop
from jaxdp.trainer.run import payment
from jaxdp.trainer.run.ledger import Budget, Ledger, Segment
from jaxdp.trainer.signals import StopRequest


class Crash(BaseException):
    """Stops the loop where the step would begin."""


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger.create(tmp_path / "ledger.txt", Budget(3.0, 1e-5, "add_remove", "example"))
    ledger.open_segment(Segment(0, 1.5, 0.1, 100, "", ""))
    return ledger


def test_a_step_is_on_disk_before_it_is_dispatched(ledger):
    paid = []

    def step(state, batch, mask):
        paid.append(Ledger.read(ledger.path).stop(1))
        raise Crash

    with pytest.raises(Crash):
        loop.train(
            step, ({}, ({}, {})), [(None, None)],
            spent=payment.LedgerPayment(ledger, 0, 5),
            stop=StopRequest(), watch=print,
        )  # fmt: skip
    assert paid
    assert paid[0] >= 1


def test_every_step_is_paid_for_and_none_beyond_the_end(ledger):
    pays = payment.LedgerPayment(ledger, 0, 50)
    for step in range(50):
        pays.pay(step)
        assert step < Ledger.read(ledger.path).stop(1) <= 50
        assert pays.count == step + 1
    assert len(ledger.path.read_text().splitlines()) < 40  # in blocks
    with pytest.raises(ValueError, match="not in the budget"):
        pays.pay(50)


def test_slow_steps_are_paid_for_one_by_one(ledger, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(payment.time, "monotonic", lambda: next(clock))
    pays = payment.LedgerPayment(ledger, 0, 50)
    for step in range(9):
        pays.pay(step)
        assert Ledger.read(ledger.path).stop(1) == step + 1
        assert pays.may_stop(step + 1)


def test_steps_that_are_run_again_can_be_stopped_at_once(ledger):
    ledger.charge(0, 30)
    pays = payment.LedgerPayment(ledger, 10, 50)
    pays.pay(10)
    assert pays.may_stop(11)
