"""The notebooks of examples/ run from their first cell to their last, and so does the code of docs/python.md."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
CODE = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("MPLBACKEND", "agg")


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs(file: Path) -> None:
    notebook = json.loads(file.read_text(encoding="utf-8"))
    names: dict[str, object] = {"__name__": "__main__"}
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code":
            assert not cell["outputs"], "notebooks are kept without outputs"
            exec(compile("".join(cell["source"]), f"{file.name}, cell {number}", "exec"), names)


def test_the_code_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(CODE) == 2
    for block in CODE:
        exec(compile(block, "docs/python.md", "exec"), {"__name__": "__main__"})
    epochs = re.findall(r"^(\d) -?\d\.\d+ \d\.\d+(?:e-\d+)? \d", capsys.readouterr().out, re.MULTILINE)
    assert epochs == ["0", "1"]
