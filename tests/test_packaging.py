"""What is in the repository is in the package."""

from __future__ import annotations

import configparser
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def options() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_every_room_is_packaged(options: configparser.ConfigParser) -> None:
    rooms = {".".join(file.parent.relative_to(ROOT).parts) for file in ROOT.glob("prdp/**/__init__.py")}
    assert set(options["options"]["packages"].split()) == rooms | {"prdp.conf"}


def test_tested_versions_are_within_the_requirements(options: configparser.ConfigParser) -> None:
    requirement = pytest.importorskip("packaging.requirements").Requirement
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = {pin.partition("==")[0].lower(): pin.partition("==")[2] for pin in lines}
    for line in options["options"]["install_requires"].strip().splitlines():
        wanted = requirement(line)
        assert pinned[wanted.name.lower()] in wanted.specifier


HOSTS = re.compile(r"pypi\.(org|python)|pythonhosted|download\.pytorch|anaconda\.(org|com)|index-url[ =]+[\"']?http")
FOLDERS = ("conf", "docker", "docs", "launch", "prdp", "benchmarks")


def test_no_host_of_packages_is_named() -> None:
    """Where packages come from is for pip's configuration, or an argument, to say."""
    files = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*")] + list(ROOT.iterdir())
    suffixes = ("", ".py", ".md", ".yaml", ".sh", ".txt", ".toml", ".cfg")
    texts = [file for file in files if file.is_file() and file.suffix in suffixes]
    assert {"Dockerfile", "cluster.md", "Makefile"} <= {file.name for file in texts}
    assert [str(file) for file in texts if HOSTS.search(file.read_text(encoding="utf-8", errors="replace"))] == []


@pytest.mark.parametrize(("index", "words"), [("", ""), ("the index", "--index-url|the index|")])
def test_an_empty_index_leaves_pip_to_itself(index: str, words: str) -> None:
    [line] = [line for line in (ROOT / "docker" / "Dockerfile").read_text().splitlines() if "--index-url" in line]
    command = ["sh", "-c", line.removeprefix("RUN ").replace("pip install", "printf '%s|'")]
    done = subprocess.run(command, env={"TORCH_INDEX": index}, capture_output=True, text=True, check=True)
    assert done.stdout == f"{words}-c|constraints.txt|torch|"
