"""Tensors in one safetensors file, or divided by rows among the files of several processes; read as one, in any parts.

The layout is that of torch.distributed.checkpoint's `HuggingFaceStorageWriter` with `save_distributed=True`, which its
`HuggingFaceStorageReader` reads: the header of each file tells where in each tensor its rows begin. A file of whole
tensors tells nothing, and is read by both all the same. Nothing in it is pickled.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prdp.support.storage import TensorFileError, load_tensors, save_tensors

WHOLE_FILE = "learner.safetensors"
"""The file of one process."""
_PART_FILE = re.compile(r"learner-(\d{5})-of-(\d{5})\.safetensors")
_OFFSETS, _FIRST = "DCP_SHARDING_INFO", "saved_offsets"
_FACTS = {"DCP_VERSION": "1.0", "format": "pt"}

Fingerprint = dict[str, Any]
"""Of a file: {"bytes": size, "blake2b": 32 hex digits}."""


def part_file(part: int, parts: int) -> str:
    """Name of the file of one of several processes, by its number from 0."""
    return f"learner-{part + 1:05d}-of-{parts:05d}.safetensors"


def tensor_files(names: Sequence[str]) -> list[str]:
    """Which of these files hold the tensors, in order: the one, or all parts.

    Raises:
        ValueError: none does, or a part is not there; names it.
    """
    if WHOLE_FILE in names:
        return [WHOLE_FILE]
    matches = [match for match in map(_PART_FILE.fullmatch, names) if match is not None]
    if not matches:
        raise ValueError(WHOLE_FILE)
    expected = [part_file(part, int(matches[0][2])) for part in range(int(matches[0][2]))]
    for name in expected:
        if name not in names:
            raise ValueError(name)
    return expected


def row_range(length: int, part: int, parts: int) -> tuple[int, int]:
    """The first row of a part and the one after its last, as `torch.chunk` and FSDP divide a tensor.

    Args:
        length: rows of the tensor.
        part: from 0; the last parts have fewer rows, or none, where they do not come out even.
    """
    size = -(-length // parts)
    return min(part * size, length), min((part + 1) * size, length)


def fingerprint_file(path: Path) -> Fingerprint:
    """Size and checksum of a file."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
    return {"bytes": path.stat().st_size, "blake2b": digest.hexdigest()}


def save_part(
    folder: Path,
    part: int,
    parts: int,
    rows: Mapping[str, np.ndarray],
    lengths: Mapping[str, int],
    others: Mapping[str, np.ndarray],
) -> Fingerprint:
    """Write the file of one process, atomically.

    Args:
        folder: of the checkpoint.
        part, parts: number of the process from 0, and how many there are.
        rows: name -> the rows of the tensor that `row_range` gives this process; arrays without dimensions are every
            process's, and in the first file alone.
        lengths: rows of the whole tensors, by what stands in their names behind the last '/'.
        others: name -> whole tensors that are in this file alone.

    Raises:
        StorageError: as `save_tensors`.
    """
    first = {
        name: row_range(lengths[name.rpartition("/")[2]], part, parts)[0] for name, array in rows.items() if array.ndim
    }
    kept = {name: array for name, array in rows.items() if (len(array) if array.ndim else not part)}
    kept |= others
    offsets = {
        name: {_FIRST: [first.get(name, 0), *[0] * (array.ndim - 1)] if array.ndim else []}
        for name, array in kept.items()
    }
    path = folder / part_file(part, parts)
    save_tensors(path, kept, {_OFFSETS: json.dumps(offsets), **_FACTS})
    return fingerprint_file(path)


@dataclass(frozen=True)
class _Piece:
    """Rows of a tensor in a file."""

    name: str
    file: int
    first: int
    shape: tuple[int, ...]
    dtype: str


class StoredTensors(Mapping[str, np.ndarray]):
    """The tensors of some files by name, each read when it is asked for, into writable memory of its own.

    It can be sent to other processes, which open the files themselves.

    Args:
        files: that hold them, all parts.

    Raises:
        FileNotFoundError: a file is not there.
        TensorFileError: a file is damaged, or the parts do not make whole tensors; names file and tensor.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = [(path, *_identity(path)) for path in files]
        self._open: dict[int, Any] = {}
        self._pieces: dict[str, list[_Piece]] = {}
        for number, path in enumerate(files):
            for piece in _pieces_of(number, path, self._handle(number)):
                self._pieces.setdefault(piece.name, []).append(piece)
        for name, pieces in self._pieces.items():
            pieces.sort(key=lambda piece: piece.first)
            self._check(name, pieces)

    def __getitem__(self, name: str) -> np.ndarray:
        shape = self.shape(name)
        return self.rows(name, 0, shape[0]) if shape else self._read(self._pieces[name][0], slice(None))

    def __iter__(self) -> Iterator[str]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole tensor."""
        pieces = self._pieces[name]
        return (pieces[-1].first + pieces[-1].shape[0], *pieces[0].shape[1:]) if pieces[0].shape else ()

    def shapes(self, prefix: str) -> dict[str, np.ndarray]:
        """Arrays of the shapes of the tensors under a prefix, named without it; they hold no memory and no values."""
        nothing = np.zeros((), np.float32)
        return {
            name.removeprefix(prefix): np.broadcast_to(nothing, self.shape(name))
            for name in self._pieces
            if name.startswith(prefix)
        }

    def rows(self, name: str, begin: int, end: int) -> np.ndarray:
        """The rows from `begin` to before `end` of a tensor, and of its files no others."""
        found = [
            self._read(piece, slice(max(begin - piece.first, 0), min(end - piece.first, piece.shape[0])))
            for piece in self._pieces[name]
            if piece.first < end and begin < piece.first + piece.shape[0]
        ]
        if not found:
            return self._read(self._pieces[name][0], slice(None))[:0]
        return found[0] if len(found) == 1 else np.concatenate(found)

    def part(self, part: int, parts: int) -> Mapping[str, np.ndarray]:
        """The rows that `row_range` gives to a part, read when they are asked for; those without dimensions whole."""
        return _Part(self, part, parts)

    def reachable(self) -> bool:
        """Whether the files are seen from here: this process may be on a machine that does not share their disk."""
        try:
            return all(_identity(path) == tuple(identity) for path, *identity in self._files)
        except OSError:
            return False

    def _handle(self, number: int) -> Any:
        from safetensors import SafetensorError, safe_open

        if number not in self._open:
            path = self._files[number][0]
            try:
                self._open[number] = safe_open(path, framework="np")
            except (SafetensorError, OSError, ValueError):
                load_tensors(path)  # which tells what is wrong
                raise
        return self._open[number]

    def _read(self, piece: _Piece, rows: slice) -> np.ndarray:
        handle = self._handle(piece.file)
        array = handle.get_slice(piece.name)[rows] if piece.shape else handle.get_tensor(piece.name)
        return np.require(array, requirements="W")

    def _check(self, name: str, pieces: Sequence[_Piece]) -> None:
        end = 0
        for piece in pieces:
            file = self._files[piece.file][0]
            if (piece.dtype, piece.shape[1:]) != (pieces[0].dtype, pieces[0].shape[1:]):
                raise TensorFileError(
                    f"{file}: its rows of '{name}' are {piece.dtype} {piece.shape}, and those of "
                    f"{self._files[pieces[0].file][0].name} {pieces[0].dtype} {pieces[0].shape}"
                )
            if piece.first != end or (not piece.shape and len(pieces) > 1):
                raise TensorFileError(f"{file}: its rows of '{name}' begin at {piece.first}, expected {end}")
            end += piece.shape[0] if piece.shape else 0


class _Part(Mapping[str, np.ndarray]):
    def __init__(self, whole: StoredTensors, part: int, parts: int) -> None:
        self._whole, self._part, self._parts = whole, part, parts

    def __getitem__(self, name: str) -> np.ndarray:
        shape = self._whole.shape(name)
        return self._whole.rows(name, *row_range(shape[0], self._part, self._parts)) if shape else self._whole[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._whole)

    def __len__(self) -> int:
        return len(self._whole)


def _identity(path: Path) -> tuple[int, int]:
    """Size and time of change: what lies under the same path on another machine may be of another run."""
    if not path.exists():
        raise FileNotFoundError(f"there is no tensor file {path}")
    told = path.stat()
    return told.st_size, told.st_mtime_ns


def _pieces_of(number: int, path: Path, handle: Any) -> Iterator[_Piece]:
    told = (handle.metadata() or {}).get(_OFFSETS)
    try:
        offsets = None if told is None else json.loads(told)
        for name in handle.keys():  # noqa: SIM118 - a handle is no mapping
            part = handle.get_slice(name)
            shape = tuple(part.get_shape())
            first = 0
            if offsets is not None:
                first, *rest = offsets[name][_FIRST] or [0]
                if any(rest) or type(first) is not int or len(rest) != max(len(shape) - 1, 0):
                    raise ValueError(f"{name}: {offsets[name][_FIRST]}")
            yield _Piece(name, number, first, shape, part.get_dtype())
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TensorFileError(f"{path}: its {_OFFSETS} does not tell where rows begin: {error!s:.80}") from None
