"""`prdp generate`: a set of images that training reads: drawn by one model, scored by any rewards."""

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
from prdp.configuration.sampler_bounds import without_noise
from prdp.configuration.secret_values import check_no_secrets
from prdp.configuration.typed import Root, conf_folder, schema_keys, write_config
from prdp.evaluation.command_line import FROM_RUN, Command, read_command_line
from prdp.evaluation.models import EvaluatedModel, find_models
from prdp.evaluation.preconditions import check_drawing
from prdp.evaluation.samplers import own_samplers, sampler_of
from prdp.evaluation.store import file_name
from prdp.image_sets.settings import GenerateConfig, check_generate
from prdp.support.errors import ConfigError, start_up_checks
from prdp.support.storage import remove_leftovers
from prdp.tracking.console import Progress

if TYPE_CHECKING:
    from prdp.image_sets.origins import Origin
    from prdp.image_sets.pictures import PictureFolder
    from prdp.types import PromptBatch

GENERATE = Root(
    name="generate",
    schema=GenerateConfig,
    groups=("cluster", "model", "sampler"),
    check=check_generate,
    nodes={FROM_RUN: {}},
)
GENERATION = Command(
    GENERATE,
    ("models", "prompts", "rewards"),
    all_columns=True,
    instead={"pictures": {"images_per_prompt": 1}},
)
_ALL_GROUPS = dataclasses.replace(GENERATE, groups=(*GENERATE.groups, "prompts", "reward"))
_HELP = """\
One model draws: models=[base], or the path of a run, a checkpoint, exported weights, a diffusers folder, a LoRA file.

OVERRIDES
  prompts=[shapes.train,count:my.jsonl]   options of conf/prompts: their held-out part; option.train for the other;
                                     files of prompts, whose columns travel along as metadata
  rewards=[shapes_judge]             options of conf/reward, or my_module.my_reward; scores that are kept
  images_per_prompt=8  prompts_per_set=1024  seed=0  latents=float16  sampler=ddim50  sampler.steps=20
  output_dir=sets/base               the same folder again goes on, or adds scores

  pictures=my_folder                 your own pictures with captions, in place of models and prompts
  pictures=my_folder strength=0.6    image to image: the model draws from the pictures what their captions ask for
  pictures=my_edges control=canny    a ControlNet reads the pictures

With a run as the model, its sampler is taken unless another is given.
  prdp generate models=[base] model=shapes prompts=[shapes.train] rewards=[shapes_judge] output_dir=sets/base
Train on it:
  prdp train rollouts.source=stored rollouts.path=sets/base objective=best_of_n
"""
_MORE = """\
More of a key, a section, a group or one of its options:
  prdp generate --help latents        prdp generate --help sampler        prdp generate --help reward.pickscore"""


def main(arguments: Sequence[str]) -> int:
    """The command."""
    if topics := topics_among(arguments):
        print(topics_help(topics, _ALL_GROUPS))
        return 0
    options = _parser().parse_intermixed_args(arguments)
    line = read_command_line(options.overrides, [conf_folder(), *options.config_dir], GENERATION)
    with Composer(line.words, folders=options.config_dir, root=line.root, additions=line.additions) as composer:
        [job] = composer.jobs()
        apply_threads(job.config.cluster.threads or 1)
        found = check_start(job.config, line.model_is_given, line.sizes)
        composer.run(lambda config: generate(config, found, line.notes))
    return 0


@dataclasses.dataclass(frozen=True)
class Found:
    """What a set is to be made of.

    Attributes:
        origin: of the images.
        prompts: name of each prompt set -> its prompts.
        notes: what people ought to know of them.
    """

    origin: Origin
    prompts: Mapping[str, PromptBatch]
    notes: tuple[str, ...]


def check_start(
    config: GenerateConfig, model_is_given: bool = True, sizes: Sequence[str] = ()
) -> Found:
    """Find the images' origin and the prompts, and check everything that can be checked without computing.

    Args:
        model_is_given: whether the section `model` says what 'base' is.
        sizes: those of its height and width that hold for every model.

    Raises:
        ConfigError, StartError: naming the key and what is wrong.
    """
    check_no_secrets(dataclasses.asdict(config))
    folder = Path(config.output_dir)
    check_writable(folder)
    if (folder / "checkpoints").exists():
        raise ConfigError(f"output_dir={folder}: holds a run; a set of images needs a folder of its own")
    if config.pictures is None:
        return _drawn(config, model_is_given, sizes)
    if config.strength is None and config.control is None:
        return _pictures(config, config.pictures)
    return _edited(config, config.pictures, model_is_given, sizes)


def _drawn(config: GenerateConfig, model_is_given: bool, sizes: Sequence[str]) -> Found:
    from prdp.image_sets.origins import Drawn
    from prdp.prompts import build_prompts
    from prdp.prompts.stream import fixed_prompts, pass_length

    model = _the_model(config, model_is_given, sizes)
    prompts, notes = {}, []
    for name, section in config.prompts.items():
        source = build_prompts(f"prompts.{name}", section)
        there = pass_length(source)
        prompts[name] = fixed_prompts(source, config.prompts_per_set or there, config.prompt_seed)
        if len(prompts[name]) < there:
            notes.append(f"{name}: {len(prompts[name]):,} of its {there:,} prompts (prompts_per_set=null takes all)")
    _check_chains(config, model)
    notes += own_samplers(config, [model])
    return Found(Drawn(config, model), prompts, tuple(notes))


def _the_model(config: GenerateConfig, model_is_given: bool, sizes: Sequence[str]) -> EvaluatedModel:
    size = {name: getattr(config.model, name) for name in sizes}
    models = find_models(config.models, config.model if model_is_given else None, size)
    if len(models) != 1:
        names = ", ".join(model.name for model in models)
        raise ConfigError(f"models: a set is drawn by one model, and {config.models[0]} holds {len(models)}: {names}")
    check_drawing(config, models, {"rewards": config.rewards})
    return models[0]


def _check_chains(config: GenerateConfig, model: EvaluatedModel) -> None:
    sampler = sampler_of(config, model)
    if config.chains and model.kind == "cascade":
        raise ConfigError(f"chains=true: {model.name} is a cascade, whose images have no single chain")
    if config.chains and not without_noise(sampler):
        raise ConfigError(
            f"chains=true: needs a sampler that draws no noise, such as sampler.kind=ddim sampler.eta=0 (given "
            f"sampler.kind={sampler.kind} sampler.eta={sampler.eta:g}): only then the start tells the end"
        )


def _pictures(config: GenerateConfig, path: str) -> Found:
    from prdp.diffusion import family_of
    from prdp.image_sets.origins import Pictures

    folder = _folder(path)
    origin = Pictures(config, folder)
    check_drawing(config, [origin.model], {"rewards": config.rewards}, sampled=False)
    if not hasattr(family_of(config.model), "encode_images"):
        raise ConfigError(f"pictures={path}: model.family={config.model.family} has no encode_images")
    return _with_captions(origin, folder, ())


def _edited(config: GenerateConfig, path: str, model_is_given: bool, sizes: Sequence[str]) -> Found:
    from prdp.evaluation.cascades import Given
    from prdp.image_sets.editing import check_controlled, check_editing
    from prdp.image_sets.origins import Edited

    folder, model = _folder(path), _the_model(config, model_is_given, sizes)
    if config.control is not None:
        told = check_controlled(model, config.control)
    else:
        assert config.strength is not None
        told = check_editing(model, sampler_of(config, model), config.strength)
    given = Given(config.strength, config.control, config.control_scale)
    return _with_captions(Edited(config, model, folder, given), folder, (*own_samplers(config, [model]), told))


def _folder(path: str) -> PictureFolder:
    from prdp.image_sets.pictures import PictureFolder

    with start_up_checks("pictures"):
        return PictureFolder(path)


def _with_captions(origin: Origin, folder: PictureFolder, notes: Sequence[str]) -> Found:
    """A set whose prompts are the captions of pictures."""
    from prdp.diffusion import family_of
    from prdp.prompts.stream import prompts_at

    enlarged = folder.note(family_of(origin.model.model).picture_size_of(origin.model.model))
    name = file_name(folder.folder.resolve().name)
    return Found(origin, {name: prompts_at(folder, range(len(folder)), 0)}, (*notes, *filter(None, [enlarged])))


def generate(config: GenerateConfig, found: Found, notes: Sequence[str] = ()) -> None:
    """Make what is missing of the set in `config.output_dir`."""
    from prdp.image_sets.making import make, size_text, work_of
    from prdp.image_sets.reading import ImageSet
    from prdp.image_sets.selection import selection_lines

    folder = Path(config.output_dir)
    with hold(folder), Progress(1, run_dir=folder, interactive=False) as progress:
        say = progress.message
        remove_leftovers(folder, deep=True)
        size = size_text(config, found.origin.model, found.prompts)
        for note in (str(folder), *notes, *found.notes, size):
            say(note)
        with start_up_checks():
            work = work_of(config, found.origin, found.prompts)
        write_config(config, folder / "config.yaml")
        manifest = make(work, found.origin, say)
        for line in selection_lines(ImageSet.open(folder)):
            say(line)
        scored = ", ".join(manifest.rewards) or "nothing"
        say(f"set of {manifest.prompts:,} prompts, scored by {scored}: {folder}")


def _parser() -> argparse.ArgumentParser:
    return OverrideParser(
        keys=[*GENERATE.groups, *schema_keys(GenerateConfig)],
        prog="prdp generate",
        usage="prdp generate models=[...] prompts=[...] [OVERRIDES] [options]",
        description="Draw a set of images that training reads.",
        epilog=f"{_HELP}\n{groups_text(_ALL_GROUPS, _MORE)}",
    )
