"""One thread that does one thing after the other: what others ask of it, and what is due by the clock."""

from __future__ import annotations

import heapq
import itertools
import queue
import threading
import time
from collections.abc import Callable

Action = Callable[[], None]


class EventLoop:
    """Actions from any thread, done in turn in a thread of its own, so that what they share needs no lock.

    Args:
        name: of the thread.
        after_each: done after every action.
        on_failure: gets what an action raised; the loop ends with it.
    """

    def __init__(self, name: str, after_each: Action, on_failure: Callable[[BaseException], None]) -> None:
        self._after_each, self._on_failure = after_each, on_failure
        self._inbox: queue.SimpleQueue[Action | None] = queue.SimpleQueue()
        self._timers: list[tuple[float, int, Action]] = []
        self._ticket = itertools.count()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin with what was asked for so far."""
        self._thread.start()

    def call(self, action: Action) -> None:
        """Do this when its turn comes; from any thread."""
        self._inbox.put(action)

    def after(self, seconds: float, action: Action) -> None:
        """Do this when the time has passed; from the loop's own thread."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._ticket), action))

    def close(self) -> None:
        """End the thread after what was asked for so far; what waits for the clock is dropped."""
        if self._thread.is_alive():
            self._inbox.put(None)
            self._thread.join()

    def _run(self) -> None:
        try:
            while (action := self._next()) is not None:
                action()
                self._after_each()
        except BaseException as error:  # noqa: BLE001 - whoever waits for an answer must not wait for ever
            self._on_failure(error)

    def _next(self) -> Action | None:
        due = self._timers[0][0] if self._timers else None
        try:
            return self._inbox.get(timeout=None if due is None else max(0.0, due - time.monotonic()))
        except queue.Empty:
            return heapq.heappop(self._timers)[2]
