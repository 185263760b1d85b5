"""Pictures from files that somebody else may have made: of known formats, and of a bounded size."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""Ending of a file -> its format, in folders of pictures; other files there are not looked at."""
MAX_PIXELS = 64_000_000
"""A small file can declare any size, and takes that much memory once it is decoded."""


@contextlib.contextmanager
def opened_picture(path: Path, formats: Sequence[str] = ("PNG",)) -> Iterator[Image]:
    """A file as a Pillow image; decoding it within the block is covered by the errors, too.

    Args:
        formats: those that are taken, by Pillow's names.

    Raises:
        ValueError: no whole picture, or one of more than `MAX_PIXELS`.
        FileNotFoundError: there is none.
    """
    from PIL import Image, UnidentifiedImageError

    content = path.read_bytes()
    try:
        with Image.open(io.BytesIO(content), formats=list(formats)) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"it declares {width} x {height} pixels, at most {MAX_PIXELS} are taken")
            yield image
    except UnidentifiedImageError as error:  # Pillow's words show the buffer's place in memory
        known = " or ".join(dict.fromkeys(formats))
        raise ValueError(f"{path} is not a whole picture: it begins as no {known} does") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not a whole picture: {error}") from error
