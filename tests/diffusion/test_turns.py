"""What waits on the host takes no memory on the device, and comes back as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prdp.checkpoints.checkpoint import load_checkpoint
from prdp.configuration.typed import typed
from prdp.diffusion.sampler import Sampler
from prdp.diffusion.turns import TurnTakingSampler, WaitingRoom, tensors_of
from prdp.learners.torch_engine import TorchEngine
from prdp.support.errors import ConfigError
from prdp.train import Run, main
from tests.points_run import points_run

CPU = torch.device("cpu")


def taken(tensors: Any) -> int:
    """Bytes of their memory, but for that of numpy's, which is on the host in any case."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum(storage.nbytes() for storage in storages if storage.resizable())


def test_tensors_wait_and_come_back_with_their_views() -> None:
    linear, moment, of_others = torch.nn.Linear(3, 5), torch.rand(7, dtype=torch.float64), torch.rand(4)
    view, shared = moment[2:], of_others[1:]
    before = [tensor.detach().clone() for tensor in (*linear.parameters(), moment, view, shared)]
    room = WaitingRoom()
    all_of_it = [*linear.parameters(), moment, view, shared]
    for _ in range(2):
        room.rest(all_of_it, CPU, but=[of_others])
        room.rest(all_of_it, CPU, but=[of_others])  # some wait already
        assert not room.is_empty
        assert taken([*linear.parameters(), moment, view]) == 0
        assert taken([of_others]) == 16
        room.wake()
        room.wake()
        assert room.is_empty
        for tensor, expected in zip(all_of_it, before, strict=True):
            assert torch.equal(tensor, expected)
    moment += 1.0
    assert torch.equal(view, before[3] + 1.0)
    room.rest([torch.rand(3, device="meta")], CPU)
    assert room.is_empty, "of another device"


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["prdp", "nft"])
def test_a_run_that_takes_turns_is_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    """Killed, and resumed; nobody has memory while the other works, but for what both look at."""
    settings: dict[str, Any] = {"objective": {"name": objective, **({"draws": 4} if objective == "nft" else {})}}
    main(typed(points_run(tmp_path / "apart", **settings)))
    seen: list[tuple[int, int]] = []
    run: Any = None
    sample, gather = Sampler.sample, TorchEngine.gather

    def of_both() -> tuple[int, int]:
        engine, sampler = run.learner.engine, run.workforce._sampler
        assert isinstance(sampler, TurnTakingSampler)
        kept = [tensors for tensors in (engine._average, *engine._kept.values()) if tensors]
        learning = [*engine._parameters.values(), *(one for tensors in kept for one in tensors.values())]
        return taken(learning), taken(tensors_of(sampler.policy))

    def sampling(*arguments: Any, **keywords: Any) -> Any:
        seen.append(of_both())
        assert seen[-1][0] == 0 < seen[-1][1]
        return sample(*arguments, **keywords)

    def gathering(*arguments: Any, **keywords: Any) -> Any:
        seen.append(of_both())
        assert seen[-1][1] == 0 < seen[-1][0]
        return gather(*arguments, **keywords)

    monkeypatch.setattr(Sampler, "sample", sampling)
    monkeypatch.setattr(TorchEngine, "gather", gathering)
    for resume, epochs in (("never", 2), ("auto", 3)):
        changes = {"cluster": {"colocate": True}, "checkpoint": {"resume": resume}, "epochs": epochs}
        run = Run(typed(points_run(tmp_path / "turns", **settings, **changes)))
        run.train()
        run.close()
    assert len(seen) > 12
    apart, turns = (load_checkpoint(tmp_path / name / "checkpoints/epoch_00003").tensors for name in ("apart", "turns"))
    assert set(apart) == set(turns)
    for name, value in apart.items():
        np.testing.assert_array_equal(turns[name], value, name)


@pytest.mark.parametrize(
    ("cluster", "says"),
    [
        ({"max_staleness": 1}, "cluster.max_staleness=1 has them work at the same time; set it to 0"),
        ({"kind": "ray", "learner_gpus": 1.0}, "learner_gpus=1 and sampler_gpus=0 must be the same"),
        ({"kind": "ray", "learner_gpus": 0.5, "sampler_gpus": 0.5}, "above 0.5 and at most 1"),
        ({"kind": "ray", "learner_gpus": 1.0, "sampler_gpus": 1.0}, "cluster.samplers=2 must be cluster.learners=1"),
        ({"kind": "ray", "weight_transport": "nccl", "learner_gpus": 1.0, "sampler_gpus": 1.0}, "than nccl"),
    ],
)
def test_what_cannot_take_turns_is_refused(tmp_path: Path, cluster: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=rf"cluster\.colocate=true: .*{says}"):
        typed(points_run(tmp_path, cluster={"colocate": True, **cluster}))
