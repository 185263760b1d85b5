"""Finding the files of a prompt source and reading their text, with messages that name file and line."""

from __future__ import annotations

import codecs
import glob
import gzip
import io
import math
import stat
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, cast

from prdp.prompts.options import check_texts

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF8, "utf-8"),
)
"""Byte-order marks; that of UTF-32 begins with that of UTF-16."""
_CHUNK = 2**18
LONGEST_LINE = 64_000_000
"""Characters; a line has to fit into memory."""
UNPACKED_BYTES, UNPACKED_RATIO = 64 * 2**20, 200
"""A gzip file may become so many bytes, or so many for each of its own; prompts have 3 to 10, and gzip knows 1000."""
LONGEST_TEXT = 2**30
"""Characters of a file that is read as a whole."""
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def source_files(path: str | Sequence[str]) -> list[Path]:
    """The files that a path, a pattern such as 'shards/*.parquet', or a list of these names; sorted within a pattern.

    Raises:
        ValueError: one that does not exist or cannot be reached, is a folder, a pipe or a device, or matches nothing.
    """
    patterns = [path] if isinstance(path, str) else path
    check_texts("path", patterns)
    found: list[Path] = []
    for pattern in patterns:
        plain = Path(pattern).expanduser()
        try:
            mode = plain.stat().st_mode
        except (OSError, ValueError) as error:
            matches = [Path(match) for match in sorted(glob.glob(str(plain))) if Path(match).is_file()]
            if not matches and glob.has_magic(pattern):
                raise ValueError(f"prompts file {pattern} matches no file") from None
            if not matches:
                reason = getattr(error, "strerror", None) or error
                raise ValueError(f"prompts file {pattern} cannot be read: {reason}") from None
            found += matches
        else:
            if not stat.S_ISREG(mode):
                kind = _KINDS.get(stat.S_IFMT(mode), "no file")
                raise ValueError(f"prompts file {pattern} is {kind}, expected a file")
            found.append(plain)
    if not found:
        raise ValueError("prompts path is an empty list, expected at least one file")
    return found


def text_lines(file: Path, encoding: str = "utf-8") -> Iterator[str]:
    """The lines of a text file with their line ends, which are '\\n', '\\r\\n' or '\\r' and nothing else.

    Gzip goes by the name's ending; a byte-order mark is left out.

    Raises:
        ValueError: not readable, not of the encoding (by line), with a NUL byte (by line), with a line beyond
            `LONGEST_LINE`, unpacking to more than any text does, or empty.
    """
    parts: list[str] = []
    held = 0
    for text in _decoded(file, encoding):
        parts.append(text)
        held += len(text)
        if "\n" in text or "\r" in text:
            *lines, last = io.StringIO("".join(parts), newline="")
            yield from lines
            # A last '\r' may be the first half of an end.
            parts, held = [last], len(last)
        if held > LONGEST_LINE:
            raise ValueError(f"prompts file {file} has a line of more than {LONGEST_LINE} characters")
    yield from io.StringIO("".join(parts), newline="")


def whole_text(file: Path, encoding: str = "utf-8") -> str:
    """The content of a text file of at most `LONGEST_TEXT`. Raises as `text_lines`."""
    parts: list[str] = []
    held = 0
    for text in _decoded(file, encoding):
        parts.append(text)
        held += len(text)
        if held > LONGEST_TEXT:
            raise ValueError(f"prompts file {file} has more than {LONGEST_TEXT} characters, too many for one document")
    return "".join(parts)


def stem(file: Path) -> str:
    """The name without its endings: 'photo' of 'photo.txt.gz'."""
    return file.name.partition(".")[0] or file.name


def _decoded(file: Path, encoding: str) -> Iterator[str]:
    """The text in pieces."""
    ends, fed, half = 0, 0, False
    try:
        with ExitStack() as stack:
            opened, limit = _opened(file, stack)
            start = raw = opened.read(_CHUNK)
            if not start:
                raise ValueError(f"prompts file {file} is empty")
            codec, skipped = _codec(file, encoding, start)
            decoder = codecs.getincrementaldecoder(codec)()
            raw, fed = raw[skipped:], skipped
            while True:
                fed += len(raw)
                if fed > limit:
                    raise ValueError(
                        f"prompts file {file} unpacks to more than {limit} bytes, {UNPACKED_RATIO} times its size, "
                        "which prompts do not; gunzip it if it is what you want"
                    )
                try:
                    text = decoder.decode(raw, final=not raw)
                except UnicodeDecodeError as error:
                    before = error.object[: error.start].decode(codec, "replace")
                    raise ValueError(
                        f"prompts file {file} is not {encoding.upper()} text: line {ends + 1 + _ends(before)}, byte "
                        f"{fed - len(error.object) + error.start} of the file; {_other(start, codec)}"
                    ) from None
                except UnicodeError as error:
                    raise ValueError(f"prompts file {file} is not {encoding.upper()} text: {error}") from None
                if "\0" in text:
                    line = ends + 1 + _ends(text[: text.index("\0")])
                    raise ValueError(
                        f"prompts file {file} line {line} holds a NUL byte, which is no part of a prompt; "
                        f"{_wide(start, codec) or 'remove it'}"
                    )
                yield text
                ends += _ends(text) - (half and text.startswith("\n"))
                half = text.endswith("\r") if text else half
                if not raw:
                    return
                raw = opened.read(_CHUNK)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"prompts file {file} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _ends(text: str) -> int:
    return text.count("\n") + text.count("\r") - text.count("\r\n")


def _codec(file: Path, encoding: str, start: bytes) -> tuple[str, int]:
    """The codec that an encoding and a file's first bytes ask for, and the length of the byte-order mark."""
    try:
        "".encode(encoding)
        name = codecs.lookup(encoding).name.removesuffix("-sig")
    except (LookupError, UnicodeError, TypeError, ValueError):
        raise ValueError(f"prompts encoding is {encoding!r}, which Python does not know, as it does utf-8") from None
    for mark, marked in _MARKS:
        if start.startswith(mark):
            family = marked.removesuffix("-le").removesuffix("-be")
            if name not in (marked, family):
                raise ValueError(
                    f"prompts file {file} is {family.upper()} text by its first bytes, expected {encoding.upper()}; "
                    f"encoding={family} reads it"
                )
            return marked, len(mark)
    if name in ("utf-16", "utf-32"):
        raise ValueError(
            f"prompts file {file} has no byte-order mark, which {name.upper()} text has; encoding={name}-le or "
            f"{name}-be reads it without"
        )
    return name, 0


def _other(start: bytes, codec: str) -> str:
    return _wide(start, codec) or "encoding=... names another encoding"


def _wide(start: bytes, codec: str) -> str:
    """A hint at text of 16 or 32 bits a letter, most of whose high bytes are below those of letters.

    Empty for other text, a stray zero byte in it or not, and for what is read as that already.
    """
    places = [start[place::4].translate(None, b"\t\n\r") for place in range(4)]
    low = [sum(byte < 0x20 for byte in part) / max(1, len(start[place::4])) for place, part in enumerate(places)]
    for name, high in (("utf-32-le", (2, 3)), ("utf-32-be", (0, 1)), ("utf-16-le", (1, 3)), ("utf-16-be", (0, 2))):
        if min(low[place] for place in high) > 0.5:
            return "" if name == codec else f"encoding={name} reads {name[:6].upper()} without a byte-order mark"
    return ""


def _opened(file: Path, stack: ExitStack) -> tuple[BinaryIO, float]:
    """The open file, and how many bytes may come out of it."""
    if file.suffix == ".gz":
        limit = max(UNPACKED_BYTES, UNPACKED_RATIO * file.stat().st_size)
        return cast(BinaryIO, stack.enter_context(gzip.open(file, "rb"))), limit
    return stack.enter_context(file.open("rb")), math.inf
