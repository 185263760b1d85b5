"""What `prdp watch` knows of folders: runs that go on, are damaged, vanish, come back, or lead elsewhere."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_run import add_evaluation, make_run, train_metrics

from prdp.configuration.secret_values import without_secrets
from prdp.reports.report_data import heldout_curves, read_run, training_curve
from prdp.reports.watch.watch_charts import charts
from prdp.reports.watch.watch_pictures import picture, pictures, prompts
from prdp.reports.watch.watch_state import WatchState, differences
from prdp.reports.watch.watched_run import WatchedRun
from prdp.reports.watch.watched_runs import WatchedRuns
from prdp.tracking.jsonl import JsonlTracker
from prdp.tracking.statistics import mean_interval
from prdp.tracking.status_file import start_status, update_status

NOW = 1_800_000_000.0
EVALUATIONS = ((0, 0.0), (2, 0.1), (4, 0.2))


def watched(folder: Path) -> WatchedRun:
    run = WatchedRun(folder, without_secrets)
    run.poll(NOW, 60.0)
    return run


def small_run(folder: Path) -> Path:
    return make_run(folder, epochs=4, evaluations=EVALUATIONS)


def row(run: WatchedRun, now: float = NOW) -> dict[str, Any]:
    runs = WatchedRuns([run.folder], without_secrets)
    runs._found = {run.folder: run}
    return dict(WatchState(runs).table(now)["runs"][0])


def test_a_whole_run_is_what_the_report_has(tmp_path: Path) -> None:
    run, report = watched(small_run(tmp_path)), read_run(tmp_path)
    assert run.data.metrics == report.metrics and run.data.config == report.config and not run.problems
    assert [item.epoch for item in run.data.evaluations] == [0, 2, 4] and run.whole
    assert run.evaluations.curves() == heldout_curves(report.evaluations)
    shown = row(run)
    assert (shown["state"], shown["style"]) == ("finished", "finished")
    assert shown["heldout"]["epoch"] == 4 and shown["change"]["tone"] == "up"


def test_each_look_finds_what_is_new_and_rests_otherwise(tmp_path: Path) -> None:
    make_run(tmp_path, epochs=20, done=3, status=None)
    run = watched(tmp_path)
    version = run.version
    run.poll(NOW + 1)
    assert run.version == version
    tracker = JsonlTracker(tmp_path, "abc", resumed_epoch=3)
    tracker.log({**train_metrics(4), **add_evaluation(tmp_path, 4, 0.1)}, 4)
    update_status(tmp_path, progress={"epoch": 4, "epochs": 20, "seconds_left": 90.0, "paced_at": NOW})
    run.poll(NOW + 2)
    shown = row(run, NOW + 2)
    assert (shown["state"], shown["epochs"]) == ("running", "epoch 4 of 20 (20%), 1m 28s left")
    assert shown["done"] == 0.2 and shown["reward"]["epoch"] == 4 and shown["heldout"]["epoch"] == 4


def test_a_copy_from_elsewhere_that_went_silent_is_dead(tmp_path: Path) -> None:
    make_run(tmp_path, done=5, status=None)
    status = (tmp_path / "status.json").read_text()
    (tmp_path / "status.json").write_text(status.replace(f'"host": "{os.uname().nodename}"', '"host": "elsewhere"'))
    assert row(watched(tmp_path), NOW)["state"] == "dead"


def test_evaluations_on_their_way_into_a_copy_are_read_once_they_are_whole(tmp_path: Path) -> None:
    source = small_run(tmp_path / "source")
    copy = tmp_path / "copy"
    for epoch in (0, 2, 4):
        (copy / "evaluations" / f"epoch_{epoch:05d}").mkdir(parents=True)
        for name in ("summary.json", "scores.jsonl"):
            content = (source / "evaluations" / f"epoch_{epoch:05d}" / name).read_bytes()
            (copy / "evaluations" / f"epoch_{epoch:05d}" / name).write_bytes(content[: -50 if epoch else None])
    run = watched(copy)
    assert [item.epoch for item in run.evaluations.loaded] == [0]
    assert "scores.jsonl line 24 is damaged" in run.problems["evaluations "]
    assert len(charts({"copy": run}, more=True)["heldout"]) == 1
    shutil.copytree(source, copy, dirs_exist_ok=True)
    run.poll(NOW + 6, 60.0)
    assert [item.epoch for item in run.evaluations.loaded] == [0, 2, 4] and not run.problems
    assert pictures({0: ("copy", run)}, 4)["cards"][0]["rows"][0][1]["picture"].startswith("runs/0/pictures/4/0/0?v=")


def test_many_evaluations_are_read_in_portions_the_newest_first(tmp_path: Path) -> None:
    small_run(tmp_path)
    run = WatchedRun(tmp_path, without_secrets)
    run.poll(NOW, seconds=-1.0)
    assert [item.epoch for item in run.evaluations.loaded] == [4] and not run.whole
    assert row(run)["reading"] == "Reading the evaluations: 1 of 3"
    assert charts({"a": run}, more=False)["heldout"][0]["summary"].startswith("a: from "), "by the log, meanwhile"
    run.poll(NOW, seconds=-1.0)
    assert [item.epoch for item in run.evaluations.loaded] == [0, 4]


def test_a_folder_that_is_being_removed_keeps_what_was_read_and_a_resume_drops_what_it_removed(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", epochs=4, evaluations=EVALUATIONS)
    run = watched(folder)
    shutil.rmtree(folder / "evaluations" / "epoch_00004")
    run.poll(NOW + 6)
    (folder / "config.yaml").unlink()
    assert [item.epoch for item in run.data.evaluations] == [0, 2, 4] and run.data.config["epochs"] == 4
    JsonlTracker(folder, "abc", resumed_epoch=2)
    run.poll(NOW + 7)
    assert [item.epoch for item in run.data.evaluations] == [0, 2] and run.data.last_epoch == 2


def test_a_folder_that_vanishes_and_comes_back_as_another_run(tmp_path: Path) -> None:
    folder = small_run(tmp_path / "run")
    (folder / "progress.log").write_text("2027-01-15 08:00:00  WARNING of the old\n")
    run = watched(folder)
    shutil.rmtree(folder)
    run.poll(NOW + 1)
    assert (row(run)["state"], row(run)["heldout"]["epoch"]) == ("gone", 4)
    make_run(folder, epochs=4, evaluations=[(0, 0.0)], done=2, status="failed")
    run.poll(NOW + 2)
    assert (row(run)["state"], row(run)["heldout"]["epoch"]) == ("failed", 0)
    assert run.data.last_epoch == 2 and not run.warnings


def test_a_run_that_begins_later_and_jobs_that_join_a_sweep(tmp_path: Path) -> None:
    sweep, alone = tmp_path / "sweep", tmp_path / "alone"
    sweep.mkdir()
    alone.mkdir()
    runs = WatchedRuns([sweep, alone], without_secrets)
    runs.poll(NOW)
    state = WatchState(runs)
    assert [one["state"] for one in state.table(NOW)["runs"]] == ["not begun", "not begun"]
    for number in (10, 2):
        make_run(sweep / str(number), epochs=2, evaluations=[])
    make_run(alone, epochs=2, evaluations=[])
    runs.poll(NOW + 6)
    assert sorted(one["name"] for one in state.table(NOW)["runs"]) == ["10", "2", "alone"]
    assert [run.folder.name for run in WatchedRuns([sweep], without_secrets).runs] == []
    make_run(tmp_path / "other" / "2", epochs=2, evaluations=[])
    several = WatchedRuns([sweep, tmp_path / "other"], without_secrets)
    several.poll(NOW)
    assert several.names() == ["sweep/2", "10", "other/2"]


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.yaml", "status.json", "progress.log", "supervise.log"])
def test_no_link_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text('{"epoch": 1, "loss": 12345.0, "status": "s3cret"}\n')
    folder = make_run(tmp_path / "run", epochs=2)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(secret)
    run = watched(folder)
    assert run.problems[name].endswith("leads out of the run's folder and is not read")
    assert "s3cret" not in str(row(run)) and "loss" not in run.data.config and not run.lines and not run.supervisor
    linked = tmp_path / "linked"
    linked.symlink_to(make_run(tmp_path / "real", epochs=2), target_is_directory=True)
    assert not watched(linked).problems, "the folder as a whole may be a link"


def test_no_link_leads_to_evaluations_and_pictures_elsewhere(tmp_path: Path) -> None:
    elsewhere, folder = small_run(tmp_path / "elsewhere"), small_run(tmp_path / "run")
    shutil.rmtree(folder / "evaluations" / "epoch_00002")
    (folder / "evaluations" / "epoch_00002").symlink_to(elsewhere / "evaluations" / "epoch_00002")
    first = folder / "evaluations" / "epoch_00000" / "grid" / "000_0.png"
    first.unlink()
    first.symlink_to(elsewhere / "evaluations" / "epoch_00000" / "grid" / "000_0.png")
    run = watched(folder)
    assert [item.epoch for item in run.evaluations.loaded] == [0, 4]
    with pytest.raises(ValueError, match="leads out"):
        picture(run, 0, 0, 0)
    with pytest.raises(FileNotFoundError):
        picture(run, 0, 99, 0)
    with pytest.raises(FileNotFoundError):
        picture(run, 5, 0, 0)
    assert picture(run, 0, 0, 1).startswith(b"\x89PNG")
    (folder / "evaluations" / "epoch_00000" / "grid" / "000_1.png").write_bytes(b"\x89PNG half")
    with pytest.raises(ValueError, match="not a whole picture"):
        picture(run, 0, 0, 1)


def test_what_is_damaged_is_told_and_the_rest_is_shown(tmp_path: Path) -> None:
    small_run(tmp_path)
    (tmp_path / "config.yaml").write_text("a: [1")
    (tmp_path / "status.json").write_text('{"status": "runn')
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write("torn\n")
    run = watched(tmp_path)
    told = " ".join(row(run)["problems"])
    for word in ("config.yaml is damaged", "status.json is damaged", "1 damaged lines are left out"):
        assert word in told
    assert row(run)["heldout"]["epoch"] == 4
    start_status(tmp_path, status="running", epoch=3)
    run.poll(NOW + 1)
    assert "status.json" not in " ".join(row(run)["problems"]) and row(run)["state"] == "running"


def test_strange_values_of_a_status_are_shown_or_left_out(tmp_path: Path) -> None:
    make_run(tmp_path, epochs=2)
    start_status(
        tmp_path,
        status="running",
        epoch="x",
        progress={"epochs": 0, "seconds_per_epoch": float("inf"), "seconds_left": float("nan"), "paced_at": 1e400},
        cluster={"actors": [3, {"name": "a\u202eb", "doing": "x", "since": float("inf")}], "last_fault": {"text": 5}},
        metrics=[],
    )
    run = watched(tmp_path)
    shown = row(run)
    assert shown["done"] is None and shown["fault"] == "5"
    runs = WatchedRuns([tmp_path], without_secrets)
    runs.poll(NOW)
    assert WatchState(runs).details(0, NOW)["actors"][0][0] == "a\\u202eb"


def test_warnings_and_the_supervisor_are_told(tmp_path: Path) -> None:
    make_run(tmp_path, epochs=2)
    stamp = "2027-01-15 08:00:00"
    lines = [f"{stamp}  epoch {n}/90  loss 1" for n in range(90)]
    (tmp_path / "progress.log").write_text("\n".join([f"{stamp}  WARNING no gradient for a", *lines]) + "\n")
    (tmp_path / "supervise.log").write_text(f"{stamp} first\n{stamp} killed by SIGKILL\n")
    run = watched(tmp_path)
    assert list(run.warnings) == [f"{stamp}  WARNING no gradient for a"] and len(run.lines) == 40
    assert run.supervisor == f"{stamp} killed by SIGKILL"


def test_secrets_of_a_configuration_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "abcdefgh-1234")
    config = {
        "reward": {"api_key": "x", "url": "https://me:pass@host/", "plain": "https://host/", "max_tokens": 5},
        "list": ["so abcdefgh-1234 it is", {"password": ["a", "b"]}],
        "token": None,
    }
    assert without_secrets(config) == {
        "reward": {"api_key": "(hidden)", "url": "(hidden)", "plain": "https://host/", "max_tokens": 5},
        "list": ["(hidden)", {"password": ["(hidden)", "(hidden)"]}],
        "token": None,
    }


def test_pictures_are_beside_those_from_before_and_of_every_run(tmp_path: Path) -> None:
    runs = {0: ("a", watched(small_run(tmp_path / "a"))), 4: ("b", watched(small_run(tmp_path / "b")))}
    found = pictures(runs, 3)
    assert [(one["run"], one["epoch"], one["when"]) for one in found["columns"]] == [
        (0, 0, "before"),
        (0, 2, "after 2 epochs"),
        (4, 2, "after 2 epochs"),
    ]
    assert len(found["cards"]) == 4 and [len(card["rows"]) for card in found["cards"]] == [2] * 4
    before, after, _ = found["cards"][0]["rows"][0]
    assert before["tone"] == "" and after["tone"] == "up" and float(after["score"]) > float(before["score"])
    assert [one["epoch"] for one in pictures({0: runs[0]}, 0)["columns"]] == [0]
    assert pictures({}, 3) == {"columns": [], "cards": []}


def test_alarms_are_told_once_all_evaluations_are_read(tmp_path: Path) -> None:
    run = WatchedRun(make_run(tmp_path, epochs=4, evaluations=((0, 0.0), (2, 0.3), (4, 0.1))), without_secrets)
    run.poll(NOW, seconds=-1.0)
    assert row(run)["alarms"] == []
    run.poll(NOW, 60.0)
    [alarm] = row(run)["alarms"]
    assert alarm.startswith("The held-out score falls since epoch 2, by 0.")


def test_worst_and_best_prompts(tmp_path: Path) -> None:
    run = watched(small_run(tmp_path))
    told = prompts(0, run, 99)
    assert (told["epoch"], told["since"]) == (4, 0)
    last = run.evaluations.loaded[-1]
    means = {text: np.mean(last.scores[[one == text for one in last.prompts]]) for text in set(last.prompts)}
    ordered = sorted(means, key=lambda text: means[text])
    lists = {one["title"]: [item["text"] for item in one["rows"]] for one in told["lists"]}
    assert lists["Lowest scores"] == ordered[:5] and lists["Highest scores"] == ordered[::-1][:5]
    assert lists["Rose most"] and "Fell most" not in lists
    assert [skill["name"] for skill in told["skills"]][:2] == ["score", "presence"]
    assert prompts(0, run, 0)["skills"] == []
    assert prompts(0, watched(tmp_path / "nothing"), 0)["epoch"] is None


def test_charts_of_one_run_and_of_several(tmp_path: Path) -> None:
    one, other = watched(small_run(tmp_path / "a")), watched(make_run(tmp_path / "<b>", epochs=4, evaluations=[]))
    alone = charts({"a": one}, more=True)
    assert [chart["title"] for chart in alone["training"]][:2] == ["Reward", "Reward spread"]
    assert 'class="band f0"' in alone["training"][0]["svg"] and 'class="band f0"' in alone["heldout"][0]["svg"]
    assert "groups_tied" in [chart["title"] for chart in alone["more"]]
    both = charts({"a": one, "<b>": other}, more=False)
    assert [chart["title"] for chart in both["training"]][1] == "Reward spread: all images"
    svg = both["training"][0]["svg"]
    assert "curve c0" in svg and "curve c1" in svg and "&lt;b&gt; " in svg and "<b>" not in svg
    assert "curve c1" not in both["heldout"][0]["svg"], "a run without values leaves its colour free"
    assert both["training"][0]["summary"].count(" at epoch 4") == 2
    nothing = charts({"x": watched(tmp_path / "nothing")}, more=True)
    assert not any(nothing.values())


def test_the_band_of_the_reward_is_the_interval_over_prompts(tmp_path: Path) -> None:
    prompts, images = 16, 8
    rng = np.random.default_rng(3)
    noise = rng.normal(size=(prompts, images))
    noise = (noise - noise.mean(1, keepdims=True)) / noise.std(1, keepdims=True)  # groups of one spread: exact
    rewards = rng.normal(size=(prompts, 1)) + 0.3 * noise
    (tmp_path / "config.yaml").write_text(f"prompts_per_epoch: {prompts}\n")
    spreads = {"reward/std": rewards.std(), "reward/group_std": rewards.std(axis=1).mean()}
    JsonlTracker(tmp_path, "a").log({"reward/mean": rewards.mean(), **spreads}, 1)
    curve = training_curve(read_run(tmp_path), "reward/mean")
    assert curve is not None and curve.low is not None and curve.high is not None
    expected = mean_interval(rewards.ravel(), np.repeat(np.arange(prompts), images))
    np.testing.assert_allclose([curve.y[0], curve.low[0], curve.high[0]], expected, rtol=1e-12)


def test_what_differs_between_configurations() -> None:
    first, second = {"seed": 0, "learner": {"rate": 1, "mode": "lora"}}, {"seed": 1, "learner": {"mode": "lora"}}
    assert differences([first, second, {}]) == [
        ["seed", "0", "1", "\N{EN DASH}"],
        ["learner.rate", "1", "\N{EN DASH}", "\N{EN DASH}"],
    ]
