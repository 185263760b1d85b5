"""W&B, TensorBoard, MLflow and Trackio for real, without a network and without a person."""

from __future__ import annotations

import contextlib
import io
import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_run import disc_images

from prdp.config import TrackingConfig
from prdp.tracking.base import build_trackers
from prdp.tracking.tensorboard_tracker import picture_grid
from prdp.tracking.wandb_environment import chosen_mode
from prdp.tracking.wandb_tracker import has_credentials, resolve_mode

URL = "https://wandb.example.com"


@pytest.fixture
def no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without a W&B key; returns the path of its netrc file, which is not there yet."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "settings"))
    return tmp_path / "netrc"


def test_online_needs_a_key_for_that_server(no_key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_mode("auto", URL) == resolve_mode("online", URL) == "offline"
    no_key.write_text("machine other.example.com login user password secret\n")
    no_key.chmod(0o600)
    assert not has_credentials(URL)
    no_key.write_text("machine wandb.example.com login user password secret\n")
    assert has_credentials(URL)
    assert (resolve_mode("auto", URL), resolve_mode("offline", URL)) == ("online", "offline")
    no_key.write_text("machine\n")
    assert not has_credentials(URL)
    monkeypatch.setenv("WANDB_API_KEY", "something")
    assert has_credentials(URL)


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_a_run_without_a_key_is_recorded_offline_and_resumes_under_its_id(
    mode: str, no_key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr("sys.stdin", io.StringIO())  # a prompt would raise EOFError
    run_dir = tmp_path / "run"
    config = TrackingConfig(wandb=mode, wandb_group="sweep-7")
    sessions: list[int | None] = [None, 2] if mode == "auto" else [None]
    for resumed in sessions:
        with build_trackers(config, run_dir, {"seed": 13}, "run42", resumed) as trackers:
            assert trackers.active == ("W&B",)
            for epoch in range(resumed or 0, 4):
                trackers.log({"reward/mean": 0.5, "loss": float("nan")}, epoch)
            trackers.images("eval/grid", disc_images(2), ["first caption", "second"], 2)
            assert trackers.active == ("W&B",)
    wandb.teardown()  # the service writes on its own time, and is done when it has ended

    records = sorted((run_dir / "wandb").glob("offline-run-*/run-run42.wandb"))
    assert records
    content = b"".join(path.read_bytes() for path in records)
    for part in (b"reward/mean", b"first caption", b"sweep-7", b"seed"):
        assert part in content, part
    assert list((run_dir / "wandb").glob("offline-run-*/files/media/images/eval/*.png"))


@pytest.mark.parametrize(
    ("configured", "environment", "expected"),
    [
        ("auto", {}, ("auto", None)),
        ("auto", {"WANDB_MODE": ""}, ("auto", None)),
        ("auto", {"WANDB_MODE": "offline"}, ("offline", "WANDB_MODE")),
        ("online", {"WANDB_MODE": "dryrun"}, ("offline", "WANDB_MODE")),
        ("online", {"WANDB_MODE": "disabled"}, ("disabled", "WANDB_MODE")),
        ("offline", {"WANDB_MODE": "online"}, ("online", "WANDB_MODE")),
        ("offline", {"WANDB_MODE": "online", "WANDB_DISABLED": "true"}, ("disabled", "WANDB_DISABLED")),
        ("offline", {"WANDB_DISABLED": "false"}, ("offline", None)),
        ("disabled", {"WANDB_MODE": "online"}, ("disabled", None)),
    ],
)
def test_the_users_wandb_mode_wins_where_wandb_is_asked_for(
    configured: str, environment: dict[str, str], expected: tuple[str, str | None]
) -> None:
    assert chosen_mode(configured, environment) == expected


class _StartedError(Exception):
    """In place of a run of W&B."""


def _init_arguments(monkeypatch: pytest.MonkeyPatch, run_dir: Path, **tracking: Any) -> dict[str, Any] | None:
    """What `wandb.init` is called with; None where it is not called."""
    wandb = pytest.importorskip("wandb")
    found: list[dict[str, Any]] = []

    def init(**arguments: Any) -> None:
        found.append(arguments)
        raise _StartedError

    monkeypatch.setattr(wandb, "init", init)
    build_trackers(TrackingConfig(**tracking), run_dir, {}, "run42").finish("finished")
    return found[0] if found else None


def test_wandb_mode_disabled_starts_nothing_and_says_so(
    no_key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert _init_arguments(monkeypatch, tmp_path / "run", wandb="offline") is None
    assert "WANDB_MODE of the environment leaves it out, not tracking.wandb=offline" in caplog.text
    assert not (tmp_path / "run" / "wandb").exists()
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with pytest.raises(ValueError, match="WANDB_MODE is 'ofline', expected online"):
        _init_arguments(monkeypatch, tmp_path / "other", wandb="offline")


def test_wandb_mode_offline_uploads_nothing_though_a_key_is_there(
    no_key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_MODE", "offline")
    arguments = _init_arguments(monkeypatch, tmp_path / "run", wandb="auto")
    assert arguments is not None and arguments["mode"] == "offline"
    assert "WANDB_MODE of the environment makes it offline, not tracking.wandb=auto" in caplog.text


def test_wandbs_own_variables_are_left_to_it(no_key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = _init_arguments(monkeypatch, tmp_path / "run", wandb="offline")
    assert ours is not None
    assert (ours["project"], ours["name"], ours["job_type"]) == ("prdp", "run", "train")
    assert ours["dir"] == str(tmp_path / "run")
    names = {"project": "WANDB_PROJECT", "group": "WANDB_RUN_GROUP", "job_type": "WANDB_JOB_TYPE", "name": "WANDB_NAME"}
    for variable in names.values():
        monkeypatch.setenv(variable, "mine")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("WANDB_TAGS", "a,b")
    theirs = _init_arguments(monkeypatch, tmp_path / "run", wandb="offline")
    assert theirs is not None
    assert [theirs[name] for name in (*names, "entity")] == [None] * 5
    assert theirs["dir"] == str(tmp_path / "elsewhere") and theirs["tags"] == ["a", "b"]
    typed = _init_arguments(monkeypatch, tmp_path / "run", wandb="offline", wandb_project="p", wandb_group="g")
    assert typed is not None and (typed["project"], typed["group"]) == ("p", "g")


def test_tensorboard_events_can_be_read_and_a_resume_hides_what_runs_again(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = TrackingConfig(tensorboard=True)
    with build_trackers(config, tmp_path, {"seed": 3}, "abc") as trackers:
        for epoch in range(4):
            trackers.log({"reward/mean": float(epoch)}, epoch)
        trackers.images("eval/grid", disc_images(3), ["a", "b", "c"], 0)
    with build_trackers(config, tmp_path, {"seed": 3}, "abc", 1) as trackers:
        trackers.log({"reward/mean": 20.0}, 2)
        assert trackers.active == ("TensorBoard",)

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    scalars = [(event.step, event.value) for event in events.Scalars("reward/mean")]
    assert scalars == [(0, 0.0), (1, 1.0), (2, 20.0)]
    assert len(events.Images("eval/grid")) == 1
    assert b"b" in events.Tensors("eval/grid/captions/text_summary")[0].tensor_proto.string_val[0]


def test_tensorboard_without_its_folder_starts_from_the_log(tmp_path: Path) -> None:
    """As on a fresh machine, where the log has come back with a checkpoint and the events have not."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lines = ('{"epoch": 0, "eval/score": 0.5}', '{"epoch": 1, "reward/mean": 1.0}', '{"epoch": 2, "reward/mean": 9.0}')
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    with build_trackers(TrackingConfig(tensorboard=True), tmp_path, {}, "abc", 1) as trackers:
        trackers.log({"reward/mean": 20.0}, 2)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("eval/score")] == [(0, 0.5)]
    assert [(event.step, event.value) for event in events.Scalars("reward/mean")] == [(1, 1.0), (2, 20.0)]


def test_pictures_are_laid_out_in_rows() -> None:
    images = np.stack([np.full((4, 6, 3), value, np.uint8) for value in (10, 20, 30)])
    grid = picture_grid(images, gap=2)
    assert grid.shape == (10, 14, 3)
    assert grid[0, 0, 0] == 10 and grid[0, 8, 0] == 20 and grid[6, 0, 0] == 30 and grid[6, 8, 0] == 255


def test_mlflow_has_numbers_pictures_and_the_configuration_in_one_run_across_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    config, run_dir = TrackingConfig(mlflow=True), tmp_path / "run"
    with build_trackers(config, run_dir, {"seed": 13, "learner": {"mode": "lora"}}, "run42") as trackers:
        assert trackers.active == ("MLflow",)
        trackers.log({"eval/score": 0.5, "reward/a<b>": 1.0, "loss": float("nan")}, 0)
        trackers.images("training/best", disc_images(3), ["first caption", "second", "third"], 0)
        trackers.histogram("training/rewards", np.array([0.5]), 0)
    with pytest.raises(ValueError, match="stop"), build_trackers(config, run_dir, {}, "run42", 0) as trackers:
        trackers.log({"eval/score": 0.75}, 1)
        assert trackers.active == ("MLflow",)
        raise ValueError("stop")

    client = MlflowClient(tracking_uri=f"sqlite:///{run_dir / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("prdp")
    [run] = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("run", "FAILED")
    assert {"seed": "13", "learner.mode": "lora"}.items() <= run.data.params.items()
    scores = client.get_metric_history(run.info.run_id, "eval/score")
    assert [(one.step, one.value) for one in scores] == [(0, 0.5), (1, 0.75)]
    assert run.data.metrics["reward/a_b_"] == 1.0
    captions = client.download_artifacts(run.info.run_id, "captions/training_best_00000.txt")
    assert Path(captions).read_text().splitlines()[0] == "1. first caption"
    assert [one.path for one in client.list_artifacts(run.info.run_id, "images")]


def test_trackio_has_numbers_pictures_and_the_configuration_in_one_run_across_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    config, run_dir = TrackingConfig(trackio=True, trackio_project="mine"), tmp_path / "run"
    with build_trackers(config, run_dir, {"seed": 13, "learner": {"mode": "lora"}}, "run42") as trackers:
        assert trackers.active == ("Trackio",)
        trackers.log({"eval/score": 0.5, "loss": float("nan")}, 0)
        trackers.images("training/best", disc_images(3), ["first caption", "second", "third"], 0)
        trackers.histogram("training/rewards", np.array([0.5, 1.0]), 0)
    with build_trackers(config, run_dir, {"seed": 13, "learner": {"mode": "lora"}}, "run42", 0) as trackers:
        trackers.log({"eval/score": 0.75}, 1)
        assert trackers.active == ("Trackio",)
    assert capsys.readouterr().out == "", "the terminal is the run's own"

    with contextlib.closing(sqlite3.connect(tmp_path / "trackio" / "mine.db")) as database:
        rows = database.execute("select run_name, step, metrics from metrics order by id").fetchall()
        [(known,)] = database.execute("select config from configs").fetchall()
    assert {name for name, _, _ in rows} == {"run-run42"}
    assert json.loads(known)["learner"] == {"mode": "lora"}
    told = [(step, json.loads(metrics)) for _, step, metrics in rows]
    assert [(step, row["eval/score"]) for step, row in told if "eval/score" in row] == [(0, 0.5), (1, 0.75)]
    [shown] = [row["training/best"] for _, row in told if "training/best" in row]
    assert shown["caption"].startswith("1. first caption")
    assert [row for _, row in told if "training/rewards" in row]
    assert list((tmp_path / "trackio").rglob("*.png"))


def test_a_server_of_mlflow_that_is_away_costs_the_dashboard_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config = TrackingConfig(mlflow=True, mlflow_uri="http://127.0.0.1:9")
    with build_trackers(config, tmp_path, {}, "run42") as trackers:
        assert trackers.active == ()
    assert "MLflow could not start and is left out" in caplog.text
