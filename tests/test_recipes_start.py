"""Recipes of released models start: `validate` and `train` on a narrow network of each layout, with narrow rewards.

The recipe of Stable Diffusion XL is started by tests/test_sdxl_guide.py.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from narrow_transformers import NARROW, TEXT_TOKENS
from small_checkpoints import clip_folder, clip_tokenizer  # noqa: F401

from prdp.cli import main
from prdp.configuration.typed import conf_folder
from prdp.tracking.jsonl import read_metrics

RECIPES = {
    "sd15_lora": "stable_diffusion",
    "sd35_medium_lora": "stable_diffusion_3",
    "sd35_medium_8gpus": "stable_diffusion_3",
    "flux_dev_lora": "flux",
    "z_image_lora": "z_image",
}
SMALL = [
    *("epochs=1", "prompts_per_epoch=1", "images_per_prompt=2", "updates_per_epoch=1", "sampler.steps=2"),
    *("evaluation.prompts=1", "evaluation.final_prompts=1", "evaluation.images_per_prompt=1", "learner.lora_rank=2"),
    *("evaluation.grid_prompts=1", "model.revision=null", "model.variant=null", "tracking=silent"),
]
ONE_MACHINE = ["cluster=inline", "cluster.learners=1"]


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_starts(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    clip_folder: Path,  # noqa: F811
) -> None:
    monkeypatch.chdir(tmp_path)
    family = RECIPES[name]
    Path("train.txt").write_text("a red circle\na blue square\n")
    Path("heldout.txt").write_text("a green star\ntwo cats\n")
    model = ["model.path=shapes"]
    if family in NARROW:
        NARROW[family]().save_pretrained("narrow")
        tokens = TEXT_TOKENS[family]
        model = ["model.path=narrow", "model.height=32", "model.width=32", f"model.max_sequence_length={tokens}"]
    rewards = [f"reward.terms.{term}.reward.path={clip_folder}" for term in ("pickscore", "clipscore")]
    text = (conf_folder() / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
    [words, *_] = [shlex.split(one) for one in re.findall(r"^#\s+prdp train (.*)$", text, re.MULTILINE)]
    given = [*words, *model, *rewards, *SMALL, *(ONE_MACHINE if "8gpus" in name else []), "output_dir=run"]
    for command in ("validate", "train"):
        assert main([command, *given]) == 0
    logged = {key for row in read_metrics(Path("run")) for key in row}
    assert {"eval/watch/clipscore", "eval/watch/incompressibility"} <= logged
