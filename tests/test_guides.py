"""Guides run line by line, as they stand, on models and sizes that are smaller.

Every block of shell in the documentation is run here, or says in a comment before it which test does, or why none does.
"""

from __future__ import annotations

import json
import re
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from documented_blocks import PAGES, ROOT, blocks
from guide_walk import CHECKED, Changes, forget_modules, walk
from narrow_transformers import narrow_sd3
from narrow_xl import narrow_xl
from PIL import Image
from small_checkpoints import clip_folder, clip_tokenizer  # noqa: F401
from stub_endpoint import Reply, chat, endpoint

from prdp.diffusion import pipeline_checks
from prdp.diffusion.model_folder import EMBEDDED_FOLDERS
from prdp.diffusion.original_names import save_single_file
from prdp.tracking.jsonl import read_metrics

DOCS = ROOT / "docs"
SHAPES = ROOT / "prdp/worlds/shapes/README.md"
OF_OBJECTIVES = "docs/objectives/"
"""Their commands are composed by tests/configuration/test_recipes.py; tests/test_every_option.py runs each."""
FEW = ("prompts.train.size=4", "prompts.heldout.size=4")
"""Of the embedded world's prompts, which else are many thousands."""

RED = ("output_dir=runs/red",)
SD35 = ("model.height=32", "model.width=32", "model.max_sequence_length=5", "model.dtype=float32")
"""What a narrow Stable Diffusion 3.5 draws and reads."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_pipeline: Path) -> Iterator[Path]:
    """An empty folder to work in; the embedded model is a smaller one. Each model's folder is checked once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(pipeline_checks, "component_problems", once(pipeline_checks.component_problems))
    monkeypatch.setitem(EMBEDDED_FOLDERS, "shapes", small_pipeline)
    yield tmp_path
    forget_modules(tmp_path)


def once(check: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """The check of a folder, made once for each; its other arguments follow from the folder here."""
    known: dict[Path, list[str]] = {}

    def checked(folder: Path, *more: Any) -> list[str]:
        if folder not in known:
            known[folder] = check(folder, *more)
        return known[folder]

    return checked


def prompt_files() -> None:
    Path("train.txt").write_text("a red circle\na blue square\n")
    Path("heldout.txt").write_text("a green star\ntwo cats\n")


def logged(run: str) -> set[str]:
    return {key for row in read_metrics(Path(run)) for key in row}


def test_every_block_is_run_or_says_why_not() -> None:
    """docs/python.md is run by tests/test_examples.py, all others that are named here by the tests below."""
    names = ("sdxl_lora", "sd35_guidance_free", "rewards", "prompts", "watching", "collaboration", "evaluation")
    names += ("image_sets", "experts", "collaborative_decoding")
    walked = {ROOT / "README.md", SHAPES, DOCS / "python.md", *(DOCS / f"{name}.md" for name in names)}
    silent, unknown = [], []
    for page in PAGES:
        if str(page.relative_to(ROOT)).startswith(OF_OBJECTIVES):
            continue
        for block in blocks(page):
            unknown += [f"{block.where}: {name}" for name in re.findall(r"tests/[\w/.]+", block.run_by + block.not_run)
                        if not (ROOT / name.rstrip(".")).exists()]  # fmt: skip
            runs = block.is_shell or (block.language == "python" and not block.file)
            if runs and not (block.run_by or block.not_run or page in walked):
                silent.append(block.where)
    assert silent == [], "say why in <!-- not run: ... -->, or by which test in <!-- run by: ... -->"
    assert unknown == []


def test_the_shapes_world() -> None:
    assert walk(SHAPES) == 1


@pytest.mark.slow
def test_the_start(here: Path) -> None:
    (here / "models").mkdir()
    prompt_files()
    shutil.copytree(EMBEDDED_FOLDERS["shapes"], here / "models" / "stable-diffusion-v1-4")
    changes: Changes = [("shapes_demo", FEW), ("seed=0,1", ("seed=0",))]
    assert walk(ROOT / "README.md", changes, {"/models/": f"{here}/models/"}) == 4
    assert (here / "runs/compared/report.html").is_file()


@pytest.mark.slow
def test_a_reward_of_ones_own(here: Path) -> None:
    changes: Changes = [("weight=3|weight=1,3|~reward|sub_score|shapes_expert", (CHECKED,)), ("red.reward", RED)]
    assert walk(DOCS / "rewards.md", changes) == 9
    assert "eval/score" in logged("runs/bright") and "eval/score" in logged("runs/contrast")
    assert {"eval/judge", "eval/watch/size", "eval/watch/red"} <= logged("runs/red")


@pytest.mark.slow
def test_prompts_of_ones_own(here: Path) -> None:
    assert walk(DOCS / "prompts.md", [("write", ("count=3",))]) == 13
    dropped = [json.loads(line)["prompt"] for line in Path("dropped.jsonl").read_text().splitlines()]
    assert dropped == ["A red fox, in the snow"]


@pytest.mark.slow
def test_watching(here: Path) -> None:
    assert walk(DOCS / "watching.md", [("shapes_demo", (CHECKED,))]) == 1


@pytest.mark.slow
def test_students_evaluations_sets_and_experts(
    here: Path,
    clip_folder: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One folder for all four, whose lines name the same runs; a server that writes prompts is played."""
    monkeypatch.setattr("prdp.configuration.geometry.device_plans", lambda config: [])  # as large as all else here
    pictures()
    prompt_files()
    Path("validation.jsonl").write_text('{"prompt": "a green star"}\n')
    show_files("rewards")
    narrow_sd3().save_pretrained("sd35")
    changes: Changes = [
        (r"train (model.path=runs|rollouts)|experiment=shapes_expert", FEW),
        (r"prompts=\[shapes\]", ("prompts.shapes.size=4",)),
        (r"prompts=\[shapes.train\]", ("prompts.shapes_train.size=4",)),
        (r"reward=redness,compressibility", ("reward=redness", "prompts=shapes_small,animals")),
        (r"generate .*model=sd14", ("model.path=shapes", "sampler.steps=2")),
        (r"rewards=\[clipscore\]", (f"rewards.clipscore.path={clip_folder}",)),
        (r"generate models", ("images_per_prompt=2",)),
        (r"chains=true", ("sampler.steps=8",)),
        (r"sampler.steps=40", ("sampler.steps=4",)),
        (r"train model=sd35", ("model.path=sd35", *SD35, f"reward.path={clip_folder}")),
        (r"experiment=selma", ("model.path=shapes", f"reward.path={clip_folder}", "images_per_prompt=1")),
        (r"writer=endpoint", ("count=2",)),
    ]
    with endpoint(three_prompts) as server:
        for page in ("collaboration", "evaluation", "image_sets", "experts"):
            texts = {"http://127.0.0.1:8000/v1": server.url, "/models/base": str(EMBEDDED_FOLDERS["shapes"])}
            texts |= dict.fromkeys(("--checkpoint 2500", "--checkpoint 4000"), "--checkpoint newest")
            walk(DOCS / f"{page}.md", changes, texts)
    judged = json.loads(Path("runs/figure/results.json").read_text())
    assert {row["model"] for row in judged["scores"]} == {"base", "four", "student", "refine_all"}
    assert list(Path("runs/selma_merged").glob("*.safetensors")) and Path("runs/gated/gate.json").is_file()


def three_prompts(number: int, body: dict[str, Any]) -> Reply:
    """What a language model writes when it is asked for the number-th time."""
    return chat("\n".join(f"{k}. fox{number}x{k} meets owl{number}x{k} on hill{number}x{k}" for k in range(4, 7)))


def pictures() -> None:
    Path("my_folder").mkdir()
    rng = np.random.default_rng(0)
    for name in "ab":
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(f"my_folder/{name}.png")
        Path(f"my_folder/{name}.txt").write_text("a small solid red circle")


def show_files(page: str) -> None:
    for block in blocks(DOCS / f"{page}.md"):
        if block.file:
            Path(block.file).parent.mkdir(parents=True, exist_ok=True)
            Path(block.file).write_text(block.text, encoding="utf-8")


@pytest.mark.slow
def test_two_language_models(here: Path) -> None:
    assert walk(DOCS / "collaborative_decoding.md") == 5
    assert Path("answers.jsonl").read_text().count("\n") == 2


def rewards_of(clip: Path) -> None:
    for name in ("PickScore_v1", "clip-vit-large-patch14"):
        shutil.copytree(clip, name)


@pytest.mark.slow
def test_sdxl(here: Path, capsys: pytest.CaptureFixture[str], clip_folder: Path) -> None:  # noqa: F811
    pipeline = narrow_xl()
    pipeline.save_pretrained("whole")
    shutil.copytree("whole", "stable-diffusion-xl-base-1.0", ignore=shutil.ignore_patterns("*.safetensors"))
    save_single_file(pipeline, Path("my-xl.safetensors"))
    rewards_of(clip_folder)
    prompt_files()
    assert walk(DOCS / "sdxl_lora.md", [("experiment=my_xl", ("model.dtype=float32",))]) == 6
    assert "memory, one process" in capsys.readouterr().out
    with Image.open("picture.png") as picture:
        assert picture.size == (32, 32)
    assert {"eval/watch/clipscore", "eval/watch/incompressibility"} <= logged("runs/my_xl")
    lora, whole = Path("my_lora"), Path("my_model")
    assert list(lora.glob("*.safetensors")) and (lora / "README.md").is_file()
    assert (whole / "model.safetensors").is_file() and (whole / "use_it.py").is_file()
    runpy.run_path(str(whole / "use_it.py"))


@pytest.mark.slow
def test_sd35_without_guidance(here: Path, clip_folder: Path) -> None:  # noqa: F811
    narrow_sd3().save_pretrained("stable-diffusion-3.5-medium")
    rewards_of(clip_folder)
    prompt_files()
    assert walk(DOCS / "sd35_guidance_free.md", [("experiment=my_sd35", SD35)]) == 5
    with Image.open("picture.png") as picture:
        assert picture.size == (32, 32)
    judged = json.loads(Path("runs/my_sd35_judged/results.json").read_text())
    passes = {row["model"]: row["network_passes"] for row in judged["spread"]}
    assert passes["guided"] == 2 * passes["base"] == 2 * passes["my_sd35"]
