"""`prdp wandb-layout`: a W&B workspace whose panels are laid out for the metrics of this package."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prdp.support.errors import StartError
from prdp.tracking.wandb_tracker import PROJECT, has_credentials


@dataclass(frozen=True)
class Lines:
    """A line plot over epochs: of named metrics, or of all whose name matches a pattern."""

    title: str
    metrics: tuple[str, ...] = ()
    pattern: str | None = None
    log_y: bool = False


SECTIONS: dict[str, tuple[Lines, ...]] = {
    "Held-out prompts": (
        Lines("score, 95% interval", ("eval/score", "eval/score_low", "eval/score_high")),
        Lines("all scores", pattern="eval/.*"),
        Lines("diversity", ("eval/diversity",)),
    ),
    "Reward in training": (
        Lines("mean", ("reward/mean",)),
        Lines("spread, in all and within groups", ("reward/std", "reward/group_std")),
        Lines("all parts", pattern="reward/.*"),
    ),
    "Policy": (
        Lines("distance from the start", ("logratio_ref",)),
        Lines("size of the predicted reward differences", ("prediction_size",)),
        Lines("new against sampling policy", ("approx_kl", "logratio")),
        Lines("clipped", ("clipfrac",)),
        Lines("stored against recomputed", ("ratio_error", "evidence_noise")),
        Lines("coefficients that are rounding", ("coefficient_noise",), log_y=True),
        Lines("staleness", pattern="staleness.*"),
    ),
    "Learning": (
        Lines("loss", ("loss",), log_y=True),
        Lines("gradient norm before clipping", ("grad_norm",), log_y=True),
        Lines("learning rate", ("learning_rate",)),
        Lines("scale of float16 gradients", ("gradient_scale",), log_y=True),
        Lines("microbatch, where memory ran out", ("learner_microbatch",)),
        Lines("constant or tied groups", ("rewards_constant", "groups_tied", "parameters_without_gradient")),
    ),
    "Speed": (
        Lines("images per second", pattern="images_per_second/.*"),
        Lines("seconds per stage", pattern="time/.*"),
    ),
}
"""Section -> its line plots; pictures of held-out prompts come after them."""
PICTURES = ("heldout",)
COLUMNS = ("summary:eval/score", "summary:reward/mean", "summary:epoch")


def main(arguments: Sequence[str]) -> int:
    """Save the workspace as a new view of the project, or print what would be sent."""
    parser = argparse.ArgumentParser(
        prog="prdp wandb-layout",
        description="Lay the panels of a W&B project out: held-out score, reward, policy, learning, speed, pictures.",
    )
    owner, project = os.environ.get("WANDB_ENTITY"), os.environ.get("WANDB_PROJECT") or PROJECT
    whose = "the user or team that the project belongs to; default WANDB_ENTITY"
    parser.add_argument("--entity", default=owner, required=not owner, help=whose)
    parser.add_argument("--project", default=project, help="tracking.wandb_project of the runs (%(default)s)")
    parser.add_argument("--name", default="PRDP", help="of the saved view (%(default)s)")
    parser.add_argument("--print", action="store_true", help="print the view as JSON; nothing is sent")
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise StartError("needs the package wandb-workspaces: pip install 'prdp[wandb]'")
    view = workspace(options.entity, options.project, options.name)
    if options.print:
        print(json.dumps(json.loads(spec_of(view)), indent=2))
        return 0
    import wandb

    if not has_credentials(wandb.Settings().base_url):
        raise StartError("no key for W&B: set WANDB_API_KEY, or run `wandb login`; --print needs none")
    try:
        view.save()
    except Exception as error:
        raise StartError(f"W&B does not take the view: {type(error).__name__}: {error}") from error
    print(view.url)
    return 0


def workspace(entity: str, project: str, name: str) -> Any:
    """The `wandb_workspaces.workspaces.Workspace` with the panels of `SECTIONS` and the pictures."""
    import wandb_workspaces.reports.v2 as reports
    import wandb_workspaces.workspaces as workspaces

    sections = [
        workspaces.Section(name=title, panels=[_plot(reports, lines) for lines in plots], is_open=True)
        for title, plots in SECTIONS.items()
    ]
    pictures = reports.MediaBrowser(title="held-out prompts", media_keys=list(PICTURES), num_columns=4)
    sections.append(workspaces.Section(name="Pictures", panels=[pictures], is_open=True))
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=sections,
        settings=workspaces.WorkspaceSettings(x_axis="epoch"),
        runset_settings=workspaces.RunsetSettings(pinned_columns=list(COLUMNS)),
    )


def spec_of(view: Any) -> str:
    """The JSON text that W&B's server would get as the view."""
    return str(view._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))


def _plot(reports: Any, lines: Lines) -> Any:
    return reports.LinePlot(
        title=lines.title, x="epoch", y=list(lines.metrics), metric_regex=lines.pattern, log_y=lines.log_y or None
    )
