"""Where an error in other people's code, such as a reward of the user's, comes from."""

from __future__ import annotations

import os
import sysconfig
import traceback
from pathlib import Path

_PYTHON = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib")}
_ELSEWHERE = ("<frozen", *(f"{folder}{os.sep}" for folder in {*_PYTHON, str(Path(__file__).parents[1])}))
_INSTALLED = ("site-packages", "dist-packages")
_FRAMES = 4


def told(error: BaseException) -> str:
    """The text of an error, whatever its own `__str__` does."""
    return str(traceback.TracebackException(type(error), error, None, lookup_lines=False))


def own_frames(error: BaseException) -> str:
    """The author's own lines that an error came through, as Python shows them, each line after a newline.

    Those of this package and of installed ones are left out, but for the place where it was raised. Where there are no
    others, the last few of all; nothing of a ValueError, with which this package's own code refuses its input.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _is_own(frame.filename)]
    if not own and isinstance(error, ValueError):
        return ""
    lines = "".join(traceback.format_list((own or frames)[-_FRAMES:])).rstrip()
    if own and frames[-1] is not own[-1]:
        lines += f"\n  raised in {frames[-1].filename}, line {frames[-1].lineno}, in {frames[-1].name}"
    return f"\n{lines}" if lines else ""


def _is_own(filename: str) -> bool:
    return not filename.startswith(_ELSEWHERE) and not any(name in filename.split(os.sep) for name in _INSTALLED)
