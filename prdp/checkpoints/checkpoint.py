"""Checkpoints: a folder each, whole or absent, verified before anything is taken from it.

run_dir/checkpoints/epoch_00010/learner.safetensors    every tensor of the learner; or its rows, by process:
run_dir/checkpoints/epoch_00010/learner-00001-of-00004.safetensors, ...
run_dir/checkpoints/epoch_00010/state.json             everything else, size and checksum of all other files, its own

Any number of processes reads either. `prdp.checkpoints.saving` writes them.

state.json begins with "checksum": the BLAKE2b, as 32 hex digits, of its bytes with zeros in the place of these digits.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prdp.checkpoints.best import best_epoch
from prdp.support.errors import UserError
from prdp.support.tensor_parts import WHOLE_FILE, StoredTensors, fingerprint_file, tensor_files

_FORMATS = (1, 2, 3)
"""Those that are read; state.json of 1 has no checksum of its own, and 3 has tensors in parts."""
FOLDER = "checkpoints"
STATE_FILE = "state.json"

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
        tensors: name -> array, writable, as saved; each is read from the folder when it is asked for.
        state: what was saved besides; tuples come back as lists.
        path: the folder it was read from.
    """

    epoch: int
    tensors: Mapping[str, np.ndarray]
    state: dict[str, Any]
    path: Path


def best_checkpoint(run_dir: Path | str, metric: str) -> Path | None:
    """The checkpoint of the epoch that did best by a metric of held-out prompts; None where none was judged by it.

    Raises:
        ValueError: the log is damaged.
    """
    folder = Path(run_dir) / FOLDER
    named = ((re.fullmatch(r"epoch_(\d+)", path.name), path) for _, path in numbered(folder))
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
        tensors = StoredTensors(tensor_paths(folder, document))
    except (ValueError, OSError) as error:
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
    for _, path in sorted(numbered(folder, unreadable=sys.maxsize), reverse=True):
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
            raise CheckpointError(f"{folder} is a file; a checkpoint is a folder with {STATE_FILE} and {WHOLE_FILE}")
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
    try:
        tensor_files(list(document["files"]))
    except ValueError as error:
        raise CheckpointError(f"{file} is damaged: it lacks the entry of {error}") from None
    return document


def tensor_paths(folder: Path, document: Mapping[str, Any]) -> list[Path]:
    """The files of a checkpoint that hold its tensors, in order.

    Args:
        document: its state.json, as `parse_state` gives it.
    """
    return [folder / name for name in tensor_files(list(document["files"]))]


def format_version(files: Collection[str]) -> int:
    """Of a checkpoint with these files: the lowest one, so that earlier versions of prdp read what they can."""
    return 2 if WHOLE_FILE in files else 3


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
        found = fingerprint_file(file)["blake2b"]
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from None
    if found != expected["blake2b"]:
        raise CheckpointError(f"{file} is damaged: checksum {found} instead of {expected['blake2b']}")


def numbered(folder: Path, unreadable: int = 0) -> list[tuple[int, Path]]:
    """Checkpoint folders with their place in the order of saving, `unreadable` where it cannot be read."""
    found = []
    for path in folder.glob("epoch_*") if folder.is_dir() else ():
        try:
            sequence = read_state(path)["sequence"]
        except CheckpointError:
            sequence = unreadable
        found.append((sequence, path))
    return found


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
