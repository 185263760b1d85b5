"""Judging the weights of a run while it trains, on prompts that it does not train on."""

from __future__ import annotations

import time
from pathlib import Path

from prdp.checkpoints.run_log import RunLog
from prdp.cluster.base import Workforce
from prdp.config import TrainConfig
from prdp.evaluation.diversity import group_diversity
from prdp.support.interruption import uninterrupted
from prdp.tracking.evaluations import list_evaluations, save_evaluation
from prdp.types import PromptBatch, Rollout, Weights


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

    def is_done(self, epoch: int) -> bool:
        """Whether the weights of an epoch were judged already."""
        return epoch in list_evaluations(self._folder)

    def judge(self, weights: Weights) -> None:
        """Judge the weights of now; the next line of the log tells of it."""
        start, epoch = time.monotonic(), self._log.state.epoch
        count = self._config.final_prompts if epoch in (0, self._epochs) else self._config.prompts
        prompts = PromptBatch(0, 0, self._prompts.texts[:count], self._prompts.metadata[:count])
        rollout = self._sample(prompts, weights)
        assert rollout.rewards is not None
        size, grid = self._config.images_per_prompt, min(self._config.grid_prompts, len(prompts))
        shown = rollout.images[: grid * size]
        diversity = group_diversity(rollout.images, size) if size > 1 else None
        with uninterrupted():
            self._log.lock.check()
            metrics = save_evaluation(self._folder, epoch, prompts, size, rollout.rewards, rollout.sub_scores, shown)
            if diversity is not None:
                metrics["eval/diversity"] = diversity
            metrics["time/evaluate"] = time.monotonic() - start
            self._log.state.unlogged |= metrics
            self._log.trackers.images("heldout", shown[::size], list(prompts.texts[:grid]), epoch)
        self._workforce.release(rollout)

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
