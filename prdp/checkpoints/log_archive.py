"""The logs of a run, packed to travel with its checkpoints, so that they go on where the weights do.

logs.zip                        in a checkpoint: metrics.jsonl, prompts.jsonl and run.json, as of that checkpoint
epoch_00010-<digest>.zip        an evaluation; named by its scores, so that it has to travel only once

run.json is {"run_id", "wandb_step"}. Nothing else of the run's folder is packed, and nothing of the environment.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import re
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prdp.prompts.usage import PROMPTS_FILE, read_prompt_log
from prdp.support.picture_files import opened_picture
from prdp.support.storage import atomic_directory, write_atomically
from prdp.tracking import evaluations
from prdp.tracking.jsonl import METRICS_FILE, read_metrics
from prdp.tracking.status_file import read_status, start_status
from prdp.tracking.wandb_tracker import read_step, step_file

LOGS_FILE = "logs.zip"
STEP_GAP = 10_000
"""W&B steps left out after a restore: the lost machine may have used some after its last checkpoint."""

_RUN = "run.json"
_LOGS: Mapping[str, Callable[[Path], Any]] = {METRICS_FILE: read_metrics, PROMPTS_FILE: read_prompt_log}
"""Files of logs, with what reads those of a run's folder."""
_SCORES = ("scores.jsonl", "summary.json")
_EVALUATION = re.compile(r"epoch_(\d{5,})-[0-9a-f]{16}")
_PICTURE = re.compile(r"grid/\d{3,}_\d+\.png")
_PLAIN_BYTES, _RATIO = 64 * 2**20, 200
"""Unpacked, an archive may have so many bytes, or so many for each of its own; logs have 3 to 10."""
_TIME = (1980, 1, 1, 0, 0, 0)
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    MemoryError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
)
"""What `zipfile` raises for damaged archives: a flipped bit may name another method or a size beyond reason."""


def pack_logs(run_dir: Path) -> bytes:
    """The logs of a run as a zip archive: the same bytes for the same logs."""
    run_id = str(read_status(run_dir).get("run_id", ""))
    run = {"run_id": run_id, "wandb_step": read_step(step_file(run_dir, run_id))}
    contents = {name: (run_dir / name).read_bytes() for name in _LOGS if (run_dir / name).exists()}
    return _packed({**contents, _RUN: json.dumps(run).encode()})


def restore_logs(run_dir: Path, archive: bytes, epoch: int) -> None:
    """Put packed logs into a run's folder, in place of those that lie there.

    Args:
        run_dir: may be missing.
        archive: of `pack_logs`.
        epoch: finished epochs of the checkpoint that they came with.

    Raises:
        ValueError: the archive is damaged.
        prdp.support.storage.StorageError: they cannot be written.
    """
    contents, run_id, step = _logs(archive)
    for name in _LOGS:
        if name in contents:
            write_atomically(run_dir / name, contents[name])
    if step:
        file = step_file(run_dir, run_id)
        write_atomically(file, str(max(step + STEP_GAP, read_step(file))).encode())
    start_status(run_dir, status="interrupted", run_id=run_id, epoch=epoch)


def check_logs(archive: bytes) -> None:
    """Refuse what `restore_logs` would refuse.

    Raises:
        ValueError: the archive is damaged.
    """
    _logs(archive)


def _logs(archive: bytes) -> tuple[dict[str, bytes], str, int]:
    """Files of packed logs, the run's id and its next W&B step."""
    contents = _unpacked(archive)
    try:
        run = json.loads(contents[_RUN])
        run_id, step = str(run["run_id"]), int(run["wandb_step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{_RUN} in {LOGS_FILE} is damaged: {error!r}") from None
    if re.fullmatch(r"[\w-]{0,64}", run_id) is None:
        raise ValueError(f"{_RUN} in {LOGS_FILE} has the run_id {run_id!r}, expected letters and digits")
    if not 0 <= step < 2**53:
        raise ValueError(f"{_RUN} in {LOGS_FILE} has the wandb_step {step:.3g}, expected a whole number from 0")
    with tempfile.TemporaryDirectory(prefix="prdp-logs-") as folder:
        for name, read in _LOGS.items():
            if name in contents:
                (Path(folder) / name).write_bytes(contents[name])
                try:
                    read(Path(folder))
                except ValueError as error:
                    raise ValueError(str(error).replace(f"{folder}/", f"{LOGS_FILE}/")) from None
    return contents, run_id, step


def evaluation_names(run_dir: Path) -> list[str]:
    """The evaluations in a run's folder by the names under which they travel, in the order of epochs."""
    epochs = evaluations.list_evaluations(run_dir)
    return [name for epoch in epochs if (name := _name(run_dir, epoch)) is not None]


def pack_evaluation(run_dir: Path, name: str) -> bytes:
    """An evaluation with its pictures as a zip archive.

    Args:
        name: one of `evaluation_names`.
    """
    folder = _folder(run_dir, name)
    files = [folder / part for part in _SCORES] + sorted((folder / "grid").glob("*.png"))
    return _packed({file.relative_to(folder).as_posix(): file.read_bytes() for file in files})


def restore_evaluation(run_dir: Path, name: str, archive: bytes) -> None:
    """Put a packed evaluation into a run's folder, whole or not at all, in place of another one of its epoch.

    Raises:
        ValueError: the archive is damaged, or is not the one that the name tells of.
        prdp.support.storage.StorageError: it cannot be written.
    """
    folder = _folder(run_dir, name)
    contents = _unpacked(archive)
    odd = [part for part in contents if part not in _SCORES and not _PICTURE.fullmatch(part)]
    if odd:
        raise ValueError(f"{name} holds '{odd[0]}', which is no file of an evaluation")
    if any(part not in contents for part in _SCORES) or _digest(contents) != name.rpartition("-")[2]:
        raise ValueError(f"{name} is damaged: its scores are not those that it is named by")
    with atomic_directory(folder) as temporary:
        for part, content in contents.items():
            (temporary / part).parent.mkdir(exist_ok=True)
            (temporary / part).write_bytes(content)
        try:
            evaluations.read_evaluation(temporary, _epoch(name))
            for picture in temporary.glob("grid/*.png"):
                with opened_picture(picture):
                    pass
        except ValueError as error:
            raise ValueError(str(error).replace(str(temporary), name)) from None


def has_evaluation(run_dir: Path, name: str) -> bool:
    """Whether a run's folder holds this very evaluation.

    Raises:
        ValueError: no name of an evaluation.
    """
    return _name(run_dir, _epoch(name)) == name


def _name(run_dir: Path, epoch: int) -> str | None:
    stem = f"epoch_{epoch:05d}"
    folder = run_dir / evaluations.FOLDER / stem
    try:
        return f"{stem}-{_digest({part: (folder / part).read_bytes() for part in _SCORES})}"
    except FileNotFoundError:
        return None


def _folder(run_dir: Path, name: str) -> Path:
    return run_dir / evaluations.FOLDER / f"epoch_{_epoch(name):05d}"


def _epoch(name: str) -> int:
    match = _EVALUATION.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        raise ValueError(f"{name!r} is no name of an evaluation, such as epoch_00010-0123456789abcdef")
    return int(match[1])


def _digest(contents: Mapping[str, bytes]) -> str:
    """Of the scores; the pictures follow from what the scores follow from."""
    digest = hashlib.blake2b(digest_size=8)
    for part in _SCORES:
        digest.update(len(contents[part]).to_bytes(8, "little") + contents[part])
    return digest.hexdigest()


def _packed(contents: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in contents.items():
            method = zipfile.ZIP_STORED if name.endswith(".png") else zipfile.ZIP_DEFLATED
            archive.writestr(zipfile.ZipInfo(name, _TIME), content, method)
    return buffer.getvalue()


def _unpacked(archive: bytes) -> dict[str, bytes]:
    limit = max(_PLAIN_BYTES, _RATIO * len(archive))
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            size = sum(info.file_size for info in opened.infolist())
            if size > limit:
                raise ValueError(f"{len(archive)} bytes would become {size}, more than the {limit} of any log")
            contents = {}
            for info in opened.infolist():
                with opened.open(info) as file:
                    contents[info.filename] = file.read(info.file_size)  # read() unpacks all there is first
            return contents
    except _DAMAGE as error:
        raise ValueError(f"not a whole zip archive: {error}") from None
