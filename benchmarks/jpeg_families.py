"""Does the reward rise on the layout of each released family? The size of the JPEG, on narrow random networks.

    python benchmarks/jpeg_families.py [FAMILY:EVIDENCE ...]

A line a run: held-out score before and after, in kB, higher for smaller files, and its standard error over images.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).parents[1] / "tests"), str(Path(__file__).parents[1] / "tests" / "cluster")]

RUNS = (
    "stable_diffusion_xl:denoising",
    "stable_diffusion_3:denoising",
    "flux:denoising",
    "z_image:denoising",
    "stable_diffusion_3:trajectory",
)
EPOCHS = 12


def risen(family: str, evidence: str, folder: Path) -> str:
    """A row of the table."""
    from narrow_transformers import NARROW, TEXT_TOKENS
    from narrow_xl import narrow_xl
    from test_xl_runs import run

    from prdp.tracking.evaluations import load_evaluation

    pipeline = narrow_xl() if family == "stable_diffusion_xl" else NARROW[family]()
    pipeline.save_pretrained(folder / "model")
    model: dict[str, Any] = {"family": family, "height": 32, "width": 32}
    model |= {"max_sequence_length": TEXT_TOKENS[family]} if family in TEXT_TOKENS else {}
    sampler: dict[str, Any] = {"steps": 4, "guidance_scale": 1.0, "prompts_per_chunk": 4}
    if family == "stable_diffusion_xl":
        sampler |= {"eta": 0.0, "deterministic_final_steps": 0}
    elif evidence == "denoising":
        sampler |= {"kind": "euler", "deterministic_final_steps": 0}
    else:
        sampler |= {"kind": "flow_sde", "eta": 0.7}
    objective: dict[str, Any] = {"name": "prdp", "evidence": evidence}
    if evidence == "denoising":
        objective |= {"beta": 4.0, "draws": 3, "shared_draws": True, "times": "stratified", "adaptive_weight": True}
        objective |= {"std": "pooled"}
    else:
        objective |= {"beta": 1e-3}
    done = run(
        folder / "model",
        folder / "run",
        epochs=EPOCHS,
        prompts_per_epoch=4,
        images_per_prompt=8,
        prompts={"heldout": {"_target_": "prdp.worlds.shapes.prompts.ShapesPrompts", "split": "heldout", "size": 8}},
        model=model,
        sampler=sampler,
        objective=objective,
        learner={"mode": "full", "learning_rate": 4e-3},
        evaluation={"every": 0, "prompts": 8, "images_per_prompt": 4, "final_prompts": 8, "grid_prompts": 1},
        checkpoint={"every": EPOCHS},
    )
    before, after = (load_evaluation(done, epoch).scores for epoch in (0, EPOCHS))
    error = (after - before).std() / before.size**0.5
    rise = (after - before).mean()
    return f"| `{family}` | {evidence} | {before.mean():.3f} | {after.mean():.3f} | {rise:+.3f} ± {error:.3f} |"


def main() -> None:
    print("| family | evidence | before | after | rise |")
    print("|---|---|---|---|---|")
    for name in sys.argv[1:] or RUNS:
        with tempfile.TemporaryDirectory() as folder:
            print(risen(*name.split(":"), Path(folder)), flush=True)


if __name__ == "__main__":
    main()
