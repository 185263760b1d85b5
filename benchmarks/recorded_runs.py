"""Recorded runs for docs/results: their logs, the curve of the held-out score, and the tables before and after.

    python benchmarks/recorded_runs.py docs/results/shapes_demo RUN_FOLDER [RUN_FOLDER ...]

Writes OUT_seed<N>.jsonl for every run, and OUT.svg; prints the tables in Markdown, with 95% intervals over prompts.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from study_tables import table

from prdp.reports.charts import Series, curve_svg
from prdp.reports.report_data import Change, RunData, changes, read_run
from prdp.support.storage import write_atomically
from prdp.tracking.jsonl import read_metrics


def held_out_curve(folder: Path, seed: int) -> Series:
    """The score on held-out prompts, with its interval, against epochs."""
    lines = [line for line in read_metrics(folder) if "eval/score" in line]
    columns = [[float(line[key]) for line in lines] for key in ("eval/score", "eval/score_low", "eval/score_high")]
    return Series(f"seed {seed}", [line["epoch"] for line in lines], *columns)


def tables(runs: dict[int, RunData]) -> str:
    """Markdown: the score before, after and the paired difference; then every sub-score."""
    overall: dict[int, Change] = {}
    skills: dict[int, list[Change]] = {}
    for seed, run in runs.items():
        whole, skills[seed], _ = changes(run.evaluations[0], run.evaluations[-1])
        if whole is None:
            raise SystemExit(f"{run.run_dir}: the first and the last evaluation share no images")
        overall[seed] = whole
    first = next(iter(skills.values()))
    minutes = {seed: f"{run.wall_seconds / 60:.1f}" for seed, run in runs.items()}
    rows = [
        ["seed", "before", "after", "paired difference", "minutes of training"],
        *(
            [str(seed), *(_told(value) for value in (one.before, one.after)), _told(one.difference, "+"), minutes[seed]]
            for seed, one in overall.items()
        ),
    ]
    parts = [
        ["", *(one.name for one in first)],
        ["before", *(f"{one.before[0]:.3f}" for one in first)],
        *([f"after, seed {seed}", *(f"{one.after[0]:.3f}" for one in own)] for seed, own in skills.items()),
    ]
    return f"{table(rows)}\n\n{table(parts)}"


def _told(value: tuple[float, float, float], sign: str = "") -> str:
    mean, low, high = (f"{number:{sign}.3f}" for number in value)
    return f"{mean} [{low}, {high}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_FOLDER")
    asked = parser.parse_args()
    folders = {int(read_run(folder).config["seed"]): folder for folder in asked.runs}
    for seed, folder in folders.items():
        write_atomically(
            asked.out.with_name(f"{asked.out.name}_seed{seed}.jsonl"), (folder / "metrics.jsonl").read_bytes()
        )
    curves = [held_out_curve(folder, seed) for seed, folder in folders.items()]
    picture = curve_svg(curves, f"{asked.out.name}: score on held-out prompts", standalone=True)
    write_atomically(asked.out.with_suffix(".svg"), picture.encode())
    print(tables({seed: read_run(folder) for seed, folder in folders.items()}))


if __name__ == "__main__":
    main()
