"""`prdp train`: sample, score, regress on reward differences, publish, judge on held-out prompts."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from prdp.checkpoint import load_checkpoint, resolve_resume, save_checkpoint
from prdp.checkpoint_mirror import fetch_latest, push
from prdp.cluster import build_workforce
from prdp.cluster.base import RewardWorker, Workforce
from prdp.config import TrainConfig
from prdp.configure import write_config
from prdp.diffusion import build_policy, build_sampler, transitions_of
from prdp.errors import start_up_checks
from prdp.evaluation.diversity import group_diversity
from prdp.learners import build_learner
from prdp.prompts import build_prompts
from prdp.prompts.stream import PromptStream, fingerprint, fixed_prompts
from prdp.prompts.tokens import cut_prompts_report
from prdp.prompts.usage import PromptLog
from prdp.resume_checks import check_compatible, check_same_prompts, check_same_reward
from prdp.storage import atomic_directory
from prdp.tracking import evaluations
from prdp.tracking.base import Trackers, build_trackers
from prdp.tracking.console import Progress
from prdp.tracking.jsonl import choose_run_id
from prdp.tracking.report import write_report
from prdp.types import PromptBatch, Rollout

_log = logging.getLogger(__name__)


def main(config: TrainConfig) -> Path:
    """Run or resume a training run; returns its folder with logs, checkpoints, weights and report."""
    with start_up_checks():
        run = Run(config)
    try:
        return run.train()
    finally:
        run.close()


class Run:
    """One training run: everything built and checked, then the loop."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.folder = Path(config.output_dir)
        self.plain = dataclasses.asdict(config)
        source = build_prompts("prompts.train", config.prompts.train)
        heldout = build_prompts("prompts.heldout", config.prompts.heldout)
        policy = build_policy(config.model, config.learner, seed=config.seed, keep_reference=False)
        transitions = transitions_of(policy, config.sampler)
        self.policy = policy
        self.learner = build_learner(
            policy, transitions, config.sampler.guidance_scale, config.learner, config.objective
        )
        self.stream = PromptStream(source, config.seed, config.prompts.shuffle)
        self.prompts_fingerprint = fingerprint(source)
        evaluation = config.evaluation
        self.heldout = fixed_prompts(heldout, max(evaluation.prompts, evaluation.final_prompts), evaluation.seed)
        self.epoch = 0
        self.wall_seconds = 0.0
        self.saved_epoch = 0
        self.reward_identity: Mapping[str, Any] = {}
        resumed = self._resume()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_config(config, self.folder / "config.yaml")
        self.prompt_log = PromptLog(self.folder, source, config.seed, config.prompts.shuffle, resumed)
        self.workforce: Workforce = build_workforce(
            config.cluster,
            partial(build_sampler, config.model, config.learner, config.sampler, seed=config.seed),
            partial(RewardWorker, config.reward),
            config.sampler.prompts_per_chunk,
        )
        try:
            identity = self.workforce.reward_identity
            check_same_reward(self.reward_identity, identity)
            self.reward_identity = identity
            run_id = choose_run_id(self.folder, resumed)
            self.trackers: Trackers = build_trackers(
                config.tracking, self.folder, self.plain, run_id, resumed, {"reward_identity": identity}
            )
            self.progress = Progress(config.epochs, self.epoch, self.folder, enabled=config.tracking.console)
        except BaseException:
            self.close()
            raise

    def train(self) -> Path:
        """The loop of Algorithm 1."""
        config = self.config
        with self.trackers, self.progress:
            self.progress.message(cut_prompts_report(config.model.path, self.stream, self.heldout.texts))
            if self.epoch == 0:
                self.workforce.publish(self.learner.weights())
                self.trackers.log(self._evaluate(), 0)
            elif self._due(config.evaluation.every) and self.epoch not in evaluations.list_evaluations(self.folder):
                self.trackers.log(self._evaluate(), self.epoch)
            while self.epoch < config.epochs:
                start = time.monotonic()
                metrics = {"time/publish": self._publish()}
                with self._finished_epochs_kept():
                    prompts = self.stream.next(config.prompts_per_epoch, self.epoch)
                    rollout = self._sample(prompts, metrics)
                for _ in range(config.updates_per_epoch):
                    _merge(metrics, self._update(rollout))
                self.epoch += 1
                self.prompt_log.write(self.epoch, rollout.prompts.indices)
                metrics["time/epoch"] = time.monotonic() - start
                metrics["images_per_second/epoch"] = len(rollout) / metrics["time/epoch"]
                if self._due(config.evaluation.every):
                    with self._finished_epochs_kept(metrics):
                        metrics |= self._evaluate()
                self.wall_seconds += time.monotonic() - start
                self.trackers.log(metrics | {"wall_seconds": self.wall_seconds}, self.epoch)
                self.progress.epoch_done(metrics)
                if self._due(config.checkpoint.every):
                    self._save()
            self._export()
        if config.tracking.report:
            self.progress.message(f"report: {write_report(self.folder)}")
        return self.folder

    def close(self) -> None:
        """Let go of actors."""
        self.workforce.close()

    def _publish(self) -> float:
        start = time.monotonic()
        self.workforce.publish(self.learner.weights())
        return time.monotonic() - start

    def _sample(self, prompts: PromptBatch, metrics: dict[str, float]) -> Rollout:
        config, start = self.config, time.monotonic()
        with self.progress.stage("sample", len(prompts) * config.images_per_prompt) as stage:
            rollout = self.workforce.sample(
                prompts,
                images_per_prompt=config.images_per_prompt,
                seed=config.seed,
                on_chunk=lambda chunk: stage.advance(len(chunk)),
            )
        metrics |= reward_metrics(rollout)
        metrics["time/sample"] = time.monotonic() - start
        metrics["time/score"] = rollout.seconds["score"]
        metrics["images_per_second/sample"] = len(rollout) / metrics["time/sample"]
        metrics["images_per_second/score"] = len(rollout) / max(metrics["time/score"], 1e-9)
        metrics["weights_version"] = rollout.weights_version
        return rollout

    def _update(self, rollout: Rollout) -> dict[str, float]:
        cells = rollout.log_ratio.size
        with self.progress.stage("learn", cells, unit="cells") as stage:
            done = 0

            def advance(total: int) -> None:
                nonlocal done
                stage.advance(total - done)
                done = total

            metrics = self.learner.update(rollout, advance)
        metrics["images_per_second/learn"] = len(rollout) / metrics["time/learn"]
        return metrics

    def _due(self, every: int) -> bool:
        return self.epoch == self.config.epochs or bool(every and self.epoch % every == 0)

    def _evaluate(self) -> dict[str, float]:
        """Judge the evaluation weights on the same held-out prompts and noise as ever."""
        config, start = self.config.evaluation, time.monotonic()
        ends = self.epoch in (0, self.config.epochs)
        count = config.final_prompts if ends else config.prompts
        prompts = PromptBatch(0, 0, self.heldout.texts[:count], self.heldout.metadata[:count])
        self.workforce.publish(self.learner.evaluation_weights())
        with self.progress.stage("evaluate", len(prompts) * config.images_per_prompt) as stage:
            rollout = self.workforce.sample(
                prompts,
                images_per_prompt=config.images_per_prompt,
                seed=config.seed,
                trajectory=False,
                on_chunk=lambda chunk: stage.advance(len(chunk)),
            )
        assert rollout.rewards is not None
        grid = min(config.grid_prompts, len(prompts))
        shown = rollout.images[: grid * config.images_per_prompt]
        metrics = evaluations.save_evaluation(
            self.folder, self.epoch, prompts, config.images_per_prompt, rollout.rewards, rollout.sub_scores, shown
        )
        firsts = slice(0, len(shown), config.images_per_prompt)
        self.trackers.images("heldout", shown[firsts], list(prompts.texts[:grid]), self.epoch)
        if config.images_per_prompt > 1:
            metrics["eval/diversity"] = group_diversity(rollout.images, config.images_per_prompt)
        metrics["time/evaluate"] = time.monotonic() - start
        return metrics

    @contextlib.contextmanager
    def _finished_epochs_kept(self, metrics: Mapping[str, float] | None = None) -> Iterator[None]:
        """Save the finished epochs when sampling or scoring fails, which leaves the learner as it was.

        Args:
            metrics: what the last of them has not logged yet.
        """
        cursor = self.stream.cursor
        try:
            yield
        except Exception as error:
            self.stream.cursor = cursor
            try:
                if metrics is not None:
                    self.trackers.log(metrics, self.epoch)
                if self.epoch > self.saved_epoch:
                    self._save()
            except OSError as second:
                _log.warning("epoch %d could not be saved: %s", self.epoch, second)  # the error on its way matters more
            else:
                error.add_note(
                    f"{self.epoch} finished epochs are kept; go on by checkpoint.resume=auto output_dir={self.folder}"
                )
            raise

    def _save(self) -> None:
        tensors, scalars = self.learner.state()
        state = {
            "learner": scalars,
            "prompt_cursor": self.stream.cursor,
            "prompts_fingerprint": self.prompts_fingerprint,
            "wall_seconds": self.wall_seconds,
            "reward": self.reward_identity,
            "config": self.plain,
        }
        saved = save_checkpoint(self.folder, self.epoch, tensors, state, self.config.checkpoint.keep)
        self.saved_epoch = self.epoch
        if self.config.checkpoint.mirror is not None:
            push(saved, self.config.checkpoint.mirror, self.config.checkpoint.keep)

    def _resume(self) -> int | None:
        """Load the checkpoint that the configuration asks for; the epoch to continue at, None for a fresh run."""
        if self.config.checkpoint.mirror is not None and self.config.checkpoint.resume == "auto":
            fetch_latest(self.config.checkpoint.mirror, self.folder)
        path = resolve_resume(self.config.checkpoint.resume, self.folder)
        if path is None:
            return None
        checkpoint = load_checkpoint(path)
        state: Mapping[str, Any] = checkpoint.state
        check_compatible(state["config"], self.plain)
        check_same_prompts(state.get("prompts_fingerprint", ""), self.prompts_fingerprint)
        self.learner.load_state(checkpoint.tensors, state["learner"])
        self.stream.cursor = int(state["prompt_cursor"])
        self.wall_seconds = float(state["wall_seconds"])
        self.reward_identity = state.get("reward", {})
        self.epoch = self.saved_epoch = checkpoint.epoch
        return self.epoch

    def _export(self) -> None:
        """Write the evaluation weights in diffusers format, for `StableDiffusionPipeline` to load."""
        self.policy.weights.bind(self.learner.evaluation_weights())
        with atomic_directory(self.folder / "weights") as temporary:
            self.policy.save(temporary)


def reward_metrics(rollout: Rollout) -> dict[str, float]:
    """Mean and spread of the rewards, over all images and within groups, and the mean of every sub-score."""
    assert rollout.rewards is not None
    groups = rollout.rewards.reshape(len(rollout.prompts), rollout.images_per_prompt)
    metrics = {
        "reward/mean": float(rollout.rewards.mean()),
        "reward/std": float(rollout.rewards.std()),
        "reward/group_std": float(groups.std(axis=1).mean()),
    }
    for name, values in rollout.sub_scores.items():
        if not np.isnan(values).all():
            metrics[f"reward/{name}"] = float(np.nanmean(values))
    return metrics


def _merge(metrics: dict[str, float], update: Mapping[str, float]) -> None:
    """Several updates of one epoch: times add up, everything else is the last update's."""
    spent = metrics.get("time/learn", 0.0) + update["time/learn"]
    metrics |= update
    metrics["time/learn"] = spent
