"""Calls that wait for others, such as servers, several at a time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def results_of(function: Callable[[Item], Result], items: Sequence[Item], at_once: int) -> list[Result]:
    """The function's results, in the order of the items.

    Threads are daemons: an interruption does not wait for calls that may take minutes. After a failure no further call
    begins.

    Args:
        at_once: calls under way at a time.

    Raises:
        what the first call that fails raises.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for place in range(len(items)):
        waiting.put(place)
    done: queue.SimpleQueue[tuple[int, Result | None, BaseException | None]] = queue.SimpleQueue()
    stopped = threading.Event()

    def work() -> None:
        while not stopped.is_set():
            try:
                place = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((place, function(items[place]), None))
            except BaseException as error:  # noqa: BLE001 - raised again by the one who asked
                done.put((place, None, error))

    for _ in range(min(at_once, len(items))):
        threading.Thread(target=work, daemon=True).start()
    results: dict[int, Result] = {}
    try:
        for _ in items:
            place, result, error = done.get()
            if error is not None:
                raise error
            results[place] = result  # type: ignore[assignment]
    finally:
        stopped.set()
    return [results[place] for place in range(len(items))]
