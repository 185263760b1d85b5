"""The distance of trained policies to the optimum, on the world of mixtures where it is known.

    python benchmarks/mixtures.py measure RUN_FOLDER [RUN_FOLDER ...]
    python benchmarks/mixtures.py sweep RESULTS_FOLDER [--seeds 3] [--experiments NAME,NAME] [--overrides KEY=VALUE ...]
    python benchmarks/mixtures.py table RESULTS_FOLDER

`measure` prints a line of JSON for each run, about held-out and training prompts. `sweep` trains every method with
every seed at equal images, one process after another, and appends a line to RESULTS_FOLDER/results.jsonl when one is
finished; started again it goes on where it was, inside a run as well. `table` draws what is there: means over seeds
with one standard error.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

RESULTS = "results.jsonl"
DIVERGED = 1
"""Exit code of `prdp train` when an update or a reward raised; mistakes of the command line and signals have others."""
PROMPTS, IMAGES, SEED = 128, 64, 4321
METHODS: dict[str, tuple[str, ...]] = {
    "prdp": (),
    "prdp, K=10": ("updates_per_epoch=10",),
    "prdp, K=10, no clip": ("updates_per_epoch=10", "objective.clip_range=null"),
    "rebel": ("objective=rebel", "~objective.beta", "~objective.clip_range"),
    "ddpo": ("objective=ddpo", "~objective.beta"),
    "grpo": ("objective=grpo", "objective.beta=0.5"),
    "reinforce": ("objective=reinforce", "~objective.beta", "~objective.clip_range"),
}
"""Method -> overrides of the experiment. GRPO's beta is in units of a group's spread of rewards per nat. Learning rates
and clips are not searched for: give others as overrides, with a results folder of their own."""
COLUMNS = ("objective", "reward", "kl", "kl_to_optimum", "energy_distance")


def measure(folder: Path) -> dict[str, Any]:
    """A run's last weights on held-out and on training prompts, and what the chain itself is off by."""
    from safetensors.numpy import load_file

    from prdp.configure import read_config
    from prdp.diffusion import build_sampler
    from prdp.mixtures.distance import discretisation_error, distance_to_optimum
    from prdp.prompts import build_prompts
    from prdp.prompts.stream import fixed_prompts
    from prdp.types import Weights

    config = read_config(folder / "config.yaml")
    kl_weight = config.reward.get("kl_weight")
    if config.model.family != "gaussian_mixtures" or kl_weight is None:
        raise SystemExit(f"{folder}: needs a run with model=gaussian_mixtures and reward.kl_weight")
    learner = dataclasses.replace(config.learner, mode="full")
    start, trained = (build_sampler(config.model, learner, config.sampler, seed=config.seed) for _ in range(2))
    trained.load_weights(Weights.of(1, load_file(folder / "weights" / "correction.safetensors")))
    found: dict[str, Any] = {"run": str(folder), "epochs": config.epochs, "kl_weight": kl_weight}
    for split in ("heldout", "train"):
        prompts = fixed_prompts(build_prompts(f"prompts.{split}", getattr(config.prompts, split)), PROMPTS, SEED)
        found[split] = distance_to_optimum(trained.sample(prompts, IMAGES, SEED), kl_weight)
        reference = start.sample(prompts, IMAGES, SEED)
        found[f"{split}_start"] = distance_to_optimum(reference, kl_weight)
        found[f"{split}_chain"] = discretisation_error(reference, kl_weight)
    return found


def sweep(folder: Path, experiments: list[str], seeds: int, overrides: list[str]) -> None:
    """Train and measure what results.jsonl does not have yet."""
    folder.mkdir(parents=True, exist_ok=True)
    other = next((line["overrides"] for line in read_results(folder) if line["overrides"] != overrides), None)
    if other is not None:
        raise SystemExit(f"{folder} holds results with the overrides {other}: name another folder for {overrides}")
    done = {(line["experiment"], line["method"], line["seed"]) for line in read_results(folder)}
    for seed in range(seeds):
        for experiment in experiments:
            for method, knobs in METHODS.items():
                if (experiment, method, seed) in done:
                    continue
                run = folder / "runs" / f"{experiment}-{re.sub(r'[^a-zA-Z0-9]+', '_', method)}-{seed}"
                command = [sys.executable, "-m", "prdp", "train", f"experiment={experiment}", f"seed={seed}"]
                command += [f"output_dir={run}", "checkpoint.resume=auto", "tracking=silent", *knobs, *overrides]
                print(f"{experiment}, {method}, seed {seed}", flush=True)
                ended = subprocess.run(command, capture_output=True, text=True, check=False)
                if ended.returncode not in (0, DIVERGED):
                    end = ended.stderr.strip()[-500:]
                    raise SystemExit(f"{' '.join(command)} ended with {ended.returncode}: {end}")
                line: dict[str, Any] = {"experiment": experiment, "method": method, "seed": seed}
                line["overrides"] = overrides
                # A method that diverges is a result, not a reason to stop.
                line |= measure(run) if ended.returncode == 0 else {"failed": ended.stderr.strip()[-500:]}
                with (folder / RESULTS).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The finished runs; none for a folder without."""
    file = folder / RESULTS
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def table(folder: Path) -> str:
    """Markdown, a table for each experiment."""
    groups: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for line in read_results(folder):
        groups[line["experiment"]][line["method"]].append(line)
    text = []
    for experiment, methods in groups.items():
        text += [f"## {experiment}, held-out prompts", "", f"| method | seeds | failed | {' | '.join(COLUMNS)} |"]
        text.append("|---" * (3 + len(COLUMNS)) + "|")
        for method, lines in methods.items():
            good = [line["heldout"] for line in lines if "heldout" in line]
            cells = " | ".join(interval([one[column] for one in good]) for column in COLUMNS)
            text.append(f"| {method} | {len(lines)} | {len(lines) - len(good)} | {cells} |")
        first = next((line for lines in methods.values() for line in lines if "heldout" in line), None)
        if first is not None:
            start, chain = first["heldout_start"], first["heldout_chain"]
            off = chain["log_z"] - chain["log_z_chain"]
            text.append("| the reference | | | " + " | ".join(f"{start[column]:.3f}" for column in COLUMNS) + " |")
            text += [
                f"| the optimum | | | {start['objective_optimum']:.3f} | {start['reward_optimum']:.3f} | | 0 | 0 |",
                "",
                f"Of the kl_to_optimum, {off:.3f} nats are due to the number of steps.",
                "",
            ]
    return "\n".join(text)


def interval(values: list[float]) -> str:
    """Mean and one standard error."""
    if not values:
        return ""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.3f}"
    error = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
    return f"{mean:.3f} ± {error:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("runs", nargs="+", type=Path)
    sweeping = commands.add_parser("sweep")
    sweeping.add_argument("folder", type=Path)
    sweeping.add_argument("--overrides", nargs="*", default=[], help="for every run, such as epochs=100")
    sweeping.add_argument("--seeds", type=int, default=3)
    sweeping.add_argument("--experiments", default="mixtures_large", help="one or more, separated by commas")
    drawing = commands.add_parser("table")
    drawing.add_argument("folder", type=Path)
    asked = parser.parse_args()
    if asked.command == "measure":
        for run in asked.runs:
            print(json.dumps(measure(run)))
    elif asked.command == "sweep":
        sweep(asked.folder, asked.experiments.split(","), asked.seeds, asked.overrides)
    else:
        print(table(asked.folder))


if __name__ == "__main__":
    main()
