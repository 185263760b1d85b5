"""Prompts from a text file, one a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class TextFilePrompts:
    """The non-empty lines of a UTF-8 file, in order.

    Args:
        path: of the file.
        template: '{}' stands for the line, as in 'a painting of a {}'.

    Raises:
        ValueError: no such file, not UTF-8, no prompt in it, or a template without '{}'.
    """

    def __init__(self, path: str, template: str = "{}") -> None:
        if "{}" not in template:
            raise ValueError(f"prompts template is {template!r}, expected it to contain {{}}")
        try:
            lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise ValueError(f"prompts file {path} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"prompts file {path} is not UTF-8 text: byte {error.start}") from None
        self._prompts = [template.replace("{}", line.strip()) for line in lines if line.strip()]
        if not self._prompts:
            raise ValueError(f"prompts file {path} holds no prompt: expected one a line")

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index: int) -> tuple[str, dict[str, Any]]:
        return self._prompts[index], {}
