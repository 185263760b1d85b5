"""A text file that others write, of which only the new lines are read."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

_TAIL = 256
"""Bytes before the place to go on from that are compared: a file that was written anew has others there."""
_PIECE = 16 * 2**20
"""Most bytes of one look; what is left is for the next."""


class GrowingFile:
    """Gives the lines that are new since the last look. It costs one `stat` where nothing is.

    A last line without its end is left for the next look: it may be half written. A file that was replaced, cut or
    written over is read from the start. Of one that is gone what was given still counts, until there is another.

    Args:
        path: that need not be there yet.

    Attributes:
        line: number of the lines that were given.
        whole: whether all was read that was there at the last look.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._forget()

    def _forget(self) -> None:
        self.line, self.whole = 0, True
        self._stamp: tuple[int, int, int] | None = None
        self._offset, self._tail, self._gone = 0, b"", False

    def poll(self) -> tuple[bool, list[bytes]]:
        """(whether what was given before counts no more, new lines without their ends).

        Raises:
            OSError: the file is there and cannot be read, or is none. What was given before still counts.
        """
        try:
            found = self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            self._gone = self._stamp is not None
            return False, []
        stamp = (found.st_ino, found.st_size, found.st_mtime_ns)
        if stamp == self._stamp and self.whole and not self._gone:
            return False, []
        if not self.path.is_file():
            raise OSError(f"{self.path} is no plain file")
        with self.path.open("rb") as file:
            replaced = self._gone or (self._stamp is not None and self._stamp[0] != found.st_ino)
            anew = replaced or not self._goes_on(file)
            if anew:
                self._forget()
            file.seek(self._offset)
            piece = file.read(_PIECE)
        self._stamp = stamp
        end = piece.rfind(b"\n") + 1
        self.whole = len(piece) < _PIECE or not end
        lines = piece[:end].split(b"\n")[:-1]
        self.line += len(lines)
        self._offset += end
        self._tail = (self._tail + piece[:end])[-_TAIL:]
        return anew, lines

    def _goes_on(self, file: BinaryIO) -> bool:
        file.seek(self._offset - len(self._tail))
        return file.read(len(self._tail)) == self._tail
