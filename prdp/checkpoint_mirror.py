"""Checkpoints and logs copied to a URL, so that a run goes on elsewhere when its machine is gone.

<url>/checkpoints/epoch_00010/learner.safetensors
<url>/checkpoints/epoch_00010/logs.zip               the logs as of this checkpoint (prdp/log_archive.py)
<url>/checkpoints/epoch_00010/state.json             uploaded last and removed first: without it there is no checkpoint
<url>/evaluations/epoch_00010-<digest>.zip           uploaded once, before the first checkpoint that lists it

A URL belongs to one run. Whatever fsspec opens will do, such as s3://bucket/run, gs://bucket/run or file:///shared/run;
credentials come from the environment.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from prdp.checkpoint import FOLDER, STATE_FILE, CheckpointError, find_latest, verified
from prdp.errors import ConfigError, UserError
from prdp.log_archive import LOGS_FILE, has_evaluation, pack_evaluation, restore_evaluation, restore_logs
from prdp.storage import atomic_directory
from prdp.tracking.evaluations import FOLDER as EVALUATIONS

PAUSES = (1.0, 4.0, 16.0)
"""Seconds between the attempts at a transfer."""

_PROBE = ".write-check"
_LASTING = (PermissionError, FileNotFoundError, NotADirectoryError, ImportError, ValueError)

_log = logging.getLogger(__name__)
_sleep = time.sleep
_T = TypeVar("_T")


class MirrorError(UserError, OSError):
    """The mirror cannot be read or written; the message names the URL, what was tried and how often."""


def check_writable(url: str, takes_over: bool) -> None:
    """Write and remove a small file, and look whom the mirror belongs to: before a run starts, not hours later.

    Args:
        url: one that `check_url` has passed.
        takes_over: the run goes on with the checkpoints of the mirror or has older ones of its own; otherwise it has to
            be empty.

    Raises:
        ConfigError: it holds checkpoints of another run.
        MirrorError: it cannot be reached or written.
    """
    mirror = _Mirror(url)
    mirror.attempt("be written", lambda: mirror.fs.pipe_file(f"{mirror.root}/{_PROBE}", b"prdp"))
    mirror.attempt("be written", lambda: mirror.fs.rm_file(f"{mirror.root}/{_PROBE}"))
    if not takes_over and mirror.attempt("be read", mirror.folders):
        raise ConfigError(
            f"checkpoint.mirror={url}: holds checkpoints; continue that run by checkpoint.resume=auto, or name another "
            "URL: one belongs to one run"
        )


def push(folder: Path, url: str, keep: int) -> bool:
    """Copy a saved checkpoint, and the evaluations that it lists, to the mirror, then remove the oldest beyond `keep`;
    whether it arrived.

    A network that fails costs a warning, not the run: the checkpoint stays where it is and the next one is tried again.

    Args:
        folder: a checkpoint in a run's folder, as `prdp.checkpoint.save_checkpoint` has written it.
        url: one that `check_url` has passed.
        keep: how many checkpoints stay there, this one included. Those saved later, which stem from an attempt that
            this one replaces, go too.
    """
    start = time.monotonic()
    try:
        mirror = _Mirror(url)
        mirror.attempt(f"take {folder.name}", lambda: mirror.upload(folder))
    except MirrorError as error:
        _log.warning("%s is not copied: %s; the next checkpoint is tried again", folder, error)
        return False
    _log.info("%s copied to %s in %.1f s", folder.name, url, time.monotonic() - start)
    try:
        mirror.attempt("be tidied", lambda: mirror.prune(folder.name, keep))
    except MirrorError as error:
        _log.warning("old checkpoints stay in the mirror: %s", error)
    return True


def fetch_latest(url: str, run_dir: Path | str) -> Path | None:
    """Bring the newest whole checkpoint of the mirror and its logs into `run_dir`; its folder, None when nothing was
    fetched.

    Nothing is when `run_dir` holds one that was saved as late or later. Otherwise the logs of the checkpoint replace
    those that lie there: lines that a lost machine wrote after it are not the run's. An evaluation that cannot be had
    is left out with a warning. Half uploads and damaged ones are skipped with
    a warning: sizes and checksums are compared as for local ones, and a folder appears whole or not at all.

    Raises:
        MirrorError: the mirror cannot be read, and `run_dir` holds no whole checkpoint to go on with.
    """
    latest = find_latest(run_dir)
    local = None if latest is None else _sequence(_parsed((latest / STATE_FILE).read_bytes()))
    try:
        mirror = _Mirror(url)
        for name, document in mirror.attempt("be read", mirror.newest_first):
            sequence = _sequence(document)
            if sequence is None:
                _log.warning("skipping %s/%s/%s: a half upload, it has no readable %s", url, FOLDER, name, STATE_FILE)
            elif local is not None and sequence <= local:
                return None
            else:
                target = Path(run_dir) / FOLDER / name
                try:
                    mirror.attempt(f"give {name}", partial(mirror.download, name, Path(run_dir)))
                except CheckpointError as error:
                    _log.warning("skipping a broken checkpoint of %s: %s", url, error)
                else:
                    _log.info("fetched %s from %s", name, url)
                    return target
    except MirrorError as error:
        if local is None:
            raise
        _log.warning("%s; going on with what %s holds", error, run_dir)
    return None


class _Mirror:
    """The checkpoints under a URL. Methods but `attempt` try once and raise what fsspec raises."""

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        self.url = url
        # Folders have to be made on disks only; an object store would make a bucket.
        options = {"auto_mkdir": True} if urlsplit(url).scheme in ("file", "local") else {}
        self.fs, root = self.attempt("be opened", lambda: url_to_fs(url, **options))
        self.root = root.rstrip("/")

    def attempt(self, what: str, action: Callable[[], _T]) -> _T:
        """Do something over the network, with pauses between the attempts.

        Raises:
            MirrorError: every attempt failed, or the first in a way that time does not mend.
            UserError: of the action, as it is: a damaged checkpoint, a full disk of this machine.
        """
        for pause in (*PAUSES, None):
            try:
                return action()
            except UserError:
                raise
            except Exception as error:  # clients of object stores have their own errors, of no common kind
                if pause is None or isinstance(error, _LASTING):
                    raise MirrorError(f"{self.url} could not {what}: {type(error).__name__}: {error}") from error
                _log.warning("%s could not %s and is tried again in %g s: %s", self.url, what, pause, error)
                _sleep(pause)
        raise AssertionError("unreachable")

    def path(self, name: str, file: str = "") -> str:
        return f"{self.root}/{FOLDER}/{name}" + (f"/{file}" if file else "")

    def evaluation(self, name: str) -> str:
        return f"{self.root}/{EVALUATIONS}/{name}.zip"

    def folders(self) -> list[str]:
        """Names of what stands where checkpoints do, whole or not."""
        self.fs.invalidate_cache()
        try:
            paths = self.fs.ls(f"{self.root}/{FOLDER}", detail=False)
        except FileNotFoundError:
            return []
        names = [path.rstrip("/").rpartition("/")[2] for path in paths]
        return [name for name in names if name.startswith("epoch_")]

    def newest_first(self) -> list[tuple[str, dict[str, Any]]]:
        """Folders with the content of state.json; half uploads, whose content has no `_sequence`, come first."""
        found: list[tuple[str, dict[str, Any]]] = []
        for name in self.folders():
            try:
                found.append((name, _parsed(self.fs.cat_file(self.path(name, STATE_FILE)))))
            except FileNotFoundError:
                found.append((name, {}))
        return sorted(found, key=lambda entry: -(_sequence(entry[1]) or sys.maxsize))

    def upload(self, folder: Path) -> None:
        """Copy a checkpoint; what stood under its name is none from the first moment on."""
        run_dir = folder.parent.parent
        # What a whole checkpoint lists has arrived; anything else may be half an upload.
        arrived = {name for _, document in self.newest_first() for name in _evaluations(document)}
        for name in _evaluations(_parsed((folder / STATE_FILE).read_bytes())):
            if name not in arrived and has_evaluation(run_dir, name):
                self.fs.pipe_file(self.evaluation(name), pack_evaluation(run_dir, name))
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.path(folder.name, STATE_FILE))
        for file in sorted(folder.iterdir(), key=lambda file: file.name == STATE_FILE):
            self.fs.put_file(str(file), self.path(folder.name, file.name))

    def download(self, name: str, run_dir: Path) -> None:
        """Copy a checkpoint and its logs to a run's folder; the checkpoint gets its name when all of it is there.

        Raises:
            CheckpointError: it is not whole; names the file in the mirror.
        """
        with atomic_directory(run_dir / FOLDER / name) as temporary:
            self.fs.get_file(self.path(name, STATE_FILE), str(temporary / STATE_FILE))
            try:
                for file in json.loads((temporary / STATE_FILE).read_bytes())["files"]:
                    if Path(file).name != file:
                        raise ValueError(f"it lists '{file}', which is no plain file name")
                    with contextlib.suppress(FileNotFoundError):
                        self.fs.get_file(self.path(name, file), str(temporary / file))
                document = verified(temporary)
                if LOGS_FILE in document["files"]:
                    self.download_evaluations(_evaluations(document), run_dir)
                    _restore_logs(run_dir, temporary / LOGS_FILE, document["epoch"])
            except CheckpointError as error:
                raise CheckpointError(str(error).replace(str(temporary), self.path(name))) from None
            except (KeyError, TypeError, ValueError) as error:
                raise CheckpointError(f"{self.path(name, STATE_FILE)} is damaged: {error!r}") from None

    def download_evaluations(self, names: list[str], run_dir: Path) -> None:
        """Copy the evaluations that `run_dir` lacks; one that is lost or damaged costs a warning."""
        for name in names:
            if has_evaluation(run_dir, name):
                continue
            try:
                restore_evaluation(run_dir, name, self.fs.cat_file(self.evaluation(name)))
            except (FileNotFoundError, ValueError) as error:
                _log.warning("an evaluation is left out: %s: %s", self.evaluation(name), error)

    def prune(self, newest: str, keep: int) -> None:
        """Remove all but `newest` and the `keep` - 1 saved last before it, and evaluations that none of these lists."""
        entries = dict(self.newest_first())
        mark = _sequence(entries[newest]) or 0
        before = [name for name, document in entries.items() if 0 < (_sequence(document) or 0) < mark]
        kept = {newest, *before[: keep - 1]}
        for name in entries.keys() - kept:
            with contextlib.suppress(FileNotFoundError):
                self.fs.rm_file(self.path(name, STATE_FILE))
            self.fs.rm(self.path(name), recursive=True)
        listed = {f"{evaluation}.zip" for name in kept for evaluation in _evaluations(entries[name])}
        with contextlib.suppress(FileNotFoundError):
            for path in self.fs.ls(f"{self.root}/{EVALUATIONS}", detail=False):
                if path.rpartition("/")[2] not in listed:
                    self.fs.rm_file(path)


def _restore_logs(run_dir: Path, archive: Path, epoch: int) -> None:
    try:
        restore_logs(run_dir, archive.read_bytes(), epoch)
    except ValueError as error:
        raise CheckpointError(f"{archive} is damaged: {error}") from None


def _parsed(content: bytes) -> dict[str, Any]:
    """The content of a state.json; empty where it cannot be read."""
    try:
        document = json.loads(content)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _sequence(document: Mapping[str, Any]) -> int | None:
    """The place in the order of saving, from 1 on; None where it cannot be read."""
    try:
        return int(document["sequence"])
    except (ValueError, KeyError, TypeError):
        return None


def _evaluations(document: Mapping[str, Any]) -> list[str]:
    """Names of the evaluations that a checkpoint lists."""
    state = document.get("state")
    names = state.get("evaluations") if isinstance(state, dict) else None
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
