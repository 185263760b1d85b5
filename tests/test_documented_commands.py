"""Every command line of the documentation is one that the programs take: its keys, options and values are composed.

What a line asks for runs elsewhere: in tests/test_guides.py, and in tests of the examples and of each command.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from composing import compose
from documented_blocks import PAGES, ROOT, blocks, words_of
from omegaconf import OmegaConf

from prdp.cli import COMMANDS
from prdp.config import TrainConfig
from prdp.configuration.compose import Composer
from prdp.support.errors import ConfigError, UserError
from prdp.support.interruption import interruptions_raised

STANDS_FOR = {"experiment=...": "experiment=shapes_demo", "<the same words>": "experiment=shapes_demo"}
"""What a page leaves to its reader."""
ELIDED = "..."
"""Further words, without which the line may miss values."""
WORK_ON_FILES = {"export", "report", "status", "wandb-layout", "watch"}
"""Commands that have options instead of a configuration: they take the words, and find no such run."""
READ_PROMPTS = [["inspect"], ["stats"], ["dedupe"], ["split"], ["leakage"], ["used"]]
"""Likewise, of `prdp prompts`."""


def commands(page: Path) -> Iterator[list[str]]:
    """The words behind `prdp` of each line in a block of the page, continued lines joined and comments cut off."""
    for block in blocks(page):
        for line in block.commands() if block.is_shell else ():
            if line.startswith("prdp "):
                yield [STANDS_FOR.get(word, word) for word in words_of(line)[1:]]


LINES = [(page, words) for page in PAGES for words in commands(page)]


class Composed(Exception):
    """The line was taken; what it asks for is left out."""


@pytest.fixture(scope="module")
def run_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("run") / "config.yaml"
    config = compose("experiment=shapes_demo", "output_dir=runs/one")
    file.write_text(OmegaConf.to_yaml(OmegaConf.structured(TrainConfig(**vars(config)))))
    return file


def make_files(page: Path, words: list[str], run_config: Path) -> None:
    """The files that the page shows, and a run in each folder that the words name as one."""
    for block in blocks(page):
        if block.file:
            Path(block.file).parent.mkdir(parents=True, exist_ok=True)
            Path(block.file).write_text(block.text, encoding="utf-8")
    for folder in re.findall(r"\bruns/[\w/]+", " ".join(word for word in words if word.startswith("models="))):
        Path(folder, "weights").mkdir(parents=True, exist_ok=True)
        shutil.copy(run_config, Path(folder, "config.yaml"))
    for file in re.findall(r"prompts=\[\w+:([\w.]+)\]", " ".join(words)):
        Path(file).touch()
    for named in re.findall(r"\bprompts=([\w.,:]+)", " ".join(words)):
        for file in re.findall(r"\w+\.\w+", named):
            Path(file).touch()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "words"), LINES, ids=[f"{page.stem}-{' '.join(words)[:60]}" for page, words in LINES]
)
def test_a_documented_command_is_taken(
    page: Path, words: list[str], run_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    make_files(page, words, run_config)
    name, *rest = words[1:] if words[0] == "supervise" else words
    module, _, function = COMMANDS[name][0].partition(":")
    if name in WORK_ON_FILES or rest[:1] in READ_PROMPTS:
        with contextlib.suppress(UserError):
            getattr(import_module(module), function)(rest)
        return
    jobs = Composer.jobs

    def composed(composer: Composer) -> None:
        assert jobs(composer)
        raise Composed

    monkeypatch.setattr(Composer, "jobs", composed)
    with interruptions_raised(), pytest.raises((Composed, ConfigError)) as caught:
        getattr(import_module(module), function)([word for word in rest if word != ELIDED])
    missing = ELIDED in rest and str(caught.value).startswith("no value for ")
    assert missing or isinstance(caught.value, Composed), caught.value


def test_documented_programs_and_targets_are_there() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for block in blocks(page):
            for program in re.findall(r"^python (benchmarks/\S+\.py)", block.text, re.MULTILINE):
                assert (ROOT / program).is_file(), f"{page.name}: {program}"
            for target in re.findall(r"^make ([\w-]+)", block.text, re.MULTILINE):
                assert target in targets, f"{page.name}: make {target}"


def test_lines_are_found() -> None:
    assert len(LINES) > 80
    assert {words[0] for _, words in LINES} >= {"train", "validate", "evaluate", "generate", "merge", "distill"}
