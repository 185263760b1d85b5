"""`torch.compile` of the blocks that a network repeats, and the time that it takes."""

from __future__ import annotations

import shutil
import threading
import time
from typing import Any

import torch

from prdp.diffusion.precision import repeated_blocks
from prdp.support.errors import StartError

_VARIANTS = 64
"""How many programs a kind of block may have: with and without gradient, with and without adapters, by precision and
size of a batch. Beyond torch's own 8 a block would be computed without compiling, and nobody would be told."""


class _Clock:
    """Seconds that this process has spent on compiling; torch calls it from any thread, first and last of several."""

    def __init__(self) -> None:
        from torch._dynamo.callback import callback_handler

        self.seconds, self._begun, self._lock = 0.0, 0.0, threading.Lock()
        callback_handler.register_start_callback(self._start)
        callback_handler.register_end_callback(self._end)

    def _start(self, _: Any) -> None:
        with self._lock:
            self._begun = time.perf_counter()

    def _end(self, _: Any) -> None:
        with self._lock:
            self.seconds += time.perf_counter() - self._begun


_clock: _Clock | None = None


def compile_blocks(network: torch.nn.Module, backend: str) -> None:
    """Have the blocks that a network repeats compiled when they are first computed; those that are, stay.

    Names of tensors and the network's state stay as they are. A network without such blocks is compiled as a whole.

    Args:
        backend: of torch.compile.

    Raises:
        StartError: there is no compiler for C++, which inductor needs on a CPU.
    """
    global _clock
    on_cpu = next(network.parameters()).device.type == "cpu"
    if backend == "inductor" and on_cpu and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise StartError("model.compile=inductor: needs a compiler for C++ on a CPU, such as g++")
    if _clock is None:
        _clock = _Clock()
    torch._dynamo.config.recompile_limit = _VARIANTS
    for block in repeated_blocks(network) or [network]:
        if "_compiled_call_impl" not in vars(block):  # which `upcast` may have put aside
            block.compile(backend=backend)


def compile_seconds() -> float:
    """Seconds that this process has spent on compiling so far."""
    return 0.0 if _clock is None else _clock.seconds
