"""Checkpoints and logs copied to a URL, so that a run goes on elsewhere when its machine is gone.

<url>/checkpoints/epoch_00010/learner.safetensors
<url>/checkpoints/epoch_00010/logs.zip               the logs as of this checkpoint (log_archive.py)
<url>/checkpoints/epoch_00010/state.json             uploaded last and removed first: without it it is no checkpoint
<url>/evaluations/epoch_00010-<digest>.zip           uploaded once, before the first checkpoint that lists it
<url>/owner.json                                     the process that writes here, as run_lock.py names it

A URL belongs to one run. Whatever fsspec opens will do, such as s3://bucket/run, gs://bucket/run or file:///shared/run;
credentials come from the environment.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from prdp.checkpoints.checkpoint import (
    FOLDER,
    STATE_FILE,
    CheckpointError,
    find_latest,
    parse_state,
    read_state,
    verified,
)
from prdp.checkpoints.log_archive import (
    LOGS_FILE,
    check_logs,
    has_evaluation,
    pack_evaluation,
    restore_evaluation,
    restore_logs,
)
from prdp.checkpoints.run_lock import LockLostError, Owner
from prdp.support.errors import ConfigError, UserError
from prdp.support.storage import atomic_directory
from prdp.tracking.evaluations import FOLDER as EVALUATIONS

PAUSES = (1.0, 4.0, 16.0)
"""Seconds between the attempts at a transfer."""

_PROBE = ".write-check"
_OWNER = "owner.json"
_WAITING = "logs-to-restore"
"""An empty file in a fetched checkpoint whose logs are not in the run's folder yet."""
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


def claim(url: str, owner: Owner) -> None:
    """Note in the mirror which process writes to it from now on; an earlier one notices at its next checkpoint.

    Raises:
        MirrorError: it cannot be written.
    """
    mirror = _Mirror(url)
    mirror.attempt("be written", lambda: mirror.fs.pipe_file(f"{mirror.root}/{_OWNER}", owner.content()))


def push(folder: Path, url: str, keep: int, owner: Owner | None = None) -> bool:
    """Copy a saved checkpoint, and the evaluations that it lists, to the mirror, then remove the oldest beyond `keep`;
    whether it arrived.

    A network that fails costs a warning, not the run: the checkpoint stays where it is and the next one is tried again.

    Args:
        folder: a checkpoint in a run's folder, as `prdp.checkpoints.checkpoint.save_checkpoint` has written it.
        url: one that `check_url` has passed.
        keep: how many checkpoints stay there, this one included. Those saved later, which stem from an attempt that
            this one replaces, go too.
        owner: that has claimed the mirror.

    Raises:
        LockLostError: another process has claimed the mirror since; nothing is copied.
    """
    start = time.monotonic()
    try:
        mirror = _Mirror(url)
        now = mirror.attempt("be read", mirror.owner)
        if owner is not None and now is not None and now.token != owner.token:
            raise LockLostError(f"{url} was taken over by {now}: this process copies no more to it")
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
    """Bring the newest whole checkpoint of the mirror into `run_dir`; its folder, None when nothing was fetched.

    Nothing is when `run_dir` holds one that was saved as late or later, or the mirror none but half uploads. These and
    damaged ones are skipped with a warning: sizes and checksums are compared as for local ones, and a folder appears
    whole or not at all. The logs that it brings along wait in it for `restore_fetched`.

    Raises:
        MirrorError: the mirror cannot be read, and `run_dir` holds no whole checkpoint to go on with.
        CheckpointError: nor does it, and all that the mirror holds are damaged or of another version of prdp, which a
            new run would clear away.
    """
    latest = find_latest(run_dir)
    local = None if latest is None else read_state(latest)["sequence"]
    faults: list[str] = []
    try:
        mirror = _Mirror(url)
        for name, document in mirror.attempt("be read", mirror.newest_first):
            if "fault" in document:
                if not document.get("half"):
                    faults.append(document["fault"])
                _log.warning("skipping %s/%s/%s: %s", url, FOLDER, name, document["fault"])
            elif local is not None and document["sequence"] <= local:
                return None
            else:
                target = Path(run_dir) / FOLDER / name
                try:
                    mirror.attempt(f"give {name}", partial(mirror.download, name, Path(run_dir)))
                except CheckpointError as error:
                    faults.append(str(error))
                    _log.warning("skipping a broken checkpoint of %s: %s", url, error)
                else:
                    _log.info("fetched %s from %s", name, url)
                    return target
    except MirrorError as error:
        if local is None:
            raise
        _log.warning("%s; going on with what %s holds", error, run_dir)
    if faults and local is None:
        found = "".join(f"\n  {fault}" for fault in faults)
        raise CheckpointError(f"checkpoint.mirror={url}: holds no whole checkpoint{found}")
    return None


def restore_fetched(folder: Path, run_dir: Path, url: str | None) -> None:
    """Put the logs and evaluations that a fetched checkpoint brought along into the run's folder; once.

    The logs replace those that lie there: lines that a lost machine wrote after the checkpoint are not the run's. An
    evaluation that cannot be had is left out with a warning. A checkpoint that was not fetched is left as it is.

    Args:
        folder: the checkpoint, verified.
        url: the mirror; without one there are no evaluations.

    Raises:
        CheckpointError: the logs are damaged.
        prdp.support.storage.StorageError: they cannot be written.
    """
    if not (folder / _WAITING).exists():
        return
    document = read_state(folder)
    if url is not None:
        try:
            mirror = _Mirror(url)
            names = _evaluations(document)
            mirror.attempt("give its evaluations", lambda: mirror.download_evaluations(names, run_dir))
        except MirrorError as error:
            _log.warning("evaluations of %s are left out: %s", folder, error)
    with _damage_told(folder / LOGS_FILE):
        restore_logs(run_dir, (folder / LOGS_FILE).read_bytes(), document["epoch"])
    (folder / _WAITING).unlink()


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

    def owner(self) -> Owner | None:
        """Who claimed the mirror last; None when nobody did."""
        self.fs.invalidate_cache()
        try:
            return Owner.read(self.fs.cat_file(f"{self.root}/{_OWNER}"))
        except FileNotFoundError:
            return None

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
        """Folders with the content of state.json; those without a sound one come first, with {"fault": text, "half":
        whether they are half uploads}.
        """
        found: list[tuple[str, dict[str, Any]]] = []
        for name in self.folders():
            file = self.path(name, STATE_FILE)
            try:
                found.append((name, parse_state(self.fs.cat_file(file), file)))
            except FileNotFoundError:
                found.append((name, {"fault": f"a half upload, it has no {STATE_FILE}", "half": True}))
            except CheckpointError as error:
                found.append((name, {"fault": str(error)}))
        return sorted(found, key=lambda entry: -entry[1].get("sequence", sys.maxsize))

    def upload(self, folder: Path) -> None:
        """Copy a checkpoint; what stood under its name is none from the first moment on."""
        run_dir = folder.parent.parent
        # What a whole checkpoint lists has arrived; anything else may be half an upload.
        arrived = {name for _, document in self.newest_first() for name in _evaluations(document)}
        for name in _evaluations(read_state(folder)):
            if name not in arrived and has_evaluation(run_dir, name):
                self.fs.pipe_file(self.evaluation(name), pack_evaluation(run_dir, name))
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.path(folder.name, STATE_FILE))
        for file in sorted(folder.iterdir(), key=lambda file: file.name == STATE_FILE):
            self.fs.put_file(str(file), self.path(folder.name, file.name))

    def download(self, name: str, run_dir: Path) -> None:
        """Copy a checkpoint to a run's folder; it gets its name when all of it is there.

        Raises:
            CheckpointError: it is not whole; names the file in the mirror.
        """
        with atomic_directory(run_dir / FOLDER / name) as temporary:
            self.fs.get_file(self.path(name, STATE_FILE), str(temporary / STATE_FILE))
            try:
                for file in read_state(temporary)["files"]:
                    with contextlib.suppress(FileNotFoundError):
                        self.fs.get_file(self.path(name, file), str(temporary / file))
                if LOGS_FILE in verified(temporary)["files"]:
                    with _damage_told(temporary / LOGS_FILE):
                        check_logs((temporary / LOGS_FILE).read_bytes())
                    (temporary / _WAITING).touch()
            except CheckpointError as error:
                raise CheckpointError(str(error).replace(str(temporary), self.path(name))) from None

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
        mark = entries[newest].get("sequence", 0)
        before = [name for name, document in entries.items() if 0 < document.get("sequence", 0) < mark]
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


@contextlib.contextmanager
def _damage_told(file: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise CheckpointError(f"{file} is damaged: {error}") from None


def _evaluations(document: Mapping[str, Any]) -> list[str]:
    """Names of the evaluations that a checkpoint lists."""
    state = document.get("state")
    names = state.get("evaluations") if isinstance(state, dict) else None
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
