"""The page beside exported weights: what they are, how they were trained, and what held-out prompts say of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prdp.reports.charts import curve_svg
from prdp.reports.pictures import comparison_picture, grid_scores
from prdp.reports.report_data import Change, RunData, changes, heldout_curves
from prdp.reports.report_text import interval, label, score, signed

CARD, CURVE, PICTURES = "README.md", "heldout_score.svg", "before_after.png"
_TOLD = ("seed", "epochs", "prompts_per_epoch", "images_per_prompt", "updates_per_epoch")


@dataclass(frozen=True)
class Origin:
    """Where exported weights come from.

    Attributes:
        base: the model that was trained.
        epoch: after which the weights are.
        form: of the weights, as `prdp export --format` names it.
        version: of prdp.
        rewards: names and versions of the reward and its terms.
    """

    base: str
    epoch: int
    form: str
    version: str
    rewards: Sequence[str]


def write_card(run: RunData, folder: Path, origin: Origin, use: str, remarks: Sequence[str]) -> None:
    """Write the card and its pictures into the folder of an export.

    Args:
        run: that the weights come from.
        origin: what its files do not tell.
        use: name of the program beside the card; '' where there is none.
        remarks: what is to be known of the use of the weights.
    """
    epoch = origin.epoch
    evaluations = [one for one in run.evaluations if one.epoch <= epoch]
    _, curves = heldout_curves(tuple(evaluations))
    parts = [_front_matter(origin), f"# {run.run_dir.name}", _what(run, origin)]
    if use or remarks:
        parts += ["## Use", *([f"`python {use}` draws a picture as the run did."] if use else [])]
        parts += [_listed(remarks)] if remarks else []
    if len(evaluations) > 1 and evaluations[-1].epoch == epoch:
        parts += ["## What held-out prompts say", _before_and_after(evaluations[0], evaluations[-1])]
        if "score" in curves:
            (folder / CURVE).write_text(curve_svg([curves["score"]]), encoding="utf-8")
            parts.append(f"![score of held-out prompts]({CURVE})")
        if evaluations[-1] is run.evaluations[-1] and all(
            grid_scores(one) for one in (evaluations[0], evaluations[-1])
        ):
            comparison_picture({f"epoch {epoch}": run.run_dir}, folder / PICTURES)
            parts.append(
                f"![held-out prompts before and after]({PICTURES})\n\nThe first held-out prompts, the same noise."
            )
    parts += ["## Training", _training(run.config, origin.rewards), f"```yaml\n{run.config_text.strip()}\n```"]
    (folder / CARD).write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _front_matter(origin: Origin) -> str:
    tags = ["text-to-image", "diffusers", "prdp", *(["lora"] if origin.form not in ("merged", "single_file") else [])]
    lines = ["library_name: diffusers", "pipeline_tag: text-to-image", "license: other # fill in"]
    lines += ["tags:", *(f"- {tag}" for tag in tags)]
    return "\n".join(["---", f"base_model: {origin.base}", *lines, "---"])


def _what(run: RunData, origin: Origin) -> str:
    objective = _section_name(run.config.get("objective"))
    evidence = run.config.get("objective", {}).get("evidence")
    objective = f"`{objective}`" + (f" on {evidence} evidence" if evidence else "")
    return (
        f"{origin.base}, fine-tuned on a reward by {objective} of prdp {origin.version}: the weights after epoch "
        f"{origin.epoch} of {run.planned_epochs}, format `{origin.form}`. "
        "License and intended use are for you to fill in."
    )


def _before_and_after(first: Any, last: Any) -> str:
    overall, skills, _ = changes(first, last)
    rows = ["| | before | after | difference |", "|---|---|---|---|"]
    told: list[Change] = [*([overall] if overall is not None else []), *skills]
    for one in told:
        values = (_told(one.before, score), _told(one.after, score), _told(one.difference, signed))
        rows.append(f"| {label(one.name)} | {' | '.join(values)} |")
    prompts = len(set(first.prompt_index.tolist()) & set(last.prompt_index.tolist()))
    return "\n".join([*rows, "", f"{prompts} held-out prompts; brackets are 95% intervals over prompts."])


def _told(value: tuple[float, float, float], style: Callable[[float], str]) -> str:
    return f"{style(value[0])} {interval(value, style)}"


def _training(config: Mapping[str, Any], rewards: Sequence[str]) -> str:
    prompts = config.get("prompts") or {}
    lines = [f"reward: {'; '.join(rewards)}"]
    lines += [
        f"{which} prompts: {_section_name(prompts.get(key))}"
        for key, which in (("train", "training"), ("heldout", "held-out"))
    ]
    lines += [f"{key}: {config[key]}" for key in _TOLD if key in config]
    return _listed(lines)


def _section_name(section: Any) -> str:
    """The name of a section, or its class with the path that it reads."""
    if not isinstance(section, Mapping):
        return "unknown"
    name = str(section.get("name") or str(section.get("_target_", "unknown")).rpartition(".")[2])
    return f"{name}, {section['path']}" if section.get("path") else name


def _listed(lines: Sequence[str]) -> str:
    return "\n".join(line if line.startswith("* ") else f"* {line}" for line in lines)
