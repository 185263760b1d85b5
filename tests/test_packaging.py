"""What is in the repository is in the package."""

from __future__ import annotations

import configparser
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
