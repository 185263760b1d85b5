"""`prdp prompts write`: prompts for a skill, written by a language model from examples, or by the grammar of shapes."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prdp.configuration.compose import Composer
from prdp.configuration.key_help import topics_among, topics_help
from prdp.configuration.override_words import OverrideParser
from prdp.configuration.secret_values import check_no_secrets
from prdp.configuration.typed import Root, conf_folder, groups, read_config, schema_keys, write_config
from prdp.prompt_writers.settings import FREE_KEYS, WriteConfig, check_write
from prdp.support.errors import ConfigError, StartError

WRITE = Root(name="write_prompts", schema=WriteConfig, groups=("skill", "writer"), check=check_write)
CONFIG_FILE = "config.yaml"
_HELP = """\
OVERRIDES
  skill=coco                         an option of conf/skill, or a file: skill=./my_skill.yaml
  writer=endpoint writer.url=http://127.0.0.1:8000/v1 writer.model=NAME
  writer=transformers writer.path=/models/my-instruct-model
  writer=grammar                     for the skills shapes_*
  count=1000  per_request=20  seed=0  skill.similarity=0.8
  output=prompts/coco.jsonl          the same file again goes on, or is made longer by a larger count

The key of an endpoint comes from the environment variable that writer.key_variable names, PRDP_WRITER_KEY.
What was answered is kept beside the output, in a folder that ends on .answers.
"""
_MORE = """\
More of a key, a section, a group or one of its options:
  prdp prompts write --help barren     prdp prompts write --help skill     prdp prompts write --help writer.endpoint"""


def main(arguments: Sequence[str]) -> int:
    """The command."""
    if topics := topics_among(arguments):
        print(topics_help(topics, WRITE))
        return 0
    options = _parser().parse_intermixed_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        words = [_named(word, Path(folder)) for word in options.overrides]
        folders = [*options.config_dir, *([Path(folder)] if words != options.overrides else [])]
        try:
            with Composer(words, folders=folders, root=WRITE) as composer:
                [job] = composer.jobs()
        except ConfigError as error:
            raise ConfigError(_with_own_names(str(error), options.overrides, words, folder)) from error
    return write(job.config)


def write(config: WriteConfig) -> int:
    """Write what is missing, the file of prompts, and what was kept and dropped.

    Raises:
        ConfigError, StartError: by key, before anything is asked for; or what the writer did.
        WriterError: the writer is away.
    """
    from prdp.checkpoints.run_folder import check_writable
    from prdp.checkpoints.run_lock import hold
    from prdp.prompt_writers import build_writer, check_writer
    from prdp.prompt_writers.log import AnswerLog
    from prdp.prompt_writers.loop import prompts_of, report
    from prdp.prompt_writers.loop import write as ask
    from prdp.prompts.writing import write_prompts

    check_no_secrets(dataclasses.asdict(config))
    check_writer("writer", config.writer, bool(config.skill.scenes))
    output = Path(config.output).expanduser()
    folder = output.with_suffix(".answers")
    if output.exists() and not folder.exists():
        raise ConfigError(f"output={output}: is there, and was not written by this command; take another name")
    check_writable(folder)
    with hold(folder):
        _check_same(config, folder / CONFIG_FILE)
        try:
            log = AnswerLog(folder)
        except ValueError as error:
            raise StartError(str(error)) from None
        write_config(config, folder / CONFIG_FILE)
        try:
            pool = ask(config, lambda: build_writer(config.writer), log, lambda text: print(text, flush=True))
        finally:
            log.close()
        write_prompts(output, prompts_of(pool))
    print(f"{report(pool)}\n{output}")
    return 0


def _named(word: str, folder: Path) -> str:
    """A word that names a skill by its file becomes one that names an option, in a folder of options."""
    key, _, value = word.partition("=")
    if key != "skill" or not value.endswith((".yaml", ".yml")):
        return word
    file = Path(value.strip("'\"")).expanduser()
    if not file.is_file():
        raise ConfigError(f"{word}: there is no such file")
    name = f"file_{''.join(letter if letter.isalnum() else '_' for letter in file.stem)}"
    (folder / "skill").mkdir(exist_ok=True)
    shutil.copyfile(file, folder / "skill" / f"{name}.yaml")
    return f"skill={name}"


def _with_own_names(message: str, given: Sequence[str], words: Sequence[str], folder: str) -> str:
    """A message in which files of skills are called as they were given, not as their copies."""
    for word, copied in zip(given, words, strict=True):
        if word != copied:
            name = f"skill/{copied.partition('=')[2]}.yaml"
            message = message.replace(f"{folder}/{name}", name).replace(name, word.partition("=")[2])
    return message


def _check_same(config: WriteConfig, file: Path) -> None:
    """Refuse to go on with a list under other settings, which earlier prompts were not written by."""
    if not file.exists():
        return
    before, now = _binding(read_config(file, WRITE)), _binding(config)
    other = [key for key in dict.fromkeys((*before, *now)) if before.get(key) != now.get(key)]
    if other:
        raise ConfigError(
            f"output={config.output}: was begun with another {', another '.join(other)}; take another name, or leave "
            "these as they were"
        )


def _binding(config: WriteConfig) -> dict[str, Any]:
    """Dotted key -> value of all that prompts depend on."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        for key, inner in value.items():
            if isinstance(inner, dict):
                walk(f"{prefix}{key}.", inner)
            else:
                flat[f"{prefix}{key}"] = inner

    walk("", dataclasses.asdict(config))
    return {key: value for key, value in flat.items() if key not in FREE_KEYS}


def _parser() -> argparse.ArgumentParser:
    available = groups([conf_folder()], WRITE)
    options = "\n".join(f"  {group:<6}  {', '.join(names)}" for group, names in available.items())
    return OverrideParser(
        keys=[*WRITE.groups, *schema_keys(WriteConfig)],
        prog="prdp prompts write",
        usage="prdp prompts write skill=... writer=... output=FILE.jsonl [OVERRIDES] [options]",
        description="Have a language model write prompts for a skill.",
        epilog=f"{_HELP}\ngroups:\n{options}\n{_MORE}",
    )
