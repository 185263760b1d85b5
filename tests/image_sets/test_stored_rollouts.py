"""Runs that learn from a set: the same weights as from the same images drawn, going on, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from set_folders import entries, made

from prdp.checkpoints.checkpoint import CheckpointError
from prdp.commands.train import check_start
from prdp.config import TrainConfig
from prdp.configuration.geometry import geometry
from prdp.configuration.typed import typed
from prdp.image_sets.best_images import best_scores
from prdp.image_sets.manifest import Entry, write
from prdp.image_sets.reading import ImageSet, StoredPrompts
from prdp.image_sets.source import rollout_source
from prdp.image_sets.stored_scores import StoredReward
from prdp.rewards import build_reward
from prdp.rewards.redness import Redness
from prdp.rewards.scoring import scored
from prdp.support.errors import ConfigError, StartError
from prdp.support.storage import load_tensors, save_tensors
from prdp.tracking.jsonl import read_metrics
from prdp.train import Run
from prdp.train import main as train
from prdp.types import Rollout, tensors_checksum

JUDGE = "prdp.worlds.shapes.reward.ShapesJudge"
SHAPES = {"_target_": "prdp.worlds.shapes.prompts.ShapesPrompts", "split": "heldout", "size": 2}


def configured(folder: Path, pipeline: Path, **changes: Any) -> TrainConfig:
    """A run on four prompts x two images a batch, as the set of `base_set` has them."""
    plain: dict[str, Any] = {
        "epochs": 1,
        "prompts_per_epoch": 4,
        "images_per_prompt": 2,
        "output_dir": str(folder),
        "model": {"path": str(pipeline)},
        "sampler": {
            "steps": 2,
            "guidance_scale": 2.0,
            "timestep_spacing": "trailing",
            "deterministic_final_steps": 1,
            "prompts_per_chunk": 1,
            "microbatch": 2,
        },
        "reward": {"_target_": "prdp.rewards.redness.Redness"},
        "prompts": {"train": {**SHAPES, "split": "train", "size": 9}, "heldout": SHAPES, "shuffle": False},
        "objective": {"name": "diffusion_dpo", "draws": 2},
        "learner": {"lora_rank": 2, "lora_alpha": 2.0, "learning_rate": 1e-2},
        "evaluation": {"every": 0, "prompts": 1, "images_per_prompt": 1, "final_prompts": 1, "grid_prompts": 1},
        "tracking": {"console": False, "report": False},
    }
    for key, value in changes.items():
        plain[key] = {**plain.get(key, {}), **value} if isinstance(value, dict) and key != "objective" else value
    config: TrainConfig = typed(plain)
    return config


def stored(path: Path, **rest: Any) -> dict[str, Any]:
    return {"source": "stored", "path": str(path), **rest}


def weights(folder: Path) -> str:
    return tensors_checksum(load_tensors(folder / "weights" / "pytorch_lora_weights.safetensors"))


def test_a_set_teaches_what_the_same_images_teach_when_they_are_drawn(
    base_set: Path, small_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [json.dumps({"prompt": one["prompt"]}) for one in entries(base_set)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    source = {"_target_": "prdp.prompts.json_file.JsonFilePrompts", "path": str(tmp_path / "prompts.jsonl")}
    drawn = train(
        configured(tmp_path / "drawn", small_pipeline, prompts={"train": source, "heldout": SHAPES, "shuffle": False})
    )
    score, asked = Redness.score, []

    def counting(self: Redness, images: np.ndarray, *rest: Any) -> Any:
        asked.append(len(images))
        return score(self, images, *rest)

    monkeypatch.setattr(Redness, "score", counting)
    read = train(configured(tmp_path / "read", small_pipeline, rollouts=stored(base_set)))
    assert weights(read) == weights(drawn)
    unlike = {"wall_seconds", "publish_mib", "rss_mib"}
    ours, theirs = ({k: v for k, v in read_metrics(one)[-1].items() if k not in unlike} for one in (read, drawn))
    same = {key for key in ours.keys() & theirs.keys() if not key.startswith(("time/", "images_per_second", "memory"))}
    assert {"loss", "reward/mean", "denoising_error", "grad_norm"} <= same
    assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}
    assert asked == [1, 1], "evaluations alone are scored"


def test_a_run_goes_on_within_an_epoch_of_a_set(
    base_set: Path, small_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of four prompts an epoch, so that an epoch spans two passes; ended after the first of two updates.

    One image a prompt, of two that the set has: what is learned from needs no pairs.
    """
    changes: dict[str, Any] = {
        "epochs": 2,
        "prompts_per_epoch": 3,
        "updates_per_epoch": 2,
        "rollouts": stored(base_set),
        "prompts": {"shuffle": True},
        "images_per_prompt": 1,
        "objective": {"name": "denoising", "draws": 2},
        "reward": {"_target_": "prdp.rewards.compressibility.Compressibility"},
    }
    seen: list[tuple[int, ...]] = []
    sample = Run._sample

    def noting(self: Run, metrics: dict[str, float]) -> Rollout:
        rollout = sample(self, metrics)
        seen.append(rollout.prompts.indices)
        return rollout

    monkeypatch.setattr(Run, "_sample", noting)
    straight = train(configured(tmp_path / "straight", small_pipeline, **changes))
    assert len(set(seen[0]) | set(seen[1])) == 4 and seen[0] != tuple(range(3))
    assert [line["staleness"] for line in read_metrics(straight)[1:]] == [0, 2]
    expected, update, updates = list(seen), Run._update, []

    def ending(self: Run, rollout: Rollout, metrics: dict[str, float]) -> Rollout:
        if len(updates) == 3:
            updates.append(0)
            raise KeyboardInterrupt
        updates.append(1)
        return update(self, rollout, metrics)

    monkeypatch.setattr(Run, "_update", ending)
    folder = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        train(configured(folder, small_pipeline, **changes))
    seen.clear()
    train(configured(folder, small_pipeline, **changes, checkpoint={"resume": "auto"}))
    assert seen == expected[1:]
    assert weights(folder) == weights(straight)


def test_a_run_does_not_go_on_with_a_set_that_has_changed(
    base_set: Path, small_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, copied = tmp_path / "run", tmp_path / "set"
    shutil.copytree(base_set, copied)
    changes: dict[str, Any] = {"rollouts": stored(copied), "checkpoint": {"every": 1}}
    train(configured(folder, small_pipeline, **changes))
    shutil.rmtree(copied)
    made(copied, small_pipeline, "rewards=[shapes_judge,redness]", "seed=1")
    longer = {**changes, "epochs": 2, "checkpoint": {"every": 1, "resume": "auto"}}
    with pytest.raises(CheckpointError, match=r"rollouts\.path holds other prompts than when the checkpoint"):
        train(configured(folder, small_pipeline, **longer))


def test_a_set_that_was_harmed_is_refused_by_the_file(base_set: Path, small_pipeline: Path, tmp_path: Path) -> None:
    harmed = Path(shutil.copytree(base_set, tmp_path / "harmed"))
    first, second, third, _ = (harmed / one["chunk"] for one in entries(harmed))
    shutil.copy(second / "00001_1.png", second / "00001_0.png")
    file = third / "latents.safetensors"
    save_tensors(file, {"final_latents": load_tensors(file)["final_latents"] + np.float32(1e-3)})
    found = StoredPrompts([str(harmed)])
    with pytest.raises(StartError, match=r"00001_0\.png was changed: the digest"):
        found.images(1, 2)
    assert found.latents(1, 2).shape == (2, 4, 8, 8)
    with pytest.raises(StartError, match=r"00002-00002/latents\.safetensors was changed"):
        found.latents(2, 1)
    shutil.rmtree(first)
    with pytest.raises(StartError, match=r"3 files are missing, the first is .*00000-00000/00000_0\.png"):
        check_start(configured(tmp_path / "run", small_pipeline, rollouts=stored(harmed)))
    lines = (harmed / "prompts.jsonl").read_text().splitlines(keepends=True)
    outside = [Entry(**{**json.loads(line), "chunk": "../elsewhere"}) for line in lines]
    write(tmp_path / "outside", StoredPrompts([str(harmed)]).sets[0].manifest, outside)
    with pytest.raises(StartError, match=r"prompts\.jsonl line 1 is damaged: chunk=\.\./elsewhere: must lie in"):
        StoredPrompts([str(tmp_path / "outside")])
    with (harmed / "prompts.jsonl").open("a") as opened:
        opened.write("\n")
    with pytest.raises(StartError, match=r"prompts\.jsonl was changed"):
        StoredPrompts([str(harmed)])
    (harmed / "set.json").write_text((harmed / "set.json").read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(StartError, match=r"set\.json was changed"):
        StoredPrompts([str(harmed)])
    (harmed / "set.json").unlink()
    with pytest.raises(StartError, match=r"not a whole set of images.*the same command again goes on"):
        StoredPrompts([str(harmed)])
    with pytest.raises(StartError, match="is no set of images"):
        StoredPrompts([str(tmp_path)])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"objective": {"name": "prdp"}}, "trajectory evidence of .* set objective.evidence=denoising"),
        ({"objective": {"name": "grpo_guard"}}, "trajectory evidence of .*; take one of .*best_of_n"),
        ({"rollouts": {"path": None}}, "rollouts.path=null: rollouts.source=stored needs the folder of a set"),
        ({"rollouts": {"path": []}}, "rollouts.path=.*a folder, a list of folders, or null"),
        ({"rollouts": {"source": "sample"}}, "rollouts.path=.*: needs rollouts.source=stored"),
        ({"rollout_policy": "reference"}, "rollout_policy=reference: has no effect"),
        ({"rollouts": {"skill": "shapes_trian"}}, "skill=shapes_trian: no prompt.*Did you mean 'shapes_train'"),
        ({"images_per_prompt": 3}, "images_per_prompt=3: must be at most 2"),
        ({"model": {"height": 16, "width": 16}}, "shape 4 x 8 x 8, and those of .* 4 x 16 x 16; rollouts.encode=true"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_key(
    changes: dict[str, Any], told: str, base_set: Path, small_pipeline: Path, tmp_path: Path
) -> None:
    changes = {**changes, "rollouts": {**stored(base_set), **changes.get("rollouts", {})}}
    with pytest.raises((ConfigError, StartError), match=told):
        check_start(configured(tmp_path, small_pipeline, **changes))


def test_latents_of_another_vae_are_refused_unless_images_are_encoded(
    base_set: Path, model_folder: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    file = model_folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    save_file(tensors, file)
    check_start(configured(tmp_path, model_folder, rollouts=stored(base_set)))
    tensors["decoder.conv_in.bias"] += 0.1
    other = Path(shutil.copytree(model_folder, tmp_path / "other"))
    save_file(tensors, other / "vae" / file.name)
    with pytest.raises(StartError, match="its latents are of another VAE"):
        check_start(configured(tmp_path / "run", other, rollouts=stored(base_set)))
    check_start(configured(tmp_path / "run", other, rollouts=stored(base_set, encode=True)))


def test_what_ought_to_be_known_is_told(base_set: Path, small_pipeline: Path, tmp_path: Path) -> None:
    def notes(**changes: Any) -> str:
        return check_start(configured(tmp_path, small_pipeline, rollouts=stored(base_set), **changes))

    assert "keeps scores by redness version 1, which are used" in notes()
    assert "guidance" not in notes()
    assert "was drawn with guidance 2 and is learned from without" in notes(sampler={"guidance_scale": 1.0})
    assert "learned from with another (sampler.guidance_scale=3)" in notes(sampler={"guidance_scale": 3.0})
    other = {"_target_": "prdp.rewards.compressibility.Compressibility"}
    assert "keeps no scores by prdp.rewards.compressibility" in notes(reward=other)
    config = configured(tmp_path, small_pipeline, rollouts=stored(base_set))
    assert geometry(config)["sampling_passes_per_epoch"] == 0


def test_what_a_threshold_leaves_out_is_told_before_the_start(
    base_set: Path, small_pipeline: Path, tmp_path: Path
) -> None:
    def notes(least: float, **changes: Any) -> str:
        objective = {"name": "best_of_n", "least": least}
        config = configured(tmp_path, small_pipeline, rollouts=stored(base_set), objective=objective, **changes)
        return "\n".join(rollout_source(config).notes())

    best = sorted(best_scores(ImageSet.open(base_set), "redness", 2).tolist())
    assert "objective.least" not in notes(best[0])
    assert f"by redness of {base_set} leaves out 2 of 4 prompts" in notes((best[1] + best[2]) / 2)
    all_of_them = f"leaves out all 4 prompts, of which nothing is learned: the best image of all has {best[3]:.4g}"
    assert all_of_them in notes(best[3] + 0.01)
    color = {"_target_": "prdp.rewards.sub_score.SubScore", "name": "color", "reward": {"_target_": JUDGE}}
    assert "warning: objective.least=2: by shapes_judge.color of" in notes(2.0, reward=color)


def test_several_sets_are_one_and_a_skill_chooses(base_set: Path) -> None:
    both = StoredPrompts([str(base_set), str(base_set)])
    assert len(both) == 8 and both[5] == both[1]
    np.testing.assert_array_equal(both.images(6, 1), both.images(2, 1))
    one = StoredPrompts([str(base_set)], "shapes_train")
    assert len(one) == 4 and len({one.fingerprint, both.fingerprint, StoredPrompts([str(base_set)]).fingerprint}) == 3


@pytest.fixture
def rescored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    asked: list[int] = []

    def minus_one(self: Redness, images: np.ndarray, *rest: Any) -> Any:
        asked.append(len(images))
        return np.full(len(images), -1.0)

    monkeypatch.setattr(Redness, "score", minus_one)
    return asked


def test_stored_scores_are_taken_for_the_same_reward_alone(
    base_set: Path, rescored: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept_by = [(str(base_set), "redness")]
    prompts = StoredPrompts([str(base_set)])
    text, metadata = prompts[1]
    images = prompts.images(1, 2)
    kept = json.loads((base_set / entries(base_set)[1]["chunk"] / "scores.redness.json").read_text())["rewards"]
    reward: Any = StoredReward(Redness(), kept_by)
    assert (reward.name, reward.version, reward.identity()) == ("redness", "1", {"name": "redness", "version": "1"})
    found, _ = reward.score(images, [text] * 2, [metadata] * 2)
    assert found.tolist() == kept and rescored == []
    for others in (
        reward.score(images ^ 1, [text] * 2, [metadata] * 2),
        reward.score(images, [text, "another"], [metadata] * 2),
        reward.score(images, [text] * 2, [metadata, {}]),
    ):
        assert others.tolist() == [-1.0, -1.0]
    monkeypatch.setattr(Redness, "version", "2")
    newer: Any = StoredReward(Redness(), kept_by)
    assert newer.score(images, [text] * 2, [metadata] * 2).tolist() == [-1.0, -1.0]


def test_parts_of_a_reward_are_taken_from_what_is_stored(
    base_set: Path, small_pipeline: Path, tmp_path: Path, rescored: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Terms of a weighted sum, and a sub-score of a reward that the set was scored by."""
    terms = {
        "red": {"weight": 2.0, "reward": {"_target_": "prdp.rewards.redness.Redness"}},
        "small": {"weight": 1.0, "reward": {"_target_": "prdp.rewards.compressibility.Compressibility"}},
    }
    section = {"_target_": "prdp.rewards.weighted_sum.WeightedSum", "terms": terms}
    config = configured(tmp_path, small_pipeline, rollouts=stored(base_set), reward=section)
    reward = build_reward(rollout_source(config).reward())
    prompts = StoredPrompts([str(base_set)])
    text, metadata = prompts[0]
    total, parts = scored(reward, prompts.images(0, 2), [text] * 2, [metadata] * 2)
    kept = json.loads((base_set / entries(base_set)[0]["chunk"] / "scores.redness.json").read_text())["rewards"]
    assert parts["red"].tolist() == kept and rescored == []
    np.testing.assert_allclose(total, 2.0 * parts["red"] + parts["small"])
    assert build_reward(section).version == reward.version

    def never(*_: Any) -> Any:
        raise AssertionError("the judge was asked")

    monkeypatch.setattr("prdp.worlds.shapes.reward.ShapesJudge.score", never)
    judge = {"_target_": "prdp.worlds.shapes.reward.ShapesJudge"}
    section = {"_target_": "prdp.rewards.sub_score.SubScore", "name": "color", "reward": judge}
    config = configured(tmp_path, small_pipeline, rollouts=stored(base_set), reward=section)
    aspect, _ = scored(
        build_reward(rollout_source(config).reward()), prompts.images(0, 2), [text] * 2, [metadata] * 2
    )
    file = base_set / entries(base_set)[0]["chunk"] / "scores.shapes_judge.json"
    assert aspect.tolist() == json.loads(file.read_text())["sub_scores"]["color"]
