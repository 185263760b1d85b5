"""`benchmarks/host_time.py`: a pass starts as many operations in float32 as by peft, and fewer in half precision."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import host_time


def counts(dtype: torch.dtype) -> list[tuple[int, int]]:
    """Operations of a pass without and with gradient, by peft and here."""
    cells = [row.split("|") for row in host_time.rows(dtype, repeats=1)]
    return [(int(by_peft), int(here)) for _, _, by_peft, here, *_ in cells]


def test_operations_of_a_pass() -> None:
    assert all(by_peft == here for by_peft, here in counts(torch.float32))
    (by_peft, here), (by_peft_learning, here_learning) = counts(torch.bfloat16)
    adapted = 128
    # Two conversions of the input, the scaling, and those of the two matrices, which are made once for several passes.
    assert by_peft - here >= 4.5 * adapted
    # Those of the two gradients, too, and of the input's gradient.
    assert by_peft_learning - here_learning >= 7.5 * adapted
