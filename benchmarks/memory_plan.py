"""The plan of a run's memory against what a process really takes: reduced layouts of the released families.

    python benchmarks/memory_plan.py

Each line is a process of its own. Measured is the growth of its resident memory at the peak of a pass; a small pass
comes before, so that what libraries set aside is not counted. glibc keeps blocks that were freed, in pieces that do not
fit what is asked for next: so every line is measured twice, with its allocator as it is, and with one that gives blocks
above 64 KiB back (MALLOC_MMAP_THRESHOLD_).
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

PASSES = ("learning", "learning, checkpointed", "evidence")
WIDER: dict[str, dict[str, Any]] = {
    "stable_diffusion_xl": {"block_out_channels": (64, 128), "attention_head_dim": [4, 8]},
    "stable_diffusion_3": {
        "num_layers": 4,
        "attention_head_dim": 32,
        "num_attention_heads": 8,
        "caption_projection_dim": 256,
    },
    "flux": {"num_layers": 2, "num_single_layers": 4, "num_attention_heads": 16},
    "z_image": {"n_layers": 4, "dim": 256, "n_heads": 16, "n_kv_heads": 16},
}
"""Of the networks of the tests, so that a pass takes hundreds of MiB."""
SIDE, IMAGES = 64, 16
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def model_of(family: str, folder: Path) -> Any:
    """A pipeline with a wider network, on the disk."""
    import torch
    from narrow_transformers import NARROW, TEXT_TOKENS
    from narrow_xl import narrow_xl

    from prdp.config import ModelConfig

    pipeline = narrow_xl() if family == "stable_diffusion_xl" else NARROW[family]()
    name = "unet" if family == "stable_diffusion_xl" else "transformer"
    network = getattr(pipeline, name)
    config = {**network.config, **WIDER[family]}
    if family == "stable_diffusion_3":
        config["pos_embed_max_size"] = 2 * SIDE
    if family == "z_image":
        config["axes_lens"] = [128, SIDE, SIDE]
    torch.manual_seed(0)
    pipeline.register_modules(**{name: type(network).from_config(config)})
    pipeline.save_pretrained(folder)
    side = 4 * SIDE
    return ModelConfig(
        family=family,
        path=str(folder),
        height=side,
        width=side,
        max_sequence_length=TEXT_TOKENS.get(family),
        dtype="bfloat16",
        device="cpu",
    )


def measure(family: str, what: str) -> tuple[float, float]:
    """Planned and measured MiB of a pass."""
    import torch

    from prdp.config import LearnerConfig
    from prdp.diffusion import build_policy, family_of
    from prdp.diffusion.dry_run import DryPolicy
    from prdp.diffusion.pipeline_checks import empty_network

    learner = LearnerConfig(gradient_checkpointing="checkpointed" in what)
    gradient = what.startswith("learning")
    with tempfile.TemporaryDirectory() as folder:
        model = model_of(family, Path(folder))
        kind: Any = family_of(model)
        network = empty_network(Path(folder), kind.FORMAT).to(torch.bfloat16)
        dry = DryPolicy(kind, model, learner, network, kind.condition_shapes(model))
        planned = dry.with_gradient(IMAGES) if gradient else dry.without_gradient(IMAGES, float32=True)
        policy: Any = build_policy(model, learner, seed=0, keep_reference=False)

    def run(images: int) -> None:
        conditions = policy.encode(["a red circle"] * images)
        latents, times = torch.randn(images, *policy.latent_shape), torch.full((images,), 0.5)
        if gradient:
            policy.output(latents, times, conditions, 1.0).square().mean().backward()
            return
        with torch.no_grad(), policy.float32():
            policy.output(latents, times, conditions, 1.0)

    run(1)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    run(IMAGES)
    return planned / 2**20, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before


def main() -> None:
    if len(sys.argv) == 3:
        print(*measure(*sys.argv[1:]))
        return
    print("| family | pass | planned, MiB | measured, MiB | blocks given back, MiB | planned / that |")
    print("|---|---|---|---|---|---|")
    for family in sys.argv[1:] or WIDER:
        for what in PASSES:
            measured = []
            for allocator in ({}, GIVES_BACK):
                answer = subprocess.check_output(
                    [sys.executable, __file__, family, what],
                    stderr=subprocess.DEVNULL,
                    text=True,
                    env=os.environ | allocator,
                )
                planned, grown = map(float, answer.split()[-2:])
                measured.append(grown)
            print(
                f"| `{family}` | {what} | {planned:.0f} | {measured[0]:.0f} | {measured[1]:.0f} | "
                f"{planned / measured[1]:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
