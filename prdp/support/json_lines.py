"""Files of JSON lines: one JSON value a line, and a line ends at '\\n' alone.

A prompt may hold U+2028, U+0085 or a form feed, at which `str.splitlines` would cut it in two.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_ESCAPED = str.maketrans({letter: f"\\u{ord(letter):04x}" for letter in "\x7f\x85\u2028\u2029"})


def json_line(value: Any, allow_nan: bool = False) -> str:
    """A value as one line with its end.

    What `str.splitlines` takes for line ends is written as an escape, so that readers that split so get whole lines.

    Raises:
        ValueError: NaN or an infinity in it, unless `allow_nan`.
        TypeError: what JSON cannot hold.
    """
    # JSON holds these letters in strings alone, where an escape means the same.
    return json.dumps(value, allow_nan=allow_nan, ensure_ascii=False).translate(_ESCAPED) + "\n"


def load_json(content: str | bytes) -> Any:
    """The JSON value of a text.

    Raises:
        ValueError: it is no JSON, not UTF-8, or nested too deeply to be read.
    """
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError(f"nested too deeply: {error}") from None


def read_json_lines(path: Path, parse: Callable[[Any], T], cut_off: bool = False) -> list[T]:
    """The lines of a file, each through `parse`; empty lines at the end are none.

    Args:
        path: UTF-8 text.
        parse: from the JSON value of a line to what is wanted of it; raises ValueError, KeyError, TypeError,
            AttributeError or OverflowError for what it does not expect.
        cut_off: whether a last line that is damaged is left out, as a killed writer may leave it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line that is no JSON or that `parse` refuses, by file and line.
    """
    lines = path.read_bytes().split(b"\n")
    while lines and not lines[-1].strip():
        lines.pop()
    found: list[T] = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(parse(json.loads(line)))
        except KeyError as error:
            problem = f"it lacks {error}"
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            problem = str(error)
        else:
            continue
        if cut_off and number == len(lines):
            break
        raise ValueError(f"{path} line {number} is damaged: {problem}")
    return found
