"""`prdp export`: every format draws the run's pictures in its own program, from any checkpoint."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prdp.cli import main
from prdp.commands import export as export_command
from prdp.commands.export import export
from prdp.support.errors import ConfigError, StartError
from prdp.support.storage import load_tensors
from prdp.tracking.jsonl import read_metrics

SMALL = [
    *("epochs=2", "prompts_per_epoch=1", "images_per_prompt=2", "sampler.steps=2", "sampler.eta=0.5"),
    *(
        "evaluation.every=0",
        "evaluation.final_prompts=2",
        "evaluation.images_per_prompt=1",
        "evaluation.grid_prompts=2",
    ),
    *(
        "reward=redness",
        "checkpoint.every=1",
        "learner.learning_rate=0.05",
        "learner.warmup_updates=0",
        "learner.lora_alpha=32",  # twice the rank
        "tracking=silent",
    ),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of LoRA on the embedded model, with the checkpoints of both."""
    folder = tmp_path_factory.mktemp("runs") / "lora"
    assert main(["train", *SMALL, f"output_dir={folder}"]) == 0
    return folder


def drawn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """The picture that the program of an export draws, in this process."""
    monkeypatch.chdir(folder)
    runpy.run_path(str(folder / "use_it.py"))
    return np.asarray(Image.open(folder / "picture.png").convert("RGB")).astype(int)


def test_every_format_draws_the_same_picture(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = {
        form: drawn(export(run, form=form, output=tmp_path / form), monkeypatch)
        for form in ("diffusers", "kohya", "peft", "merged")
    }
    start = drawn(export(run, "1", output=tmp_path / "first"), monkeypatch)
    for form, picture in pictures.items():
        assert np.abs(picture - pictures["diffusers"]).max() <= 1, form
    assert np.abs(start - pictures["diffusers"]).max() > 1, "epochs 1 and 2 differ"


def test_text_encoders_that_learned_are_in_every_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained with a rate of their own, resumed, exported."""
    run = tmp_path / "run"
    words = [*SMALL, "learner.text_encoders=true", "learner.text_encoder_learning_rate=0.1", f"output_dir={run}"]
    assert main(["train", *words, "epochs=1"]) == 0
    assert main(["train", *words, "checkpoint.resume=auto"]) == 0
    rows = read_metrics(run)
    assert rows[-1]["parameters_without_gradient"] == 0
    pictures = {
        form: drawn(export(run, form=form, output=tmp_path / form), monkeypatch)
        for form in ("diffusers", "kohya", "peft", "merged")
    }
    for form, picture in pictures.items():
        assert np.abs(picture - pictures["diffusers"]).max() <= 1, form
    names = list(load_tensors(tmp_path / "diffusers" / "pytorch_lora_weights.safetensors"))
    assert any(name.startswith("text_encoder.text_model.encoder.layers.0.self_attn.q_proj") for name in names)
    names = list(load_tensors(tmp_path / "kohya" / "pytorch_lora_weights.safetensors"))
    assert any(name.startswith("lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down") for name in names)


def test_the_end_of_a_run_is_its_newest_checkpoint(run: Path, tmp_path: Path) -> None:
    ended, newest = (export(run, which, output=tmp_path / str(which)) for which in (None, "newest"))
    tensors, others = (load_tensors(one / "pytorch_lora_weights.safetensors") for one in (ended, newest))
    assert tensors.keys() == others.keys()
    assert all(np.array_equal(tensors[name], others[name]) for name in tensors)


def test_a_run_that_goes_on_may_drop_a_checkpoint_meanwhile(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    going = Path(shutil.copytree(run, tmp_path / "going", ignore=shutil.ignore_patterns("weights")))
    write = export_command._write_weights

    def dropped_first(model: Any, *others: Any) -> str:
        if model.path.name == "epoch_00002":
            shutil.rmtree(model.path)
        return write(model, *others)

    monkeypatch.setattr(export_command, "_write_weights", dropped_first)
    assert "after epoch 1 of 2" in (export(going, output=tmp_path / "out") / "README.md").read_text()
    with pytest.raises(StartError, match="has epoch_00001"):
        export(going, "2")


def test_the_card_tells_scores_and_configuration(run: Path, tmp_path: Path) -> None:
    folder = export(run, output=tmp_path / "out")
    card = (folder / "README.md").read_text()
    assert re.match(r"---\nbase_model: shapes\n(.*\n)+?license: other # fill in\n", card)
    last = json.loads((run / "evaluations" / "epoch_00002" / "summary.json").read_text())
    mean = f"{last['score']['mean']:.3f}".replace("-", "\u2212")
    assert mean in card.split("| score |")[1].split("\n")[0]
    assert "the weights after epoch 2 of 2" in card and "* reward: redness, version 1" in card
    assert (run / "config.yaml").read_text().strip() in card
    assert (folder / "before_after.png").exists() and (folder / "heldout_score.svg").exists()


def test_the_best_checkpoint_is_the_one_that_scores_best(run: Path, tmp_path: Path) -> None:
    scores = {line["epoch"]: line["eval/score"] for line in read_metrics(run) if "eval/score" in line}
    assert list(scores) == [0, 2], "epoch 1 was not judged, and epoch 0 has no checkpoint"
    assert "after epoch 2 of 2" in (export(run, "best", output=tmp_path / "out") / "README.md").read_text()


def test_a_card_of_an_epoch_without_evaluation_claims_nothing(run: Path, tmp_path: Path) -> None:
    card = (export(run, "epoch_00001", output=tmp_path / "out") / "README.md").read_text()
    assert "held-out prompts say" not in card
    assert "after epoch 1 of 2" in card


def test_mistakes_are_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"--checkpoint 7: .*has epoch_00001, epoch_00002"):
        export(run, "7")
    with pytest.raises(StartError, match="is no folder of a run"):
        export(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ConfigError, match=r"^--output .*full: is not empty"):
        export(run, output=tmp_path / "full")
