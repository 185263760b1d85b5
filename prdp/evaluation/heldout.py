"""Judging the weights of a run while it trains, on prompts that it does not train on."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from prdp.checkpoints.run_log import RunLog
from prdp.cluster.base import Workforce
from prdp.config import TrainConfig
from prdp.evaluation.diversity import group_diversity
from prdp.evaluation.picture_statistics import picture_statistics
from prdp.support.errors import ConfigError
from prdp.support.interruption import uninterrupted
from prdp.tracking.alarms import alarms
from prdp.tracking.evaluations import Evaluation, list_evaluations, load_evaluation, save_evaluation
from prdp.types import Float64, PromptBatch, Rollout, UInt8, Weights


class HeldoutEvaluation:
    """Judges by the same prompts and noise every time.

    Args:
        config: of the run.
        prompts: the held-out ones, as many as its largest evaluation takes.
        workforce: samples and scores.
        log: gets the numbers and pictures; guards the folder.
    """

    def __init__(self, config: TrainConfig, prompts: PromptBatch, workforce: Workforce, log: RunLog) -> None:
        self._config, self._folder, self._epochs = config.evaluation, Path(config.output_dir), config.epochs
        self._prompts, self._workforce, self._log = prompts, workforce, log
        self._best = config.checkpoint.keep_best
        self._read: dict[int, Evaluation] = {}
        self._told: set[str] = set()

    def is_done(self, epoch: int) -> bool:
        """Whether the weights of an epoch were judged already."""
        return epoch in list_evaluations(self._folder)

    def judge(self, weights: Weights) -> None:
        """Judge the weights of now; the next line of the log tells of it.

        Raises:
            ConfigError: of the first evaluation, which does not tell what the best checkpoint is chosen by.
        """
        start, epoch = time.monotonic(), self._log.state.epoch
        count = self._config.final_prompts if epoch in (0, self._epochs) else self._config.prompts
        prompts = PromptBatch(0, 0, self._prompts.texts[:count], self._prompts.metadata[:count])
        rollout = self._sample(prompts, weights)
        assert rollout.rewards is not None
        size, grid = self._config.images_per_prompt, min(self._config.grid_prompts, len(prompts))
        shown, pictures = self._looked_at(rollout, grid)
        with uninterrupted():
            self._log.lock.check()
            scores = (rollout.rewards, rollout.sub_scores)
            metrics = save_evaluation(self._folder, epoch, prompts, size, *scores, shown, pictures)
            if "eval/pictures/diversity" in metrics:
                metrics["eval/diversity"] = metrics.pop("eval/pictures/diversity")
            metrics["time/evaluate"] = time.monotonic() - start
            self._log.state.unlogged |= metrics
            self._log.trackers.images("heldout", shown[::size], list(prompts.texts[:grid]), epoch)
        self._warn(epoch)
        self._workforce.release(rollout)
        if epoch == 0 and self._best is not None and self._best not in metrics:
            known = ", ".join(sorted(name for name in metrics if name.startswith("eval/")))
            raise ConfigError(f"checkpoint.keep_best={self._best}: held-out images are judged by {known}")

    def _looked_at(self, rollout: Rollout, grid: int) -> tuple[UInt8, dict[str, Float64]]:
        """The images of the first prompts, and statistics of all images, of which one group at a time is here."""
        size, shown, rows = rollout.images_per_prompt, list[UInt8](), list[dict[str, Float64]]()

        def look(whole: Rollout) -> None:
            for group in range(len(rows), len(whole.prompts)):
                images = whole.images[group * size : (group + 1) * size]
                statistics = picture_statistics(images)
                if size > 1:
                    statistics["diversity"] = group_diversity(images, size)
                rows.append(statistics)
                if group < grid:
                    shown.append(images)

        self._workforce.reading(rollout, look)
        return np.concatenate(shown), {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    def _warn(self, epoch: int) -> None:
        """Tell of alarms that the evaluation before did not raise."""
        for known in list_evaluations(self._folder):
            if known not in self._read and known <= epoch:
                with suppress(OSError, ValueError):  # of a damaged one there is nothing to say here
                    self._read[known] = load_evaluation(self._folder, known)
        for alarm in alarms([self._read[known] for known in sorted(self._read)]):
            if alarm.subject not in self._told:
                self._told.add(alarm.subject)
                self._log.progress.message(f"Look at it: {alarm.text}")

    def _sample(self, prompts: PromptBatch, weights: Weights) -> Rollout:
        size = self._config.images_per_prompt
        self._workforce.publish(weights)
        with self._log.progress.stage("evaluate", len(prompts) * size) as stage:
            return self._workforce.sample(
                prompts,
                images_per_prompt=size,
                seed=self._config.seed,
                trajectory=False,
                on_chunk=lambda chunk: stage.advance(len(chunk)),
            )
