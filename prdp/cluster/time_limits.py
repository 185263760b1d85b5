"""How long a piece of work may take before whoever does it counts as hung: given, or by what earlier ones took."""

from __future__ import annotations

import dataclasses
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prdp.config import ClusterConfig

_log = logging.getLogger(__name__)

LEAST_SECONDS = 60.0
"""No learned limit is shorter: a pause of the machine is not a hang."""
FACTOR = 10.0
"""A learned limit is so many times the longest of the earlier pieces."""
_REMEMBERED = 200

Clock = Callable[[], float]


class TimeLimit:
    """Of one kind of work, such as sampling a chunk.

    A piece's size counts in units (images), since chunks differ. Without a number of its own the limit is `FACTOR`
    times the longest seconds per unit of the last 200 finished pieces, and at least `LEAST_SECONDS`. The first piece
    that somebody does may load or compile, so it teaches nothing and has at least `first_seconds`.

    Args:
        key: what sets it, for messages, such as 'cluster.sample_timeout_seconds'.
        seconds: the limit of every piece; 0 for none; None to learn it.
        first_seconds: for what nothing is known of yet.
    """

    def __init__(self, key: str, seconds: float | None, first_seconds: float) -> None:
        self.key, self.seconds, self._first_seconds = key, seconds, first_seconds
        self._recent: deque[float] = deque(maxlen=_REMEMBERED)

    def learn(self, seconds: float, units: int) -> None:
        """A piece of so many units was finished in so many seconds."""
        self._recent.append(seconds / max(units, 1))

    def longest(self, units: int) -> float | None:
        """Seconds that so many units took at most; None before any were finished."""
        return max(self._recent) * max(units, 1) if self._recent else None

    def usual(self, units: int, first: bool, extra: float = 0.0) -> float:
        """Seconds beyond which a piece is out of the ordinary, whether or not there is a limit.

        Args:
            first: whether it is the first that somebody does.
            extra: seconds that it may wait for others, in all honesty.
        """
        longest = self.longest(units)
        learned = self._first_seconds if longest is None else max(LEAST_SECONDS, FACTOR * longest)
        return (max(learned, self._first_seconds) if first else learned) + extra

    def of(self, units: int, first: bool, extra: float = 0.0, attempts: int = 0) -> float:
        """Seconds that a piece may take, infinity without a limit; as `usual`.

        Args:
            attempts: that others failed in: a learned limit that was too short doubles with each.
        """
        if self.seconds is None:
            return self.usual(units, first, extra) * 2.0**attempts
        return self.seconds or math.inf

    def explain(self, units: int, limit: float) -> str:
        """Why so long is too long, for messages."""
        if self.seconds is not None:
            return f"{self.key}={self.seconds:g}"
        longest = self.longest(units)
        known = "" if longest is None else f", where earlier ones took at most {longest:.3g} s"
        return f"{limit:.3g} s{known} ({self.key} sets another limit)"


def limits_of(config: ClusterConfig) -> dict[str, TimeLimit]:
    """The limits of 'sample', 'bind' (of weights, by a sampler) and 'score', which a run learns as it goes."""
    return {
        kind: TimeLimit(f"cluster.{key}", getattr(config, key), config.start_timeout_seconds)
        for kind, key in (
            ("sample", "sample_timeout_seconds"),
            ("bind", "sample_timeout_seconds"),
            ("score", "reward_timeout_seconds"),
        )
    }


@dataclasses.dataclass(frozen=True)
class WorkStatus:
    """What somebody is at.

    Attributes:
        doing: for people, such as 'sampling epoch 3, prompts 8 to 11'.
        since: when it began, in seconds since 1970.
        warn_seconds: after which it is worth a word.
        limit_seconds: after which it is given up; infinity for never.
    """

    doing: str
    since: float
    warn_seconds: float
    limit_seconds: float

    def status(self, now: float) -> dict[str, Any]:
        """For status files: {"doing", "since": seconds since 1970, "limit_seconds": None for none, "silent": bool}."""
        limit = self.limit_seconds if math.isfinite(self.limit_seconds) else None
        return {
            "doing": self.doing,
            "since": self.since,
            "limit_seconds": limit,
            "silent": now - self.since >= self.warn_seconds,
        }


class Watchdog:
    """Says in the log when work in this process takes far longer than earlier work of its kind; it ends nothing.

    A thread of its own looks at the clock, asleep until a word is due.

    Args:
        limits: of every kind of work.
        clock: seconds that only grow.
    """

    def __init__(self, limits: dict[str, TimeLimit], clock: Clock = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._changed = threading.Condition()
        self._at: tuple[WorkStatus, float, float] | None = None
        self._known: set[str] = set()
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def work(self) -> WorkStatus | None:
        """What is being done now."""
        at = self._at
        return None if at is None else at[0]

    @contextmanager
    def over(self, kind: str, doing: str, units: int = 1, extra: float = 0.0) -> Iterator[None]:
        """Watch over the work of the block; what it raises teaches nothing.

        Args:
            kind: one of the limits.
            doing: for people.
            units: its size.
            extra: see `TimeLimit.usual`.
        """
        limit, first = self._limits[kind], kind not in self._known
        warn = limit.usual(units, first, extra) / 2
        longest = limit.longest(units)
        known = "no earlier one is known of" if longest is None else f"earlier ones took at most {longest:.3g} s"
        begun = self._clock()
        self._begin(WorkStatus(doing, time.time(), warn, math.inf), begun, known)
        try:
            yield
        finally:
            with self._changed:
                self._at = None
                self._changed.notify()
        if not first:
            limit.learn(self._clock() - begun, units)
        self._known.add(kind)

    def look(self) -> float | None:
        """Say what is due, once whoever looks; seconds until the next word may be, None while nothing is done."""
        with self._changed:
            if self._at is None:
                return None
            work, begun, due = self._at
            spent = self._clock() - begun
            if spent < due:
                return due - spent
            _log.warning("%s has taken %.0f s; %s", work.doing, spent, self._comparison)
            self._at = work, begun, 2 * max(due, spent)
            return self._at[2] - spent

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _begin(self, work: WorkStatus, begun: float, comparison: str) -> None:
        with self._changed:
            self._at, self._comparison = (work, begun, work.warn_seconds), comparison
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="prdp watchdog", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _run(self) -> None:
        with self._changed:
            while not self._closed:
                self._changed.wait(self.look())
