"""A network that processes hold together learns as one that a process holds alone, to the bit: FSDP2 over gloo."""

from __future__ import annotations

import functools
import os
import pickle
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stub_learners import KNOBS, ON_DENOISING
from stub_policy import SCHEDULER, StubPolicy, StubWeights, stub_rollout

from prdp.checkpoints.checkpoint import load_checkpoint
from prdp.checkpoints.saving import CheckpointWriter
from prdp.cluster.environment import import_paths
from prdp.cluster.rank_processes import RankProcesses
from prdp.config import ClusterConfig, LearnerConfig, ModelConfig, SamplerConfig
from prdp.configuration.typed import typed
from prdp.diffusion import build_sampler
from prdp.diffusion.conditions import Conditions
from prdp.diffusion.variance_preserving import build_transitions
from prdp.learners import RankSettings, build_learner, build_rank, learner_policy
from prdp.learners.learner import Learner
from prdp.learners.rank import LearnerRank
from prdp.learners.replicas import Replicas
from prdp.learners.rows import joined, rows_of
from prdp.support.rank_errors import ShardMemoryError
from prdp.support.tensor_parts import StoredTensors
from prdp.train import main
from prdp.types import PromptBatch, Rollout
from tests.points_run import points_run

STEPS, SEED = 4, 11
TRANSITIONS = build_transitions(SCHEDULER, steps=STEPS)


class Block(torch.nn.Module):
    """One of those that a network repeats."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(width, width)
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return value + self.scale * self.inner(value).tanh()


class BlockNetwork(torch.nn.Module):
    """Widths that two and four do not divide, and tensors of fewer rows than there are processes.

    What the first block is given, which that block uses twice, is added to the end, as UNets do.
    """

    _repeated_blocks = ("Block",)

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(10, 13)
        self.blocks = torch.nn.ModuleList([Block(13), Block(13)])
        self.last = torch.nn.Linear(13, 8)

    def forward(self, flat: torch.Tensor) -> torch.Tensor:
        value = start = self.first(flat)
        for block in self.blocks:
            # As networks of diffusers compute blocks again in a backward pass.
            value = torch.utils.checkpoint.checkpoint(block, value, use_reentrant=False)
        return self.last(value + start)  # type: ignore[no-any-return]


class BlockPolicy(StubPolicy):
    """Of float32, as real networks learn; in bfloat16 by autocast where that is asked for."""

    def __init__(self, precision: str = "float32") -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.network: Any = BlockNetwork()
        self.weights = StubWeights(self.network)
        self.precision = precision

    def output(
        self,
        latents: torch.Tensor,
        times: torch.Tensor,
        conditions: Conditions,
        guidance_scale: float,
        network: torch.nn.Module | None = None,
    ) -> torch.Tensor:
        states = conditions.fields["states"] / 10.0
        flat = torch.cat([latents.flatten(1), times[:, None] / 1000.0, states], dim=1).float()
        half = self.precision != "float32" and torch.is_grad_enabled()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            output = (network or self.network)(flat)
        return output.float().view_as(latents).double()  # type: ignore[no-any-return]


def built(
    objective: Mapping[str, Any], learner: Mapping[str, Any], precision: str, shards: int, ranks: Any = None
) -> Learner:
    settings = {"learning_rate": 1e-3, "microbatch": 5, "ratio_tolerance": 1e-3, **learner}
    config = LearnerConfig(mode="full", **settings)
    return build_learner(
        BlockPolicy(precision), TRANSITIONS, 1.0, config, objective, SEED, 2, ranks=ranks, shards=shards
    )  # fmt: skip


def rank_of(objective: Mapping[str, Any], learner: Mapping[str, Any], precision: str, shards: int) -> LearnerRank:
    return LearnerRank(built(objective, learner, precision, shards).engine)  # type: ignore[arg-type]


class Processes(RankProcesses):
    """Processes that are built anew for one learner after the other, since each takes seconds to start."""

    def __init__(self, count: int) -> None:
        self._factory = b""
        super().__init__(ClusterConfig(learners=count, learner_timeout_seconds=20.0), [int] * (count - 1), "gloo")
        self._all = count

    def learner(self, count: int, shards: int, *what: Any) -> Learner:
        self.build(count, shards, functools.partial(rank_of, *what, shards))
        return built(*what, shards, self)

    def build(self, count: int, shards: int, factory: Callable[[], LearnerRank]) -> None:
        self.forget()
        self.count = count
        self._config = ClusterConfig(learners=count, fsdp_size=shards, learner_timeout_seconds=20.0)
        for number in range(1, count):
            self._building[number] = self.ask(number, "build", pickle.dumps(factory), import_paths(None))

    def forget(self) -> None:
        """Have all ranks of the last learner leave each other."""
        self.leave()
        for number in range(1, self.count if self._meetings else 0):
            self.ask(number, "leave").result()


@pytest.fixture(scope="module")
def started() -> Iterator[Processes]:
    ranks = Processes(4)
    yield ranks
    ranks.close()


@pytest.fixture
def processes(started: Processes) -> Iterator[Processes]:
    yield started
    started.forget()


@pytest.fixture(scope="module")
def rollout() -> Rollout:
    return stub_rollout(BlockPolicy(), TRANSITIONS, prompts=5)


OF_ALL = ((2, 2), (4, 2), (4, 4))
"""Processes, and how many of them hold a network together."""
CASES: dict[str, Any] = {
    "prdp": (OF_ALL, "prdp", {}, {}, "float32"),
    # Whole groups, 5 in 3 microbatches: one process has no cells, and coefficients are found on the way.
    "groups": (OF_ALL[1:], "prdp", {}, {"microbatch": 37, "ema_decay": 0.9}, "float32"),
    # A moving old policy in the pass with gradient.
    "nft": (OF_ALL[1:2], "nft", {}, {"weight_decay": 0.1, "ema_decay": 0.5}, "float32"),
    # A reference, in passes of its own.
    "dgpo": (OF_ALL[:1], "dgpo", {}, {}, "float32"),
    "rebel": (OF_ALL[2:], "rebel", ON_DENOISING, {}, "float32"),
    "bfloat16": (OF_ALL[2:], "nft", {}, {"microbatch": 7}, "bfloat16"),
    # Its kernel rounds the last numbers of a tensor otherwise, whichever these are.
    "fused": (OF_ALL[:1], "prdp", {}, {"optimizer": "adamw_fused"}, "float32"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_update_is_that_of_one_process_to_the_bit(case: str, processes: Processes, rollout: Rollout) -> None:
    sizes, name, knobs, learner, precision = CASES[case]
    what = {"name": name, **KNOBS[name], **knobs}, learner, precision
    alone = built(*what, 1)
    told = [timeless(alone.update(rollout)) for _ in range(2)]
    for count, shards in sizes:
        together = processes.learner(count, shards, *what)
        metrics = [timeless(together.update(rollout)) for _ in range(2)]
        state, expected = together.state()[0], alone.state()[0]
        assert state.keys() == expected.keys()
        if case == "fused":
            assert metrics[1] == pytest.approx(told[1], rel=1e-6)
            for key, value in expected.items():
                np.testing.assert_allclose(state[key], value, rtol=1e-6, atol=1e-12, err_msg=key)
            continue
        assert metrics == told
        for key, value in expected.items():
            np.testing.assert_array_equal(state[key], value, key)
        assert together.weights().checksum == alone.weights().checksum
        assert together.evaluation_weights().checksum == alone.evaluation_weights().checksum
        rows = together.engine._engine._parameters  # type: ignore[attr-defined]
        lengths = [len(rows[name]) for name in ("first.weight", "blocks.1.scale", "last.bias")]
        assert lengths == [-(-13 // shards), 1, 8 // shards]


def timeless(metrics: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if not key.startswith("time/")}


@pytest.mark.slow
def test_it_goes_on_with_another_number_of_processes_and_an_interruption_keeps_what_was_done(
    processes: Processes, rollout: Rollout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By checkpoints that each process writes and reads its rows of, or hands over where it does not see the disk."""
    what = {"name": "nft", **KNOBS["nft"]}, {"ema_decay": 0.9}, "float32"
    straight = built(*what, 1)
    for _ in range(4):
        straight.update(rollout)

    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Replicas, "whole", None)  # nothing gathers the whole
    state: Any = None
    for turn, (count, shards) in enumerate(((2, 2), (1, 1), (4, 4), (4, 2))):
        learner = built(*what, 1) if count == 1 else processes.learner(count, shards, *what)
        if turn == 2:  # of this process; the others see it
            monkeypatch.setattr(StoredTensors, "reachable", lambda self: False)
            monkeypatch.setattr(LearnerRank, "write_part", lambda *arguments: False)
        if state is not None:
            learner.load_state(*state)
        learner.update(rollout)
        if count > 1:
            with pytest.raises(KeyboardInterrupt):
                learner.update(rollout, progress=interrupt)
        learner.rest(fixed=True)  # what stays on the device is taken back
        staged, tensors, scalars = learner.stage()
        learner.rest(fixed=True)
        folder = CheckpointWriter(tmp_path, turn, staged, tensors, {}, keep=1).result()
        assert len(list(folder.glob("*.safetensors"))) == shards
        state = load_checkpoint(folder).tensors, scalars
    monkeypatch.undo()
    assert learner.weights().checksum == straight.weights().checksum
    assert learner.evaluation_weights().checksum == straight.evaluation_weights().checksum


@pytest.mark.slow
def test_memory_that_runs_out_in_one_process_ends_the_pass_for_all(processes: Processes, rollout: Rollout) -> None:
    learner = processes.learner(2, 2, {"name": "nft", **KNOBS["nft"]}, {}, "float32")
    policy: Any = learner.engine.policy
    output, passes = policy.output, iter([True, False, True])

    def short(*arguments: Any) -> torch.Tensor:
        if not next(passes):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return output(*arguments)  # type: ignore[no-any-return]

    policy.output = short
    with pytest.raises(ShardMemoryError, match=r"at learner\.microbatch=5 in a process of .*: CUDA out of memory"):
        learner.update(rollout)


@pytest.mark.slow
def test_a_unet_learns_as_one_process_has_it(processes: Processes, narrow_pipeline: Path) -> None:
    """Of the layout of Stable Diffusion, in bfloat16, with activations that are computed again."""
    model, sampling = ModelConfig(path=str(narrow_pipeline)), SamplerConfig(steps=2, microbatch=4)
    learner = LearnerConfig(
        mode="full", autocast="bfloat16", gradient_checkpointing=True, microbatch=2, learning_rate=1e-3
    )
    objective = {"name": "prdp", "beta": 0.5, "clip_range": 0.5}
    settings = RankSettings(model, learner, sampling, objective, SEED, shards=2)

    def of(shards: int, **others: Any) -> Learner:
        policy = learner_policy(model, learner, SEED, shards)
        table = policy.process.transitions(sampling)
        return build_learner(policy, table, 5.0, learner, objective, SEED, shards=shards, **others)

    processes.build(2, 2, functools.partial(build_rank, settings))
    one, two = of(1), of(2, ranks=processes, configuration=settings.digest)
    sampler = build_sampler(model, learner, sampling, seed=SEED, recorder=one.recorder)
    prompts = PromptBatch(0, 0, ("red circle", "blue square"), ({}, {}))
    rollout = sampler.sample(prompts, 2, SEED).scored(np.arange(4.0), {})
    assert timeless(one.update(rollout)) == timeless(two.update(rollout))
    expected, found = one.state()[0], two.state()[0]
    assert expected.keys() == found.keys()
    assert [name for name, value in expected.items() if not np.array_equal(value, found[name])] == []


@pytest.mark.slow
def test_rows_are_those_of_torch() -> None:
    for length in (1, 2, 3, 8, 13):
        whole = {"a": np.arange(3.0 * length).reshape(length, 3), "step": np.array(2.0)}
        parts = [rows_of(whole, part, 4) for part in range(4)]
        chunks = torch.from_numpy(whole["a"]).chunk(4)
        for number, part in enumerate(parts):
            expected = chunks[number].numpy() if number < len(chunks) else np.empty((0, 3))
            np.testing.assert_array_equal(part["a"], expected)
        again = joined(parts)
        np.testing.assert_array_equal(again["a"], whole["a"])
        assert again["step"] == 2.0


@pytest.mark.slow
def test_a_run_that_loses_a_process_goes_on_from_its_checkpoint_to_the_same_end_and_then_as_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings: dict[str, Any] = {"learner": {"microbatch": 4, "ema_decay": 0.5}}
    longer: dict[str, Any] = {"epochs": 4, "checkpoint": {"every": 1, "keep": 10, "resume": "auto"}}
    together = {"cluster": {"learners": 2, "fsdp_size": 2, "colocate": True}, "checkpoint": {"background": False}}
    straight, divided = points_run(tmp_path / "one", **settings), points_run(tmp_path / "two", **settings, **together)
    main(typed({**straight, **longer}))
    update, killed = Learner.update, []

    def deadly(self: Any, *arguments: Any) -> dict[str, float]:
        if self.version == 3 and not killed:
            killed.append(self.engine._replicas._ranks.process_ids[1])
            os.kill(killed[0], signal.SIGKILL)
        return update(self, *arguments)

    monkeypatch.setattr(Learner, "update", deadly)
    assert main(typed(divided)) == tmp_path / "two"
    assert f"learner rank 1 (process {killed[0]} on " in caplog.text
    assert "died: signal SIGKILL; what it held of the network is in the last checkpoint; the run goes on from" in (
        caplog.text
    )
    main(typed({**divided, **longer, "cluster": {}}))
    for epoch, files in ((3, 2), (4, 1)):
        expected, found = (tmp_path / run / "checkpoints" / f"epoch_0000{epoch}" for run in ("one", "two"))
        assert len(list(found.glob("*.safetensors"))) == files
        tensors = load_checkpoint(found).tensors
        assert set(tensors) == set(load_checkpoint(expected).tensors)
        for name, value in load_checkpoint(expected).tensors.items():
            np.testing.assert_array_equal(tensors[name], value, name)
