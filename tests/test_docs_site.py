"""The documentation as a site: built strictly, so that a link or an anchor to nothing fails, and whole."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

pytest.importorskip("mkdocs")

from prdp.cli import COMMANDS
from prdp.configuration.typed import conf_folder, groups, schema_keys

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def text_of(page: Path) -> str:
    return unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")))


def test_the_reference_has_every_key_option_and_command(site: Path) -> None:
    keys = text_of(site / "reference" / "configuration" / "index.html")
    assert [key for key in schema_keys() if key not in keys] == []
    options = text_of(site / "reference" / "options" / "index.html")
    named = [f"{group}={name}" for group, names in groups([conf_folder()]).items() for name in names]
    assert [name for name in named if name not in options] == []
    commands = text_of(site / "reference" / "commands" / "index.html")
    assert [name for name in COMMANDS if f"prdp {name}" not in commands] == []
    assert "load_model" in text_of(site / "reference" / "python" / "index.html")


def test_pages_of_the_root_are_there_and_lead_on(site: Path) -> None:
    start = (site / "index.html").read_text(encoding="utf-8")
    assert 'href="evaluation/"' in start and "before_after.png" in start
    assert (site / "contributing" / "index.html").is_file() and (site / "changelog" / "index.html").is_file()
    assert 'href="prdp/' not in start and 'href="conf/' not in start, "files of code are named, not linked"
