"""Signals become wishes: cancel, then detach; and before there is an instance, the end."""

import os
import signal
import threading
import time

import pytest

from gce_backend.interrupts import Detached, Interrupted, Interrupts


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


def test_what_was_deferred_before_is_again():
    with Interrupts() as interrupts, interrupts.deferred():
        before = interrupts.defer()
        interrupts.defer(before)

        signal.raise_signal(signal.SIGTERM)

        assert interrupts.detach_exit_code == 128 + signal.SIGTERM


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


def test_an_inherited_ignore_is_kept_as_nohup_wants_it():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts, interrupts.deferred():
            os.kill(os.getpid(), signal.SIGHUP)

            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert interrupts.detach_exit_code is None
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("numbers", [[signal.SIGINT, signal.SIGINT], [signal.SIGTERM]])
def test_leaving_ends_even_a_call_that_blocks(numbers):
    """As in the last steps, where the code waits for an API and looks at no wish."""
    main = threading.get_ident()

    def signals():
        for number in numbers:
            time.sleep(0.1)
            signal.pthread_kill(main, number)

    started = time.monotonic()
    with Interrupts() as interrupts, interrupts.deferred():
        thread = threading.Thread(target=signals)
        thread.start()
        with (
            pytest.raises(Detached, match="it goes on") as caught,
            interrupts.leaving(lambda: "it goes on"),
        ):
            time.sleep(30)
        thread.join()

    assert caught.value.exit_code == 128 + numbers[0]
    assert time.monotonic() - started < 5


def test_one_ctrl_c_does_not_leave():
    with (
        Interrupts() as interrupts,
        interrupts.deferred(),
        interrupts.leaving(lambda: "it goes on"),
    ):
        signal.raise_signal(signal.SIGINT)

        assert interrupts.wants_cancel


def test_a_wish_from_before_leaves_at_once():
    with Interrupts() as interrupts, interrupts.deferred():
        signal.raise_signal(signal.SIGTERM)

        with pytest.raises(Detached), interrupts.leaving(lambda: "it goes on"):
            pytest.fail("entered")


def test_a_signal_in_any_instant_of_a_sleep_wakes_it():
    """An Event set in a handler waits for the lock that the interrupted sleep may hold."""
    main = threading.get_ident()
    over = threading.Event()

    def storm():
        while not over.wait(0.0005):
            signal.pthread_kill(main, signal.SIGINT)

    with Interrupts() as interrupts, interrupts.deferred():
        thread = threading.Thread(target=storm)
        thread.start()
        for _ in range(300):
            interrupts.sleep(5)
        over.set()
        thread.join()
