"""The ready W&B workspace: what would be sent, up to the call that sends it."""

from __future__ import annotations

import json
import re
import types
from typing import Any

import pytest

from prdp.support.errors import StartError
from prdp.tracking import wandb_layout
from prdp.tracking.wandb_layout import PICTURES, SECTIONS, main

pytest.importorskip("wandb_workspaces")

LOGGED = [
    *("eval/score", "eval/score_low", "eval/score_high", "eval/color", "eval/diversity", "reward/mean", "reward/std"),
    *("reward/group_std", "reward/color", "logratio", "logratio_ref", "approx_kl", "clipfrac", "ratio_error", "loss"),
    *("prediction_size", "evidence_noise", "coefficient_noise", "gradient_scale", "learner_microbatch"),
    *("grad_norm", "learning_rate", "rewards_constant", "groups_tied", "parameters_without_gradient"),
    *("images_per_second/sample", "time/learn", "time/evaluate"),
]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What goes to W&B's server."""
    from wandb_workspaces.workspaces import internal

    requests: list[dict[str, Any]] = []

    def execute(api: Any, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        assert "upsertView" in query
        requests.append(variables)
        return {"upsertView": {"view": {"name": "nw-abc-v", "id": "1"}}}

    monkeypatch.setattr(internal, "execute_graphql", execute)
    server = types.SimpleNamespace(client=types.SimpleNamespace(app_url="https://wandb.example.com"))
    monkeypatch.setattr(internal.wandb, "Api", lambda: server)
    return requests


def panels(spec: str) -> dict[str, list[dict[str, Any]]]:
    """Section -> its panels, in a view as W&B stores it."""
    sections = json.loads(spec)["section"]["panelBankConfig"]["sections"]
    return {section["name"]: section["panels"] for section in sections if section["panels"]}


def test_the_view_that_is_sent_has_every_panel_over_epochs(
    sent: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a-secret-of-the-tests")
    assert main(["--entity", "team"]) == 0
    assert capsys.readouterr().out == "https://wandb.example.com/team/prdp?nw=abc\n"
    (request,) = sent
    assert (request["entityName"], request["projectName"], request["displayName"]) == ("team", "prdp", "PRDP")
    assert request["type"] == "project-view"
    found = panels(request["spec"])
    assert list(found) == [*SECTIONS, "Pictures"]
    for title, plots in SECTIONS.items():
        for lines, panel in zip(plots, found[title], strict=True):
            config = panel["config"]
            assert (config["chartTitle"], config["xAxis"]) == (lines.title, "epoch")
            assert config["metrics"] == list(lines.metrics)
            assert config.get("metricRegex") == lines.pattern
    (browser,) = found["Pictures"]
    assert browser["config"]["mediaKeys"] == list(PICTURES)


def test_every_panel_shows_something_that_runs_log() -> None:
    for plots in SECTIONS.values():
        for lines in plots:
            assert set(lines.metrics) <= set(LOGGED), lines.title
            if lines.pattern and not lines.pattern.startswith("staleness"):
                assert any(re.fullmatch(lines.pattern, name) for name in LOGGED)


def test_printing_sends_nothing(sent: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--entity", "team", "--print"]) == 0
    assert list(panels(capsys.readouterr().out)) == [*SECTIONS, "Pictures"]
    assert not sent


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, sent: list[dict[str, Any]]) -> None:
    monkeypatch.setattr(wandb_layout, "has_credentials", lambda url: False)
    with pytest.raises(StartError, match="no key for W&B"):
        main(["--entity", "team"])
    monkeypatch.setattr(wandb_layout.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StartError, match=r"pip install 'prdp\[wandb\]'"):
        main(["--entity", "team"])
    assert not sent
