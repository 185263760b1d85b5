"""Numbers of an epoch as gauges of Ray: names, tags, values, and what is left out."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest

pytest.importorskip("ray")

from prdp.cluster import ray_metrics
from prdp.cluster.ray_metrics import RayMetrics, gauge_name


class RecordingGauge:
    """What was set, by gauge and tags; refuses what Ray refuses."""

    values: dict[tuple[str, str], float]

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        from ray.util.metrics import _is_invalid_metric_name

        assert not _is_invalid_metric_name(name) and ":" not in name
        assert isinstance(description, str) and tag_keys == ("run",)
        assert (name, "") not in self.values, "made twice"
        self.name = name
        self.values[name, ""] = math.nan

    def set_default_tags(self, tags: dict[str, str]) -> RecordingGauge:
        self.tags = tags
        return self

    def set(self, value: float) -> None:
        assert type(value) is float
        self.values[self.name, self.tags["run"]] = value


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], float]:
    values: dict[tuple[str, str], float] = {}
    monkeypatch.setattr(RecordingGauge, "values", values, raising=False)
    monkeypatch.setattr(ray_metrics, "Gauge", RecordingGauge)
    return values


def test_gauges_hold_the_last_epoch(recorded: dict[tuple[str, str], float]) -> None:
    metrics = RayMetrics("run-7")
    metrics.log({"reward/mean": 0.5, "time/sample": 12, "images_per_second/learn": 3.5, "staleness": 0}, 1)
    metrics.log({"reward/mean": 0.75, "time/sample": 11.0, "restarts": 2}, 2)
    assert {name: value for (name, run), value in recorded.items() if run == "run-7"} == {
        "prdp_epoch": 2.0,
        "prdp_reward_mean": 0.75,
        "prdp_time_sample_seconds": 11.0,
        "prdp_images_per_second_learn": 3.5,
        "prdp_staleness": 0.0,
        "prdp_restarts": 2.0,
    }


def test_what_is_not_finite_leaves_the_last_value(recorded: dict[tuple[str, str], float]) -> None:
    metrics = RayMetrics("r")
    metrics.log({"loss": 1.5, "odd": math.nan}, 1)
    metrics.log({"loss": math.inf}, 2)
    assert recorded["prdp_loss", "r"] == 1.5
    assert ("prdp_odd", "r") not in recorded


def test_two_names_of_one_gauge_are_told_once(
    recorded: dict[tuple[str, str], float], caplog: pytest.LogCaptureFixture
) -> None:
    metrics = RayMetrics("r")
    with caplog.at_level(logging.WARNING):
        for epoch in (1, 2):
            metrics.log({"reward/a b": 1.0, "reward/a-b": 2.0}, epoch)
    assert recorded["prdp_reward_a_b", "r"] == 1.0
    assert len(caplog.records) == 1
    assert "'reward/a b' and 'reward/a-b' would both be the gauge prdp_reward_a_b" in caplog.text


@pytest.mark.parametrize(
    ("metric", "gauge"),
    [
        ("time/evaluate", "prdp_time_evaluate_seconds"),
        ("eval/score", "prdp_eval_score"),
        ("reward/färbig ☃", "prdp_reward_f_rbig"),
        ("7", "prdp_7"),
    ],
)
def test_names_are_such_as_prometheus_takes(metric: str, gauge: str) -> None:
    assert gauge_name(metric) == gauge


def test_a_real_ray_takes_them(private_ray: Any) -> None:
    RayMetrics("run").log({"reward/mean": 0.5}, 1)
