"""Actions come in turn, by the clock too, and a failure reaches somebody."""

from __future__ import annotations

import queue
import threading

from prdp.cluster.event_loop import EventLoop


def test_actions_are_done_in_turn_in_one_thread_and_then_the_loop_ends():
    seen: list[object] = []
    loop = EventLoop("loop", lambda: seen.append("after"), seen.append)
    for number in range(3):
        loop.call(lambda number=number: seen.append((number, threading.current_thread().name)))
    loop.start()
    loop.close()
    assert seen == [(0, "loop"), "after", (1, "loop"), "after", (2, "loop"), "after"]
    loop.close()


def test_what_is_due_first_comes_first():
    seen: queue.SimpleQueue[str] = queue.SimpleQueue()
    loop = EventLoop("loop", lambda: None, lambda error: None)

    def set_clocks() -> None:
        loop.after(0.02, lambda: seen.put("late"))
        loop.after(0.0, lambda: seen.put("early"))
        loop.after(3600.0, lambda: seen.put("never"))

    loop.call(set_clocks)
    loop.start()
    assert [seen.get(timeout=10), seen.get(timeout=10)] == ["early", "late"]
    loop.close()
    assert seen.empty()


def test_a_failure_ends_the_loop_and_is_handed_on():
    failures: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
    loop = EventLoop("loop", lambda: None, failures.put)
    loop.call(lambda: [][1])
    loop.start()
    assert isinstance(failures.get(timeout=10), IndexError)
    loop.close()
