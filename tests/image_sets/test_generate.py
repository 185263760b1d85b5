"""Whole sets of a random pipeline: the images of an evaluation, whoever made them, and going on."""

from __future__ import annotations

import dataclasses
import itertools
import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from set_folders import SAMPLER, SMALL, composed, contents, entries, made

from prdp.commands.evaluate import check_start, evaluate
from prdp.commands.generate import check_start as check_set
from prdp.commands.generate import generate, main
from prdp.config import LearnerConfig, ModelConfig
from prdp.configuration.compose import Composer
from prdp.configuration.typed import conf_folder
from prdp.diffusion import build_policy
from prdp.evaluation.command_line import read_command_line
from prdp.evaluation.store import Chunk
from prdp.support.errors import ConfigError
from prdp.support.storage import load_tensors


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The chunks whose images are made."""
    found: list[str] = []
    save = Chunk.save

    def counting(self: Chunk, rollout: Any) -> None:
        found.append(self.folder.name)
        save(self, rollout)

    monkeypatch.setattr(Chunk, "save", counting)
    return found


def pictures(folder: Path) -> np.ndarray:
    from PIL import Image

    return np.stack([np.asarray(Image.open(file)).astype(int) for file in sorted(folder.rglob("*.png"))])


def latents(folder: Path) -> np.ndarray:
    files = sorted(folder.rglob("latents.safetensors"))
    return np.concatenate([load_tensors(file)["final_latents"] for file in files])


def test_images_are_those_of_an_evaluation_and_what_the_latents_decode_to(
    base_set: Path, small_pipeline: Path, tmp_path: Path
) -> None:
    words = [f"model.path={small_pipeline}", "models=[base]", *SMALL, "rewards=[redness]", "prompts_per_set=2"]
    line = read_command_line([*words, f"output_dir={tmp_path}"], [conf_folder()])
    with Composer(line.words, root=line.root, additions=line.additions) as composer:
        [job] = composer.jobs()
    evaluate(job.config, *check_start(job.config))
    np.testing.assert_array_equal(pictures(base_set)[:4], pictures(tmp_path))

    policy = build_policy(
        ModelConfig(path=str(small_pipeline)), LearnerConfig(mode="frozen"), seed=0, keep_reference=False
    )
    import torch

    decoded = policy.decode(torch.from_numpy(latents(base_set)))
    np.testing.assert_array_equal(decoded, pictures(base_set))
    halved = policy.decode(torch.from_numpy(latents(base_set).astype(np.float16).astype(np.float32)))
    np.testing.assert_allclose(halved.astype(int), pictures(base_set), atol=1)


def test_the_manifest_tells_what_made_the_set(base_set: Path) -> None:
    manifest = json.loads((base_set / "set.json").read_text())
    assert manifest["images_per_prompt"] == 2 and manifest["seed"] == 0 and manifest["prompts"] == 4
    assert manifest["model"]["name"] == "base" and manifest["model"]["kind"] == "pipeline"
    assert (manifest["sampler"]["guidance_scale"], manifest["sampler"]["steps"], manifest["sampler"]["kind"]) == (
        2.0, 2, "ddim",
    )  # fmt: skip
    assert manifest["latents"]["shape"] == [4, 8, 8] and manifest["latents"]["dtype"] == "float32"
    assert manifest["rewards"]["shapes_judge"]["identity"] == {"name": "shapes_judge", "version": "1"}
    first = entries(base_set)[0]
    assert first["prompt_set"] == "shapes_train" and "category" in first["metadata"]
    scores = json.loads((base_set / first["chunk"] / "scores.shapes_judge.json").read_text())
    assert len(scores["rewards"]) == 2 and "color" in scores["sub_scores"]


def test_the_cut_into_chunks_changes_no_image_and_float16_rounds_latents(
    base_set: Path, small_pipeline: Path, tmp_path: Path
) -> None:
    other = made(tmp_path, small_pipeline, "sampler.prompts_per_chunk=3", "latents=float16")
    np.testing.assert_array_equal(pictures(other), pictures(base_set))
    np.testing.assert_array_equal(latents(other), latents(base_set).astype(np.float16))
    assert [one["images"] for one in entries(other)] == [one["images"] for one in entries(base_set)]


def test_killed_and_resumed_ends_with_the_same_bytes(base_set: Path, small_pipeline: Path, tmp_path: Path) -> None:
    """SIGKILL while the third of four chunks is written, in a process of its own."""

    def killed() -> None:
        from PIL import Image

        save, count = Image.Image.save, itertools.count(1)

        def killing(self: Any, *arguments: Any, **options: Any) -> None:
            if next(count) == 6:
                os.kill(os.getpid(), signal.SIGKILL)
            save(self, *arguments, **options)

        Image.Image.save = killing  # type: ignore[method-assign]
        made(tmp_path, small_pipeline, "rewards=[shapes_judge,redness]")

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(list(tmp_path.rglob("chunk.json"))) == 2 and not (tmp_path / "set.json").exists()
    made(tmp_path, small_pipeline, "rewards=[shapes_judge,redness]")
    assert contents(tmp_path) == contents(base_set)


def test_scores_are_added_without_drawing_and_other_images_are_refused(
    small_pipeline: Path, tmp_path: Path, drawn: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    config, _ = composed(tmp_path, small_pipeline, "prompts_per_set=2")
    generate(config, check_set(config))
    said = capsys.readouterr().out
    assert "4 images = 2 prompts x 2 of base, 4 passes each; on the disk up to 0.8 KiB of pictures, before" in said
    assert "and 4.0 KiB of latents (float32)" in said
    assert "shapes_train: 2 of its 9 prompts" in said
    digest = json.loads((tmp_path / "set.json").read_text())["digest"]
    drawn.clear()
    for reward in ("redness.Redness", "compressibility.Compressibility"):
        name = reward.partition(".")[0]
        scored = dataclasses.replace(config, rewards={name: {"_target_": f"prdp.rewards.{reward}"}})
        generate(scored, check_set(scored))
    manifest = json.loads((tmp_path / "set.json").read_text())
    assert drawn == [] and list(manifest["rewards"]) == ["redness", "compressibility"] and manifest["digest"] == digest
    changes: list[tuple[dict[str, Any], str]] = [
        ({"sampler": dataclasses.replace(config.sampler, steps=3)}, "made otherwise; these differ: sampler.steps;"),
        ({"latents": "float16"}, "these differ: latents;"),
        ({"seed": 1}, "not of this set, first in samples/base/shapes_train/seed_0/00000-00000"),
        ({"prompts_per_set": 1}, "not of this set, first in samples/base/shapes_train/seed_0/00001-00001"),
        ({"sampler": dataclasses.replace(config.sampler, prompts_per_chunk=2)}, r"cut otherwise \(sampler\."),
    ]
    for change, told in changes:
        other = dataclasses.replace(config, **change)
        with pytest.raises(ConfigError, match=told):
            generate(other, check_set(other))
    assert json.loads((tmp_path / "set.json").read_text()) == manifest


def test_columns_of_a_file_of_prompts_travel_along(small_pipeline: Path, tmp_path: Path) -> None:
    lines = [{"prompt": "two cats", "skill": "counting", "answer": 2}, {"prompt": "a red cat"}]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "plain.txt").write_text("a dog\n")
    small = (f"prompts=[{tmp_path}/mine.jsonl,dogs:{tmp_path}/plain.txt]", "images_per_prompt=1", *SAMPLER)
    found = entries(made(tmp_path / "set", small_pipeline, small=small))
    assert {one["prompt"]: (one["prompt_set"], one["metadata"]) for one in found} == {
        "two cats": ("mine", {"skill": "counting", "answer": 2}),
        "a red cat": ("mine", {}),
        "a dog": ("dogs", {}),
    }


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["models=[base,base]"], "models=base: must be|a list of one model"),
        (["models=[base]"], "no prompts: give prompts="),
        (["models=[base]", "prompts=[shapes]", "latents=bfloat16"], "latents=bfloat16: must be one of float32, float"),
        (["prompts=[shapes]"], "which models.*prdp generate --help"),
        (["models=[base]", "prompts=[shapes]", "rewards=[shapes_jugde]"], "Did you mean 'shapes_judge'"),
        (["models=[base]", "prompts=[shapes]", "seeds=3"], "unknown key 'seeds'. Did you mean 'seed'"),
    ],
)
def test_mistakes_are_refused_before_anything_is_drawn(words: list[str], told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        main([*words, f"output_dir={tmp_path}/set"])
    assert not (tmp_path / "set").exists()
