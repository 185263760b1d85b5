"""Whole runs on a GPU: the embedded models, and Stable Diffusion 1.5 in true size with random weights.

    python benchmarks/gpu_runs.py                                # one GPU: some minutes
    python benchmarks/gpu_runs.py --runs plain turns halved
    python benchmarks/gpu_runs.py --device cpu --runs plain turns

Each run is `prdp train` in a process of its own. What has to be equal is compared: a run with itself, with one that
takes turns, that resumed, whose microbatch was halved because memory ran out, with a CPU. Nothing is downloaded. The
report is a page in Markdown.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

SMALL = (
    "experiment=shapes_demo epochs=3 evaluation.every=3 evaluation.prompts=16 evaluation.final_prompts=16 "
    "checkpoint.every=1"
)
TRUE_SIZE = (
    "experiment=sd15_lora model=local reward=compressibility prompts=shapes epochs=2 prompts_per_epoch=2 "
    "images_per_prompt=8 sampler.guidance_scale=1 learner.microbatch=16 evaluation.every=2 evaluation.prompts=4 "
    "evaluation.final_prompts=4 evaluation.images_per_prompt=2 checkpoint.every=2"
)
FULL = "learner=full learner.learning_rate=1e-4 model.deterministic=true"
REPEATED = "model.deterministic=true"
TRUE_FULL = "learner=full learner.learning_rate=1e-6 learner.gradient_checkpointing=true"
NOT_MEASURED = ("time/", "images_per_second/", "wall_seconds", "learner_microbatch", "memory", "host_")
"""Starts of names of metrics that differ between equal runs."""

Metrics = dict[str, float]


@dataclass(frozen=True)
class Whole:
    """A run.

    Attributes:
        overrides: of `prdp train`.
        like: the run that it is compared with.
        bits: whether it has to have that run's.
        within: of the other's losses and scores, else; None: told, not checked.
        memory: GiB that the process may take on the device.
        first: overrides of a run in the same folder before, which this one resumes.
    """

    overrides: str
    like: str = ""
    bits: bool = False
    within: float | None = None
    memory: float | None = None
    first: str = ""


RUNS = {
    "plain": Whole(SMALL),
    "again": Whole(SMALL, like="plain", within=0.02),
    "deterministic": Whole(f"{SMALL} model.deterministic=true", like="plain", within=0.02),
    "deterministic, again": Whole(f"{SMALL} model.deterministic=true", like="deterministic", bits=True),
    "on a CPU": Whole(f"{SMALL} model.device=cpu epochs=1 evaluation.every=1", like="plain", within=0.02),
    "resumed": Whole(f"{SMALL} model.deterministic=true", like="deterministic", bits=True, first="epochs=2"),
    "turns": Whole(f"{SMALL} model.deterministic=true cluster.colocate=true", like="deterministic", bits=True),
    "offloads": Whole(
        f"{SMALL} model.deterministic=true model.offload_encoders=true model.offload_vae=true", like="deterministic",
        bits=True,
    ),
    "small microbatch": Whole(f"{SMALL} learner.microbatch=8", like="plain", within=0.02),
    "halved": Whole(f"{SMALL} learner.microbatch=512", like="plain", within=0.02, memory=0.6),
    "compiled": Whole(f"{SMALL} model.compile=inductor", like="plain", within=0.05),
    "bfloat16": Whole(f"{SMALL} model.dtype=bfloat16", like="plain"),
    "TF32": Whole(f"{SMALL} learner.evidence_precision=tf32", like="plain", within=0.02),
    "autocast": Whole(f"{SMALL} learner.autocast=bfloat16", like="plain"),
    "autocast, evidence too": Whole(
        f"{SMALL} learner.autocast=bfloat16 learner.evidence_precision=half", like="autocast", within=0.05
    ),
    "int8": Whole(f"{SMALL} model.quantization=int8", like="plain"),
    "full weights": Whole(f"{SMALL} {FULL}"),
    "full weights, turns": Whole(f"{SMALL} {FULL} cluster.colocate=true", like="full weights", bits=True),
    "trajectories": Whole(f"{SMALL} objective=prdp updates_per_epoch=2 sampler.guidance_scale=3"),
    "nft": Whole(f"{SMALL} objective=nft"),
    "flow": Whole(SMALL.replace("shapes_demo", "shapes_flow")),
    "jax": Whole(f"{SMALL} {FULL} learner.framework=jax model.deterministic=false", like="full weights", within=0.02),
    "true size": Whole(f"{TRUE_SIZE} {REPEATED}"),
    "true size, turns": Whole(f"{TRUE_SIZE} {REPEATED} cluster.colocate=true", like="true size", bits=True),
    "true size, full": Whole(f"{TRUE_SIZE} {TRUE_FULL}"),
    "true size, halved": Whole(
        f"{TRUE_SIZE} learner.microbatch=48 sampler.microbatch=16", like="true size", memory=12.0
    ),
}  # fmt: skip
"""By name."""
PROGRAM = """
import json, sys
memory, report, words = json.loads(sys.argv[1])
device = next((word.partition("=")[2] for word in words if word.startswith("model.device=")), "cuda")
if memory and device.startswith("cuda"):
    import torch
    torch.cuda.set_per_process_memory_fraction(memory * 2**30 / torch.cuda.get_device_properties(0).total_memory)
from prdp.cli import main
code = main(["train", *words])
import torch
peak = torch.cuda.max_memory_allocated() if device.startswith("cuda") else 0
json.dump({"code": code, "peak": peak / 2**30}, open(report, "w"))
sys.exit(code)
"""


@dataclass(frozen=True)
class Outcome:
    """What a run came to: its lines of metrics, its log, seconds and GiB; or why it ended."""

    rows: list[Metrics]
    log: str
    seconds: float
    peak: float
    failed: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, compare, and write the report; 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="*", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=10.0, help="for all (%(default)s)")
    parser.add_argument("--together", type=int, default=1, help="runs at a time, whose times say little (%(default)s)")
    parser.add_argument("--folder", type=Path, help="of the runs, which stay there; else one that is removed")
    parser.add_argument("--out", type=Path, default=Path("gpu_runs.md"), help="the report (%(default)s)")
    options = parser.parse_args(arguments)
    until = time.monotonic() + 60.0 * options.minutes
    lines = [header(options.device), "", "| run | epoch, s | all, s | peak, GiB | beside | |", f"|{'---|' * 6}"]
    found: dict[str, Outcome] = {}
    wrong = 0
    with tempfile.TemporaryDirectory() as aside, ThreadPoolExecutor(options.together) as pool:
        folder = options.folder or Path(aside)
        if any(name.startswith("true size") for name in options.runs):
            stable_diffusion(folder, options.device)
        started = {name: pool.submit(outcome, name, folder, options.device, until) for name in options.runs}
        for name, future in started.items():
            found[name] = future.result()
            row, right = told(name, found)
            wrong += not right
            lines.append(row)
            print(row, flush=True)
            options.out.write_text("\n".join([*lines, ""]))
            if found[name].failed:
                print(found[name].log[-3000:], file=sys.stderr, flush=True)
    return int(wrong > 0)


def header(device: str) -> str:
    """What it ran on."""
    import torch

    if not device.startswith("cuda"):
        return f"torch {torch.__version__}, CPU"
    properties = torch.cuda.get_device_properties(torch.device(device))
    return f"torch {torch.__version__}, {properties.name}, {properties.total_memory / 2**30:.0f} GiB"


def outcome(name: str, folder: Path, device: str, until: float) -> Outcome:
    """Train as one of RUNS says."""
    whole = RUNS[name]
    where = folder / name.replace(" ", "_").replace(",", "")
    words = [f"model.device={device}", *whole.overrides.split(), f"output_dir={where}", "tracking=silent"]
    if name.startswith("true size"):
        words.append(f"model.path={stable_diffusion(folder, device)}")
    begun = time.monotonic()
    log = ""
    for before in ([whole.first] if whole.first else []) + [""]:
        report = folder / f"{where.name}.json"
        given = [whole.memory, str(report), [*words, *before.split(), "checkpoint.resume=auto"]]
        left = until - time.monotonic()
        if left <= 0:
            return Outcome([], log, 0.0, 0.0, "no time was left")
        try:
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM, json.dumps(given)], capture_output=True, text=True, timeout=left
            )
        except subprocess.TimeoutExpired:
            return Outcome([], log, time.monotonic() - begun, 0.0, "did not end in time")
        log += done.stdout + done.stderr
        if done.returncode:
            last = (done.stderr.strip() or "no words").splitlines()[-1]
            return Outcome([], log, time.monotonic() - begun, 0.0, f"ended with {done.returncode}: {last[:200]}")
    rows = [json.loads(line) for line in (where / "metrics.jsonl").read_text().splitlines()]
    return Outcome(rows, log, time.monotonic() - begun, json.loads(report.read_text())["peak"])


def told(name: str, found: dict[str, Outcome]) -> tuple[str, bool]:
    """A row of the report, and whether the run is right."""
    run, whole = found[name], RUNS[name]
    if run.failed:
        return f"| {name} | | {run.seconds:.0f} | | | **FAILED**: {run.failed} |", False
    epoch = run.rows[-1].get("time/epoch", math.nan)
    row = f"| {name} | {epoch:.2f} | {run.seconds:.0f} | {run.peak:.2f} |"
    halved = [line for line in run.log.splitlines() if "memory ran out" in line]
    note = f"{len(halved)} times memory ran out" if halved else ""
    if whole.memory is not None and not halved:
        return f"{row} | **FAILED**: memory did not run out |", False
    other = found.get(whole.like)
    if other is None or other.failed:
        return f"{row} | {note} |", True
    distance, where = apart(run.rows, other.rows)
    right = distance == 0.0 if whole.bits else whole.within is None or distance <= whole.within
    words = "the bits of" if distance == 0.0 else f"within {distance:.1e} of"
    words += f" *{whole.like}*" + (f" ({where})" if distance else "")
    return f"{row} {'' if right else '**WRONG**: '}{words} | {note} |", right


def apart(rows: Sequence[Metrics], others: Sequence[Metrics]) -> tuple[float, str]:
    """The largest difference of losses, gradients and scores, relative to 1 or the larger of both, and where."""
    largest, where = 0.0, ""
    for row, other in zip(rows, others, strict=False):
        for key, value in row.items():
            if key.startswith(NOT_MEASURED) or not isinstance(value, int | float) or key not in other:
                continue
            if len(rows) < len(others) and key.startswith("eval/") and row["epoch"]:
                continue  # evaluated at another time
            difference = abs(value - other[key]) / max(1.0, abs(value), abs(other[key]))
            if not difference <= largest:
                largest, where = difference, f"{key}, epoch {row['epoch']:.0f}"
    return largest, where


def stable_diffusion(folder: Path, device: str) -> Path:
    """A folder with Stable Diffusion 1.5 in true size, of random weights in bfloat16, and a tokenizer of few words."""
    where = folder / "sd15"
    if where.exists():
        return where
    import torch
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from gpu_models import LAYOUTS
    from released_configs import write
    from transformers import CLIPTextConfig, CLIPTextModel

    from prdp.diffusion.model_folder import read_component
    from prdp.worlds.shapes.tiny_pipeline import build_scheduler, build_tokenizer

    configurations = write(folder / "configurations", LAYOUTS["sd15"].hub)
    made: Callable[[Any, str], Any] = lambda kind, name: kind.from_config(read_component(configurations, name))  # noqa: E731
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            text = CLIPTextConfig(
                vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
                max_position_embeddings=77, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )  # fmt: skip
            parts = {"vae": made(AutoencoderKL, "vae"), "unet": made(UNet2DConditionModel, "unet")}
            parts["text_encoder"] = CLIPTextModel(text)
    finally:
        torch.set_default_dtype(torch.float32)
    tokenizer.model_max_length = 77
    pipeline = StableDiffusionPipeline(
        **parts, tokenizer=tokenizer, scheduler=build_scheduler(), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    aside = folder / "sd15.aside"
    pipeline.to("cpu", torch.bfloat16).save_pretrained(aside)
    aside.rename(where)
    return where


if __name__ == "__main__":
    sys.exit(main())
