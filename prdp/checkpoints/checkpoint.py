"""Checkpoints: a folder each, whole or absent, verified before anything is taken from it.

run_dir/checkpoints/epoch_00010/learner.safetensors    every tensor of the learner
run_dir/checkpoints/epoch_00010/state.json             everything else, size and checksum of all other files, its own

state.json begins with "checksum": the BLAKE2b, as 32 hex digits, of its bytes with zeros in the place of these digits.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prdp.checkpoints.best import best_epoch
from prdp.support.errors import UserError
from prdp.support.storage import atomic_directory, load_tensors, remove_leftovers, save_tensors, write_atomically

FORMAT_VERSION = 2
_FORMATS = (1, 2)
"""Those that are read; state.json of 1 has no checksum of its own."""
FOLDER = "checkpoints"
STATE_FILE = "state.json"
TENSOR_FILE = "learner.safetensors"

_SEAL = b'{\n "checksum": "'
_BLANK = b"0" * 32
_log = logging.getLogger(__name__)


class CheckpointError(UserError, ValueError):
    """A checkpoint that is half-written, damaged or of another run; the message names the file and what is wrong."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint.

    Attributes:
        epoch: the epoch to continue at: this many are done.
        tensors: name -> array, writable, as saved.
        state: what was saved besides; tuples come back as lists.
        path: the folder it was read from.
    """

    epoch: int
    tensors: dict[str, np.ndarray]
    state: dict[str, Any]
    path: Path


def save_checkpoint(
    run_dir: Path | str,
    epoch: int,
    tensors: Mapping[str, np.ndarray],
    state: Mapping[str, Any],
    keep: int,
    attachments: Mapping[str, bytes] | None = None,
    best: str | None = None,
) -> Path:
    """Write the checkpoint to continue at `epoch`, then remove the oldest beyond `keep`; the folder written.

    Args:
        run_dir: the run's folder; it has this process as its only writer.
        epoch: number of epochs done.
        tensors: name -> array, any numeric dtype and shape.
        state: JSON-able: mappings with text keys, lists, text, numbers (numpy scalars too), booleans, None.
        keep: how many checkpoints stay, the new one included; at least 1.
        attachments: further files by name, verified with the checkpoint from then on.
        best: metric of held-out prompts by which the best checkpoint stays as well; None keeps no such one.

    Raises:
        StorageError: a full disk, for instance; the older checkpoints stay as they were.
        TypeError: a value of `state` that JSON cannot hold, by key.
    """
    if keep < 1:
        raise ValueError(f"checkpoint.keep must be at least 1, got {keep}")
    folder = Path(run_dir) / FOLDER
    target = folder / f"epoch_{epoch:05d}"
    plain = jsonable(state, "state")
    remove_leftovers(folder)
    sequence = 1 + max((number for number, _ in _numbered(folder)), default=0)
    with atomic_directory(target) as temporary:
        save_tensors(temporary / TENSOR_FILE, tensors)
        for name, content in (attachments or {}).items():
            (temporary / name).write_bytes(content)
        document = {
            "format": "prdp checkpoint",
            "format_version": FORMAT_VERSION,
            "epoch": epoch,
            "sequence": sequence,
            "files": {name: _fingerprint_file(temporary / name) for name in (TENSOR_FILE, *(attachments or {}))},
            "state": plain,
        }
        write_atomically(temporary / STATE_FILE, sealed(document))
    _prune(folder, keep, None if best is None else best_checkpoint(run_dir, best))
    return target


def best_checkpoint(run_dir: Path | str, metric: str) -> Path | None:
    """The checkpoint of the epoch that did best by a metric of held-out prompts; None where none was judged by it.

    Raises:
        ValueError: the log is damaged.
    """
    folder = Path(run_dir) / FOLDER
    named = ((re.fullmatch(r"epoch_(\d+)", path.name), path) for _, path in _numbered(folder))
    there = {int(match[1]): path for match, path in named if match is not None}
    epoch = best_epoch(Path(run_dir), metric, there)
    return None if epoch is None else there[epoch]


def load_checkpoint(path: Path | str) -> Checkpoint:
    """Verify sizes and checksums of a checkpoint folder and read it.

    Raises:
        CheckpointError: no checkpoint, half-written, damaged or of an unknown format; names the file.
    """
    folder = Path(path)
    document = verified(folder)
    try:
        tensors = load_tensors(folder / TENSOR_FILE)
    except ValueError as error:
        raise CheckpointError(f"checkpoint {folder} cannot be read: {error}") from None
    if document["format_version"] == 1:
        file = folder / STATE_FILE
        _log.warning("%s is of an earlier version, without a checksum: damage inside it would go unseen", file)
    return Checkpoint(document["epoch"], tensors, document["state"], folder)


def find_latest(run_dir: Path | str) -> Path | None:
    """The checkpoint saved last that is whole; broken ones are skipped with a warning, None when there is none.

    Saved last, not farthest: after a return to an earlier epoch the newer attempt counts.
    """
    return _search(Path(run_dir) / FOLDER)[0]


def resolve_resume(resume: str, run_dir: Path | str) -> Path | None:
    """What `checkpoint.resume` asks for: 'never', 'auto' (newest whole one, None at a first start), or a path.

    A path may name a checkpoint or a run's folder, of which the newest whole checkpoint is taken.

    Raises:
        CheckpointError: the path holds no whole checkpoint, or there are checkpoints and none of them is whole.
    """
    if resume == "never":
        return None
    path = Path(resume).expanduser()
    if resume == "auto" or (path / FOLDER).is_dir():
        folder = (Path(run_dir) if resume == "auto" else path) / FOLDER
        latest, faults = _search(folder)
        if latest is None and (faults or resume != "auto"):
            found = "".join(f"\n  {fault}" for fault in faults)
            raise CheckpointError(f"checkpoint.resume={resume}: no whole checkpoint in {folder}{found}")
        return latest
    verified(path)
    return path


def _search(folder: Path) -> tuple[Path | None, list[str]]:
    """The checkpoint of a folder saved last that is whole, and what is wrong with those that were passed over."""
    faults = []
    for _, path in sorted(_numbered(folder, unreadable=sys.maxsize), reverse=True):
        try:
            verified(path)
        except CheckpointError as error:
            _log.warning("skipping a broken checkpoint: %s", error)
            faults.append(str(error))
        else:
            return path, faults
    return None, faults


def verified(folder: Path) -> dict[str, Any]:
    """The content of state.json, after every file it lists proved to be there in full.

    Raises:
        CheckpointError: no checkpoint, half-written, damaged or of an unknown format; names the file.
    """
    document = read_state(folder)
    for name, expected in document["files"].items():
        _check_file(folder / name, expected)
    return document


def read_state(folder: Path) -> dict[str, Any]:
    """The content of state.json, which proved to be what was written; the other files are not looked at.

    Raises:
        CheckpointError: no checkpoint, half-written, damaged or of an unknown format; names the file.
    """
    file = folder / STATE_FILE
    try:
        if not folder.exists():
            raise CheckpointError(f"there is no checkpoint {folder}")
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is a file; a checkpoint is a folder with {STATE_FILE} and {TENSOR_FILE}")
        if not file.is_file():
            raise CheckpointError(f"{folder} is not a checkpoint: {STATE_FILE} is missing")
        content = file.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{file} cannot be read: {error}") from None
    document = parse_state(content, str(file))
    named = re.fullmatch(r"epoch_(\d+)", folder.name)
    if named and int(named[1]) != document["epoch"]:
        raise CheckpointError(f"{file} is damaged: it is of epoch {document['epoch']}, its folder of {int(named[1])}")
    return document


def parse_state(content: bytes, file: str) -> dict[str, Any]:
    """The content of a state.json: {"epoch", "sequence", "files": {name: {"bytes", "blake2b"}}, "state", ...}.

    Args:
        content: its bytes.
        file: its name, for messages.

    Raises:
        CheckpointError: half-written, damaged or of an unknown format; names the file.
    """
    seal = slice(len(_SEAL), len(_SEAL) + len(_BLANK))
    sealed_in = content.startswith(_SEAL)
    if sealed_in and _digest(content[: seal.start] + _BLANK + content[seal.stop :]) != content[seal]:
        raise CheckpointError(f"{file} is half-written or damaged: its content does not have its checksum")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is half-written or damaged: {error}") from None
    if not isinstance(document, dict) or document.get("format") != "prdp checkpoint":
        raise CheckpointError(f'{file} is not the state of a checkpoint: it lacks "format": "prdp checkpoint"')
    version = document.get("format_version")
    if not _is_count(version) or version not in _FORMATS:
        raise CheckpointError(f"{file} has format_version {version}; this version of prdp reads {_FORMATS}")
    if version > 1 and not sealed_in:
        raise CheckpointError(f"{file} is damaged: it does not begin with its checksum")
    for key, sound in _PARTS.items():
        if key not in document:
            raise CheckpointError(f"{file} is damaged: it lacks {key}")
        if not sound(document[key]):
            raise CheckpointError(f"{file} is damaged: {key} is {str(document[key])[:80]}")
    if TENSOR_FILE not in document["files"]:
        raise CheckpointError(f"{file} is damaged: it lacks the entry of {TENSOR_FILE}")
    return document


def sealed(document: Mapping[str, Any]) -> bytes:
    """A state.json with its checksum."""
    content = json.dumps({"checksum": _BLANK.decode(), **document}, indent=1).encode()
    return _SEAL + _digest(content) + content[len(_SEAL) + len(_BLANK) :]


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).hexdigest().encode()


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _lists_files(value: Any) -> bool:
    return isinstance(value, dict) and all(
        re.fullmatch(r"\w[\w.-]*", name) is not None
        and isinstance(entry, dict)
        and _is_count(entry.get("bytes"))
        and isinstance(entry.get("blake2b"), str)
        for name, entry in value.items()
    )


_PARTS: Mapping[str, Callable[[Any], bool]] = {
    "epoch": _is_count,
    "sequence": _is_count,
    "files": _lists_files,
    "state": lambda value: isinstance(value, dict),
}


def _check_file(file: Path, expected: Mapping[str, Any]) -> None:
    try:
        if not file.is_file():
            raise CheckpointError(f"{file} is missing: the checkpoint is not whole")
        size = file.stat().st_size
        if size != expected["bytes"]:
            raise CheckpointError(
                f"{file} holds {size:,} bytes instead of {expected['bytes']:,}: truncated or replaced"
            )
        found = _fingerprint_file(file)["blake2b"]
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from None
    if found != expected["blake2b"]:
        raise CheckpointError(f"{file} is damaged: checksum {found} instead of {expected['blake2b']}")


def _fingerprint_file(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
    return {"bytes": path.stat().st_size, "blake2b": digest.hexdigest()}


def _numbered(folder: Path, unreadable: int = 0) -> list[tuple[int, Path]]:
    """Checkpoint folders with their place in the order of saving, `unreadable` where it cannot be read."""
    found = []
    for path in folder.glob("epoch_*") if folder.is_dir() else ():
        try:
            sequence = read_state(path)["sequence"]
        except CheckpointError:
            sequence = unreadable
        found.append((sequence, path))
    return found


def _prune(folder: Path, keep: int, best: Path | None) -> None:
    """Remove all but the last `keep` and the best; a checkpoint that cannot be removed costs disk, not the run."""
    for _, path in sorted(_numbered(folder))[:-keep]:
        if path == best:
            continue
        try:
            shutil.rmtree(path)
        except OSError as error:
            _log.warning("could not remove the old checkpoint %s: %s", path, error)


def jsonable(value: Any, where: str) -> Any:
    """Plain JSON values; a TypeError names the place of what JSON cannot hold."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}; a checkpoint's state takes text keys only")
        return {key: jsonable(inner, f"{where}.{key}") for key, inner in value.items()}
    if hasattr(value, "__iter__") and not isinstance(value, np.ndarray | bytes | set):
        return [jsonable(inner, f"{where}[{index}]") for index, inner in enumerate(value)]
    raise TypeError(f"{where} is a {type(value).__name__}, which JSON cannot hold; arrays belong among the tensors")
