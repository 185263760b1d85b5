"""What studies found, as pages: tables with intervals over seeds, curves, the searches and the budgets.

    python benchmarks/study_report.py docs/results [RESULTS_FOLDER]

For every study with results in RESULTS_FOLDER/results.jsonl: OUT/<study>.md, its figures as OUT/<study>_*.svg,
held-out pictures before and after as OUT/<study>_*.png, and the results themselves as OUT/<study>.jsonl. From the
studies at small and large scale: OUT/small_and_large.svg with PRDP beside DDPO, and OUT/method_<objective>.svg with
each objective beside PRDP. From the studies of pictures: OUT/pictures_<objective>.svg with each objective beside PRDP
on denoising errors. Without RESULTS_FOLDER the pages are made again from the results in OUT, beside the
pictures that are there. Only what is there is reported: a method without finished final runs has no row.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from study import MAIN_TABLE, RESULTS, Method, Study, plan, read_results, read_study, run_of
from study_figures import (
    Line,
    epochs_of,
    held_out,
    passes_per_epoch,
    sampled_reward,
    seconds_per_epoch,
    side_by_side,
    trade,
)
from study_tables import budget_rows, of_mixtures, reference_rows, result_rows, search_rows, table

from prdp.objectives import OBJECTIVES
from prdp.reports.charts import curve_svg
from prdp.support.json_lines import json_line
from prdp.support.storage import write_atomically

_BETA_TABLE, _REWARDS_TABLE, _LONG_TABLE = "beta", "rewards", "long"
_WITH_PICTURES = (MAIN_TABLE, _BETA_TABLE, _REWARDS_TABLE, _LONG_TABLE)
_SCALES = ("mixtures_small", "mixtures_large")
_PICTURE_MODELS = {"shapes_large": "noise-predicting model", "shapes_flow": "flow model"}
STUDIES = Path(__file__).parent / "studies"
_TITLES = {
    MAIN_TABLE: "Methods",
    "clip": "With and without the clip",
    "offline": "Online and offline",
    "beta": "The weight of the KL",
    "groups": "Images per prompt, at equal images",
    "pairs": "Which pairs are compared",
    "weighting": "Steps weighted by their sensitivity",
    "updates": "Updates per epoch, at equal images",
    "averaging": "A moving average of the weights",
    "staleness": "Stale rollouts",
    "offset": "Prompts that can all be scored equally well",
    "baseline": "DDPO with the mean of the group as its baseline",
    "long": "Longer runs",
    "normalised": "Gradients of one norm, and a target out of reach",
    "rewards": "One reward, the other, and both",
    "forward": "Methods on denoising errors",
    "kin": "GRPO's kin at GRPO's rate, without a search",
    "denoising": "PRDP on plain denoising errors and raw rewards, at a beta of 10",
}
_AXES: tuple[tuple[str, Callable[[Line], float] | None, str], ...] = (
    ("", None, "epoch"),
    ("_passes", passes_per_epoch, "million network passes, a backward pass counted as two"),
    ("_seconds", seconds_per_epoch, "seconds of training on one core, other work beside it"),
)


_MIXTURES_NOTE = ("w is kl_weight.",)
_PICTURES_NOTE = (
    "Drift is the mean log-ratio of held-out images to the start, over latents and steps, whatever a method learns",
    "from. Training reward and logratio_ref, of the method's own evidence, are means of the last quarter of the",
    "epochs.",
)


def page(study: Study, results: Sequence[dict[str, Any]], out: Path, folder: Path | None = None) -> str:
    """Markdown of one study; writes its figures beside it, with pictures from the run folders in `folder`."""
    finals = [line for line in results if line["phase"] == "final"]
    tables: dict[str, list[Method]] = {}
    for method in study.methods.values():
        tables.setdefault(method.table, []).append(method)
    text = [
        f"# {study.name}",
        "",
        f"Base of every run: `{' '.join(study.base)}`.",
        "",
        "Means with 95% intervals over seeds, of the runs that did not diverge; all runs of a seed share prompts and",
        f"noise. A search, if there is one, takes the best of its points by {study.criterion} of seed",
        f"{study.search_seed}, with other noise and, where there are enough of them, other prompts. The last column is",
        f"the difference in {study.criterion}, paired by seed.",
        *(_MIXTURES_NOTE if of_mixtures(finals) else _PICTURES_NOTE),
        "",
    ]
    for name, methods in tables.items():
        compared = methods if name == MAIN_TABLE else [*_bases(study, methods), *methods]
        rows = result_rows(study, compared, finals)
        if not {method.name for method in methods} & {line["method"] for line in finals}:
            continue
        if name == MAIN_TABLE:
            rows += reference_rows(finals)
        text += [f"## {_TITLES.get(name, name)}", "", table(rows), ""]
        if name in _WITH_PICTURES and not of_mixtures(finals):
            text += held_out_pictures(study, finals, compared, out / f"{study.name}_{name}.png", folder)
        if name == _REWARDS_TABLE:
            continue  # the curves would be of different rewards
        for suffix, per_epoch, axis in _AXES if name == MAIN_TABLE else _AXES[:1]:
            drawn, floor = held_out(finals, in_the_figure(finals, methods, compared), per_epoch)
            file = f"{study.name}_{name}{suffix}.svg"
            picture = curve_svg(drawn[:10], "held-out reward", axis, height=340, standalone=True)
            write_atomically(out / file, picture.encode())
            text += [f"![held-out reward]({file})", ""]
        if name == _BETA_TABLE:
            text += [frontier_picture(study, finals, out), ""]
        text += [
            f"Median and range of the seeds. What is below {floor:.2f}, or has diverged, is drawn there. A last point",
            "is of `evaluation.final_prompts`, the others of the first `evaluation.prompts` of these.",
            "",
        ]
    text += ["## What a run costs", "", table(budget_rows(finals, [m for t in tables.values() for m in t])), ""]
    text += ["Evaluations are not counted.", ""]
    if any(method.search for method in study.methods.values()):
        text += ["## Searches", "", table(search_rows(study, results, finals)), ""]
    minutes = sum(line["seconds"] for line in results) / 60
    text.append(f"{len(results)} runs, {minutes:.0f} minutes of one core. Made by `python benchmarks/study_report.py`.")
    return "\n".join(text) + "\n"


def held_out_pictures(
    study: Study, finals: Sequence[Line], methods: Sequence[Method], file: Path, folder: Path | None
) -> list[str]:
    """Markdown that shows the first held-out prompts before training and after, of the first seed of each method.

    Drawn anew where the run folders of all are at hand; what was drawn before is shown otherwise, if there is any.
    """
    from prdp.reports.pictures import comparison_picture

    reward = study.criterion.rpartition(".")[2]
    firsts = {}
    for method in methods:
        own = [line for line in finals if line["method"] == method.name and "failed" not in line]
        if own and folder is not None:
            run = run_of(dict(min(own, key=lambda line: line["seed"])))
            firsts[method.name] = folder / "runs" / study.name / run.folder_name
    if firsts and all((run_folder / "evaluations").is_dir() for run_folder in firsts.values()):
        columns = 2 if len(firsts) < 4 else 1
        comparison_picture(firsts, file, 8 // columns, columns, reward=None if reward == "score" else reward)
    if not file.is_file():
        return []
    return [
        f"![held-out pictures]({file.name})",
        "",
        "The first held-out prompts as they come, none picked; the same noise for all, the first seed of each method.",
        "",
    ]


def in_the_figure(finals: Sequence[Line], methods: Sequence[Method], compared: Sequence[Method]) -> list[str]:
    """Names of a table's methods, and of those they are compared to, unless their runs are less than half as long."""
    epochs = {line["method"]: epochs_of(line) for line in finals}
    longest = max(epochs.get(method.name, 0) for method in methods)
    return [one.name for one in compared if one in methods or 2 * epochs.get(one.name, 0) >= longest]


def frontier_picture(study: Study, finals: Sequence[Line], out: Path) -> str:
    """Draw reward against drift of all methods and of those with other KL weights; shows it.

    In the world of mixtures the drift is the KL, and the curve of the best there is lies above all.
    """
    curves = {method.name: [method.name] for method in study.methods.values() if method.table == MAIN_TABLE}
    for method in study.methods.values():
        if method.table == _BETA_TABLE and method.like in curves:
            curves[method.like].append(method.name)
    if of_mixtures(finals):
        from study_measures import best_rewards

        from prdp.configuration.compose import Composer

        with Composer([*study.base, "output_dir=none"]) as composer:
            bound = best_rewards(composer.jobs()[0].config, np.geomspace(0.08, 20.0, 25).tolist())
        drawn, axis = trade(finals, curves, ("heldout.kl", "heldout.reward"), bound), "KL to the start, nats"
    else:
        drawn, axis = trade(finals, curves, ("curve.logratio_ref", study.criterion)), "logratio_ref"
    file = f"{study.name}_frontier.svg"
    picture = curve_svg(drawn, "held-out reward", axis, height=340, standalone=True)
    write_atomically(out / file, picture.encode())
    return f"![reward against drift]({file})"


def _bases(study: Study, methods: Sequence[Method]) -> list[Method]:
    """The methods that some are like, each once, and none of these themselves."""
    liked = dict.fromkeys(method.like for method in methods if method.like is not None)
    return [one for name in liked if (one := study.methods[name]) not in methods]


def of_the_plan(study: Study, results: Sequence[Line]) -> list[dict[str, Any]]:
    """Of everything ever recorded, the runs of the study as it is now: a search that went on may have chosen anew."""
    recorded = {run_of(line).key: dict(line) for line in results}
    return [recorded[run.key] for run in plan(study, list(recorded.values()))[1]]


def both_scales(found: Mapping[str, Sequence[Line]], out: Path) -> None:
    """The figures that show the small and the large scale side by side."""
    small, large = (found.get(name, ()) for name in _SCALES)
    if not small or not large:
        return
    pair, long = {"prdp": "PRDP", "ddpo": "DDPO"}, {"prdp_long": "PRDP", "ddpo_long": "DDPO"}
    shown = {
        "small_and_large.svg": (pair, long),
        **{f"method_{name}.svg": ({"prdp": "prdp", name: name},) * 2 for name in sorted(OBJECTIVES)},
    }
    for file, names in shown.items():
        if all(name in _methods(lines) for lines, wanted in zip((small, large), names, strict=True) for name in wanted):
            panels = [
                (title, sampled_reward(lines, wanted))
                for title, lines, wanted in zip(("45 prompts", "100,000 prompts"), (small, large), names, strict=True)
            ]
            write_atomically(out / file, side_by_side(panels).encode())


def on_pictures(found: Mapping[str, Sequence[Line]], out: Path) -> None:
    """The figure of each method on pictures, beside PRDP on denoising errors, a panel a model that it was run on."""
    beside = "prdp_denoising"
    ran = {model: _methods(found.get(model, ())) for model in _PICTURE_MODELS}
    for name in sorted(OBJECTIVES):
        panels = [
            (f"held-out score, {title}", held_out(found[model], [beside, name])[0])
            for model, title in _PICTURE_MODELS.items()
            if {beside, name} <= ran[model]
        ]
        if panels:
            write_atomically(out / f"pictures_{name}.svg", side_by_side(panels).encode())


def _methods(lines: Sequence[Line]) -> set[str]:
    return {line["method"] for line in lines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("folder", type=Path, nargs="?")
    asked = parser.parse_args()
    finals: dict[str, list[Line]] = {}
    for file in sorted(STUDIES.glob("*.yaml")):
        study = read_study(file)
        kept = asked.out / f"{study.name}.jsonl"
        found = read_results(asked.folder / RESULTS if asked.folder else kept)
        results = [line for line in found if line["study"] == study.name and tuple(line["base"]) == study.base]
        counted = of_the_plan(study, results)
        if not any(line["phase"] == "final" for line in counted):
            continue
        asked.out.mkdir(parents=True, exist_ok=True)
        for line in results:
            if line["phase"] == "search":
                line["curve"] = {"seconds": line["curve"]["seconds"]}
        write_atomically(kept, "".join(json_line(line, allow_nan=True) for line in results).encode())
        write_atomically(asked.out / f"{study.name}.md", page(study, counted, asked.out, asked.folder).encode())
        print(asked.out / f"{study.name}.md")
        finals[study.name] = [line for line in counted if line["phase"] == "final"]
    both_scales(finals, asked.out)
    on_pictures(finals, asked.out)


if __name__ == "__main__":
    main()
