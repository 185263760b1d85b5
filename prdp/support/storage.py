"""Writing files so that a crash or a full disk never costs what was there before; tensors as safetensors.

Everything is written beside its destination, flushed to the disk and renamed into place. A reader sees the old content
or the new content, never a part.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, TextIO

import numpy as np

from prdp.support.errors import UserError

TEMPORARY = ".partial-"
"""Marks what is being written: `.partial-<random>-<name>` beside the destination; leftovers are of killed processes."""

_LEFTOVER = re.compile(rf"{re.escape(TEMPORARY)}|\.tmp\w{{6}}$")
"""The second kind is of safetensors, which writes aside, too."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MAX_HEADER = 100_000_000
_FORMAT_NAMES = {
    b"PK\x03\x04": "a zip archive, such as torch.save writes",
    b"\x80\x02": "a Python pickle",
    b"\x80\x04": "a Python pickle",
    b"\x89HDF": "an HDF5 file",
    b"version https://git-lfs": "a Git LFS pointer: run `git lfs pull` to fetch the real file",
}


class StorageError(UserError, OSError):
    """Something could not be written; the message names the path, the bytes needed and the bytes free."""


class TensorFileError(UserError, ValueError):
    """A file is not a whole safetensors file; the message names the file and what is wrong with it."""


def write_atomically(path: str | os.PathLike[str], content: bytes | Callable[[BinaryIO], object]) -> None:
    """Replace `path` by `content`: bytes, or a function that writes into an open binary file.

    Missing parent folders are made.

    Raises:
        StorageError: the disk is full or the place cannot be written; `path` keeps what it held.
    """
    target = Path(path)
    temporary = _temporary_beside(target)
    needed = len(content) if isinstance(content, bytes) else None
    try:
        with _translated(target, temporary, needed, only_full=needed is None), open(temporary, "xb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                content(file)
            file.flush()
            os.fsync(file.fileno())
        with _translated(target, temporary, needed):
            os.replace(temporary, target)
            _sync_directory(target.parent)
    finally:
        with contextlib.suppress(OSError):  # an error on its way says more
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary folder to fill; it becomes `path` when the block ends without an error.

    A folder that stood at `path` is replaced as a whole. A process killed between the two renames of a replacement
    leaves both contents, whole, under temporary names beside `path`.

    Raises:
        StorageError: the disk is full or the place cannot be written, in the block or after it; `path` keeps what it
            held. Other errors of the block pass as they are.
    """
    target = Path(path)
    temporary = _temporary_beside(target)
    try:
        with _translated(target, temporary):
            temporary.mkdir()
        with _translated(target, temporary, only_full=True):
            yield temporary
        with _translated(target, temporary):
            _open_tree(temporary)
            _sync_tree(temporary)
            _move_into_place(temporary, target)
            _sync_directory(target.parent)
    except StorageError as error:
        inner = StorageError(str(error).replace(str(temporary), str(target)))
        inner.errno = error.errno
        raise inner from error.__cause__
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(
    directory: str | os.PathLike[str], *, files_older_than: float = 0.0, deep: bool = False
) -> list[str]:
    """Remove what killed processes left half-written in `directory`; the names removed.

    Only for a directory with a single writer: what another process is writing at this moment would go too.

    Args:
        directory: nothing is done when it is missing.
        files_older_than: seconds that a file, other than a folder, has to be old: where others write files, too.
        deep: look into its folders, too.
    """
    root = Path(directory)
    found = root.rglob(".*") if deep else root.glob(".*")
    removed = []
    for entry in sorted(found) if root.is_dir() else ():
        if _LEFTOVER.match(entry.name) is None:
            continue
        with contextlib.suppress(OSError):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            elif time.time() - entry.lstat().st_mtime >= files_older_than:
                entry.unlink()
            else:
                continue
            removed.append(entry.name)
    return removed


def open_to_append(path: str | os.PathLike[str]) -> TextIO:
    """A text file, opened to add lines at its end; it is made when missing. Links and devices are not followed.

    Raises:
        StorageError: it cannot be opened, or is no plain file.
    """
    target = Path(path)
    with _translated(target):
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        try:
            descriptor = os.open(target, flags, 0o666)
        except OSError as error:
            if target.is_symlink():
                raise OSError(errno.ELOOP, "it is a link, which is not followed; remove it") from error
            raise
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "it is no plain file; remove it")
        return os.fdopen(descriptor, "a", encoding="utf-8", buffering=1)


def append(path: str | os.PathLike[str], text: str) -> None:
    """Add text at the end of a file, which is made when missing: all of it or nothing. Links are not followed.

    Raises:
        StorageError: a full disk, for instance; names the file.
    """
    target, content = Path(path), text.encode()
    with open_to_append(target) as file, _translated(target, needed=len(content)):
        descriptor = file.fileno()
        before = os.fstat(descriptor).st_size
        try:
            left = memoryview(content)
            while left:
                left = left[os.write(descriptor, left) :]
        except BaseException:
            os.ftruncate(descriptor, before)
            raise


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named arrays (any shape, 0-d included; bool, integers, float16/32/64) as one safetensors file, atomically.

    Args:
        metadata: text for the file's header.

    Raises:
        TypeError: an array whose dtype safetensors cannot hold, by name.
        StorageError: as `write_atomically`.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    target = Path(path)
    plain = {name: _plain(name, value) for name, value in tensors.items()}
    temporary = _temporary_beside(target)
    try:
        with _translated(target, temporary, sum(array.nbytes for array in plain.values())):
            temporary.touch(exist_ok=False)
            mode = temporary.stat().st_mode & 0o666
            try:
                save_file(plain, temporary, None if metadata is None else dict(metadata))
            except SafetensorError as error:
                code = re.search(r"os error (\d+)", str(error))
                raise OSError(int(code[1]) if code else errno.EIO, str(error)) from error
            _open_to(temporary, mode)
            _sync_file(temporary)
            os.replace(temporary, target)
            _sync_directory(target.parent)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def load_tensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read a safetensors file into writable arrays of their own memory.

    Raises:
        FileNotFoundError: there is no such file.
        TensorFileError: the file is truncated, is text, a pickle or anything else but safetensors.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    target = Path(path)
    if not target.exists():
        raise FileNotFoundError(f"there is no tensor file {target}")
    if target.is_dir():
        raise TensorFileError(f"{target} is a folder; expected a safetensors file")
    try:
        return dict(load_file(target))
    except (SafetensorError, KeyError, ValueError) as error:
        raise TensorFileError(f"{target} is not a whole safetensors file: {_what_is_wrong(target, error)}") from None


def _plain(name: str, value: np.ndarray) -> np.ndarray:
    """A dense little-endian copy where needed: safetensors writes the raw memory of whatever it is given."""
    array = np.asarray(value)
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise TypeError(f"tensor '{name}' has dtype {array.dtype}; expected bool, integers or floats of 2 to 8 bytes")
    return array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)


def _what_is_wrong(path: Path, error: Exception) -> str:
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(64)
    if size < 8:
        return f"it holds {size} bytes, a header alone needs 8"
    for magic, name in _FORMAT_NAMES.items():
        if head.startswith(magic):
            return f"it looks like {name}"
    header = int.from_bytes(head[:8], "little")
    if header <= min(size - 8, _MAX_HEADER) and head[8:9] == b"{":
        return f"its {size} bytes do not match its header, so it is truncated or damaged ({error})"
    if head[8:9] == b"{" and header <= _MAX_HEADER:
        return f"it is cut off inside its header: {size} bytes, of which {header + 8} are header"
    with contextlib.suppress(UnicodeDecodeError):
        text = head[:40].decode("ascii")
        if text.isprintable() or any(mark in text for mark in "\n\r\t"):
            return f"it looks like text, starting with {text!r}"
    return f"it does not start with a header ({error})"


def _temporary_beside(target: Path) -> Path:
    temporary = target.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:8]}-{target.name}")
    with _translated(target, temporary):
        target.parent.mkdir(parents=True, exist_ok=True)
    return temporary


@contextlib.contextmanager
def _translated(
    target: Path, temporary: Path | None = None, needed: int | None = None, only_full: bool = False
) -> Iterator[None]:
    """Turn an OSError into a StorageError that says how much room was needed and how much there is.

    With `only_full`, around code of others, errors that do not speak of a full disk pass as they are.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        full = error.errno in _FULL
        if only_full and not full:
            raise
        written = _size(temporary) if temporary is not None else 0
        need = f"{needed:,} bytes needed" if needed is not None else f"more than {written:,} bytes needed"
        translated = StorageError(
            f"could not write {target}: {error.strerror or error} ({need}, {_free(target) + written:,} bytes free)"
            f"{'; free some room' if full else ''}; what was there before is untouched"
        )
        translated.errno = error.errno
        raise translated from error


def _size(path: Path) -> int:
    """Bytes in a file or under a folder; 0 where there is nothing."""
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file())


def _free(target: Path) -> int:
    existing = next(parent for parent in target.absolute().parents if parent.exists())
    return shutil.disk_usage(existing).free


def _move_into_place(source: Path, target: Path) -> None:
    if not target.exists():
        os.rename(source, target)
        return
    aside = _temporary_beside(target)
    os.rename(target, aside)
    try:
        os.rename(source, target)
    except OSError:
        os.rename(aside, target)
        raise
    shutil.rmtree(aside) if aside.is_dir() and not aside.is_symlink() else aside.unlink()


def _open_tree(root: Path) -> None:
    """Files and folders that a library made for its owner alone get the mode that others get here, by the umask."""
    mode = root.stat().st_mode & 0o777
    for path in root.rglob("*"):
        if not path.is_symlink() and path.stat().st_mode & 0o077 == 0:
            _open_to(path, mode if path.is_dir() else mode & 0o666)


def _open_to(path: Path, mode: int) -> None:
    """Add permissions; some network disks have none."""
    with contextlib.suppress(PermissionError):
        path.chmod(path.stat().st_mode | mode)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(root: Path) -> None:
    for folder, _, files in os.walk(root):
        for name in files:
            _sync_file(Path(folder) / name)
        _sync_directory(Path(folder))


def _sync_directory(path: Path) -> None:
    """Flush the names in a folder; systems that cannot (Windows, some network disks) keep their own order."""
    with contextlib.suppress(PermissionError, NotADirectoryError):
        _sync_file(path)
