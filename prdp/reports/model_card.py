"""The page beside exported weights: what they are, how they were trained, and what held-out prompts say of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prdp.reports.charts import curve_svg
from prdp.reports.pictures import comparison_picture, grid_scores
from prdp.reports.report_data import RunData, changes, heldout_curves
from prdp.reports.templates import render
from prdp.tracking.evaluations import Evaluation

TEMPLATE = "model_card.md"
CARD, CURVE, PICTURES = "README.md", "heldout_score.svg", "before_after.png"
WHOLE = ("merged", "single_file")
"""Forms of weights that hold the base as well."""
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
    epoch, config = origin.epoch, run.config
    evaluations = [one for one in run.evaluations if one.epoch <= epoch]
    values: dict[str, Any] = {"changes": [], "prompts": 0, "curve": "", "pictures": ""}
    if len(evaluations) > 1 and evaluations[-1].epoch == epoch:
        values |= _held_out(run, evaluations, folder)
    card = render(
        TEMPLATE,
        origin=origin,
        tags=["text-to-image", "diffusers", "prdp", *(["lora"] if origin.form not in WHOLE else [])],
        name=run.run_dir.name,
        objective=_section_name(config.get("objective")),
        evidence=config.get("objective", {}).get("evidence"),
        epochs=run.planned_epochs,
        use=use,
        remarks=[remark.removeprefix("* ") for remark in remarks],
        training=_training(config, origin.rewards),
        configuration=run.config_text.strip(),
        **values,
    )
    (folder / CARD).write_text(card + "\n", encoding="utf-8")


def _held_out(run: RunData, evaluations: Sequence[Evaluation], folder: Path) -> dict[str, Any]:
    """What the card tells of held-out prompts; the curve and the pictures are written."""
    first, last = evaluations[0], evaluations[-1]
    overall, skills, _ = changes(first, last)
    told: dict[str, Any] = {
        "changes": [*([overall] if overall is not None else []), *skills],
        "prompts": len(set(first.prompt_index.tolist()) & set(last.prompt_index.tolist())),
    }
    _, curves = heldout_curves(tuple(evaluations))
    if "score" in curves:
        (folder / CURVE).write_text(curve_svg([curves["score"]]), encoding="utf-8")
        told["curve"] = CURVE
    if last is run.evaluations[-1] and all(grid_scores(one) for one in (first, last)):
        comparison_picture({f"epoch {last.epoch}": run.run_dir}, folder / PICTURES)
        told["pictures"] = PICTURES
    return told


def _training(config: Mapping[str, Any], rewards: Sequence[str]) -> list[str]:
    prompts = config.get("prompts") or {}
    return [
        f"reward: {'; '.join(rewards)}",
        *(
            f"{which} prompts: {_section_name(prompts.get(key))}"
            for key, which in (("train", "training"), ("heldout", "held-out"))
        ),
        *(f"{key}: {config[key]}" for key in _TOLD if key in config),
    ]


def _section_name(section: Any) -> str:
    """The name of a section, or its class with the path that it reads."""
    if not isinstance(section, Mapping):
        return "unknown"
    name = str(section.get("name") or str(section.get("_target_", "unknown")).rpartition(".")[2])
    return f"{name}, {section['path']}" if section.get("path") else name
