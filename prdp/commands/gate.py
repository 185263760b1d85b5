"""`prdp gate`: experts of one base in one model, weighted for each image and step by gates that learn from sets."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prdp.checkpoints.run_folder import check_empty
from prdp.cluster.process_threads import apply_threads
from prdp.configuration.compose import Composer
from prdp.configuration.key_help import topics_among, topics_help
from prdp.configuration.override_words import OverrideParser, quoted_list, split_lists
from prdp.configuration.preconditions import device_problems, precision_problems, refuse
from prdp.configuration.typed import Root, conf_folder, groups, schema_keys
from prdp.experts.gate_settings import GateConfig, check_gate
from prdp.support.errors import ConfigError, start_up_checks

if TYPE_CHECKING:
    from prdp.checkpoints.unfinished import Unfinished
    from prdp.evaluation.experts import FoundExperts
    from prdp.experts.gate_training import GateBatch
    from prdp.image_sets.best_images import Chosen

LOG_FILE = "gate_log.jsonl"
_LINES = 10
"""Of the console, over all steps."""
_AVERAGED = 16
"""Batches that the frozen average is taken over, at most."""
GATE = Root(name="gate", schema=GateConfig, groups=("model",), check=check_gate)
_LISTS = ("models", "aspects")
_BESIDE = ("models", "rollouts", "output_dir", "checkpoint_every")
"""Keys that may change while gates learn; experts, images and the base count by their digests."""
_HELP = """\
MODELS are the experts, as prdp merge takes them: runs, a sweep, LoRA files. The base is what the first run was trained
from, unless model=... or model.path=... is given.

OVERRIDES
  rollouts.path=sets/base            a set of images that prdp generate has made, or [a,b]
  aspects=[shapes_judge.color,shapes_judge.shape]
                                     learn from the best image of every prompt by each; without, from all images
  gate.share=block                   a gate for each block instead of each layer
  gate.steps=400  gate.batch_size=16  gate.learning_rate=1e-2  gate.balance=0.01
  gate.frozen_average=true           also one LoRA with the gates' average weights
  checkpoint_every=50                steps; the same command again goes on from the last of them
  output_dir=runs/gated              a new folder; prdp evaluate takes it as a model
"""
_MORE = """\
More of a key, a section, a group or one of its options:
  prdp gate --help gate        prdp gate --help model"""


def main(arguments: Sequence[str]) -> int:
    """The command."""
    if topics := topics_among(arguments):
        print(topics_help(topics, GATE))
        return 0
    options = _parser().parse_intermixed_args(arguments)
    lists, rest = split_lists(options.overrides, _LISTS)
    words = [*(f"{key}={quoted_list(entries)}" for key, entries in lists.items()), *rest]
    with Composer(words, folders=options.config_dir, root=GATE) as composer:
        [job] = composer.jobs()
    apply_threads(1)
    keys = [word.lstrip("+").partition("=")[0] for word in rest]
    named = {key.split(".")[1] for key in keys if key.startswith("model.")}
    gate(job.config, "model" in keys or "path" in named, named)
    return 0


def gate(config: GateConfig, model_is_given: bool = True, named: Collection[str] = ()) -> Path:
    """Check, learn and write; the folder.

    Args:
        model_is_given: whether the section `model` names the base, also where an expert is a run's.
        named: keys of the section that hold whatever the base is, such as its device.

    Raises:
        ConfigError, StartError: what is wrong, before anything is learned.
    """
    from prdp.checkpoints.unfinished import Unfinished
    from prdp.config import LearnerConfig
    from prdp.diffusion import build_policy
    from prdp.experts.gate import Mixture

    folder = Path(config.output_dir)
    check_empty(folder)
    found, chosen, notes = check_start(config, model_is_given, named)
    config = _with_base(config, found, model_is_given, named)
    unfinished = Unfinished(folder, _settings(config, found, chosen))
    with unfinished.held():
        unfinished.read()  # other settings are refused before anything is loaded
        for note in notes:
            print(note)
        with start_up_checks():
            learner = LearnerConfig(mode="frozen", autocast=config.autocast)
            policy: Any = build_policy(config.model, learner, seed=config.seed, keep_reference=False)
            mixture = Mixture(policy.network, found.experts, config.gate.share)
        count = sum(value.numel() for value in mixture.parameters.values())
        print(f"{len(found.experts)} experts, {len(mixture.gates)} gates of {count:,} weights, {len(chosen):,} images")
        log = _learn(config, policy, mixture, chosen, unfinished)
        _write(config, policy, mixture, found, chosen, log)
        unfinished.remove()
    print(f"{folder}  (prdp evaluate models=[{folder}] ...)")
    return folder


def _settings(config: GateConfig, found: FoundExperts, chosen: Sequence[Chosen]) -> dict[str, Any]:
    """What decides what gates learn."""
    from prdp.diffusion.pipeline_formats import FORMATS
    from prdp.evaluation.models import BASE, EvaluatedModel, model_digest

    settings = {key: value for key, value in dataclasses.asdict(config).items() if key not in _BESIDE}
    settings["model"] |= {"device": None}
    del settings["gate"]["frozen_average"]  # it is taken afterwards
    images = hashlib.blake2b(digest_size=12)
    for one in chosen:
        images.update(f"{one.entry.prompt}|{one.entry.latents[one.number]}|".encode())
    has_files = any(config.model.family == one.family for one in FORMATS)
    return {
        **settings,
        "models": [f"{expert.name} (SHA-256 {expert.digest[:12]})" for expert in found.experts],
        "rollouts": {"path": f"{len(chosen)} images (digest {images.hexdigest()})"},
        "files of model": {"path": model_digest(EvaluatedModel(BASE, "pipeline", config.model)) if has_files else None},
    }


def _learn(
    config: GateConfig, policy: Any, mixture: Any, chosen: Sequence[Chosen], unfinished: Unfinished
) -> list[dict[str, Any]]:
    """Learn, from where a killed run was; the log of all steps."""
    from prdp.checkpoints.unfinished import Learned
    from prdp.experts.gate_training import GateTraining

    settings, log = config.gate, list[dict[str, Any]]()
    training = GateTraining(
        policy,
        mixture,
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        balance_weight=settings.balance,
        seed=config.seed,
    )
    if (learned := unfinished.read()) is not None:
        log = list(learned.facts["log"])
        with start_up_checks(f"{unfinished.place}"):
            training.go_on(learned.tensors, len(log))
        print(f"goes on at step {len(log)} of {settings.steps} ({unfinished.place})")
    every = max(1, settings.steps // _LINES)
    for one in training.learn(_batches(policy, chosen, settings.batch_size, config.seed, training.step)):
        log.append(one)
        if one["step"] % every == 0 or one["step"] == settings.steps - 1:
            print(_line(one), flush=True)
        if config.checkpoint_every and len(log) % config.checkpoint_every == 0 and len(log) < settings.steps:
            unfinished.write(Learned({"log": log}, training.state()))
    return log


def _write(
    config: GateConfig,
    policy: Any,
    mixture: Any,
    found: FoundExperts,
    chosen: Sequence[Chosen],
    log: Sequence[dict[str, Any]],
) -> None:
    """The folder of the gated model."""
    from prdp.experts.gate_files import write_gated
    from prdp.experts.gate_training import average_gates
    from prdp.support.storage import atomic_directory

    settings, averages = config.gate, {}
    if settings.frozen_average:
        averages = average_gates(
            policy,
            mixture,
            _batches(policy, chosen, settings.batch_size, config.seed),
            count=min(_AVERAGED, -(-len(chosen) // settings.batch_size)),
            seed=config.seed,
        )
    sets = {str(one.of.folder): one.of for one in chosen}
    learned = {
        **dataclasses.asdict(settings),
        "seed": config.seed,
        "aspects": list(config.aspects),
        "sets": {name: one.manifest.digest for name, one in sets.items()},
    }
    with atomic_directory(Path(config.output_dir)) as place:
        write_gated(place, mixture, found.experts, settings.share, config.model, {"learned": learned})
        (place / LOG_FILE).write_text("".join(json.dumps(one) + "\n" for one in log), encoding="utf-8")
        if settings.frozen_average:
            _write_average(place, mixture, found, averages)


def check_start(
    config: GateConfig, model_is_given: bool, named: Collection[str] = ()
) -> tuple[FoundExperts, list[Chosen], list[str]]:
    """Find experts and images, and check everything that can be checked without computing; what people should know.

    Raises:
        ConfigError, StartError: naming the key and what is wrong.
    """
    from prdp.config import ClusterConfig
    from prdp.diffusion import family_of
    from prdp.evaluation.experts import find_experts
    from prdp.experts.gate import fitting_layers
    from prdp.experts.merge import absent_layers
    from prdp.image_sets.best_images import all_images, best_images
    from prdp.image_sets.checks import guidance_notes, latent_problems, missing_problems
    from prdp.image_sets.reading import ImageSet

    found = find_experts(config.models)
    if len(found.experts) < 2:
        raise ConfigError(f"models={config.models}: holds one expert; a gate weighs at least two")
    model = _with_base(config, found, model_is_given, named).model
    family: Any = family_of(model)
    family.check(model)
    if hasattr(family, "empty_model"):
        empty = family.empty_model(model)
        fitting_layers(found.experts, empty.network, empty.component)
    sets = [ImageSet.open(Path(folder).expanduser()) for folder in config.rollouts.folders]
    problems = device_problems("model.device", model.device, ClusterConfig(kind="inline"), 0.0, True)
    problems = problems or precision_problems(model, config.autocast)
    for one in sets:
        problems += missing_problems(one) + latent_problems(model, one)
    refuse(problems)
    if config.aspects:
        chosen = [one for aspect in config.aspects for one in best_images(sets, aspect)]
    else:
        chosen = all_images(sets)
    notes = [*found.notes, *(note for one in sets for note in guidance_notes(one, 1.0, "as gates do"))]
    for lacking, layers in absent_layers(found.experts).items():
        notes.append(f"{', '.join(lacking)}: zero in {len(layers)} layers that others adapt, such as {layers[0]}")
    return found, chosen, notes


def _with_base(
    config: GateConfig, found: FoundExperts, model_is_given: bool, named: Collection[str]
) -> GateConfig:
    """With the base that the experts' runs tell, where the command line names none; with what it names of that."""
    if model_is_given or found.base is None:
        return config
    own = {key: getattr(config.model, key) for key in named}
    return dataclasses.replace(config, model=dataclasses.replace(found.base, **own))


def _batches(policy: Any, chosen: Sequence[Chosen], size: int, seed: int, first: int = 0) -> Iterator[GateBatch]:
    """Of all steps from number `first` on."""
    import numpy as np

    from prdp.experts.gate_training import GateBatch
    from prdp.image_sets.best_images import shuffled

    for batch in itertools.islice(shuffled(chosen, size, seed), first, None):
        conditions = policy.encode([one.entry.prompt for one in batch])
        yield GateBatch(np.stack([one.latents() for one in batch]), conditions)


def _write_average(place: Path, mixture: Any, found: FoundExperts, averages: Any) -> None:
    from prdp.experts.gate_files import AVERAGE, frozen_average
    from prdp.experts.writing import write_lora

    sources = [{"name": one.name, "file": one.source.name, "sha256": one.digest} for one in found.experts]
    (place / AVERAGE).mkdir()
    layers = frozen_average(mixture, found.experts, averages)
    write_lora(place / AVERAGE, layers, "diffusers", {"method": AVERAGE, "sources": sources})


def _line(one: dict[str, Any]) -> str:
    shares = ", ".join(f"{name} {share:.2f}" for name, share in itertools.islice(one["usage"].items(), 8))
    return (
        f"step {one['step']}: error {one['denoising_error']:.4f}, entropy {one['entropy']:.3f}, used {shares}, "
        f"gradient {one['grad_norm']:.3g}"
    )


def _parser() -> argparse.ArgumentParser:
    available = groups([conf_folder()], GATE)
    options = "\n".join(f"  {group}  {', '.join(names)}" for group, names in available.items())
    return OverrideParser(
        keys=["model", *schema_keys(GateConfig)],
        prog="prdp gate",
        usage="prdp gate models=[...] rollouts.path=... [OVERRIDES] [options]",
        description="Put experts of one base into one model, weighted by gates that learn.",
        epilog=f"{_HELP}\ngroups:\n{options}\n{_MORE}",
    )
