"""Signals become wishes: cancel, then detach; and before there is an instance, the end."""

import os
import signal
import time

import pytest

from gce_backend.interrupts import Interrupted, Interrupts


def test_one_ctrl_c_wants_a_cancel_and_two_want_to_leave():
    with Interrupts() as interrupts, interrupts.deferred():
        os.kill(os.getpid(), signal.SIGINT)
        assert (interrupts.wants_cancel, interrupts.detach_exit_code) == (True, None)
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.detach_exit_code == 130


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_sigterm_and_sighup_leave_at_once(number):
    with Interrupts() as interrupts, interrupts.deferred():
        os.kill(os.getpid(), number)

        assert (interrupts.wants_cancel, interrupts.detach_exit_code) == (False, 128 + number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_before_an_instance_was_asked_for_a_signal_ends_the_command(number):
    with Interrupts(), pytest.raises(Interrupted, match="no instance was requested") as caught:
        signal.raise_signal(number)

    assert caught.value.exit_code == 128 + number


def test_a_signal_wakes_the_sleeper():
    with Interrupts() as interrupts, interrupts.deferred():
        os.kill(os.getpid(), signal.SIGINT)
        started = time.monotonic()
        interrupts.sleep(30)

    assert time.monotonic() - started < 5


def test_the_handlers_that_were_there_come_back():
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]

    with Interrupts():
        pass

    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_inactive_ones_leave_the_signals_alone():
    before = signal.getsignal(signal.SIGINT)

    with Interrupts(active=False):
        assert signal.getsignal(signal.SIGINT) is before
