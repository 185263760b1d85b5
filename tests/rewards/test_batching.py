"""Batches: their size, and what happens when the GPU's memory runs out."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from prdp.rewards.batching import DEFAULT_BATCH_SIZE, Batches, choose_device

torch = pytest.importorskip("torch")


def test_size_comes_from_the_number_or_from_the_budget() -> None:
    assert Batches("r").size == DEFAULT_BATCH_SIZE
    assert Batches("r", batch_size=3).size == 3
    assert Batches("r", memory_mib=1000, image_mib=300).size == 3
    assert Batches("r", memory_mib=10, image_mib=300).size == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: must be at least 1"),
        ({"memory_mib": 0.0}, "memory_mib=0.0: must be above 0"),
        ({"memory_mib": float("nan")}, "memory_mib=nan: must be above 0"),
        ({"batch_size": 2, "memory_mib": 5.0}, "one of them decides"),
    ],
)
def test_numbers_that_make_no_batch_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Batches("r", **arguments)


def test_batches_cover_everything_in_order() -> None:
    seen: list[int] = []

    def function(part: slice) -> np.ndarray:
        seen.append(part.stop - part.start)
        return np.arange(part.start, part.stop)

    assert Batches("r", batch_size=3).map(function, 7).tolist() == list(range(7))
    assert seen == [3, 3, 1]


class Gpu:
    """Runs out of memory above so many images."""

    def __init__(self, holds: int) -> None:
        self.holds, self.passes = holds, []  # type: tuple[int, list[int]]

    def __call__(self, part: slice) -> np.ndarray:
        count = part.stop - part.start
        self.passes.append(count)
        if count > self.holds:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return np.arange(part.start, part.stop)


def test_out_of_memory_halves_for_good_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    batches, gpu = Batches("hungry", batch_size=8), Gpu(holds=2)
    with caplog.at_level(logging.WARNING):
        assert batches.map(gpu, 9).tolist() == list(range(9))
        assert batches.map(gpu, 4).tolist() == list(range(4))
    assert gpu.passes == [8, 4, 2, 2, 2, 2, 1, 2, 2]
    (record,) = caplog.records
    assert "'hungry': 8 images at once exceed the GPU's memory; going on with 4" in record.getMessage()


def test_one_image_too_many_is_an_error_and_other_errors_pass() -> None:
    with pytest.raises(MemoryError, match="'hungry': not even one image fits"):
        Batches("hungry").map(Gpu(holds=0), 3)

    def broken(part: slice) -> np.ndarray:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        Batches("r").map(broken, 3)


def test_device_falls_back_to_the_cpu_with_a_message(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_device("r", "cpu") == "cpu"
    assert not caplog.records
    assert choose_device("r") == "cpu"
    assert "'r' runs on the CPU" in caplog.text
    with pytest.raises(ValueError, match="device=cuda: reward 'r' sees no such"):
        choose_device("r", "cuda")
    with pytest.raises(ValueError, match="device=tpu: must be"):
        choose_device("r", "tpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_device("r", "cuda:0") == "cuda:0"
