"""What a report reads of a run: changes between evaluations, curves, and where the time goes."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import add_evaluation

from prdp.reports.report_data import changes, heldout_curves, read_run, timings
from prdp.reports.report_sections import timing


def test_curves_and_differences_take_only_images_that_both_have(tmp_path: Path) -> None:
    add_evaluation(tmp_path, 0, 0.0, prompts=12)
    add_evaluation(tmp_path, 10, 0.1, prompts=4)
    add_evaluation(tmp_path, 20, 0.2, prompts=12)
    run = read_run(tmp_path)
    prompts, curves = heldout_curves(run.evaluations)
    assert prompts == 4
    assert curves["score"].y[0] == pytest.approx(run.evaluations[0].scores[:8].mean())
    overall, skills, categories = changes(run.evaluations[0], run.evaluations[1])
    assert overall is not None and overall.images == 8 and overall.sign == 1
    assert {change.name: change.images for change in skills}["relation"] == 4
    assert [change.name for change in categories] == ["even", "odd"]


def test_time_is_shared_out(whole_run: Path) -> None:
    rows = {row.stage: row for row in timings(read_run(whole_run))}
    assert rows["sample"].seconds == pytest.approx(40.0) and rows["sample"].images_per_second == 64.0
    assert rows["evaluate"].seconds == pytest.approx(12.0) and rows["evaluate"].epochs == 3
    assert rows["other"].seconds == pytest.approx(20 * (5.5 - 2.0 - 3.0 - 0.05))
    assert sum(row.share for row in rows.values() if row.stage != "score") == pytest.approx(1.0)
    assert math.isnan(rows["score"].images_per_second)


@pytest.mark.parametrize(
    ("cluster", "said", "other"),
    [
        ({"kind": "inline"}, "One process samples, scores and learns in turns.", 0.25),
        ({"kind": "ray"}, "Scoring goes on while sampling does", 0.75),
        ({"kind": "ray", "max_staleness": 1}, "Sampling also goes on while the learner works.", 0.75),
    ],
)
def test_how_stages_share_the_time_is_said_as_it_is(
    whole_run: Path, cluster: dict[str, Any], said: str, other: float
) -> None:
    run = read_run(whole_run)
    stages = {"sample": 2.0, "score": 0.5, "learn": 2.5, "publish": 0.25, "rollout": 2.5, "epoch": 5.5}
    metrics = {f"time/{stage}": ([1], [seconds]) for stage, seconds in stages.items()}
    run = dataclasses.replace(run, metrics=metrics, config={**run.config, "cluster": cluster})
    rows = {row.stage: row for row in timings(run)}
    assert rows["other"].seconds == pytest.approx(other)
    assert sum(
        row.share for name, row in rows.items() if name != "score" or cluster["kind"] == "inline"
    ) == pytest.approx(1)
    assert said in timing(run)
