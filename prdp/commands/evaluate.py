"""`prdp evaluate`: the same prompts and noise for every model, judged by every reward, in one table and one report."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prdp.checkpoints.run_folder import check_writable
from prdp.checkpoints.run_lock import hold
from prdp.cluster.process_threads import apply_threads
from prdp.configuration.compose import Composer
from prdp.configuration.key_help import groups_text, topics_among, topics_help
from prdp.configuration.override_words import OverrideParser
from prdp.configuration.secret_values import check_no_secrets
from prdp.configuration.typed import conf_folder, schema_keys, write_config
from prdp.diffusion import family_of
from prdp.evaluation.command_line import EVALUATE, read_command_line
from prdp.evaluation.exports import FOLDER as EXPORTS
from prdp.evaluation.exports import check_export, export
from prdp.evaluation.models import BASE, find_models
from prdp.evaluation.preconditions import check_drawing, check_prompts
from prdp.evaluation.samplers import own_samplers
from prdp.evaluation.settings import EvaluateConfig
from prdp.evaluation.store import file_name
from prdp.support.errors import ConfigError, StartError, start_up_checks
from prdp.support.storage import remove_leftovers
from prdp.tracking.console import Progress

if TYPE_CHECKING:
    from prdp.evaluation.models import EvaluatedModel
    from prdp.evaluation.results import Results
    from prdp.evaluation.work import EvaluationWork
    from prdp.types import PromptBatch

_HELP = """\
MODELS are, each with a name before it if you like (gentle:runs/a):
  base                     what the first run was trained from, or model.path=...
  runs/a                   a run of prdp train: its exported weights, else its newest checkpoint
  runs/a/checkpoints       all its checkpoints; or one of them; or runs/a/weights
  runs/sweep               every run of a sweep
  a diffusers folder, a hub id, a LoRA file or folder of diffusers, kohya or PEFT
  runs/gated               what prdp gate wrote

OVERRIDES
  suite=geneval                      a benchmark: its prompts, rewards, how many images; --help suite tells them
  prompts=[shapes,drawbench]         options of conf/prompts: their held-out part; option.train for the other;
                                     a file of prompts; prompts.NAME.KEY=VALUE sets an argument
  rewards=[pickscore,hpsv2]          options of conf/reward, or my_module.my_reward; rewards.NAME.KEY=VALUE
  watch=[redness]                    rewards that no model was optimised for, shown beside
  seeds=[0,1]  images_per_prompt=4  prompts_per_set=256  sampler=ddim50  sampler.steps=20
  features=clip features.path=...    where diversity and drift are measured
  export=[geneval,hpsv2]             folders for others' scripts
  trust=[runs/a]                     runs, or folders of runs, whose own functions, servers and files are used
  output_dir=runs/compare            the same folder again goes on, or adds what is missing

With a run among the models, its sampler, seed, prompts and rewards are taken unless others are given:
  prdp evaluate models=[runs/a,runs/b] output_dir=runs/compare
Of its rewards and prompts only those of this package are taken: a run may come from anybody. A function of yours, a
server, or a file of prompts elsewhere needs trust=[...]; the refusal says what it is.
Without a run, say all of it:
  prdp evaluate models=[base,my_lora.safetensors] model.path=/models/sd prompts=[./my.txt] rewards=[my_rewards.mine]
"""

_ALL_GROUPS = dataclasses.replace(EVALUATE, groups=(*EVALUATE.groups, "prompts", "reward", "suite"))
_MORE = """\
More of a key, a section, a group or one of its options:
  prdp evaluate --help seeds        prdp evaluate --help sampler        prdp evaluate --help reward.pickscore"""


def main(arguments: Sequence[str]) -> int:
    """The command."""
    if topics := topics_among(arguments):
        print(topics_help(topics, _ALL_GROUPS))
        return 0
    options = _parser().parse_intermixed_args(arguments)
    folders = [conf_folder(), *options.config_dir]
    line = read_command_line(options.overrides, folders)
    with Composer(line.words, folders=options.config_dir, root=line.root, additions=line.additions) as composer:
        [job] = composer.jobs()
        apply_threads(job.config.cluster.threads or 1)
        models, prompts = check_start(job.config, line.model_is_given, line.sizes)

        def task(config: EvaluateConfig) -> None:
            evaluate(config, models, prompts, line.notes)

        composer.run(task)
    return 0


def check_start(
    config: EvaluateConfig, model_is_given: bool = True, sizes: Sequence[str] = ()
) -> tuple[list[EvaluatedModel], dict[str, PromptBatch]]:
    """Find models and prompts, and check everything that can be checked without computing.

    Args:
        model_is_given: whether the section `model` says what 'base' is.
        sizes: those of its height and width that hold for every model.

    Raises:
        ConfigError, StartError: naming the key and what is wrong.
    """
    from prdp.prompts import build_prompts
    from prdp.prompts.stream import fixed_prompts

    check_no_secrets(dataclasses.asdict(config))
    size = {name: getattr(config.model, name) for name in sizes}
    models = find_models(config.models, config.model if model_is_given else None, size)
    names = [model.name for model in models]
    if config.against is not None and config.against not in names:
        if config.against != BASE:
            raise ConfigError(f"against={config.against}: must be one of the models {', '.join(names)}, or null")
        if not model_is_given:
            raise StartError("against=base: which model is it? Give model.path=..., against=<its name> or against=null")
        models = [*find_models([BASE], config.model), *models]
    scored = {"rewards": config.rewards, "watch": config.watch}
    check_drawing(config, models, scored, here={"features": config.features})
    prompts = {}
    for name, section in config.prompts.items():
        source = build_prompts(f"prompts.{name}", section)
        prompts[name] = fixed_prompts(source, config.prompts_per_set, config.prompt_seed)
        for tool in config.export:
            check_export(tool, name, prompts[name])
    if config.cluster.reward_environment is None:
        check_prompts(scored, prompts)
    folder = Path(config.output_dir)
    check_writable(folder)
    if (folder / "checkpoints").exists():
        raise ConfigError(f"output_dir={folder}: holds a run; an evaluation needs a folder of its own")
    return models, prompts


def evaluate(
    config: EvaluateConfig,
    models: Sequence[EvaluatedModel],
    prompts: Mapping[str, PromptBatch],
    notes: Sequence[str] = (),
) -> Path:
    """Compute what is missing, then write and print the results; the evaluation's folder."""
    from prdp.evaluation.report import write_report
    from prdp.evaluation.results import gather
    from prdp.evaluation.routing import routings
    from prdp.evaluation.tables import alarms, print_results, write_tables
    from prdp.evaluation.wins import wins
    from prdp.evaluation.work import EvaluationWork, embed_missing, sample_missing, score_missing, space_name
    from prdp.support.targets import build

    folder = Path(config.output_dir)
    with hold(folder), Progress(1, run_dir=folder, interactive=False) as progress:
        say = progress.message
        remove_leftovers(folder, deep=True)
        write_config(config, folder / "config.yaml")
        notes = (*notes, *_size_notes(models), *own_samplers(config, models))
        for note in (str(folder), *notes):
            say(note)
        if len(config.seeds) * config.images_per_prompt < 2:
            say("one image of each prompt: there is no diversity to measure; images_per_prompt=2 or more measures it")
        with start_up_checks():
            work = EvaluationWork.of(config, models, prompts)
            space = build("features", config.features)
        sample_missing(work, say)
        embed_missing(work, space, say)
        identities = {
            name: score_missing(work, name, section, say)
            for name, section in {**config.rewards, **config.watch}.items()
        }
        results = dataclasses.replace(gather(work, identities, space.name, space_name(space)), notes=tuple(notes))
        results = dataclasses.replace(results, routed=routings(results), wins=wins(results))
        write_tables(results)
        _export(results, work)
        report = write_report(results)
        print()
        print_results(results)
        for alarm in alarms(results):
            progress.message(f"ALARM {alarm}")
        say(f"report: {report}")
    return folder


def _size_notes(models: Sequence[EvaluatedModel]) -> list[str]:
    """What models whose pictures, or latents, have several sizes do not have in common."""
    if all(model.shares_noise_with(models[0]) for model in models):
        return []
    sizes = [(model.name, *family_of(model.model).picture_size_of(model.model)) for model in models]
    shown = ", ".join(f"{name} {height} x {width}" for name, height, width in sizes)
    return [
        f"the models' latents differ in shape, so that not all start from the same noise (height x width of pictures: "
        f"{shown}); there is no drift between those that do not. model.height and model.width hold for every model"
    ]


def _export(results: Results, work: EvaluationWork) -> None:
    """Write the folders for others' scripts."""
    config = work.config
    for tool in config.export:
        for model in results.models:
            for prompt_set in work.prompts:
                folder = Path(config.output_dir) / EXPORTS / tool / file_name(prompt_set) / file_name(model.name)
                chunks = [chunk for seed in config.seeds for chunk in work.chunks[model.name, prompt_set, seed]]
                print(f"export: {export(tool, folder, chunks)}")


def _parser() -> argparse.ArgumentParser:
    return OverrideParser(
        keys=[*EVALUATE.groups, *schema_keys(EvaluateConfig)],
        prog="prdp evaluate",
        usage="prdp evaluate models=[...] [OVERRIDES] [options]",
        description="Judge models on the same prompts and the same noise.",
        epilog=f"{_HELP}\n{groups_text(_ALL_GROUPS, _MORE)}",
    )
