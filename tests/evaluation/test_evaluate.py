"""Whole evaluations of a random pipeline: every kind of model, the same images as training, and going on."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deep_pipeline import deep_pipeline

from prdp.checkpoints.run_lock import LockedError, hold
from prdp.commands.evaluate import check_start, evaluate, main
from prdp.config import ModelConfig
from prdp.configuration.compose import Composer
from prdp.configuration.typed import conf_folder, typed
from prdp.evaluation.command_line import read_command_line
from prdp.evaluation.loading import build_evaluated_sampler
from prdp.evaluation.models import find_models, model_digest
from prdp.evaluation.settings import EvaluateConfig
from prdp.evaluation.store import Chunk
from prdp.support.errors import StartError
from prdp.tracking.evaluations import load_evaluation
from prdp.tracking.jsonl import read_metrics
from prdp.train import main as train


def trained(folder: Path, pipeline: Path, **changes: Any) -> Path:
    config = {
        "seed": 3,
        "epochs": 2,
        "prompts_per_epoch": 1,
        "images_per_prompt": 2,
        "output_dir": str(folder),
        "model": {"path": str(pipeline)},
        "sampler": {"steps": 3, "guidance_scale": 2.0, "prompts_per_chunk": 1, "deterministic_final_steps": 1},
        "reward": {"_target_": "prdp.rewards.redness.Redness"},
        "prompts": {
            "train": {"_target_": "prdp.worlds.shapes.prompts.ShapesPrompts", "split": "train", "size": 7},
            "heldout": {"_target_": "prdp.worlds.shapes.prompts.ShapesPrompts", "split": "heldout", "size": 4},
        },
        "learner": {"lora_rank": 4, "lora_alpha": 16.0, "learning_rate": 3e-2, "ema_decay": 0.5},
        "evaluation": {"every": 0, "images_per_prompt": 2, "final_prompts": 3, "grid_prompts": 1},
        "tracking": {"console": False, "report": False},
        "checkpoint": {"every": 1},
    }
    for key, value in changes.items():
        config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) else value  # type: ignore[dict-item]
    return train(typed(config))


@pytest.fixture(scope="module")
def lora_run(small_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "lora", small_pipeline)


@pytest.fixture(scope="module")
def full_run(small_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    learner = {"mode": "full", "learning_rate": 1e-3, "ema_decay": 0.0}
    return trained(tmp_path_factory.mktemp("runs") / "full", small_pipeline, learner=learner, epochs=1)


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The chunks whose images are made."""
    made: list[str] = []
    save = Chunk.save

    def counting(self: Chunk, rollout: Any) -> None:
        made.append("/".join(self.folder.parts[-4:]))
        save(self, rollout)

    monkeypatch.setattr(Chunk, "save", counting)
    return made


def judge(*words: str) -> None:
    """What the command does, with a single composition."""
    line = read_command_line(words, [conf_folder()])
    with Composer(line.words, root=line.root, additions=line.additions) as composer:
        [job] = composer.jobs()
    evaluate(job.config, *check_start(job.config, line.model_is_given, line.sizes), line.notes)


def table(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    rows = json.loads((folder / "results.json").read_text())["scores"]
    return {(row["model"], row["reward"]): row for row in rows if row["part"] == "all"}


def pictures(folder: Path, model: str) -> np.ndarray:
    from PIL import Image

    found = []
    for file in sorted((folder / "samples" / model).rglob("*.png")):
        with Image.open(file) as image:
            found.append(np.asarray(image).astype(int))
    return np.stack(found)


def test_a_run_is_judged_as_it_judged_itself(
    lora_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = lora_run / "checkpoints" / "epoch_00002"
    assert main([f"models=[{lora_run},saved:{checkpoint}]", f"output_dir={tmp_path}", "kl=true"]) == 0
    for epoch, model in ((0, "base"), (2, "lora"), (2, "saved")):
        trainings = load_evaluation(lora_run, epoch)
        assert table(tmp_path)[model, "redness"]["score"] == pytest.approx(trainings.scores.mean(), abs=1e-6)
    assert table(tmp_path)["lora", "redness"]["difference"] != 0
    np.testing.assert_allclose(pictures(tmp_path, "lora"), pictures(tmp_path, "saved"), atol=1)
    spread = {row["model"]: row for row in json.loads((tmp_path / "results.json").read_text())["spread"]}
    assert read_metrics(lora_run)[-1]["eval/diversity"] == pytest.approx(spread["lora"]["diversity"], abs=1e-6)
    assert spread["lora"]["logratio_ref"] == pytest.approx(spread["saved"]["logratio_ref"], rel=1e-2)
    assert spread["lora"]["logratio_ref"] > 0
    assert spread["base"]["logratio_ref"] == "NaN"
    shown = capsys.readouterr().out
    assert "3 steps, guidance 2" in shown and "against base" in shown


def test_full_weights_and_their_checkpoint(full_run: Path, tmp_path: Path) -> None:
    judge(f"models=[{full_run},{full_run / 'checkpoints'}]", f"output_dir={tmp_path}")
    expected = load_evaluation(full_run, 1).scores.mean()
    scores = {model: row["score"] for (model, _), row in table(tmp_path).items()}
    assert scores.pop("base") == pytest.approx(load_evaluation(full_run, 0).scores.mean(), abs=1e-6)
    assert sorted(scores) == ["full", "full/epoch_00001"]
    assert list(scores.values()) == pytest.approx([expected] * 2, abs=1e-6)


def test_models_of_several_sizes_are_judged_beside_each_other(
    lora_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Latents of 9 x 5, odd at every level: training compares each log-ratio with the one that was sampled."""
    deep_pipeline().save_pretrained(tmp_path / "deep")
    wide = trained(
        tmp_path / "wide", tmp_path / "deep", epochs=1, model={"height": 72, "width": 40}, learner={"mode": "full"}
    )
    assert read_metrics(wide)[-1]["ratio_error"] < 1e-4
    assert "height=72,\n    width=40," in (wide / "weights" / "README.md").read_text()
    judge(f"models=[{wide},{lora_run}]", f"output_dir={tmp_path / 'own'}", "images_per_prompt=1", "prompts_per_set=2")
    sizes = {name: pictures(tmp_path / "own", name).shape[1:3] for name in ("base", "wide", "lora")}
    assert sizes == {"base": (72, 40), "wide": (72, 40), "lora": (8, 8)}
    spread = {row["model"]: row for row in json.loads((tmp_path / "own" / "results.json").read_text())["spread"]}
    assert spread["wide"]["drift"] >= 0
    assert spread["lora"]["drift"] == "NaN"
    assert table(tmp_path / "own")["lora", "redness"]["difference"] != 0
    said = capsys.readouterr().out
    assert "base 72 x 40, wide 72 x 40, lora 8 x 8" in said
    report = (tmp_path / "own" / "report.html").read_text()
    assert "every model starts from the same noise" not in report

    weights = find_models([str(wide / "weights")], ModelConfig(path="shapes"))[0].model
    assert (weights.height, weights.width) == (72, 40)
    line = read_command_line([f"models=[{wide},{lora_run}]", "model.height=16"], [conf_folder()])
    assert line.sizes == ("height",)
    found = find_models([str(wide), str(lora_run)], None, {"height": 16})
    assert [(one.model.height, one.model.width) for one in found] == [(16, 40), (16, None)]


def test_only_what_is_missing_is_made(
    lora_run: Path, tmp_path: Path, sampled: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"models=[{lora_run}]", f"output_dir={tmp_path}", "images_per_prompt=1", "prompts_per_set=2"]
    judge(*words)
    assert len(sampled) == 4
    first = table(tmp_path)
    sampled.clear()
    judge(*words, "watch=[shapes_judge]")
    assert sampled == []
    assert table(tmp_path)["lora", "redness"] == first["lora", "redness"]
    assert ("lora", "shapes_judge") in table(tmp_path)
    judge(f"models=[{lora_run},early:{lora_run}/checkpoints/epoch_00001]", *words[1:])
    assert {name.split("/")[0] for name in sampled} == {"early"}
    sampled.clear()
    judge(*words, "prompts_per_set=3", "seeds=[1234,5]", "against=null")
    assert sorted(sampled) == [
        "lora/shapes/seed_1234/00002-00002",
        *(f"lora/shapes/seed_5/{name}" for name in ("00000-00000", "00001-00001", "00002-00002")),
    ]
    sampled.clear()
    judge(*words, "prompts_per_set=1", "sampler.steps=4", "against=null")
    assert len(sampled) == 1
    assert "1 of 1 chunks are made again, since these changed: sampler.steps" in capsys.readouterr().out


def test_killed_evaluation_goes_on_where_it_stopped(lora_run: Path, tmp_path: Path, sampled: list[str]) -> None:
    """SIGKILL while the third of four chunks is written, in a process of its own."""
    words = [f"models=[{lora_run}]", f"output_dir={tmp_path}", "prompts_per_set=2"]

    def killed() -> None:
        from PIL import Image

        save, count = Image.Image.save, itertools.count(1)

        def killing(self: Any, *arguments: Any, **options: Any) -> None:
            if next(count) == 6:
                os.kill(os.getpid(), signal.SIGKILL)
            save(self, *arguments, **options)

        Image.Image.save = killing  # type: ignore[method-assign]
        judge(*words)

    # A fork has diffusers imported already, which takes a fresh process longer than the evaluation.
    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(list((tmp_path / "samples").rglob("chunk.json"))) == 2
    judge(*words)
    assert sampled == [f"lora/shapes/seed_1234/{name}" for name in ("00000-00000", "00001-00001")]
    assert table(tmp_path)["lora", "redness"]["images"] == 4


def foreign_loras(run: Path, folder: Path) -> dict[str, Path]:
    """The run's adapters as PEFT and kohya write them."""
    import torch
    from safetensors.torch import load_file, save_file

    state = load_file(run / "weights" / "pytorch_lora_weights.safetensors")
    names = {".lora.down.": ".lora_A.", ".lora.up.": ".lora_B."}
    plain = {}
    for name, value in state.items():
        for old, new in names.items():
            name = name.replace(old, new)
        plain[name.removeprefix("unet.")] = value
    peft = folder / "peft"
    peft.mkdir()
    save_file({f"base_model.model.{name}": value for name, value in plain.items()}, peft / "adapter_model.safetensors")
    (peft / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 16.0}))
    kohya = {}
    for name, value in plain.items():
        layer, _, matrix = name.removesuffix(".weight").rpartition(".")
        base = f"lora_unet_{layer.replace('.', '_')}"
        kohya[f"{base}.{'lora_down' if matrix == 'lora_A' else 'lora_up'}.weight"] = value
        kohya[f"{base}.alpha"] = torch.tensor(16.0)
    save_file(kohya, folder / "kohya.safetensors")
    return {"peft": peft, "kohya": folder / "kohya.safetensors"}


def test_loras_of_other_tools_make_the_same_images(small_pipeline: Path, lora_run: Path, tmp_path: Path) -> None:
    files = foreign_loras(lora_run, tmp_path)
    entries = ",".join([f"own:{lora_run}", *(f"{name}:{path}" for name, path in files.items())])
    judge(f"models=[{entries}]", f"output_dir={tmp_path / 'out'}", "prompts_per_set=1")
    own = pictures(tmp_path / "out", "own")
    assert np.abs(own - pictures(tmp_path / "out", "base")).max() > 3
    for name in files:
        np.testing.assert_allclose(pictures(tmp_path / "out", name), own, atol=1, err_msg=name)


def test_a_lora_that_does_not_fit_is_refused(small_pipeline: Path, lora_run: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(lora_run / "weights" / "pytorch_lora_weights.safetensors")
    name = next(key for key in state if "down_blocks" in key)
    strange = {key.replace("down_blocks", "sideways_blocks") if key == name else key: v for key, v in state.items()}
    save_file(strange, tmp_path / "strange.safetensors")
    run = typed({"output_dir": "x", "reward": {}, "prompts": {"train": {}, "heldout": {}}})
    run.model.path = str(small_pipeline)
    [model] = find_models([str(tmp_path / "strange.safetensors")], run.model)
    with pytest.raises(ValueError, match=r"strange\.safetensors"):
        build_evaluated_sampler(model, run.sampler, "float32", "cpu", None, False)


def test_layers_of_a_file_compute_as_those_that_learn_do(small_pipeline: Path, lora_run: Path) -> None:
    """In half precision peft rounds once more."""
    from peft.tuners.lora.layer import LoraLayer

    run = typed({"output_dir": "x", "reward": {}, "prompts": {"train": {}, "heldout": {}}})
    run.model.path = str(small_pipeline)
    [model] = find_models([str(lora_run / "weights" / "pytorch_lora_weights.safetensors")], run.model)
    network = build_evaluated_sampler(model, run.sampler, "float32", "cpu", None, False).policy.network
    assert {type(one).__name__ for one in network.modules() if isinstance(one, LoraLayer)} == {"DirectLinear"}


def test_digests_follow_the_weights(small_pipeline: Path, lora_run: Path, full_run: Path) -> None:
    entries = [str(lora_run), f"saved:{lora_run}/checkpoints/epoch_00002", str(full_run)]
    digests = {model_digest(model) for model in find_models(entries, None)}
    assert len(digests) == 3
    with pytest.raises(StartError, match="which model is the base"):
        find_models(["base"], None)


def test_one_evaluation_at_a_time_writes_into_a_folder_and_clears_what_a_killed_one_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EvaluateConfig(output_dir=str(tmp_path))
    leftover = tmp_path / "samples" / "base" / "shapes" / "seed_0" / ".partial-12345678-00000-00003"
    leftover.mkdir(parents=True)
    with hold(tmp_path), pytest.raises(LockedError, match=f"is being written to by pid {os.getpid()} on"):
        evaluate(config, [], {})
    assert leftover.exists()

    def stop(*_: Any) -> None:
        raise StartError("far enough")

    monkeypatch.setattr("prdp.commands.evaluate.write_config", stop)
    with pytest.raises(StartError, match="far enough"):
        evaluate(config, [], {})
    assert not leftover.exists()
