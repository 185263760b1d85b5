"""The parts of `gpu.py`'s report of a model; each may fail alone."""

from __future__ import annotations

from collections.abc import Callable

from gpu_bench import Bench, Measures
from gpu_checks import evidence, memory, numbers, precision, repeated, workspace
from gpu_times import attention, compiled, microbatches, protocol, speed

PARTS: dict[str, tuple[Callable[[Bench], Measures], float]] = {
    "numbers": (numbers, 45.0),
    "memory": (memory, 45.0),
    "speed": (speed, 75.0),
    "protocol": (protocol, 60.0),
    "compile": (compiled, 60.0),
    "repeated": (repeated, 20.0),
    "evidence": (evidence, 40.0),
    "microbatches": (microbatches, 30.0),
    "attention": (attention, 30.0),
    "precision": (precision, 45.0),
    "workspace": (workspace, 35.0),
}
"""By name, by worth: the part, and the seconds that it may take. The first is of a network in float32, and the last but
one of small pictures; those between share a policy."""
ONLY = {"protocol": ("sd35_medium",), "workspace": ("sd15",)}
"""Parts of some models alone."""
APART = {"workspace": {"CUDNN_CONV_WSCAP_DBG": "1024"}}
"""Parts in a process of their own, and what its environment has."""


def parts_of(name: str) -> list[str]:
    """Those of a model."""
    return [part for part in PARTS if name in ONLY.get(part, (name,))]
