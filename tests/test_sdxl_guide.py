"""Every line of docs/sdxl_lora.md runs, on a narrow network of the layout of Stable Diffusion XL."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest
from narrow_xl import narrow_xl
from PIL import Image
from small_checkpoints import clip_folder, clip_tokenizer  # noqa: F401

from prdp.cli import main
from prdp.diffusion.original_names import save_single_file
from prdp.tracking.jsonl import read_metrics

TEXT = (Path(__file__).parent.parent / "docs" / "sdxl_lora.md").read_text(encoding="utf-8")
[(NAME, CONTENT)] = re.findall(r"^`([\w./]+)`:\n\n```yaml\n(.*?)```$", TEXT, re.DOTALL | re.MULTILINE)
LINES = "".join(re.findall(r"^```sh\n(.*?)```$", TEXT, re.DOTALL | re.MULTILINE)).splitlines()
SMALL = {
    "train": [
        *("epochs=1", "prompts_per_epoch=1", "images_per_prompt=2", "sampler.steps=2", "model.dtype=float32"),
        *("evaluation.prompts=1", "evaluation.final_prompts=2", "evaluation.images_per_prompt=1"),
        *("evaluation.grid_prompts=1", "learner.lora_rank=2"),
    ],
    "evaluate": ["prompts_per_set=2", "images_per_prompt=2", "grid_prompts=1"],
}
SMALL["validate"] = SMALL["train"]


@pytest.mark.slow
def test_the_guide(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    clip_folder: Path,  # noqa: F811
) -> None:
    monkeypatch.chdir(tmp_path)
    pipeline = narrow_xl()
    pipeline.save_pretrained("whole")
    shutil.copytree("whole", "stable-diffusion-xl-base-1.0", ignore=shutil.ignore_patterns("*.safetensors"))
    save_single_file(pipeline, Path("my-xl.safetensors"))
    for name in ("PickScore_v1", "clip-vit-large-patch14"):
        shutil.copytree(clip_folder, name)
    Path("train.txt").write_text("a red circle\na blue square\n")
    Path("heldout.txt").write_text("a green star\ntwo cats\n")
    Path(NAME).parent.mkdir(parents=True)
    Path(NAME).write_text(CONTENT, encoding="utf-8")
    for line in LINES:
        program, *words = shlex.split(line)
        if program == "python":
            runpy.run_path(words[0])
            continue
        assert program == "prdp"
        assert main([*words, *SMALL.get(words[0], [])]) == 0
    assert "memory, one process" in capsys.readouterr().out
    assert Image.open("picture.png").size == (32, 32)
    rows = list(read_metrics(tmp_path / "runs" / "my_xl"))
    assert {"eval/watch/clipscore", "eval/watch/incompressibility"} <= {key for row in rows for key in row}
    lora, whole = (tmp_path / name for name in ("my_lora", "my_model"))
    assert list(lora.glob("*.safetensors")) and (lora / "README.md").is_file()
    assert (whole / "model.safetensors").is_file() and (whole / "use_it.py").is_file()
    runpy.run_path(str(whole / "use_it.py"))
