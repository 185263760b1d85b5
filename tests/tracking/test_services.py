"""W&B and TensorBoard for real, without a network and without a person."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from synthetic_run import disc_images

from prdp.config import TrackingConfig
from prdp.tracking.base import build_trackers
from prdp.tracking.tensorboard_tracker import picture_grid
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
