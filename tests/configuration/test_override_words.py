"""Words that Hydra cannot read are told with how to write them; what is told works, in a shell, for any file name."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from prdp.configuration.compose import Composer
from prdp.configuration.override_words import as_typed, how_to_write, split_lists
from prdp.configuration.typed import read_config, write_config
from prdp.evaluation.command_line import read_command_line
from prdp.support.errors import ConfigError, StartError

NAMES = [
    "a (1).txt",
    "a=b.txt",
    "a#b.txt",
    "it's.txt",
    'a"b.txt',
    "a,b.txt",
    "Gemälde von Häusern.txt",
    "[a].txt",
    "{a}.txt",
    "a b.txt",
    "~/x.txt",
    "~b.txt",
    "a[b]{c}.txt",
    "a&b;c!d`e<f>.txt",
    "日本.txt",
    "both ' and \".txt",
    "back\\slash.txt",
    'back\\"slash.txt',
    "ends in \\",
    "null",
    "1e5",
]
KEYS = ("epochs", "learner.learning_rate", "reward")


def path_of(words: list[str]) -> object:
    with Composer(["prompts=text_file", "prompts.heldout.path=h.txt", *words]) as composer:
        return composer.jobs()[0].config.prompts.train["path"]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_told_sets_the_key_to_the_very_name(name: str) -> None:
    [word] = shlex.split(as_typed("prompts.train.path", name))
    assert path_of([word]) == name


@pytest.mark.parametrize("name", NAMES[:9])
def test_a_name_that_needs_quotes_is_told_with_them(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        path_of([f"prompts.train.path={name}"])
    assert str(caught.value).endswith(as_typed("prompts.train.path", name))


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("-epochs", ": keys have no dashes before them: epochs=..."),
        ("--learning-rate=3", ": keys have no dashes before them: learner.learning_rate=3"),
        ("epochs:5", ": it is written without spaces: epochs=5"),
        ("epochs = 5", ": it is written without spaces: epochs=5"),
        ("epochs 5", ": it is written without spaces: epochs=5"),
        ("epochs==5", ": one sign is enough: epochs=5"),
        ("epochs", ": it has no value: epochs=..."),
        ("=", ": key, sign and value are one word without spaces, such as epochs=20"),
        ("5", ": it has no key; key, sign and value are one word, such as epochs=20"),
        ("reward=[a", ""),
    ],
)
def test_other_forms_are_told_how_to_write(word: str, says: str) -> None:
    assert how_to_write(word, KEYS) == says


@pytest.mark.parametrize(
    ("word", "entries"),
    [
        ("models=[a,b]", ["a", "b"]),
        ("models=a", ["a"]),
        ("models=[ x:a , 'b' ,]", ["x:a", "b"]),
        ("models=[it's,b]", ["it's", "b"]),
        ("models=['x:runs/a=1,b=2',c]", ["x:runs/a=1,b=2", "c"]),
        ('models=["my expert, v1 [x]","it\'s, too"]', ["my expert, v1 [x]", "it's, too"]),
        ("models=['',]", []),
    ],
)
def test_entries_of_a_list_may_be_quoted(word: str, entries: list[str]) -> None:
    assert split_lists([word, "epochs=3"], ["models"]) == ({"models": entries}, ["epochs=3"])


def test_home_is_expanded_where_hydra_makes_the_folder_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with Composer(["experiment=shapes_smoke", "output_dir=~/runs/a", "model.path=~/sd"]) as composer:
        config = composer.jobs()[0].config
        assert (config.output_dir, config.model.path) == (str(tmp_path / "runs" / "a"), "~/sd")
        assert f'output_dir="{tmp_path}/runs/a"' in composer.overrides


def test_a_reference_is_resolved_once_and_a_text_never_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEXT", "b ${5} \\${x} {}")
    words = ["prompts=text_file", "prompts.heldout.path=h.txt", "prompts.train.path=t.txt"]
    words += [r"prompts.train.template='a \${5} {}'", "prompts.heldout.template=${oc.env:TEXT}"]
    with Composer(words) as composer:
        config = composer.jobs()[0].config
    assert config.prompts.train["template"] == "a ${5} {}"
    assert config.prompts.heldout["template"] == "b ${5} \\${x} {}"
    write_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == config


def test_a_model_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StartError, match=r"models: runs/nope: there is no runs/nope$"):
        read_command_line(["models=[runs/nope]"], [])
    (tmp_path / "out" / "nice").mkdir(parents=True)
    with pytest.raises(StartError, match=r"models: my:out/nise: there is no out/nise. Did you mean 'nice'\?"):
        read_command_line(["models=[my:out/nise]"], [])


@pytest.mark.parametrize("words", [["--help"], ["status", "."], ["train", "nonsense"], ["pretrain", "--help"]])
def test_a_reader_that_goes_away_is_no_fault(words: list[str], tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "prdp", *words],
        stdout=writing,
        stderr=writing if "nonsense" in words else subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    os.close(writing)
    if words[0] == "status":
        assert (done.returncode, b"Traceback" in done.stderr) == (2, False)  # it has nothing to say on standard output
    else:
        assert (done.returncode, done.stderr or b"") == (141, b"")
