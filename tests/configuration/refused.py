"""What validate and train say to a configuration that they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from prdp.cli import main


def refusals(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The message of validate, which is train's too; both exit with 2 and leave nothing behind."""
    messages = []
    for command in ("validate", "train"):
        assert main([command, *words]) == 2
        shown = capsys.readouterr().err
        assert "Traceback" not in shown
        messages.append(shown.removeprefix(f"prdp {command}: "))
    assert messages[0] == messages[1]
    assert list(Path.cwd().glob("runs")) == []
    return messages[0]
