"""Ranks in threads of one process, to test the arithmetic and what happens when one is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from prdp.learners.rank import LearnerRank
from prdp.support.rank_errors import RankLostError, ReductionError


class ThreadGroup:
    """One rank's place in a sum over threads."""

    def __init__(self, number: int, slots: list[list[torch.Tensor]], barrier: threading.Barrier) -> None:
        self._number, self._slots, self._barrier = number, slots, barrier

    def total(self, tensors: list[torch.Tensor]) -> None:
        self._slots[self._number] = tensors
        try:
            self._barrier.wait(20)
            sums = [torch.stack(parts).sum(0) for parts in zip(*self._slots, strict=True)]
            self._barrier.wait(20)
        except threading.BrokenBarrierError:
            raise ReductionError("a thread is missing") from None
        for tensor, value in zip(tensors, sums, strict=True):
            tensor.copy_(value)


class ThreadRanks:
    """See `prdp.learners.replicas.Ranks`.

    Args:
        count: of all ranks.
        make: builds the rank of a number.

    Attributes:
        losses: (number, method) of calls that are not answered; each strikes once.
        calls: (number, method) of all that was asked for.
    """

    def __init__(self, count: int, make: Callable[[int], LearnerRank]) -> None:
        self.count, self._make = count, make
        self.losses: list[tuple[int, str]] = []
        self.calls: list[tuple[int, str]] = []
        self.taken: list[tuple[int, int]] = []
        self._barrier = threading.Barrier(count)
        self._threads = {number: ThreadPoolExecutor(1) for number in range(1, count)}
        self._ranks = {number: make(number) for number in range(1, count)}

    def ask(self, number: int, method: str, *arguments: Any, units: int = 1) -> Future[Any]:
        self.calls.append((number, method))
        if method == "take":
            self.taken.append((number, len(arguments[0])))
        return self._threads[number].submit(self._work, number, method, *arguments)

    def _work(self, number: int, method: str, *arguments: Any) -> Any:
        if (number, method) in self.losses:
            self.losses.remove((number, method))
            self._barrier.abort()
            raise RankLostError(f"{self.name(number)} died", number)
        return getattr(self._ranks[number], method)(*arguments)

    def connect(self) -> ThreadGroup:
        slots: list[list[torch.Tensor]] = [[] for _ in range(self.count)]
        self._barrier = threading.Barrier(self.count)
        for number, rank in self._ranks.items():
            rank.join(ThreadGroup(number, slots, self._barrier))
        return ThreadGroup(0, slots, self._barrier)

    def replace(self, number: int, error: RankLostError) -> None:
        self._ranks[number] = self._make(number)

    def progressed(self) -> None:
        pass

    def name(self, number: int) -> str:
        return f"learner rank {number} (thread)"
