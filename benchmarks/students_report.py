"""docs/results/students.md of `benchmarks/students.py`: its tables and figure, from evaluations of several seeds."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from students_judges_table import judged_by_others
from study_tables import interval, table

from prdp.evaluation.store import FOLDER, read_scores
from prdp.reports.charts import Series, curve_svg
from prdp.support.storage import write_atomically
from prdp.tracking.statistics import mean_interval

RESULTS, PAGE, FIGURE, EVALUATION = "students.jsonl", "students.md", "students_passes.svg", "evaluation"
JUDGE = "shapes_judge"
ROUTED_BY = ("color", "shape", "count", "fill")
"""Sub-scores of the cascades' estimator; the others judge them."""
BASE, STUDENT = "base", "endpoint"
APART = "what does not route"
_HEAD = """# Students and cascades

`python benchmarks/students.py run FOLDER`, then `python benchmarks/students.py report FOLDER docs/results`; `plan`
prints the commands. What it is about stands in [collaboration.md](../collaboration.md).

The base draws in 8 steps with guidance, 16 passes. Students have 4 steps unless their name says otherwise. Each seed
has chains, students, runs and 256 held-out prompts of its own; images are paired by prompt and noise. Cascades are
routed by the sum of the judge's sub-scores color, shape, count and fill. "What does not route" is the mean of the
others: presence, size, relation and background.
"""
CLAIMS = (
    ("student of 4 passes, less its teacher of 16", STUDENT, BASE),
    ("the same by target=consistency", "consistency", BASE),
    ("student of 4 passes, less the teacher with noise in its steps, of 16", STUDENT, "teacher8_stochastic"),
    ("PRDP on trajectories, less the student", "tuned_trajectory", STUDENT),
    ("PRDP on denoising errors, less the student", "tuned_denoising", STUDENT),
    ("refined by score, less by chance", "refine25", "random25"),
    ("refined by score, less the teacher of 16 passes", "refine25", BASE),
    ("refined by score, less the teacher of 8 passes", "refine25", "teacher4"),
    ("refined by score, less the student", "refine25", STUDENT),
    ("best of two by score, less the student", "redraw100", STUDENT),
    ("best of two by score, less all refined", "redraw100", "refine100"),
    ("skipped by the prompt, less the student", "skip25", STUDENT),
)
"""What is told of two models."""
_OBSERVATIONS = (
    ("the student's image is the better one", "wins"),
    ("the teacher's is", "losses"),
    ("wins where the two images differ most, less those where they differ least", "far_over_near"),
    ("distance with the complexity of the teacher's image", "distance_by_complexity"),
    ("distance with the length of the prompt", "distance_by_length"),
)


@dataclass(frozen=True)
class Judged:
    """The images of a model: float64 [n] each, prompts in order."""

    score: np.ndarray
    apart: np.ndarray


def finished(folder: Path) -> list[Path]:
    """Folders of seeds whose evaluation is done."""
    return sorted(one for one in folder.iterdir() if (one / f"{EVALUATION}.done").exists())


def collect(folder: Path) -> list[dict[str, Any]]:
    """A line for each seed and model: passes, score, differences to the base, win rate.

    `apart` is the mean difference of the sub-scores that route no cascade.
    """
    lines = []
    for place in finished(folder):
        results = _results(place)
        for spread in results["spread"]:
            own = [one for one in results["scores"] if (one["model"], one["reward"]) == (spread["model"], JUDGE)]
            [whole] = [one for one in own if one["part"] == "all"]
            subs = {one["part"]: one["difference"] for one in own if one["part"].startswith("sub-score: ")}
            apart = [value for part, value in subs.items() if part.removeprefix("sub-score: ") not in ROUTED_BY]
            line = {"seed": int(place.name), "model": spread["model"], "passes": spread["network_passes"]}
            line |= {key: whole[key] for key in ("score", "difference", "win_rate")}
            base = spread["model"] == results["against"]
            line |= {"difference": None, "win_rate": None, "apart": None} if base else {"apart": _mean(apart)}
            lines.append(line)
    return lines


def report(folder: Path, out: Path) -> str:
    """Write students.jsonl, students.md and the figure into a folder; the page."""
    lines = collect(folder)
    write_atomically(out / RESULTS, "".join(json.dumps(line) + "\n" for line in lines).encode())
    places = finished(folder)
    seeds = len({line["seed"] for line in lines})
    parts = [_HEAD, f"## Models ({seeds} seeds)\n\n{_models(lines)}"]
    if claims := _claims(places):
        parts.append(claims)
    routed = [{**one, "seed": place.name} for place in places for one in _results(place).get("routed", [])]
    if routed:
        write_atomically(out / FIGURE, _figure(lines, routed).encode())
        parts.append(f"## Quality against passes\n\n![quality against passes]({FIGURE})\n\n{_rates(routed)}")
    if others := judged_by_others(folder, places):
        parts.append(others)
    wins = [one for place in places for one in _results(place).get("wins", [])]
    if wins:
        parts.append(f"## Where the student wins\n\n{_wins(wins)}")
    parts.append(f"## What it took\n\n{_costs(places)}")
    page = "\n\n".join(part.rstrip() for part in parts) + "\n"
    write_atomically(out / PAGE, page.encode())
    return page


def _models(lines: Sequence[Mapping[str, Any]]) -> str:
    columns = ("passes", "score", "difference", "apart", "win_rate")
    rows = []
    for model in dict.fromkeys(line["model"] for line in lines):
        own = [line for line in lines if line["model"] == model]
        values = {name: [line[name] for line in own if line[name] is not None] for name in columns}
        rows.append([model, *(interval(values[name], 2 if name == "passes" else 3) for name in columns)])
        rows[-1].append(str(_mean([line["passes"] for line in own])))
    rows.sort(key=lambda row: float(row.pop()))
    return "Intervals are Student's over seeds.\n\n" + table(
        [["model", "passes", "judge", "against base", f"on {APART}", "win rate"], *rows]
    )


def judged(place: Path, model: str) -> Judged | None:
    """The images of a model in a seed's evaluation; None where it is not among them."""
    chunks = sorted((place / EVALUATION / FOLDER / model).glob("*/seed_*/*"))
    found = [read_scores(chunk, JUDGE) for chunk in chunks]
    scores = [one[1] for one in found if one is not None]
    if not scores:
        return None
    apart = []
    for one in scores:
        others = np.stack([values for name, values in one.sub_scores.items() if name not in ROUTED_BY])
        known = np.isfinite(others)
        apart.append(np.where(known, others, 0.0).sum(0) / np.maximum(known.sum(0), 1))
    return Judged(np.concatenate([one.rewards for one in scores]), np.concatenate(apart))


def _claims(places: Sequence[Path]) -> str:
    rows = []
    for told, first, second in CLAIMS:
        pairs = [(judged(place, first), judged(place, second)) for place in places]
        both = [(one, two) for one, two in pairs if one is not None and two is not None]
        if not both:
            continue
        row = [told]
        for kind in ("score", "apart"):
            differences = [getattr(one, kind) - getattr(two, kind) for one, two in both]
            row += [_signs(differences), _over_prompts(np.concatenate(differences))]
        rows.append(row)
    if not rows:
        return ""
    head = ["", "judge, seed by seed", "judge, all prompts", f"{APART}, seed by seed", f"{APART}, all prompts"]
    return (
        "## Differences\n\nSeed by seed: the mean of each seed, and, of three or more, Student's interval of their "
        "mean. All prompts: the mean over the\nprompts of all seeds with its interval over prompts, which knows "
        "nothing of how students of other seeds would differ.\n\n"
        f"{table([head, *rows])}"
    )


def _signs(differences: Sequence[np.ndarray]) -> str:
    means = [float(one.mean()) for one in differences]
    each = " ".join(f"{value:+.3f}" for value in means)
    return f"{each} ({interval(means)})" if len(means) > 2 else each


def _over_prompts(values: np.ndarray) -> str:
    mean, _, high = mean_interval(values)
    return f"{mean:+.3f} ± {high - mean:.3f}"


def _chosen(routed: Sequence[Mapping[str, Any]], part: str) -> list[Mapping[str, Any]]:
    return [one for one in routed if one["reward"] == JUDGE and one["part"] == part]


def _rates(routed: Sequence[Mapping[str, Any]]) -> str:
    """By cascade and rate, means over seeds."""
    whole = _chosen(routed, "all")
    rows = []
    for cascade, rate in dict.fromkeys((one["cascade"], one["rate"]) for one in whole):
        own = [one for one in whole if (one["cascade"], one["rate"]) == (cascade, rate)]
        subs: dict[str, list[float]] = {}
        for one in routed:
            sub = one["part"].removeprefix("sub-score: ")
            same = (one["cascade"], one["rate"], one["reward"]) == (cascade, rate, JUDGE)
            if same and one["part"] != "all" and sub not in ROUTED_BY:
                subs.setdefault(one["seed"], []).append(one["over_chance"])
        rows.append(
            [
                cascade,
                f"{rate:.0%}",
                interval([one["passes"] for one in own], 1),
                interval([one["score"] for one in own]),
                interval([one["over_chance"] for one in own]),
                interval([_mean(values) for values in subs.values()]),
                interval([one["oracle"] for one in own]),
            ]
        )
    head = ["all drawn again by", "rate", "passes", "by score", "above chance", f"above chance on {APART}", "bound"]
    return (
        "What cascades would be at every rate, from those that draw all images again. Shares are exact here: a "
        "threshold that was\ncalibrated on training prompts asks for more of the held-out ones.\n\n"
        f"{table([head, *rows])}"
    )


def _figure(lines: Sequence[Mapping[str, Any]], routed: Sequence[Mapping[str, Any]]) -> str:
    points = {
        model: tuple(_mean([line[key] for line in lines if line["model"] == model]) for key in ("passes", "score"))
        for model in dict.fromkeys(line["model"] for line in lines)
    }
    whole = _chosen(routed, "all")
    series = [
        _series("teacher alone", [points[one] for one in ("teacher2", "teacher4", "teacher6", BASE) if one in points]),
        _series("student alone", [points[one] for one in ("endpoint1", "endpoint2", STUDENT) if one in points]),
    ]
    for cascade, name in (("refine100", "refined"), ("redraw100", "best of two")):
        own = [one for one in whole if one["cascade"] == cascade]
        if cascade in points and own:
            ends = [points[STUDENT], points[cascade]]
            by_rate = {
                rate: [one for one in own if one["rate"] == rate] for rate in dict.fromkeys(one["rate"] for one in own)
            }
            for kind, what in (("score", "by score"), ("by_chance", "by chance"), ("oracle", "bound")):
                if kind == "by_chance" and cascade != "refine100":
                    continue
                inner = [(_mean([o["passes"] for o in at]), _mean([o[kind] for o in at])) for at in by_rate.values()]
                series.append(_series(f"{name}, {what}", [*ends, *inner]))
    for model in ("tuned_trajectory", "skip25"):
        if model in points:
            series.append(_series(model, [points[model]]))
    return curve_svg(
        series, "judge of held-out images", "passes of the network for an image", standalone=True, height=360
    )


def _series(name: str, points: Sequence[tuple[float, ...]]) -> Series:
    ordered = sorted(points)
    return Series(name, [x for x, _ in ordered], [y for _, y in ordered])


def _wins(wins: Sequence[Mapping[str, Any]]) -> str:
    own = [one for one in wins if one["model"] == STUDENT and one["reward"] == JUDGE]
    rows = [
        [told, *(f"{one[key]:.2f} [{one[f'{key}_low']:.2f}, {one[f'{key}_high']:.2f}]" for one in own)]
        for told, key in _OBSERVATIONS
    ]
    head = ["", *(f"seed {number}" for number in range(len(own)))]
    return (
        "The student of 4 passes against its teacher of 16, with intervals over prompts. Distance is that of "
        "low-resolution pixels;\ncomplexity the bytes of a PNG file; the last two are rank correlations over "
        "prompts.\n\n"
        f"{table([head, *rows])}"
    )


def _costs(places: Sequence[Path]) -> str:
    """CPU seconds of each step, by seed."""
    steps = dict.fromkeys(one.stem for place in places for one in _in_order(place))
    rows = []
    for step in steps:
        files = [place / f"{step}.done" for place in places]
        found = [json.loads(one.read_text(encoding="utf-8")) if one.exists() else {} for one in files]
        rows.append([step, *(f"{one['cpu_seconds']:.0f}" if "cpu_seconds" in one else "" for one in found)])
    head = "CPU seconds of one core, with each command's start; of an interrupted step those since it went on."
    return f"{head}\n\n" + table(
        [["step", *(f"seed {place.name}" for place in places)], *rows]
    )


def _in_order(place: Path) -> Iterator[Path]:
    yield from sorted(place.glob("*.done"), key=lambda file: file.stat().st_mtime)


def _results(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / EVALUATION / "results.json").read_text(encoding="utf-8"))
    return found


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if isinstance(value, int | float) and math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan
