"""Does the reward rise on the layout of each released family? The size of the JPEG, on narrow random networks.

    python benchmarks/jpeg_families.py [--output docs/results/jpeg_families.md] [FAMILY:EVIDENCE ...]

A line a run: held-out score before and after, in kB, higher for smaller files, the rise with its standard error over
images, in one process and on Ray, and whether the weights that were learned on Ray are the same bits.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
sys.path[:0] = [str(Path(__file__).parents[1] / "tests"), str(Path(__file__).parents[1] / "tests" / "cluster")]

FAMILIES = ("stable_diffusion", "stable_diffusion_xl", "stable_diffusion_3", "flux", "z_image")
RUNS = tuple(f"{family}:{evidence}" for family in FAMILIES for evidence in ("denoising", "trajectory"))
EPOCHS = 12
RAY = {"kind": "ray", "samplers": 1}
HEAD = """\
| family | evidence | before | after | rise and its standard error | after, on Ray | the same bits | seconds, inline |
|---|---|---|---|---|---|---|---|"""


def changes(family: str, evidence: str) -> dict[str, Any]:
    """Of the run of `tests/cluster/test_xl_runs.py`."""
    from narrow_transformers import TEXT_TOKENS

    pixels = 64 if family == "stable_diffusion" else 32
    model: dict[str, Any] = {"family": family, "height": pixels, "width": pixels}
    model |= {"max_sequence_length": TEXT_TOKENS[family]} if family in TEXT_TOKENS else {}
    flow = family in TEXT_TOKENS
    sampler: dict[str, Any] = {"steps": 4, "guidance_scale": 1.0, "prompts_per_chunk": 4}
    if evidence == "denoising":
        sampler |= {"kind": "euler"} if flow else {"eta": 0.0}
        objective = {"draws": 3, "shared_draws": True, "times": "stratified", "adaptive_weight": True, "std": "pooled"}
        sampler["deterministic_final_steps"] = 0
    else:
        sampler |= {"kind": "flow_sde", "eta": 0.7} if flow else {"eta": 1.0}
        objective = {}
    beta, rate = (4.0, 4e-3) if evidence == "denoising" else (1e-3, 4e-3)
    prompts = {"_target_": "prdp.worlds.shapes.prompts.ShapesPrompts", "split": "heldout", "size": 8}
    return {
        "epochs": EPOCHS,
        "prompts_per_epoch": 4,
        "images_per_prompt": 8,
        "prompts": {"heldout": prompts},
        "model": model,
        "sampler": sampler,
        "objective": {"name": "prdp", "evidence": evidence, "beta": beta, **objective},
        "learner": {"mode": "full", "learning_rate": rate},
        "evaluation": {"every": 0, "prompts": 8, "images_per_prompt": 4, "final_prompts": 8, "grid_prompts": 1},
        "checkpoint": {"every": EPOCHS},
    }


def risen(family: str, evidence: str, folder: Path) -> str:
    """A row of the table."""
    from deep_pipeline import deep_pipeline
    from narrow_transformers import NARROW
    from narrow_xl import narrow_xl
    from test_xl_runs import run

    from prdp.checkpoints.checkpoint import load_checkpoint
    from prdp.tracking.evaluations import load_evaluation

    build = {"stable_diffusion": deep_pipeline, "stable_diffusion_xl": narrow_xl, **NARROW}[family]
    build().save_pretrained(folder / "model")
    begun = time.monotonic()
    done = [run(folder / "model", folder / "inline", **changes(family, evidence))]
    seconds = time.monotonic() - begun
    done.append(run(folder / "model", folder / "ray", cluster=RAY, **changes(family, evidence)))
    before = load_evaluation(done[0], 0).scores
    after, on_ray = (load_evaluation(one, EPOCHS).scores for one in done)
    learned = [load_checkpoint(one / "checkpoints" / f"epoch_{EPOCHS:05}").tensors for one in done]
    same = all((learned[1][name] == value).all() for name, value in learned[0].items() if name.startswith("weights/"))
    rise, error = (after - before).mean(), (after - before).std() / before.size**0.5
    return (
        f"| `{family}` | {evidence} | {before.mean():.3f} | {after.mean():.3f} | {rise:+.3f} ± {error:.3f} "
        f"| {on_ray.mean():.3f} | {'yes' if same else 'no'} | {seconds:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="*", default=RUNS, metavar="FAMILY:EVIDENCE")
    parser.add_argument("--output", type=Path, help="a Markdown file")
    given = parser.parse_args()
    from prdp.cluster.ray_session import connect
    from prdp.config import ClusterConfig

    connect(ClusterConfig(kind="ray"))
    rows = [HEAD]
    print(HEAD, flush=True)
    for name in given.runs:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(risen(*name.split(":"), Path(folder)))
            print(rows[-1], flush=True)
    if given.output is not None:
        title = "# The size of the JPEG on the layout of each family"
        told = "By `python benchmarks/jpeg_families.py`, one core of a shared AMD EPYC."
        given.output.write_text("\n\n".join((title, told, "\n".join(rows))) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
