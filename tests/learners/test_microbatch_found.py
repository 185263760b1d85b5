"""Memory that runs out in a pass halves the microbatch, and the update is that of the smaller one, to the bit."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stub_learners import KNOBS, ON_DENOISING, SEED, TRANSITIONS, build
from stub_policy import StubPolicy, stub_rollout
from thread_ranks import ThreadRanks

from prdp.checkpoints.restarts import Restarts
from prdp.config import LearnerConfig
from prdp.configuration.typed import typed
from prdp.learners import build_learner
from prdp.learners.learner import Learner
from prdp.learners.rank import LearnerRank
from prdp.support.microbatches import MemoryShortError, out_of_memory
from prdp.support.rank_errors import ShardMemoryError
from tests.points_run import points_run

ON_A_GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation")
ON_A_HOST = RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried")
OF_XLA = RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 4294967296 bytes.")


class ShortPolicy(StubPolicy):
    """Has memory for so many rows, counting from a pass with gradient if only that takes it."""

    def __init__(self, most: int, error: Exception, with_gradient: bool = False, precision: str = "float32") -> None:
        super().__init__()
        self.most, self.error, self.with_gradient = most, error, with_gradient
        self.precision = precision
        self.passes = 0

    def output(self, latents: torch.Tensor, *arguments: Any) -> torch.Tensor:
        found = super().output(latents, *arguments)
        short = len(latents) > self.most and (torch.is_grad_enabled() or not self.with_gradient)
        self.passes += torch.is_grad_enabled()
        # The last microbatch of a pass is smaller: something is gathered when it fails.
        if short and self.passes % 2 == 0:
            raise self.error
        return found


def timeless(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("time/")}


def expect_same(found: Learner, expected: Learner) -> None:
    (tensors, scalars), (others, of_other) = found.state(), expected.state()
    assert tensors.keys() == others.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(value, others[name], name)
    assert scalars.items() >= of_other.items()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "knobs", "given", "most", "error", "fits"),
    [
        ("prdp", {}, 40, 12, ON_A_GPU, 10),
        ("prdp", {}, 4096, 12, OF_XLA, 12),  # of 48 cells
        ("prdp", ON_DENOISING, 24, 7, ON_A_HOST, 6),  # a group did fit, so that coefficients were found on the way
        ("crd", {}, 13, 7, ON_A_GPU, 6),
        ("dgpo", {}, 9, 4, ON_A_GPU, 4),
        ("nft", {}, 16, 12, ON_A_GPU, 8),
    ],
)
def test_the_update_is_that_of_the_smaller_microbatch(
    name: str, knobs: dict[str, Any], given: int, most: int, error: Exception, fits: int,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    policy = ShortPolicy(most, error)
    short, small = (
        build(one, name, knobs, microbatch=size, ema_decay=0.9) for one, size in ((policy, given), (StubPolicy(), fits))
    )
    rollout = stub_rollout(StubPolicy(), TRANSITIONS)
    for update in range(3):
        policy.passes = 1
        told = short.update(rollout)
        assert told.pop("learner_microbatch") == fits
        assert timeless(told) == timeless(small.update(rollout))
        if update == 0:
            policy.error = AssertionError("it is remembered")
    expect_same(short, small)
    warnings = [line.message for line in caplog.records if "memory ran out" in line.message]
    assert warnings[-1].endswith(f"done again, and from now on, with learner.microbatch={fits}")
    assert warnings[-1].startswith("update 0: memory ran out at ")
    assert "See documentation" not in caplog.text
    # A new start goes on with the size, unless it is given another one.
    for size, expected in ((given, fits), (3, 3)):
        again = build(StubPolicy(), name, knobs, microbatch=size, ema_decay=0.9)
        again.load_state(*short.state())
        again.update(rollout)
        assert again.engine.microbatch == expected
        if size == given:
            small.update(rollout)
            expect_same(again, small)
            assert again.state()[1]["microbatch"] == fits


@pytest.mark.slow
def test_half_precision_tells_its_noise_all_the_same() -> None:
    metrics = []
    for policy, size in (
        (ShortPolicy(4, ON_A_GPU, with_gradient=True, precision="bfloat16"), 16),
        (ShortPolicy(99, ON_A_GPU, precision="bfloat16"), 4),
    ):
        policy.passes = 1
        learner = build(policy, "ddpo", microbatch=size)
        rollout = dataclasses.replace(stub_rollout(StubPolicy(), TRANSITIONS), weights_version=9)
        metrics.append(timeless(learner.update(rollout)))
    assert metrics[0].pop("learner_microbatch") == 4
    assert metrics[0].keys() == metrics[1].keys()
    assert "evidence_noise" in metrics[0]


@pytest.mark.slow
def test_it_ends_at_one_cell_and_in_the_step_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    rollout = stub_rollout(StubPolicy(), TRANSITIONS)
    learner = build(ShortPolicy(0, ON_A_GPU), "nft", microbatch=5)
    before = learner.weights().checksum
    with pytest.raises(MemoryShortError, match=r"update 0: .* learner\.microbatch=1, .*CUDA.*gradient_checkpointing"):
        learner.update(rollout)
    assert learner.weights().checksum == before
    learner = build(StubPolicy(), "nft")
    monkeypatch.setattr(learner.engine, "apply", lambda *arguments: (_ for _ in ()).throw(ON_A_HOST))
    with pytest.raises(MemoryShortError, match=r"update 0: .* optimizer's step: .*learner\.optimizer=adamw_8bit"):
        learner.update(rollout)
    assert learner.engine.microbatch == 5
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not out_of_memory(MemoryShortError("out of memory"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prdp", "dgpo"])
def test_all_ranks_take_the_size_that_one_needs(name: str) -> None:
    """Also one that starts later."""
    rollout, objective = stub_rollout(StubPolicy(), TRANSITIONS, prompts=5), {"name": name, **KNOBS[name]}

    def one(number: int, size: int, ranks: Any = None) -> Learner:
        policy = StubPolicy()
        if number == 2 and size == 24:
            policy = ShortPolicy(7, ON_A_GPU)
            policy.passes = 1
        config = LearnerConfig(mode="full", learning_rate=1e-3, microbatch=size, ema_decay=0.9)
        return build_learner(policy, TRANSITIONS, 1.0, config, objective, SEED, 2, ranks=ranks)

    def of_three(size: int) -> tuple[Learner, ThreadRanks]:
        ranks = ThreadRanks(3, lambda number: LearnerRank(one(number, size).engine))  # type: ignore[arg-type]
        return one(0, size, ranks), ranks

    (together, ranks), (small, _) = of_three(24), of_three(6)
    for update in range(3):
        if update == 1:
            ranks.losses = [(1, "apply")]
        told = together.update(rollout)
        assert told.pop("learner_microbatch") == 6
        assert timeless(told) == timeless(small.update(rollout))
    assert [rank.engine.microbatch for rank in ranks._ranks.values()] == [6, 6]
    expect_same(together, small)


@pytest.mark.slow
def test_a_run_whose_network_is_held_together_begins_again_with_half(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    restarts = Restarts(typed(points_run(tmp_path, learner={"microbatch": 5})))
    for size in (2, 1):
        restarts.lost(ShardMemoryError("memory ran out"))
        assert restarts.config.learner.microbatch == size
        assert f"memory ran out; the run begins again, with learner.microbatch={size}" in caplog.text
    with pytest.raises(MemoryShortError, match=r"memory ran out; learner\.gradient_checkpointing"):
        restarts.lost(ShardMemoryError("memory ran out"))
