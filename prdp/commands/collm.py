"""`prdp collm`: a small language model learns which tokens to leave to a larger one, and both write together."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from prdp.cluster.process_threads import apply_threads
from prdp.configuration.compose import Composer
from prdp.configuration.key_help import topics_among, topics_help
from prdp.configuration.override_words import OverrideParser, quoted, quoted_list, split_lists
from prdp.configuration.secret_values import check_no_secrets
from prdp.configuration.typed import Root, schema_keys
from prdp.language import settings
from prdp.support.errors import ConfigError
from prdp.support.suggest import did_you_mean


@dataclass(frozen=True)
class _Command:
    """A command of `prdp collm`.

    Attributes:
        schema: of its keys.
        line: of help.
        usage: what must be given.
        text: examples of overrides.
    """

    schema: type
    line: str
    usage: str
    text: str

    def root(self, name: str) -> Root:
        """Of its configuration."""
        return Root(name=f"collm/{name}", schema=self.schema, groups=(), check=settings.check)


_WRITING = """\
  writing.max_new_tokens=256  writing.batch_size=8
  writing.temperature=0.8  writing.top_p=0.95       sampling; 0 takes the likeliest token
  writing.compose=true                              every token from both models' probabilities
  assistant=/models/large                           another place than the one in the pair's folder"""
COMMANDS = {
    "pretrain": _Command(
        settings.PretrainConfig,
        "train the two tiny models of the embedded task, and write its records",
        "output_dir=runs/task",
        "  seed=0  train=2000  validation=100  test=200  assistant_steps=120",
    ),
    "score": _Command(
        settings.ScoreConfig,
        "compute the assistant's log-probabilities of answers, once",
        "assistant=/models/large data=train.jsonl output_dir=runs/scores",
        '  data=[a.jsonl,b.jsonl]             lines of {"prompt": text, "answer": text}\n'
        "  assistant.url=http://127.0.0.1:8000/v1 assistant.model=NAME tokenizer=/models/small\n"
        "  max_length=2048  batch_size=8",
    ),
    "train": _Command(
        settings.TrainConfig,
        "train a base to defer: weak labels, then the marginal likelihood",
        "base=/models/small scores=runs/scores output_dir=runs/pair",
        "  training.mode=lora                 or full, or head: the deferral row alone\n"
        "  training.cost=0.3                  nats that a call has to be worth; 0 is the paper's\n"
        "  training.steps=400  training.batch_size=32  training.learning_rate=2e-5  training.row_learning_rate=2e-5\n"
        "  init.labels=divergent  init.steps=100  init.row_learning_rate=2e-5\n"
        "  fine_tuned=false                   no fine-tuned base to compare with",
    ),
    "calibrate": _Command(
        settings.CalibrateConfig,
        "find the threshold eta at which a task goes best",
        "pair=runs/pair data=validation.jsonl",
        "  metric=my_metrics.f1               a function (texts, answers) -> a number each\n"
        "  rates=[0,0.1,0.2,0.3]  largest_rate=0.3\n" + _WRITING,
    ),
    "decode": _Command(
        settings.DecodeConfig,
        "write texts, tell who wrote each token, compare with the baselines",
        "pair=runs/pair data=test.jsonl output=answers.jsonl",
        "  prompt=TEXT                        one prompt instead; shown while it is written\n"
        "  eta=0.5                            instead of what prdp collm calibrate found\n"
        "  compare=false                      no baselines\n" + _WRITING,
    ),
}


def main(arguments: Sequence[str]) -> int:
    """The command."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(help_text())
        return 0 if arguments else 2
    name, *words = arguments
    if name not in COMMANDS:
        raise ConfigError(
            f"there is no command '{name}'; commands: {', '.join(COMMANDS)}{did_you_mean(name, COMMANDS)}"
        )
    command = COMMANDS[name]
    root = command.root(name)
    if topics := topics_among(words):
        print(topics_help(topics, root))
        return 0
    options = _parser(name, command).parse_intermixed_args(words)
    words = [_adapted(word, command.schema) for word in options.overrides]
    with Composer(words, folders=options.config_dir, root=root) as composer:
        [job] = composer.jobs()
    check_no_secrets(dataclasses.asdict(job.config))
    apply_threads(1)
    from prdp.diffusion.libraries import quiet
    from prdp.language import learning, writing

    quiet()
    jobs: dict[str, Callable[[Any], object]] = {
        "pretrain": learning.pretrain,
        "score": learning.score,
        "train": learning.train,
        "calibrate": writing.calibrate,
        "decode": writing.write,
    }
    jobs[name](job.config)
    return 0


def help_text() -> str:
    """What `prdp collm --help` prints."""
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {one.line}" for name, one in COMMANDS.items())
    return (
        "A small language model learns which tokens to leave to a larger one, and both write together (Co-LLM).\n\n"
        f"usage: prdp collm <command> [OVERRIDES]\n\ncommands:\n{lines}\n\nMore: prdp collm <command> --help"
    )


def _adapted(word: str, schema: type) -> str:
    """A word as the composer takes it: assistant=FOLDER is short, and texts and lists of files need no quotes."""
    key, separator, value = word.partition("=")
    if not separator:
        return word
    if key == "assistant" and not value.startswith("{"):
        return f"assistant.path={quoted(value)}"
    if key == "prompt":
        return f"prompt={quoted(value)}"
    if key == "data" and schema is settings.ScoreConfig:
        lists, _ = split_lists([word], ["data"])
        return f"data={quoted_list(lists['data'])}"
    return word


def _parser(name: str, command: _Command) -> argparse.ArgumentParser:
    keys: dict[str, Any] = schema_keys(command.schema)
    more = f"More of a key or a section:\n  prdp collm {name} --help {next(iter(keys))}"
    return OverrideParser(
        keys=[*keys],
        prog=f"prdp collm {name}",
        usage=f"prdp collm {name} {command.usage} [OVERRIDES]",
        description=f"{command.line[0].upper()}{command.line[1:]}.",
        epilog=f"OVERRIDES\n{command.text}\n\n{more}",
    )
