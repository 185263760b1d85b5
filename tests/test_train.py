"""The whole loop on a random pipeline: resume, actors, exports, and input that must be refused."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from narrow_flow import narrow_pipeline
from points_run import killed, points_run

from prdp.checkpoints.checkpoint import load_checkpoint
from prdp.cli import main as command_line
from prdp.commands import train as commands
from prdp.config import TrainConfig
from prdp.configuration.typed import typed
from prdp.learners.learner import Learner
from prdp.rewards.names import taken
from prdp.support.errors import StartError, UserError
from prdp.support.interruption import TerminatedError, interruptions_raised
from prdp.tracking.jsonl import read_metrics
from prdp.train import Run, main


def plain(small_pipeline: Path, output_dir: Path, **changes: Any) -> dict[str, Any]:
    config: dict[str, Any] = {
        "seed": 3,
        "epochs": 3,
        "prompts_per_epoch": 3,
        "images_per_prompt": 2,
        "updates_per_epoch": 2,
        "output_dir": str(output_dir),
        "model": {"path": str(small_pipeline)},
        "sampler": {"steps": 3, "guidance_scale": 2.0, "prompts_per_chunk": 1, "deterministic_final_steps": 1},
        "reward": {"_target_": "prdp.rewards.redness.Redness"},
        "prompts": {
            "train": {"_target_": "prdp.worlds.shapes.prompts.ShapesPrompts", "split": "train", "size": 7},
            "heldout": {"_target_": "prdp.worlds.shapes.prompts.ShapesPrompts", "split": "heldout", "size": 4},
        },
        "learner": {"lora_rank": 4, "learning_rate": 1e-2, "ema_decay": 0.5, "microbatch": 6},
        "evaluation": {"every": 2, "prompts": 2, "images_per_prompt": 2, "final_prompts": 2, "grid_prompts": 1},
        "tracking": {"console": False, "report": False},
        "checkpoint": {"every": 1, "keep": 10},
    }
    for key, value in changes.items():
        section = config.setdefault(key, {})
        config[key] = {**section, **value} if isinstance(value, dict) and "_target_" not in value else value
    return config


def configured(small_pipeline: Path, output_dir: Path, **changes: Any) -> TrainConfig:
    return typed(plain(small_pipeline, output_dir, **changes))


def final_state(folder: Path, epoch: int = 3) -> dict[str, np.ndarray]:
    return load_checkpoint(folder / "checkpoints" / f"epoch_{epoch:05d}").tensors


def assert_same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_array_equal(value, right[name], err_msg=name)


@pytest.fixture(scope="module")
def straight(small_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never disturbed."""
    return main(configured(small_pipeline, tmp_path_factory.mktemp("straight"), tracking={"report": True}))


def test_a_run_leaves_everything(straight: Path) -> None:
    lines = read_metrics(straight)
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3]
    expected = {"reward/mean", "reward/std", "loss", "logratio", "approx_kl", "clipfrac", "grad_norm", "time/sample"}
    assert expected <= lines[1].keys()
    assert [line["epoch"] for line in lines if "eval/score" in line] == [0, 2, 3]
    assert lines[3]["weights_version"] == 4
    assert (straight / "report.html").stat().st_size > 10_000
    assert (straight / "config.yaml").is_file()
    assert list((straight / "weights").glob("*.safetensors"))
    usage = (straight / "weights" / "README.md").read_text()
    assert f"weights = {str(straight / 'weights')!r}" in usage and "pipeline.load_lora_weights(weights)" in usage
    assert "pipeline.load_lora_weights(weights)" in (straight / "progress.log").read_text()


def test_learner_and_sampler_of_one_process_hold_one_base(small_pipeline: Path, tmp_path: Path) -> None:
    run = Run(configured(small_pipeline, tmp_path / "run"))
    sampler: Any = run.workforce._sampler  # type: ignore[attr-defined]
    run.close()
    learner, sampled = (dict(one.network.named_parameters()) for one in (run.policy, sampler.policy))  # type: ignore[attr-defined]
    assert learner.keys() == sampled.keys()
    shared = {name for name, value in learner.items() if value.data_ptr() == sampled[name].data_ptr()}
    assert shared == learner.keys() - run.policy.weights.parameters.keys()


def test_every_name_that_logs_use_for_the_reward_is_refused_for_a_sub_score(straight: Path) -> None:
    own = {name for line in read_metrics(straight) for name in line if name.startswith(("reward/", "eval/"))}
    assert {"reward/group_std", "eval/score_low", "eval/diversity"} <= own
    assert [name for name in own if not taken(name.split("/")[1])] == []


def test_on_policy_evidence_agrees_every_epoch(straight: Path) -> None:
    assert all(line["ratio_error"] < 1e-4 for line in read_metrics(straight)[1:])


def test_resumed_run_ends_with_the_same_bits(small_pipeline: Path, straight: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    main(configured(small_pipeline, folder, epochs=1))
    main(configured(small_pipeline, folder, epochs=3, checkpoint={"resume": "auto"}))
    assert_same(final_state(folder), final_state(straight))
    assert [line["epoch"] for line in read_metrics(folder)] == [0, 1, 2, 3]


def test_killed_run_resumes_on_the_same_bits(tmp_path: Path) -> None:
    """On points, a model that needs neither diffusers nor the compiler of torch, each a third of the time to start."""
    folder = tmp_path / "run"
    killed(points_run(folder), "torch._dynamo", "diffusers")
    assert not (folder / "checkpoints" / "epoch_00002").exists()
    main(typed(points_run(folder, checkpoint={"resume": "auto"})))
    main(typed(points_run(tmp_path / "straight")))
    assert_same(final_state(folder), final_state(tmp_path / "straight"))


def test_terminated_run_saves_what_is_finished_and_resumes(
    small_pipeline: Path,
    straight: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """SIGTERM in the step that ends the second epoch: it is counted as one with that step, and its line is logged."""
    folder = tmp_path / "run"
    step = Learner._step

    def terminated(self: Learner) -> Any:
        if self.version == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self)

    config = configured(small_pipeline, folder, checkpoint={"every": 10})
    with monkeypatch.context() as patched:
        patched.setattr(Learner, "_step", terminated)
        patched.setattr(commands, "train", lambda _: main(config) and 0)
        assert command_line(["train"]) == 143
    assert "ended by SIGTERM; 2 finished epochs are kept" in capsys.readouterr().err
    (kept,) = (folder / "checkpoints").iterdir()
    checkpoint = load_checkpoint(kept)
    assert (checkpoint.epoch, checkpoint.state["learner"]["updates"]) == (2, 4)
    assert {"loss", "ratio_error", "staleness"} <= read_metrics(folder)[-1].keys()
    main(configured(small_pipeline, folder, checkpoint={"resume": "auto"}))
    assert_same(final_state(folder), final_state(straight))
    # The evaluation that was due then has a line of its own.
    assert [line["epoch"] for line in read_metrics(folder)] == [0, 1, 2, 2, 3]


def test_run_terminated_while_it_samples_resumes_on_two_processes_that_take_turns_with_the_sampler(
    small_pipeline: Path, straight: Path, tmp_path: Path
) -> None:
    config = plain(small_pipeline, tmp_path / "run", checkpoint={"every": 10})
    run = Run(typed(config))
    real, calls = run.rollouts.next, []

    def terminated(on_chunk: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(on_chunk)

    run.rollouts.next = terminated  # type: ignore[method-assign]
    with pytest.raises(TerminatedError), interruptions_raised():
        run.train()
    run.close()
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "epoch_00002").epoch == 2
    turns = {"learners": 2, "colocate": True}
    main(configured(small_pipeline, tmp_path / "run", cluster=turns, checkpoint={"resume": "auto"}))
    assert_same(final_state(tmp_path / "run"), final_state(straight))


STALE = {"max_staleness": 1}


@pytest.fixture(scope="module")
def stale(small_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in one process, on weights that are an epoch old."""
    return main(configured(small_pipeline, tmp_path_factory.mktemp("stale"), cluster=STALE))


def test_stale_rollouts_change_the_curve_and_are_logged(straight: Path, stale: Path) -> None:
    lines = read_metrics(stale)
    assert [line["staleness"] for line in lines[1:]] == [0, 2, 2]
    assert [line["weights_version"] for line in lines[1:]] == [0, 0, 2]
    assert [line["staleness"] for line in read_metrics(straight)[1:]] == [0, 0, 0]
    assert any((value != final_state(straight)[name]).any() for name, value in final_state(stale).items())


def test_overlapping_on_actors_equals_taking_turns_bit_for_bit_across_a_kill(
    small_pipeline: Path, stale: Path, tmp_path: Path
) -> None:
    """Weights by way of the object store to one sampler until then, by gloo to two afterwards."""
    folder = tmp_path / "run"
    cluster = {**STALE, "kind": "ray"}
    killed(plain(small_pipeline, folder, cluster={**cluster, "weight_transport": "object_store", "samplers": 1}))
    direct = {**cluster, "weight_transport": "gloo", "samplers": 2}
    main(configured(small_pipeline, folder, cluster=direct, checkpoint={"resume": "auto"}))
    left, right = final_state(folder), final_state(stale)
    assert_same(left, right)
    assert [name for name in left if name.startswith("published/2/")]


def test_staleness_cannot_change_on_the_way(small_pipeline: Path, stale: Path) -> None:
    with pytest.raises(UserError, match=r"cluster\.max_staleness: 1 in the checkpoint, 0 now"):
        main(configured(small_pipeline, stale, epochs=4, checkpoint={"resume": "auto"}))


@pytest.mark.parametrize(("kind", "objective"), [("ddim", "diffusion_dpo"), ("euler", "best_of_n")])
def test_samplers_without_noise_train_on_denoising_errors(
    small_pipeline: Path, tmp_path: Path, kind: str, objective: str
) -> None:
    flow = {"family": "stable_diffusion_3", "path": str(tmp_path / "flow"), "max_sequence_length": 3}
    if kind == "euler":
        narrow_pipeline().save_pretrained(tmp_path / "flow")
    folder = main(
        configured(
            small_pipeline,
            tmp_path / "run",
            epochs=1,
            updates_per_epoch=1,
            model=flow if kind == "euler" else {},
            sampler={"kind": kind, "eta": 0.0, "deterministic_final_steps": 0},
            objective={"name": objective, "draws": 2},
            learner={"mode": "full"},
        )
    )
    start, end = read_metrics(folder)
    assert end["denoising_error"] > 0 and end["grad_norm"] > 0
    assert start["eval/score"] != end["eval/score"]
    assert f"kind: {kind}" in (folder / "config.yaml").read_text()


def test_full_weights_train_and_microbatches_change_only_rounding(small_pipeline: Path, tmp_path: Path) -> None:
    learner = {"mode": "full", "learning_rate": 1e-4, "ema_decay": 0.0}
    one, two = tmp_path / "one", tmp_path / "two"
    short: dict[str, Any] = {"epochs": 1, "evaluation": {"every": 0}}
    main(configured(small_pipeline, one, learner=learner, **short))
    main(configured(small_pipeline, two, learner={**learner, "microbatch": 5}, sampler={"microbatch": 4}, **short))
    left, right = final_state(one, 1), final_state(two, 1)
    moved = max(float(np.abs(value).max()) for name, value in left.items() if name.startswith("optimizer/exp_avg/"))
    assert moved > 0
    for name, value in left.items():
        if name.startswith("optimizer/exp_avg/"):
            np.testing.assert_allclose(right[name], value, atol=2e-3 * moved, err_msg=name)
    assert (one / "weights" / "model_index.json").is_file()


class Misbehaving:
    """A reward that answers for an image too many."""

    name, version = "misbehaving", "1"

    def score(self, images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Any]) -> Any:
        return np.zeros(len(images) + 1)


def test_a_reward_that_misbehaves_stops_the_run_by_name(small_pipeline: Path, tmp_path: Path) -> None:
    """How else it may is a matter of tests/rewards/test_scoring.py."""
    reward = {"_target_": f"{__name__}.Misbehaving"}
    with pytest.raises(ValueError, match=r"misbehaving(.|\n)*shape \(\d+,\), expected"):
        main(configured(small_pipeline, tmp_path / "run", reward=reward))


def test_start_up_refuses_what_cannot_run(small_pipeline: Path, straight: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    source = {"_target_": "prdp.prompts.text_file.TextFilePrompts", "path": str(empty)}
    with pytest.raises(StartError, match=r"empty\.txt holds no prompt"):
        main(configured(small_pipeline, tmp_path / "a", prompts={"train": source}))
    broken = tmp_path / "broken"
    broken.mkdir()
    with pytest.raises(StartError, match="broken"):
        main(configured(broken, tmp_path / "b"))
    with pytest.raises(UserError, match="seed: 3 in the checkpoint, 4 now"):
        main(configured(small_pipeline, straight, seed=4, checkpoint={"resume": "auto"}))


def test_a_full_disk_keeps_the_older_checkpoints(
    small_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from prdp.support import storage

    run = Run(configured(small_pipeline, tmp_path / "run"))
    kept: list[Path] = []
    real = storage.save_tensors

    def full(path: Any, tensors: Any) -> Any:
        if kept:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        kept.append(Path(path))
        return real(path, tensors)

    monkeypatch.setattr("prdp.support.staged.save_tensors", full)
    with pytest.raises(OSError, match="epoch_00002"):
        run.train()
    run.close()
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "epoch_00001").epoch == 1
