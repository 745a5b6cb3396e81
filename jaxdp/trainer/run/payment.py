"""Paying for steps before they are dispatched."""

import time

from .ledger import Ledger

BLOCK_SECONDS = 0.5  # of steps that are charged with one line: a sync may take as long as a step

LARGEST_BLOCK = 1000


class LedgerPayment:
    """Charges the newest segment of a ledger, for a block of steps at a time.

    Attributes:
      end: no step from here on may be taken.
      count: steps that were paid for and begun, from the run's first on.
    """

    def __init__(self, ledger: Ledger, start: int, end: int) -> None:
        self.end = end
        self.count = start
        self._ledger = ledger
        self._charged = 0  # in this process: charges up to here, not those of steps run again
        self._block = 1
        self._since = time.monotonic()

    def pay(self, step: int) -> None:
        """Returns when the step is paid for, on disk."""
        if step >= self.end:
            raise ValueError(f"step {step} is not in the budget, which ends before {self.end}")
        if step >= self._ledger.stop(len(self._ledger.segments)):
            self._charge_from(step)
        self.count = step + 1

    def may_stop(self, step: int) -> bool:
        """Whether nothing that this process paid for is left at a step: a moment's work at most."""
        return step >= self._charged

    def _charge_from(self, step: int) -> None:
        now = time.monotonic()
        if now - self._since < BLOCK_SECONDS / 2:
            self._block = min(2 * self._block, LARGEST_BLOCK)
        elif now - self._since > BLOCK_SECONDS:
            self._block = max(self._block // 2, 1)
        self._since = now
        self._charged = min(step + self._block, self.end)
        self._ledger.charge(step, self._charged - 1)
