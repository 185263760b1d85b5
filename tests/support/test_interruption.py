"""Signals end a run at once, but not in the middle of a step."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from prdp.support.interruption import TerminatedError, interruptions_raised, last_act, uninterrupted


@pytest.fixture(autouse=True)
def heard():
    """Neither signal is ignored, as they are where the tests run in the background."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, TerminatedError), (signal.SIGINT, KeyboardInterrupt)])
def test_signals_raise_at_once(number, error):
    before = signal.getsignal(number)
    with pytest.raises(error), interruptions_raised():
        os.kill(os.getpid(), number)
        pytest.fail("went on")
    assert signal.getsignal(number) is before


def test_what_is_ignored_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interruptions_raised():
        os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_a_step_is_finished_first():
    done = []
    with pytest.raises(TerminatedError), interruptions_raised(), uninterrupted():
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("inner")
        done.append("outer")
    assert done == ["inner", "outer"]
    with interruptions_raised(), uninterrupted():
        done.append("nothing left over")


def test_an_error_of_the_step_gives_way():
    with pytest.raises(TerminatedError) as caught, interruptions_raised(), uninterrupted():
        os.kill(os.getpid(), signal.SIGTERM)
        raise ValueError("in the step")
    assert isinstance(caught.value.__context__, ValueError)


def test_a_step_of_another_thread_puts_nothing_off():
    begun, interrupted, done = threading.Event(), threading.Event(), []

    def step() -> None:
        with uninterrupted():
            begun.set()
            done.append(interrupted.wait(20))

    thread = threading.Thread(target=step)
    thread.start()
    assert begun.wait(20)
    with pytest.raises(TerminatedError), interruptions_raised():
        os.kill(os.getpid(), signal.SIGTERM)
    interrupted.set()
    thread.join()
    assert done == [True]


def test_other_threads_leave_the_handlers_alone():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def look() -> None:
        with interruptions_raised():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [before]


def test_the_second_is_told_and_the_third_ends_it_at_once(monkeypatch, capfd):
    done = []
    monkeypatch.setattr("prdp.support.interruption.os._exit", lambda code: done.append(code))
    monkeypatch.setattr("prdp.support.interruption._last_acts", [])  # a Ray of other tests is not to end
    with pytest.raises(KeyboardInterrupt), interruptions_raised(), last_act(lambda: done.append("last act")):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            assert capfd.readouterr().err == ""
            os.kill(os.getpid(), signal.SIGINT)
            assert "is stopping, and keeps what is finished; Ctrl-C once more ends it at once" in capfd.readouterr().err
            assert done == []
            os.kill(os.getpid(), signal.SIGINT)
    assert done == ["last act", 130]


def test_the_next_command_of_a_process_begins_anew():
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), interruptions_raised(), interruptions_raised():
            os.kill(os.getpid(), signal.SIGINT)
