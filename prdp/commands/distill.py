"""`prdp distill`: a student that draws in few steps what its teacher draws in many, with guidance."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prdp.checkpoints.run_folder import WEIGHTS, check_empty
from prdp.cluster.process_threads import apply_threads
from prdp.collaboration.settings import DistillConfig, check_distill
from prdp.configuration.compose import Composer
from prdp.configuration.key_help import topics_among, topics_help
from prdp.configuration.override_words import OverrideParser, quoted_list, split_lists
from prdp.configuration.preconditions import device_problems, precision_problems, refuse
from prdp.configuration.typed import Root, conf_folder, groups, schema_keys
from prdp.support.errors import ConfigError, StartError, start_up_checks

if TYPE_CHECKING:
    from prdp.checkpoints.unfinished import Unfinished
    from prdp.collaboration.distillation import ChainBatch
    from prdp.config import ModelConfig, SamplerConfig
    from prdp.evaluation.models import EvaluatedModel
    from prdp.image_sets.best_images import Chosen
    from prdp.image_sets.reading import ImageSet
    from prdp.types import Float32, Float64

LOG_FILE = "distill_log.jsonl"
_LINES = 10
"""Of the console, over all updates."""
_HELD = 2**30
"""Bytes of chains that are kept in memory."""
_ELSEWHERE = ("model", "rollouts", "output_dir", "checkpoint_every")
"""Keys of the configuration that student.json tells in other places, or that decide nothing of the student."""
_BESIDE = ("models", "rollouts", "output_dir", "checkpoint_every")
"""Keys that another learning may change on the way; models and chains count by their digests."""
DISTILL = Root(name="distill", schema=DistillConfig, groups=("learner", "model", "target"), check=check_distill)
_LISTS = ("models",)
_HELP = """\
The teacher draws first, without noise, and prdp generate keeps its chains:
  prdp generate models=[base] model=shapes prompts=[shapes.train] prompts_per_set=512 images_per_prompt=1 \\
    sampler.eta=0 chains=true output_dir=sets/teacher
  prdp distill model=shapes rollouts.path=sets/teacher target=endpoint output_dir=runs/student
  prdp evaluate models=[base,runs/student] model=shapes prompts=[shapes] rewards=[shapes_judge]

OVERRIDES
  models=[runs/a]                    another teacher than base, by which the chains were drawn
  rollouts.path=sets/teacher         a set that prdp generate has made with chains=true, or [a,b]
  steps=4                            of the student, at most those of the teacher
  target=endpoint                    where a chain ends; consistency: what the student says a step further on
  updates=220  batch_size=64  learner.learning_rate=3e-4  learner.ema_decay=0.98
  learner=lora                       a LoRA of the teacher; full: all its weights
  checkpoint_every=50                updates; the same command again goes on from the last of them
  output_dir=runs/student            a new folder; prdp evaluate takes it as a model
"""
_MORE = """\
More of a key, a section, a group or one of its options:
  prdp distill --help target        prdp distill --help learner.lora"""


def main(arguments: Sequence[str]) -> int:
    """The command."""
    if topics := topics_among(arguments):
        print(topics_help(topics, DISTILL))
        return 0
    options = _parser().parse_intermixed_args(arguments)
    lists, rest = split_lists(options.overrides, _LISTS)
    words = [*(f"{key}={quoted_list(entries)}" for key, entries in lists.items()), *rest]
    with Composer(words, folders=options.config_dir, root=DISTILL) as composer:
        [job] = composer.jobs()
    apply_threads(1)
    distill(job.config)
    return 0


@dataclass(frozen=True)
class Found:
    """What a student is to be made of.

    Attributes:
        model: that it starts as.
        sampler: that it is to draw with.
        times: float64 [T], of the chains' steps.
        sets: of chains.
    """

    model: ModelConfig
    sampler: SamplerConfig
    times: Float64
    sets: tuple[ImageSet, ...]


def distill(config: DistillConfig) -> Path:
    """Check, learn and write; the folder.

    Raises:
        ConfigError, StartError: what is wrong, before anything is learned.
    """
    from prdp.checkpoints.unfinished import Unfinished
    from prdp.diffusion import build_policy
    from prdp.image_sets.best_images import all_images

    folder = Path(config.output_dir)
    check_empty(folder)
    found = check_start(config)
    chains = all_images(found.sets)
    unfinished = Unfinished(folder, _settings(config, found))
    with unfinished.held():
        unfinished.read()  # other settings are refused before anything is loaded
        with start_up_checks():
            policy: Any = build_policy(found.model, config.learner, seed=config.seed, keep_reference=False)
        count = sum(value.numel() for value in policy.weights.parameters.values())
        print(f"{len(chains):,} chains of {len(found.times)} steps, {count:,} weights, target {config.target.name}")
        log = _learn(config, policy, chains, found.times, unfinished)
        _write(config, found, policy, chains[0].entry.prompt, log)
        unfinished.remove()
    print(f"{folder}  (prdp evaluate models=[base,{folder}] ...)")
    return folder


def _settings(config: DistillConfig, found: Found) -> dict[str, Any]:
    """What decides what is learned."""
    sets = [one.manifest.digest for one in found.sets]
    settings = {key: value for key, value in dataclasses.asdict(config).items() if key not in _BESIDE}
    settings["model"] = {**settings["model"], "device": None}
    return {**settings, "chains": sets, "teacher": dict(found.sets[0].manifest.model)["digest"]}


def _learn(
    config: DistillConfig, policy: Any, chains: Sequence[Chosen], times: Float64, unfinished: Unfinished
) -> list[dict[str, float]]:
    """Learn, from where a killed run was; the log of all updates."""
    from prdp.checkpoints.unfinished import Learned
    from prdp.collaboration.distillation import Distillation

    learning = Distillation(policy, times, config)
    log: list[dict[str, float]] = []
    if (learned := unfinished.read()) is not None:
        log = list(learned.facts["log"])
        learning.go_on(learned.tensors, len(log))
        print(f"goes on at update {len(log)} of {config.updates} ({unfinished.place})")
    every = max(1, config.updates // _LINES)
    for one in learning.steps(_batches(policy, chains, config, learning.update)):
        log.append(one)
        if one["update"] % every == 0 or one["update"] == config.updates - 1:
            print(f"update {one['update']}: loss {one['loss']:.4f}, gradient {one['grad_norm']:.3g}", flush=True)
        if config.checkpoint_every and len(log) % config.checkpoint_every == 0 and len(log) < config.updates:
            unfinished.write(Learned({"log": log}, learning.state()))
    return log


def _write(config: DistillConfig, found: Found, policy: Any, prompt: str, log: Sequence[dict[str, float]]) -> None:
    """The folder of the student."""
    from prdp.collaboration.student_files import Student, write_student
    from prdp.diffusion.effective_scheduler import consistency_scheduler
    from prdp.diffusion.usage import USAGE_FILE
    from prdp.support.storage import atomic_directory

    folder, mode = Path(config.output_dir), config.learner.mode
    policy.pipeline.scheduler = consistency_scheduler(policy.scheduler_config, len(found.times))
    facts = {
        "teacher": dict(found.sets[0].manifest.model),
        "rollouts": {str(one.folder): one.manifest.digest for one in found.sets},
        "learned": {key: value for key, value in dataclasses.asdict(config).items() if key not in _ELSEWHERE},
    }
    with atomic_directory(folder) as place:
        weights = place / WEIGHTS
        weights.mkdir()
        policy.save(weights)
        if mode == "lora":
            policy.pipeline.scheduler.save_pretrained(weights / "scheduler")
        usage = policy.usage(found.model, found.sampler, mode, folder / WEIGHTS, prompt)
        (weights / USAGE_FILE).write_text(usage, encoding="utf-8")
        (place / LOG_FILE).write_text("".join(json.dumps(one) + "\n" for one in log), encoding="utf-8")
        write_student(place, Student(found.model, found.sampler), facts)


def check_start(config: DistillConfig) -> Found:
    """Find teacher and chains, and check everything that can be checked without computing.

    Raises:
        ConfigError, StartError: naming the key and what is wrong.
    """
    from prdp.config import ClusterConfig
    from prdp.diffusion import family_of
    from prdp.evaluation.models import find_models
    from prdp.image_sets.checks import latent_problems, missing_problems
    from prdp.image_sets.reading import ImageSet

    teachers = find_models(config.models, config.model)
    if len(teachers) != 1:
        raise ConfigError(f"models={config.models}: holds {len(teachers)} models; a student has one teacher")
    model = _start(teachers[0])
    sets = tuple(ImageSet.open(Path(folder).expanduser()) for folder in config.rollouts.folders)
    problems = device_problems("model.device", model.device, ClusterConfig(kind="inline"), 0.0, True)
    problems = problems or precision_problems(model, config.learner.autocast)
    problems += family_of(model).learner_problems(model, config.learner)
    for one in sets:
        problems += missing_problems(one) or _set_problems(one, teachers[0]) or latent_problems(model, one)
    refuse(problems)
    return _fitting(config, model, sets)


def _start(teacher: EvaluatedModel) -> ModelConfig:
    """What a student of a teacher starts as."""
    if teacher.kind == "pipeline":
        return teacher.model
    if teacher.kind != "lora":
        raise StartError(
            f"models: {teacher.name} is a {teacher.kind}: a student starts as a whole pipeline or a LoRA; give the "
            "exported weights of a run"
        )
    weights = teacher.model.adapter_weights or [1.0] * len(teacher.model.adapters)
    adapters = [*teacher.model.adapters, str(teacher.path)]
    return dataclasses.replace(teacher.model, adapters=adapters, adapter_weights=[*weights, 1.0])


def _set_problems(one: ImageSet, teacher: EvaluatedModel) -> list[str]:
    from prdp.evaluation.models import model_digest

    where, manifest = f"rollouts.path={one.folder}", one.manifest
    if not manifest.latents.get("chains"):
        return [f"{where}: keeps no chains; prdp generate makes a set with them by chains=true"]
    digest = model_digest(teacher)
    if manifest.model["digest"] != digest:
        drawn = f"{manifest.model['name']} ({manifest.model['source']}, digest {manifest.model['digest']})"
        return [f"{where}: its chains were drawn by {drawn}, and the teacher is {teacher.source} ({digest})"]
    return []


def _fitting(config: DistillConfig, model: ModelConfig, sets: Sequence[ImageSet]) -> Found:
    """The times of chains, if the student's sampler can ask at them."""
    import numpy as np

    from prdp.config import SamplerConfig
    from prdp.diffusion import family_of
    from prdp.diffusion.rectified_flow import RectifiedFlow
    from prdp.evaluation.samplers import changed_sampler

    process = family_of(model).process_of(model)
    if isinstance(process, RectifiedFlow):
        raise StartError(f"model.family={model.family}: students of rectified flows are not distilled")
    drawn = [
        changed_sampler(SamplerConfig(), f"rollouts.path={one.folder}: sampler", one.manifest.sampler or {})
        for one in sets
    ]
    if any(one != drawn[0] for one in drawn):
        raise StartError("rollouts.path: the chains of the sets were drawn by different samplers; take sets of one")
    teacher = drawn[0]
    if config.steps > teacher.steps:
        raise ConfigError(f"steps={config.steps}: must be at most {teacher.steps}, the steps of the teacher's chains")
    sampler = SamplerConfig(
        kind="consistency", steps=config.steps, guidance_scale=1.0, original_inference_steps=teacher.steps
    )
    with start_up_checks("rollouts.path"):
        times = process.transitions(teacher).times
        asked = process.transitions(dataclasses.replace(sampler, steps=teacher.steps)).times
    if not np.array_equal(times, asked):
        raise StartError(
            f"rollouts.path={sets[0].folder}: its chains have the timesteps {_listed(times)}, and consistency sampling "
            f"asks at {_listed(asked)}; generate them with sampler.timestep_spacing=trailing and a number of steps "
            "that divides the training timesteps"
        )
    return Found(model, sampler, times, tuple(sets))


def _listed(times: Float64) -> str:
    shown = [f"{time:g}" for time in times]
    return ", ".join(shown if len(shown) < 6 else [*shown[:3], "...", shown[-1]])


def _batches(policy: Any, chains: Sequence[Chosen], config: DistillConfig, first: int) -> Iterator[ChainBatch]:
    """Of all updates from number `first` on."""
    from itertools import islice

    import numpy as np

    from prdp.collaboration.distillation import ChainBatch
    from prdp.image_sets.best_images import shuffled

    held: dict[tuple[str, str, int, int], Float32] = {}
    room = _HELD

    def read(one: Chosen) -> Float32:
        nonlocal room
        key = (str(one.of.folder), one.entry.chunk, one.entry.row, one.number)
        if key in held:
            return held[key]
        chain: Float32 = one.of.chains(one.entry, one.number + 1)[-1]
        if room > chain.nbytes:
            room -= chain.nbytes
            held[key] = chain
        return chain

    for batch in islice(shuffled(chains, config.batch_size, config.seed), first, None):
        yield ChainBatch(np.stack([read(one) for one in batch]), policy.encode([one.entry.prompt for one in batch]))


def _parser() -> argparse.ArgumentParser:
    available = groups([conf_folder()], DISTILL)
    options = "\n".join(f"  {group}  {', '.join(names)}" for group, names in available.items())
    return OverrideParser(
        keys=[*DISTILL.groups, *schema_keys(DistillConfig)],
        prog="prdp distill",
        usage="prdp distill rollouts.path=... [OVERRIDES] [options]",
        description="Distill a student that draws in few steps.",
        epilog=f"{_HELP}\ngroups:\n{options}\n{_MORE}",
    )
