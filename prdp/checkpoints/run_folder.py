"""The folder of a run: whether it can be written, what it holds already, what killed processes left in it."""

from __future__ import annotations

import os
from pathlib import Path

from prdp.checkpoints.checkpoint import FOLDER as CHECKPOINTS
from prdp.config import TrainConfig
from prdp.support.errors import ConfigError, ResumableError
from prdp.support.storage import remove_leftovers
from prdp.support.writable import as_given, check_can_be_written
from prdp.tracking.evaluations import FOLDER as EVALUATIONS
from prdp.tracking.jsonl import read_metrics
from prdp.tracking.status_file import is_alive, read_status

WEIGHTS = "weights"
_WRITTEN_INTO = (CHECKPOINTS, EVALUATIONS, "tensorboard", "wandb", ".hydra")
"""Folders whose files are written and removed one by one."""
_OTHERS_SECONDS = 3600.0
"""Files of this age are no others' work: `prdp report` writes into a run's folder without its lock."""


def check_writable(folder: Path, key: str = "output_dir") -> None:
    """Refuse a folder that cannot be made, cannot be written, or leads elsewhere in parts.

    It may be a link as a whole. Its lock does not reach what a link within it leads to, where another run may write.

    Args:
        folder: it need not exist.
        key: what named it, for the message.

    Raises:
        ConfigError: naming the place where it fails and why.
    """
    for name in _WRITTEN_INTO:
        if os.path.islink(folder / name):
            raise ConfigError(
                f"{as_given(key, folder)}: {name} is a link to {os.readlink(folder / name)}, outside of the run's "
                "lock; make it a folder, or link the whole folder"
            )
    check_can_be_written(key, folder)


def check_empty(folder: Path, key: str = "output_dir") -> None:
    """Refuse a folder for what is written once and as a whole, if something is in it or it cannot be written.

    Args:
        folder: it need not exist.
        key: what named it, or would give it another place, for the message.

    Raises:
        ConfigError: see `check_writable`.
    """
    check_writable(folder, key)
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{as_given(key, folder)}: is not empty; name another folder")


def check_unused(folder: Path) -> None:
    """Refuse a folder for a new run in which another one has done something.

    One that failed before its first epoch was done has left nothing to go on with; its logs are kept aside.

    Raises:
        ConfigError: naming the way to go on.
    """
    status = read_status(folder)
    if status.get("status") == "running" and is_alive(status):
        raise ConfigError(
            f"output_dir={folder}: pid {status.get('pid')} on {status.get('host')} is at work there; "
            "name another folder"
        )
    if _has_work(folder):
        raise ConfigError(
            f"output_dir={folder}: holds a run; continue it by checkpoint.resume=auto, or name another folder"
        )


def _has_work(folder: Path) -> bool:
    if (folder / WEIGHTS).exists() or any((folder / CHECKPOINTS).glob("epoch_*")):
        return True
    try:
        return any(row["epoch"] > 0 for row in read_metrics(folder))
    except FileNotFoundError:
        return False
    except ValueError:
        return True


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written; for the holder of the folder's lock."""
    remove_leftovers(folder, files_older_than=_OTHERS_SECONDS)
    for part in (CHECKPOINTS, EVALUATIONS):
        remove_leftovers(folder / part)


def last_words(error: BaseException, folder: Path, saved: int | None) -> str:
    """What is left of a run that ends by an error, and how to go on with it.

    Args:
        error: that ends it. Interruptions, lost clusters and errors of the system may pass; others come again.
        saved: finished epochs of its newest checkpoint; None without one.
    """
    passes = not isinstance(error, Exception) or isinstance(error, ResumableError | OSError)
    again = "" if passes else "the same fault would come again: mend its cause, then "
    if saved is None:
        return f"no checkpoint is written yet; {again}start the same command again"
    kept = f"{saved} finished epochs are kept" if saved else "updates of the first epoch are kept"
    bound = "" if passes else ", or start anew in another output_dir where a key that a resume keeps has to change"
    return f"{kept}; {again}go on by checkpoint.resume=auto output_dir={folder}{bound}"


def words_for_the_silent(config: TrainConfig) -> str:
    """What is said of a run that is ended at once: by SIGKILL, by native code, or by Ray when its node is lost."""
    lost = "its Ray node, or the head, is lost, or it" if config.cluster.kind == "ray" else "it"
    return (
        f"prdp train: the process was ended without a word: {lost} was killed by SIGKILL, or something in it called "
        "os._exit; the checkpoints are whole, go on by the same command with checkpoint.resume=auto "
        f"output_dir={config.output_dir}"
    )
