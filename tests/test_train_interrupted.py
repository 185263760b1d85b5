"""A signal at any moment of an epoch: the resumed run ends with the same weights, log and prompts."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from prdp import run_parts, train
from prdp.checkpoints import run_log, run_state, run_store
from prdp.checkpoints.run_lock import LOCK_FILE, LockedError, LockLostError
from prdp.cluster import rollout_queue
from prdp.cluster.base import ResumableError
from prdp.evaluation import heldout
from prdp.prompts.usage import read_prompt_log
from prdp.support import interruption
from prdp.support.errors import ConfigError
from prdp.support.interruption import TerminatedError
from prdp.tracking.evaluations import list_evaluations
from prdp.tracking.jsonl import read_metrics
from tests import fake_run as fakes
from tests.fake_run import FakeLearner, FakeWorkforce, fake_parts, fake_run

TRACED = tuple(module.__file__ for module in (train, heldout, run_log, run_state, run_store, rollout_queue, fakes))


@pytest.fixture(autouse=True)
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_parts(monkeypatch)


def lasting(folder: Path) -> dict[int, dict[str, Any]]:
    """Epoch -> its numbers in the log, less the times."""
    merged: dict[int, dict[str, Any]] = {}
    for row in read_metrics(folder):
        numbers = {
            name: value
            for name, value in row.items()
            if not name.startswith(("time/", "images_per_second/")) and name not in ("wall_seconds", "reward_identity")
        }
        doubled = merged.setdefault(row["epoch"], {}).keys() & numbers.keys() - {"epoch"}
        assert not doubled, doubled
        merged[row["epoch"]] |= numbers
    return merged


def finished(run: Any) -> dict[str, Any]:
    try:
        run.train()
    finally:
        run.close()
    folder = run.store.folder
    return {
        "log": lasting(folder),
        "prompts": read_prompt_log(folder),
        "weights": (folder / "weights" / "weights.bin").read_bytes(),
        "evaluations": list_evaluations(folder),
    }


def interrupted_at(run: Any, moment: int, epoch: int) -> bool:
    """Run, with SIGTERM before the given line of Python since the epoch began; whether there was such a line."""
    seen = 0

    def line(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal seen
        if event == "line" and run.state.epoch >= epoch:
            seen += 1
            if seen == moment:
                interruption._arrived(signal.SIGTERM, None)
        return line

    def call(frame: FrameType, event: str, argument: Any) -> Any:
        return line if frame.f_code.co_filename in TRACED else None

    sys.settrace(call)
    try:
        with interruption.interruptions_raised():
            run.train()
    except TerminatedError:
        return True
    finally:
        sys.settrace(None)
        run.close()
    return False


@pytest.mark.parametrize(("staleness", "stride"), [(0, 2), (1, 9)])
def test_a_signal_at_any_line_of_an_epoch_changes_nothing(tmp_path: Path, staleness: int, stride: int) -> None:
    """From the end of the first epoch, of which nothing is saved, to the end of the second, which is the last."""
    changes: dict[str, Any] = {"epochs": 2, "cluster": {"max_staleness": staleness}}
    expected = finished(fake_run(tmp_path / "straight", **changes))
    assert next(row["staleness"] for row in expected["log"].values() if "loss" in row) == 0
    moment = 1
    while interrupted_at(fake_run(tmp_path / str(moment), **changes), moment, epoch=1):
        resumed = fake_run(tmp_path / str(moment), **changes, checkpoint={"resume": "auto"})
        assert finished(resumed) == expected, moment
        moment += stride
    assert moment > 150


def test_a_signal_in_the_first_epoch_leaves_its_evaluation_alone(tmp_path: Path) -> None:
    expected = finished(fake_run(tmp_path / "straight"))
    folder = tmp_path / "run"
    run = fake_run(folder)
    run.learner.update = after(run.learner.update, 1, lambda: interruption._arrived(signal.SIGTERM, None))
    with pytest.raises(TerminatedError) as caught, interruption.interruptions_raised():
        finished(run)
    assert caught.value.__notes__ == [
        f"updates of the first epoch are kept; go on by checkpoint.resume=auto output_dir={folder}"
    ]
    assert finished(fake_run(folder, checkpoint={"resume": "auto"})) == expected


def after(action: Callable[..., Any], count: int, then: Callable[[], Any]) -> Callable[..., Any]:
    """The action, and something else after it has been done so often."""
    done = 0

    def both(*arguments: Any, **keywords: Any) -> Any:
        nonlocal done
        result = action(*arguments, **keywords)
        done += 1
        if done == count:
            then()
        return result

    return both


def failing(error: BaseException) -> Callable[[], Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "epoch", "says"),
    [
        (TerminatedError(), 0, "no checkpoint is written yet; start the same command again"),
        (KeyboardInterrupt(), 1, "1 finished epochs are kept; go on by checkpoint.resume=auto output_dir="),
        (ResumableError("the cluster is lost"), 1, "1 finished epochs are kept; go on by"),
        (ConnectionError("reset"), 2, "2 finished epochs are kept; go on by"),
        (ValueError("of the reward"), 0, "no checkpoint is written yet; the same fault would come again: mend its"),
        (ValueError("of the reward"), 2, "2 finished epochs are kept; the same fault would come again: mend its cause"),
    ],
)
def test_what_is_kept_is_told_and_whether_going_on_helps(
    tmp_path: Path, error: BaseException, epoch: int, says: str
) -> None:
    run = fake_run(tmp_path / "run")
    calls = 0
    real = run.rollouts.next

    def next_rollout(on_chunk: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == epoch + 1:
            raise error
        return real(on_chunk)

    run.rollouts.next = next_rollout
    with pytest.raises(type(error)) as caught:
        finished(run)
    [note] = caught.value.__notes__
    assert note.startswith(says)
    # The same command starts a run again that has done nothing, and no other.
    if epoch == 0:
        assert finished(fake_run(tmp_path / "run"))["log"].keys() == {0, 1, 2, 3}
        assert (tmp_path / "run" / "metrics.jsonl.1").exists()
    else:
        with pytest.raises(ValueError, match=r"holds a run; continue it by checkpoint\.resume=auto"):
            fake_run(tmp_path / "run")


def test_a_full_log_costs_no_epoch_and_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full when the second epoch is logged, but for the checkpoint: its line is logged at the resume."""
    begun = time.monotonic()
    expected = finished(fake_run(tmp_path / "straight"))
    run = fake_run(tmp_path / "run")
    real = os.write

    def full(descriptor: int, content: Any) -> int:
        if run.state.epoch == 2 and b'"epoch"' in bytes(content):
            real(descriptor, bytes(content)[:3])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, content)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match=r"could not write .*prompts\.jsonl: No space left") as caught:
            finished(run)
    assert caught.value.__notes__[0].startswith("2 finished epochs are kept; go on by")
    assert [row["epoch"] for row in read_metrics(tmp_path / "run")] == [0, 1]
    assert finished(fake_run(tmp_path / "run", checkpoint={"resume": "auto"})) == expected
    spent = [row["wall_seconds"] for row in read_metrics(tmp_path / "run") if "time/epoch" in row]
    assert spent == sorted(spent) and spent[-1] <= time.monotonic() - begun


def test_a_second_start_is_refused_while_the_first_is_at_work(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run")
    for resume in ("auto", "never"):
        with pytest.raises(LockedError, match=f"is being written to by pid {os.getpid()} on"):
            fake_run(tmp_path / "run", checkpoint={"resume": resume})
    assert finished(run)["log"].keys() == {0, 1, 2, 3}
    assert not (tmp_path / "run" / LOCK_FILE).exists()


def test_what_the_best_checkpoint_is_chosen_by_is_known_after_the_first_evaluation(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", checkpoint={"keep_best": "eval/nothing"})
    with contextlib.closing(run), pytest.raises(ConfigError, match=r"keep_best=eval/nothing: .* by .*eval/score"):
        run.train()
    with contextlib.closing(fake_run(tmp_path / "run", checkpoint={"keep_best": "eval/score"})) as corrected:
        corrected.train()


def test_a_start_that_is_refused_lets_go_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(run_parts, "build_workforce", failing(ValueError("no actors")))
        with pytest.raises(ValueError, match="no actors"):
            fake_run(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    fake_run(tmp_path / "run").close()


@pytest.mark.parametrize("where", ["next", "export"])
def test_a_run_that_lost_its_folder_writes_no_more(tmp_path: Path, where: str) -> None:
    folder = tmp_path / "run"
    run = fake_run(folder, checkpoint={"every": 1, "background": False})
    before: dict[Path, bytes] = {}

    def take_over() -> None:
        (folder / LOCK_FILE).write_text("{}")
        status = folder / "status.json"
        status.write_bytes(status.read_bytes().replace(b'"pid": ', b'"pid": 1'))
        before.update({file: file.read_bytes() for file in folder.rglob("*") if file.is_file()})

    if where == "next":
        run.rollouts.next = after(run.rollouts.next, 2, take_over)
    else:
        run.store.save = after(run.store.save, 3, take_over)
    with pytest.raises(LockLostError, match=r"lost its run\.lock"):
        finished(run)
    now = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert now == before


def test_leftovers_go_at_the_start(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for part in ("", "checkpoints", "evaluations"):
        (folder / part / ".partial-12345678-weights").mkdir(parents=True)
    (folder / ".partial-12345678-report.html").touch()
    old = folder / ".partial-12345678-status.json"
    old.touch()
    os.utime(old, (1, 1))
    fake_run(folder).close()
    assert [path.name for path in folder.rglob(".partial-*")] == [".partial-12345678-report.html"]


def test_the_fake_learns_from_its_own_weights(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run")
    finished(run)
    assert isinstance(run.learner, FakeLearner) and isinstance(run.workforce, FakeWorkforce)
    losses = [row["loss"] for row in read_metrics(tmp_path / "run") if "loss" in row]
    assert np.unique(losses).size == 3
