"""Checkpoints copied to a URL, so that a run goes on elsewhere when its machine is gone.

<url>/checkpoints/epoch_00010/learner.safetensors
<url>/checkpoints/epoch_00010/state.json             uploaded last and removed first: without it there is no checkpoint

A URL belongs to one run. Whatever fsspec opens will do, such as s3://bucket/run, gs://bucket/run or file:///shared/run;
credentials come from the environment.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from prdp.checkpoint import FOLDER, STATE_FILE, CheckpointError, find_latest, verified
from prdp.errors import ConfigError, UserError
from prdp.storage import atomic_directory

PAUSES = (1.0, 4.0, 16.0)
"""Seconds between the attempts at a transfer."""

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""Scheme -> extra of this package that brings what fsspec needs for it."""

_PROBE = ".write-check"
_LASTING = (PermissionError, FileNotFoundError, NotADirectoryError, ImportError, ValueError)

_log = logging.getLogger(__name__)
_sleep = time.sleep
_T = TypeVar("_T")


class MirrorError(UserError, OSError):
    """The mirror cannot be read or written; the message names the URL, what was tried and how often."""


def url_problem(url: str) -> str | None:
    """What is wrong with a URL as a text, in a line that never shows credentials; None when nothing is."""
    key = "checkpoint.mirror"
    parts = urlsplit(url)
    if any("@" in urlsplit(link).netloc for link in url.split("::")) or parts.query or parts.fragment:
        return (
            f"{key}: a {parts.scheme or 'mirror'} URL with user, password or query was given; it would stand in logs "
            "and saved configurations. Leave them out: credentials are taken from the environment"
        )
    if "::" in url or not parts.scheme or not (parts.netloc + parts.path).strip("/"):
        return f"{key}={url}: must be null or a URL with a folder, such as s3://bucket/run or file:///shared/run"
    return None


def check_url(url: str) -> None:
    """Refuse a URL that is none, that holds secrets, or that needs a package which is not installed. Asks no network.

    Raises:
        ConfigError: naming what is wrong, never the credentials.
    """
    problem = url_problem(url)
    if problem is not None:
        raise ConfigError(problem)
    from fsspec import available_protocols, get_filesystem_class

    scheme = urlsplit(url).scheme
    if scheme not in available_protocols():
        raise ConfigError(f"checkpoint.mirror={url}: fsspec knows no {scheme}://; expected s3://, gs://, file:// ...")
    try:
        get_filesystem_class(scheme)
    except ImportError as error:
        cure = f"pip install 'prdp[{EXTRAS[scheme]}]'" if scheme in EXTRAS else str(error)
        raise ConfigError(f"checkpoint.mirror={url}: a package is missing for {scheme}://: {cure}") from error


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
    """Copy a saved checkpoint to the mirror, then remove the oldest beyond `keep`; whether it arrived.

    A network that fails costs a warning, not the run: the checkpoint stays where it is and the next one is tried again.

    Args:
        folder: a checkpoint, as `prdp.checkpoint.save_checkpoint` has written it.
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
    """Bring the newest whole checkpoint of the mirror into `run_dir`; its folder, None when nothing was fetched.

    Nothing is when `run_dir` holds one that was saved as late or later. Half uploads and damaged ones are skipped with
    a warning: sizes and checksums are compared as for local ones, and a folder appears whole or not at all.

    Raises:
        MirrorError: the mirror cannot be read, and `run_dir` holds no whole checkpoint to go on with.
    """
    latest = find_latest(run_dir)
    local = None if latest is None else _sequence((latest / STATE_FILE).read_bytes())
    try:
        mirror = _Mirror(url)
        for name, sequence in mirror.attempt("be read", mirror.newest_first):
            if sequence is None:
                _log.warning("skipping %s/%s/%s: a half upload, it has no readable %s", url, FOLDER, name, STATE_FILE)
            elif local is not None and sequence <= local:
                return None
            else:
                target = Path(run_dir) / FOLDER / name
                try:
                    mirror.attempt(f"give {name}", partial(mirror.download, name, target))
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

    def folders(self) -> list[str]:
        """Names of what stands where checkpoints do, whole or not."""
        self.fs.invalidate_cache()
        try:
            paths = self.fs.ls(f"{self.root}/{FOLDER}", detail=False)
        except FileNotFoundError:
            return []
        names = [path.rstrip("/").rpartition("/")[2] for path in paths]
        return [name for name in names if name.startswith("epoch_")]

    def newest_first(self) -> list[tuple[str, int | None]]:
        """Folders with their place in the order of saving; those that have none, being half uploads, come first."""
        found: list[tuple[str, int | None]] = []
        for name in self.folders():
            try:
                found.append((name, _sequence(self.fs.cat_file(self.path(name, STATE_FILE)))))
            except FileNotFoundError:
                found.append((name, None))
        return sorted(found, key=lambda entry: (entry[1] is not None, -(entry[1] or 0)))

    def upload(self, folder: Path) -> None:
        """Copy a checkpoint; what stood under its name is none from the first moment on."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.path(folder.name, STATE_FILE))
        for file in sorted(folder.iterdir(), key=lambda file: file.name == STATE_FILE):
            self.fs.put_file(str(file), self.path(folder.name, file.name))

    def download(self, name: str, target: Path) -> None:
        """Copy a checkpoint to `target`, and verify it before it gets this name.

        Raises:
            CheckpointError: it is not whole; names the file in the mirror.
        """
        with atomic_directory(target) as temporary:
            self.fs.get_file(self.path(name, STATE_FILE), str(temporary / STATE_FILE))
            try:
                for file in json.loads((temporary / STATE_FILE).read_bytes())["files"]:
                    if Path(file).name != file:
                        raise ValueError(f"it lists '{file}', which is no plain file name")
                    with contextlib.suppress(FileNotFoundError):
                        self.fs.get_file(self.path(name, file), str(temporary / file))
                verified(temporary)
            except CheckpointError as error:
                raise CheckpointError(str(error).replace(str(temporary), self.path(name))) from None
            except (KeyError, TypeError, ValueError) as error:
                raise CheckpointError(f"{self.path(name, STATE_FILE)} is damaged: {error!r}") from None

    def prune(self, newest: str, keep: int) -> None:
        """Remove all but `newest` and the `keep` - 1 that were saved last before it."""
        entries = dict(self.newest_first())
        mark = entries.pop(newest)
        before = [name for name, sequence in entries.items() if sequence is not None and sequence < (mark or 0)]
        for name in entries.keys() - set(before[: keep - 1]):
            with contextlib.suppress(FileNotFoundError):
                self.fs.rm_file(self.path(name, STATE_FILE))
            self.fs.rm(self.path(name), recursive=True)


def _sequence(content: bytes) -> int | None:
    """The place in the order of saving, from a state.json; None where it cannot be read."""
    try:
        return int(json.loads(content)["sequence"])
    except (ValueError, KeyError, TypeError):
        return None
