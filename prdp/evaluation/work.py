"""What an evaluation computes: images, then features, then scores, always only those that are missing."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from prdp.cluster import build_workforce
from prdp.cluster.base import RewardWorker, SamplerFactory, Workforce
from prdp.evaluation.features import Features
from prdp.evaluation.loading import build_evaluated_sampler, measures_kl
from prdp.evaluation.models import EvaluatedModel, model_digest
from prdp.evaluation.samplers import sampler_of
from prdp.evaluation.settings import Drawing, EvaluateConfig
from prdp.evaluation.store import Chunk, Scores, chunks_of
from prdp.tracking.console import format_seconds
from prdp.types import PromptBatch, Rollout, Weights

FORMAT = 1
"""Part of every key: goes up when the same settings make other images."""
_SPEED_KEYS = ("microbatch", "prompts_per_chunk")
_ONLY_WHERE_GIVEN = ("original_inference_steps", "negative_prompt")
"""Left out where they are null, so that images of before the key was there have the same key."""
_CHUNKS_AT_ONCE = 8
"""Chunks handed to each sampler in one go; bounds the images in memory."""

Say = Callable[[str], None]
Place = tuple[str, str, int]
"""(model, prompt set, seed)."""
Factories = Callable[[EvaluatedModel], SamplerFactory]
"""What makes the images of a model."""


Config = TypeVar("Config", bound=Drawing)


@dataclasses.dataclass(frozen=True)
class Work(Generic[Config]):
    """All images to be made and scored, with their places on disk.

    Attributes:
        config: of the command.
        models: in the order of the tables.
        prompts: set name -> its prompts.
        chunks: (model, prompt set, seed) -> chunks, in order.
        timed: whether the seconds that work took are written down; without them equal work leaves equal files.
    """

    config: Config
    models: tuple[EvaluatedModel, ...]
    prompts: Mapping[str, PromptBatch]
    chunks: Mapping[Place, tuple[Chunk, ...]]
    timed: bool = True

    @classmethod
    def of(
        cls,
        config: Config,
        models: Sequence[EvaluatedModel],
        prompts: Mapping[str, PromptBatch],
        key_of: Callable[[EvaluatedModel], Mapping[str, Any]] | None = None,
        timed: bool = True,
    ) -> Work[Config]:
        """Lay out the work.

        Args:
            key_of: what makes a model's images, see `chunks_of`; None for `image_key`, which digests the model's files.
        """
        chunks: dict[Place, tuple[Chunk, ...]] = {}
        for model in models:
            key = image_key(config, model) if key_of is None else key_of(model)
            for prompt_set, batch in prompts.items():
                for seed in config.seeds:
                    chunks[model.name, prompt_set, seed] = tuple(
                        chunks_of(
                            Path(config.output_dir),
                            model.name,
                            prompt_set,
                            seed,
                            batch,
                            config.sampler.prompts_per_chunk,
                            config.images_per_prompt,
                            key,
                        )
                    )
        return cls(config, tuple(models), dict(prompts), chunks, timed)

    def all_chunks(self) -> Iterator[tuple[Place, Chunk]]:
        """Every chunk with its place."""
        for place, chunks in self.chunks.items():
            for chunk in chunks:
                yield place, chunk


EvaluationWork = Work[EvaluateConfig]
"""The work of an evaluation, which tables and reports read."""


def sample_missing(work: Work[Any], say: Say, factories: Factories | None = None) -> None:
    """Make the images that are not on disk, or that were made otherwise; says which and why.

    Args:
        factories: samplers of the models; None for those that draw images alone.
    """
    factories = factories or partial(_evaluated_sampler, work.config)
    for model in work.models:
        wanted = {}
        for place, chunks in work.chunks.items():
            if place[0] == model.name:
                reasons = [chunk.differences() for chunk in chunks]
                wanted[place] = [chunk for chunk, reason in zip(chunks, reasons, strict=True) if reason]
                _say_reuse(say, place, chunks, reasons)
        if any(wanted.values()):
            _sample(work, model, wanted, say, factories(model))


def score_missing(work: Work[Any], name: str, section: Mapping[str, Any], say: Say) -> dict[str, Any]:
    """Score by one reward what it has not scored; its identity, {"name", "version", ...}."""
    config = work.config
    workforce = build_workforce(
        config.cluster,
        NoSampler,
        partial(RewardWorker, dict(section), config.cluster.reward_retries),
        config.sampler.prompts_per_chunk,
    )
    try:
        identity = workforce.reward_identity
        key = {"identity": identity, "section": dict(section)}
        wanted = [[chunk for chunk in chunks if chunk.scores(name, key) is None] for chunks in work.chunks.values()]
        others = sum(chunk.has_scores_of_another(name, key) for chunks in wanted for chunk in chunks)
        if others:
            say(
                f"{name}: scores of {others} chunks are by another version, configuration or metadata than "
                f"version {identity.get('version')}; scored again"
            )
        if any(wanted):
            _score(work, workforce, wanted, name, key, say)
    finally:
        workforce.close()
    return identity


def embed_missing(work: Work[Any], space: Features, say: Say) -> None:
    """Compute the features that are not on disk."""
    chunks = [chunk for _, chunk in work.all_chunks() if chunk.features(space_name(space)) is None]
    for chunk in chunks:
        chunk.save_features(space_name(space), space.features(chunk.images()))
    if chunks:
        say(f"{space.name}: features of {sum(map(len, chunks))} images")


def space_name(space: Features) -> str:
    """A feature space with its version, as its files are called."""
    return f"{space.name}-{space.version}"


def image_key(config: Drawing, model: EvaluatedModel) -> dict[str, Any]:
    """What makes the images of a model, besides prompts and seed; digests the model's files."""
    sampler = {
        key: value
        for key, value in dataclasses.asdict(sampler_of(config, model)).items()
        if key not in _SPEED_KEYS and (key not in _ONLY_WHERE_GIVEN or value is not None)
    }
    return {
        "format": FORMAT,
        "model": model_digest(model),
        "dtype": config.model.dtype,
        "autocast": config.autocast,
        "kl": config.kl and measures_kl(model),
        **{f"sampler.{key}": value for key, value in sampler.items()},
    }


def _say_reuse(say: Say, place: Place, chunks: Sequence[Chunk], reasons: Sequence[list[str]]) -> None:
    counted = Counter(part for reason in reasons for part in reason)
    missing = counted.pop("missing", 0)
    where = place_name(place)
    kept = sum(len(chunk) for chunk, reason in zip(chunks, reasons, strict=True) if not reason)
    if kept:
        say(f"{where}: {kept} images are there already")
    if counted:
        again = sum(bool(reason) for reason in reasons) - missing
        changed = ", ".join(sorted(counted))
        say(f"{where}: {again} of {len(chunks)} chunks are made again, since these changed: {changed}")


def place_name(place: Place) -> str:
    """A place for people."""
    return f"{place[0]}, {place[1]}, seed {place[2]}"


def _evaluated_sampler(config: Drawing, model: EvaluatedModel) -> SamplerFactory:
    return partial(
        build_evaluated_sampler,
        model,
        sampler_of(config, model),
        config.model.dtype,
        config.model.device,
        config.autocast,
        config.kl and measures_kl(model),
    )


def _sample(
    work: Work[Any],
    model: EvaluatedModel,
    wanted: Mapping[Place, Sequence[Chunk]],
    say: Say,
    factory: SamplerFactory,
) -> None:
    config = work.config
    keeps = any(chunk.keeps for chunks in wanted.values() for chunk in chunks)
    workforce = build_workforce(
        config.cluster,
        factory,
        partial(RewardWorker, {"_target_": "prdp.evaluation.work.Unscored"}),
        config.sampler.prompts_per_chunk,
    )
    try:
        # Version 1: not the reference, whose log-ratio would be taken for 0.
        workforce.publish(Weights.of(1, {}))
        for place, chunks in wanted.items():
            seconds = 0.0
            for group in _contiguous(chunks, _CHUNKS_AT_ONCE * config.cluster.samplers):
                by_offset = {chunk.prompts.offset: chunk for chunk in group}

                def keep(rollout: Rollout, by_offset: Mapping[int, Chunk] = by_offset) -> None:
                    kept = rollout if work.timed else dataclasses.replace(rollout, seconds={})
                    by_offset[rollout.prompts.offset].save(kept)

                def save(rollout: Rollout, keep: Callable[[Rollout], None] = keep) -> None:
                    workforce.reading(rollout, keep)

                rollout = workforce.sample(
                    joined([chunk.prompts for chunk in group]),
                    images_per_prompt=config.images_per_prompt,
                    seed=place[2],
                    trajectory=keeps,
                    on_chunk=save,
                )
                seconds += rollout.seconds["sample"]
            if chunks:
                say(f"{place_name(place)}: {sum(map(len, chunks))} images in {format_seconds(seconds)}")
    finally:
        workforce.close()


def _score(
    work: Work[Any],
    workforce: Workforce,
    wanted: Sequence[Sequence[Chunk]],
    name: str,
    key: Mapping[str, Any],
    say: Say,
) -> None:
    seconds = 0.0
    for chunks in wanted:
        for group in _contiguous(chunks, _CHUNKS_AT_ONCE * work.config.cluster.reward_actors):
            by_offset = {chunk.prompts.offset: chunk for chunk in group}

            def save(rollout: Rollout, by_offset: Mapping[int, Chunk] = by_offset) -> None:
                assert rollout.rewards is not None
                took = rollout.seconds["score"] if work.timed else 0.0
                scores = Scores(rollout.rewards, rollout.sub_scores, took)
                by_offset[rollout.prompts.offset].save_scores(name, key, scores)

            scored = workforce.score(
                np.concatenate([chunk.images() for chunk in group]),
                joined([chunk.prompts for chunk in group]),
                images_per_prompt=work.config.images_per_prompt,
                on_chunk=save,
            )
            seconds += scored.seconds["score"]
    images = sum(len(chunk) for chunks in wanted for chunk in chunks)
    say(f"{name}: {images} images scored in {format_seconds(seconds)}")


class NoSampler:
    """Stands where a sampler is asked for while images are only scored."""

    def load_weights(self, weights: Weights) -> tuple[int, str]:
        """There are none to bind."""
        raise NotImplementedError("nothing is sampled here")

    def sample(self, prompts: PromptBatch, images_per_prompt: int, seed: int, trajectory: bool = True) -> Rollout:
        """There is nothing to sample with."""
        raise NotImplementedError("nothing is sampled here")


class Unscored:
    """Stands where a reward is asked for while images are only made."""

    name = "unscored"
    version = "1"

    def score(self, images: Any, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> list[float]:
        """Zeros."""
        return [0.0] * len(images)


def _contiguous(chunks: Sequence[Chunk], limit: int) -> Iterator[list[Chunk]]:
    """Runs of at most `limit` chunks without a gap between them."""
    group: list[Chunk] = []
    for chunk in chunks:
        if group and (len(group) == limit or chunk.prompts.offset != group[-1].prompts.offset + len(group[-1].prompts)):
            yield group
            group = []
        group.append(chunk)
    if group:
        yield group


def joined(batches: Sequence[PromptBatch]) -> PromptBatch:
    """Consecutive chunks as one batch."""
    first = batches[0]
    return dataclasses.replace(
        first,
        texts=tuple(text for batch in batches for text in batch.texts),
        metadata=tuple(meta for batch in batches for meta in batch.metadata),
        indices=tuple(index for batch in batches for index in batch.indices),
    )
