"""Passes until a held-out score is reached, by the recorded runs of two studies: the page docs/results/speed.md.

    python benchmarks/speed.py                  # writes docs/results/speed.md

A forward pass counts as one, a backward pass as two. Between two evaluations a score is taken as a straight line.
Passes are counted as the same configuration takes them today; recorded seconds are not used: runs shared their machine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from prdp.configuration.compose import Composer
from prdp.configuration.network_passes import image_passes

RESULTS = Path(__file__).parents[1] / "docs" / "results"
LEVELS = (0.66, 0.70)
STUDIES = {
    "shapes_speed": {
        "prdp_denoising_2_small": "PRDP on denoising errors, 2 draws, 64 images an update",
        "prdp_denoising": "PRDP on denoising errors, 3 draws, 128 images: the demo",
        "ddpo_small": "DDPO on trajectories, 64 images",
        "ddpo": "DDPO on trajectories, 128 images",
    },
    "shapes_large": {
        "prdp_denoising": "PRDP on denoising errors, 4 draws",
        "prdp_denoising_6": "PRDP on denoising errors, 6 draws",
        "crd": "CRD",
        "dgpo": "DGPO",
        "awm": "AWM",
        "nft": "NFT",
        "prdp": "PRDP on trajectories",
        "ddpo": "DDPO on trajectories",
        "ddpo_long": "DDPO on trajectories, 96 updates",
    },
}
"""Study -> names in its records, and what they are."""
BACKWARD_COST = 2
"""Forward passes that a backward pass is counted as."""

HEAD = """# Passes until a score is reached

Held-out score of the judge on the embedded model, from .571. Made by `python benchmarks/speed.py`. A backward
pass counts as two forward passes. Passes are those that the same configuration takes today. Between two
evaluations the score is taken for a straight line. Where not all seeds reach a score, the median is of those that do,
and so it flatters the method.
"""
ABOUT = {
    "shapes_speed": """## With small batches and few draws

The recipe of `shapes_demo`, adapters on all layers, evaluated every 4 updates:
`benchmarks/studies/shapes_speed.yaml`. Rates, draws and batches were chosen by single runs with another seed.
""",
    "shapes_large": """## Methods side by side

The runs are those of [shapes_large](shapes_large.md), adapters on attention, 128 images an update, whose rates were
searched. They were evaluated every 8 updates. DDPO's were recorded when it still computed the reference.
""",
}

Line = Mapping[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, default=RESULTS, help="folder of the studies' records")
    parser.add_argument("--out", type=Path, default=RESULTS / "speed.md")
    options = parser.parse_args(arguments)
    records = {study: (options.records / f"{study}.jsonl").read_text().splitlines() for study in STUDIES}
    tables = [f"{ABOUT[study]}\n{table(study, list(map(json.loads, lines)))}" for study, lines in records.items()]
    options.out.write_text("\n".join([HEAD, *tables]))
    print(options.out)


def table(study: str, lines: Sequence[Line]) -> str:
    """A row a method: medians over its seeds, and how many of them got there."""
    head = ["method", "seeds", "passes an image", *(f"thousand passes to {level:.2f}" for level in LEVELS)]
    rows = [" | ".join(head), "|".join("---" for _ in head)]
    for name, words in STUDIES[study].items():
        runs = [line for line in lines if line["method"] == name and line["phase"] == "final"]
        if not runs:
            continue
        costs = [cost_of_image(run) for run in runs]
        cells = [words, str(len(runs)), f"{median(costs):g}"]
        for level in LEVELS:
            images = [images_until(run, level) for run in runs]
            passes = [count * cost / 1e3 for count, cost in zip(images, costs, strict=True) if count is not None]
            reached = f" ({len(passes)} of {len(runs)})" if len(passes) < len(runs) else ""
            cells.append((f"{median(passes):.0f}" if passes else "not reached") + reached * bool(passes))
        rows.append(" | ".join(cells))
    return "".join(f"| {row} |\n" if "---" not in row else f"|{row}|\n" for row in rows)


def cost_of_image(run: Line) -> int:
    """Passes of an image in an epoch, a backward pass counted as two, as its configuration takes them today."""
    with Composer([*run["base"], *run["overrides"], "output_dir=x"]) as composer:
        found = image_passes(composer.jobs()[0].config)
    return found.policy + found.reference + found.evidence + (1 + BACKWARD_COST) * found.gradient


def images_until(run: Line, level: float) -> float | None:
    """Images learned from until the held-out score is first at a level; None where it never is."""
    epochs, scores = run["curve"]["eval_epoch"], run["curve"]["eval_score"]
    an_epoch = run["budget"]["images"] / epochs[-1]
    before = epochs[0], scores[0]
    for epoch, score in zip(epochs, scores, strict=True):
        if score >= level:
            share = 1.0 if score == before[1] else (level - before[1]) / (score - before[1])
            return float((before[0] + share * (epoch - before[0])) * an_epoch)
        before = epoch, score
    return None


if __name__ == "__main__":
    main()
