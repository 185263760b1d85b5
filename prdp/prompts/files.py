"""Finding the files of a prompt source and reading their lines, with messages that name file and line."""

from __future__ import annotations

import glob
import gzip
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, cast

_WIDE = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def source_files(path: str | Sequence[str]) -> list[Path]:
    """The files that a path, a pattern such as 'shards/*.parquet', or a list of these names; sorted within a pattern.

    Raises:
        ValueError: one that does not exist, is a folder or matches nothing.
    """
    patterns = [path] if isinstance(path, str) else list(path)
    found: list[Path] = []
    for pattern in patterns:
        plain = Path(str(pattern)).expanduser()
        if plain.is_dir():
            raise ValueError(f"prompts file {pattern} is a folder, expected a file")
        if plain.exists():
            found.append(plain)
        elif glob.has_magic(str(pattern)):
            matches = [Path(match) for match in sorted(glob.glob(str(plain))) if Path(match).is_file()]
            if not matches:
                raise ValueError(f"prompts file {pattern} matches no file")
            found += matches
        else:
            raise ValueError(f"prompts file {pattern} cannot be read: No such file or directory")
    if not found:
        raise ValueError("prompts path is an empty list, expected at least one file")
    return found


def text_lines(file: Path, encoding: str = "utf-8") -> Iterator[str]:
    """The lines of a text file with their line ends; gzip by the name's ending; a byte-order mark is left out.

    Raises:
        ValueError: not readable, not of the encoding (by line), or empty.
    """
    try:
        "".encode(encoding)
    except LookupError:
        raise ValueError(f"prompts encoding is {encoding!r}, which Python does not know, as it does utf-8") from None
    number = 0
    try:
        with ExitStack() as stack:
            for number, raw in enumerate(_opened(file, stack), start=1):
                if number == 1:
                    raw = _checked_start(file, raw)
                try:
                    yield raw.decode(encoding)
                except UnicodeDecodeError as error:
                    raise ValueError(
                        f"prompts file {file} is not {encoding.upper()} text: line {number}, byte {error.start} of it; "
                        "encoding=... names another encoding"
                    ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"prompts file {file} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if number == 0:
        raise ValueError(f"prompts file {file} is empty")


def stem(file: Path) -> str:
    """The name without its endings: 'photo' of 'photo.txt.gz'."""
    return file.name.partition(".")[0] or file.name


def _opened(file: Path, stack: ExitStack) -> BinaryIO:
    if file.suffix == ".gz":
        return cast(BinaryIO, stack.enter_context(gzip.open(file, "rb")))
    return stack.enter_context(file.open("rb"))


def _checked_start(file: Path, raw: bytes) -> bytes:
    if raw[:2] in _WIDE:
        raise ValueError(f"prompts file {file} is {_WIDE[raw[:2]]} text, expected UTF-8: convert it first")
    return raw.removeprefix(b"\xef\xbb\xbf")
