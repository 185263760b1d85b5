"""A cascade on actors: the estimator decides there, image by image, as it does in one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prdp.cli import main

DRAWN = (
    "prompts=[shapes.train]", "prompts.shapes_train.size=9", "prompts_per_set=6", "sampler.prompts_per_chunk=2",
)  # fmt: skip


def test_actors_draw_what_one_process_draws(small_pipeline: Path, tmp_path: Path, private_ray: Any) -> None:
    base = f"model.path={small_pipeline}"
    words = [base, *DRAWN, "models=[student:base,teacher:base]", "rewards=[redness]", "rate=0.5", "sampler.steps=2"]
    words += ["samplers.student.steps=1", "samplers.student.deterministic_final_steps=0", "sampler.guidance_scale=1"]
    assert main(["calibrate", *words, f"output_dir={tmp_path}/cascade"]) == 0
    drawing = ["generate", base, *DRAWN, f"models=[{tmp_path}/cascade]", "images_per_prompt=1"]
    sets = []
    for cluster in (["cluster=inline"], ["cluster=ray", "cluster.samplers=2"]):
        folder = tmp_path / f"set_{len(sets)}"
        assert main([*drawing, *cluster, f"output_dir={folder}"]) == 0
        chunks = sorted((folder / "samples").rglob("chunk.json"))
        passes = [one for chunk in chunks for one in json.loads(chunk.read_text())["network_passes"]]
        pictures = [file.read_bytes() for file in sorted((folder / "samples").rglob("*.png"))]
        sets.append((passes, pictures, [file.read_bytes() for file in sorted(folder.rglob("latents.safetensors"))]))
    assert sets[0] == sets[1]
    assert sorted(sets[0][0]) == [1.0] * 3 + [3.0] * 3
