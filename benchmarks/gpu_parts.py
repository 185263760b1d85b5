"""The parts of `gpu.py`'s report of a model; each may fail alone."""

from __future__ import annotations

from collections.abc import Callable

from gpu_bench import Bench, Measures
from gpu_checks import evidence, memory, numbers, precision, repeated
from gpu_times import attention, compiled, microbatches, protocol, speed

PARTS: dict[str, tuple[Callable[[Bench], Measures], float]] = {
    "numbers": (numbers, 60.0),
    "precision": (precision, 60.0),
    "evidence": (evidence, 45.0),
    "speed": (speed, 90.0),
    "memory": (memory, 60.0),
    "protocol": (protocol, 90.0),
    "microbatches": (microbatches, 45.0),
    "attention": (attention, 45.0),
    "repeated": (repeated, 30.0),
    "compile": (compiled, 120.0),
}
"""By name, in order: the part, and the seconds that it may take."""
ONLY = {"protocol": ("sd35_medium",)}
"""Parts of some models alone."""


def parts_of(name: str) -> list[str]:
    """Those of a model."""
    return [part for part in PARTS if name in ONLY.get(part, (name,))]
