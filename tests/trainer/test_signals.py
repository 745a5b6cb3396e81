"""Ctrl-C and SIGTERM: the first asks, the second acts, and what was ignored stays ignored."""

import os
import signal
import threading

import pytest
from helpers.interrupts import interrupts_raise

from jaxdp.trainer.signals import stop_on_signals


def test_the_first_interrupt_asks_and_the_second_interrupts():
    told = []
    with interrupts_raise():
        before = signal.getsignal(signal.SIGINT)
        with stop_on_signals(lambda: told.append(True)) as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert (stop.requested, stop.signal, told) == (True, signal.SIGINT, [True])
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_that_is_ignored_stays_ignored():
    """A job in the background of a shell script is started so: Ctrl-C is for the foreground."""
    told = []
    with interrupts_raise():  # puts back what was there
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with stop_on_signals(lambda: told.append(True)) as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert (stop.requested, told) == (False, [])
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGTERM)  # which is a request all the same
            assert (stop.requested, stop.signal) == (True, signal.SIGTERM)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_in_another_thread_signals_are_left_alone():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work():
        with stop_on_signals(lambda: None) as stop:
            seen.append((stop.requested, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
