"""`prdp train`: sample, score, regress on reward differences, publish, judge on held-out prompts."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from prdp.checkpoints.checkpoint import Checkpoint, load_checkpoint, resolve_resume, save_checkpoint
from prdp.checkpoints.compatible import (
    check_compatible,
    check_length,
    check_logs,
    check_same_prompts,
    check_same_reward,
    check_state,
)
from prdp.checkpoints.log_archive import LOGS_FILE, evaluation_names, pack_logs
from prdp.checkpoints.mirror import claim, fetch_latest, push, restore_fetched
from prdp.checkpoints.run_folder import WEIGHTS, check_unused, last_words, sweep
from prdp.checkpoints.run_lock import LockLostError, hold
from prdp.cluster import build_workforce, reserve_learner
from prdp.cluster.base import RewardWorker, Workforce
from prdp.cluster.rollout_queue import RolloutQueue
from prdp.config import TrainConfig
from prdp.configuration.typed import write_config
from prdp.diffusion import build_policy, build_sampler
from prdp.diffusion.usage import USAGE_FILE, usage_text
from prdp.evaluation.diversity import group_diversity
from prdp.learners import build_learner
from prdp.prompts import prompts_of_run
from prdp.prompts.stream import PromptSource, PromptStream, fingerprint
from prdp.prompts.tokens import cut_prompts_report
from prdp.prompts.usage import PromptLog
from prdp.reports.report import write_report
from prdp.support.errors import start_up_checks
from prdp.support.interruption import interruptions_raised, uninterrupted
from prdp.support.silent_end import told_when_silent
from prdp.support.storage import atomic_directory
from prdp.tracking import evaluations
from prdp.tracking.base import Trackers, build_trackers, check_trackers
from prdp.tracking.console import Progress
from prdp.tracking.jsonl import choose_run_id
from prdp.types import PromptBatch, Rollout

_log = logging.getLogger(__name__)


def main(config: TrainConfig) -> Path:
    """Run or resume a training run; returns its folder with logs, checkpoints, weights and report."""
    with interruptions_raised(), _spoken_for(config):
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
        self._held = contextlib.ExitStack()
        self.lock = self._held.enter_context(hold(self.folder))
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def _build(self) -> None:
        """Build and check everything; the folder is written to when nothing refuses the start any more."""
        config = self.config
        if config.checkpoint.resume == "never":
            check_unused(self.folder)
        check_trackers(config.tracking)
        source, heldout, self.heldout, self.overlap = prompts_of_run(config.prompts, config.evaluation)
        self.gpu_reservation = reserve_learner(config.cluster)
        model = config.model
        if self.gpu_reservation is not None:
            self._held.callback(self.gpu_reservation.close)
            model = dataclasses.replace(model, device=self.gpu_reservation.device)
        policy = build_policy(model, config.learner, seed=config.seed, keep_reference=False)
        transitions = policy.process.transitions(config.sampler)
        self.policy = policy
        self.learner = build_learner(
            policy, transitions, config.sampler.guidance_scale, config.learner, config.objective, config.seed
        )
        self.stream = PromptStream(source, config.seed, config.prompts.shuffle)
        self.prompts_fingerprint, self.heldout_fingerprint = fingerprint(source), fingerprint(heldout)
        self.epoch = 0
        self.wall_seconds = 0.0
        self.saved_version = 0
        self.saved_epoch: int | None = None
        self.reward_identity: Mapping[str, Any] = {}
        self.drawn: Sequence[int] | None = None
        self.unlogged: dict[str, float] = {}
        self.epoch_start = 0.0
        checkpoint = self._checkpoint()
        self.workforce: Workforce = build_workforce(
            config.cluster,
            partial(
                build_sampler, config.model, config.learner, config.sampler, seed=config.seed, keep=self.learner.keep
            ),
            partial(RewardWorker, config.reward, config.cluster.reward_retries),
            config.sampler.prompts_per_chunk,
            model.device,
        )
        self._held.callback(self.workforce.close)
        self.rollouts = RolloutQueue(
            self.workforce,
            self.stream,
            prompts_per_epoch=config.prompts_per_epoch,
            images_per_prompt=config.images_per_prompt,
            seed=config.seed,
            epochs=config.epochs,
            max_staleness=config.cluster.max_staleness,
            online=config.rollout_policy == "current",
        )
        if checkpoint is not None:
            self._resume(checkpoint)
        identity = self.workforce.reward_identity
        check_same_reward(self.reward_identity, identity)
        self.reward_identity = identity
        self._enter_folder(source, checkpoint)

    def _enter_folder(self, source: PromptSource, checkpoint: Checkpoint | None) -> None:
        """The first that is written into the run's folder: by now nothing refuses the start any more."""
        config, resumed = self.config, None if checkpoint is None else checkpoint.epoch
        self.lock.check()
        if config.checkpoint.mirror is not None:
            claim(config.checkpoint.mirror, self.lock.owner)
        sweep(self.folder)
        if checkpoint is not None:
            restore_fetched(checkpoint.path, self.folder, config.checkpoint.mirror)
            check_logs(self.folder)
        write_config(config, self.folder / "config.yaml")
        self.prompt_log = PromptLog(self.folder, source, config.seed, config.prompts.shuffle, resumed)
        run_id = choose_run_id(self.folder, resumed)
        self.trackers: Trackers = build_trackers(
            config.tracking, self.folder, self.plain, run_id, resumed, {"reward_identity": self.reward_identity}
        )
        logged = self.epoch - ("time/epoch" in self.unlogged)
        self.progress = Progress(config.epochs, logged, self.folder, enabled=config.tracking.console)

    def train(self) -> Path:
        """The loop of Algorithm 1."""
        config = self.config
        with self.trackers, self.progress, self._finished_epochs_kept():
            self.progress.cluster(self.workforce.status)
            self.progress.message(self.workforce.plan)
            if self.overlap:
                self.progress.message(self.overlap)
            self.progress.message(cut_prompts_report(config.model.path, self.stream, self.heldout.texts))
            self._evaluate_missing()
            while self.epoch < config.epochs:
                self._learn_epoch()
                if self._due(config.evaluation.every):
                    self._evaluate()
                self._log()
                if self._due(config.checkpoint.every):
                    self._save()
            self._export()
        if config.tracking.report:
            self.lock.check()
            try:
                self.progress.message(f"report: {write_report(self.folder)}")
            except ValueError as error:
                _log.warning("there is no report: %s; without that file, prdp report %s writes it", error, self.folder)
        return self.folder

    def close(self) -> None:
        """Let go of actors and of the folder."""
        self._held.close()

    def _evaluate_missing(self) -> None:
        """Log what a run that was ended did not come to log; judge weights that are due and were not judged yet."""
        if self.unlogged:
            self._log()
        elif self._updates_begun():
            return  # the weights at the start of the epoch are gone
        known = evaluations.list_evaluations(self.folder)
        if self.epoch == 0 or (self._due(self.config.evaluation.every) and self.epoch not in known):
            self._evaluate()
            self._log()

    def _learn_epoch(self) -> None:
        """Sample, score, update; the rollout, gigabytes at true size, goes when this returns."""
        self.epoch_start = time.monotonic()
        metrics = self._publish()
        rollout = self._sample(metrics)
        for _ in range(self._updates_begun(), self.config.updates_per_epoch):
            self._update(rollout, metrics)
        if self._updates_begun():  # all were done before a restart
            self._count_epoch(rollout, metrics)

    def _publish(self) -> dict[str, float]:
        """Ask for the rollouts that may be under way now, under the weights that they are due."""
        start = time.monotonic()
        weights = self.learner.weights()
        self.rollouts.fill(self.epoch, weights)
        size = sum(array.nbytes for array in weights.tensors.values())
        return {"time/publish": time.monotonic() - start, "publish_mib": size / 2**20}

    def _sample(self, metrics: dict[str, float]) -> Rollout:
        config, start = self.config, time.monotonic()
        with self.progress.stage("sample", config.prompts_per_epoch * config.images_per_prompt) as stage:
            rollout = self.rollouts.next(lambda chunk: stage.advance(len(chunk)))
        metrics |= reward_metrics(rollout)
        metrics["time/wait"] = time.monotonic() - start
        metrics["time/rollout"] = rollout.seconds["rollout"]
        metrics["time/sample"] = rollout.seconds["sampling"]
        metrics["time/score"] = rollout.seconds["score"]
        metrics["time/bind"] = rollout.seconds.get("bind", 0.0)
        metrics["images_per_second/sample"] = len(rollout) / max(metrics["time/sample"], 1e-9)
        metrics["images_per_second/score"] = len(rollout) / max(metrics["time/score"], 1e-9)
        metrics["weights_version"] = rollout.weights_version
        metrics["staleness"] = self.epoch * config.updates_per_epoch - rollout.weights_version
        return rollout

    def _update(self, rollout: Rollout, metrics: dict[str, float]) -> None:
        """One update into `metrics`; the last one of an epoch counts it, as one with its step."""
        cells = math.prod(self.learner.cells(rollout))
        with self.progress.stage("learn", cells, unit="cells") as stage:
            done = 0

            def advance(total: int) -> None:
                nonlocal done
                stage.advance(total - done)
                done = total

            def stepped(update: dict[str, float]) -> None:
                update["images_per_second/learn"] = len(rollout) / update["time/learn"]
                _merge(metrics, update)
                if self._updates_begun() == self.config.updates_per_epoch:
                    self._count_epoch(rollout, metrics)

            self.learner.update(rollout, advance, stepped)

    def _count_epoch(self, rollout: Rollout, metrics: dict[str, float]) -> None:
        """The updates of an epoch are done: from here on it may be saved."""
        metrics["time/epoch"] = time.monotonic() - self.epoch_start
        metrics["images_per_second/epoch"] = len(rollout) / metrics["time/epoch"]
        with uninterrupted():
            self.epoch += 1
            self.drawn, self.unlogged = rollout.prompts.indices, metrics

    def _log(self) -> None:
        """Write what is known and not logged yet: of an epoch that was counted, of an evaluation, or of both."""
        with uninterrupted():
            self.lock.check()
            if self.drawn is not None:
                self.prompt_log.write(self.epoch, self.drawn)
                self.drawn = None
            metrics = self.unlogged
            if "time/epoch" in metrics and "wall_seconds" not in metrics:
                self.wall_seconds += time.monotonic() - self.epoch_start
                metrics["wall_seconds"] = self.wall_seconds
            self.trackers.log(metrics, self.epoch)
            self.unlogged = {}
            if "time/epoch" in metrics:
                self.workforce.export_metrics(self.folder.name, metrics, self.epoch)
                self.progress.epoch_done(metrics)

    def _due(self, every: int) -> bool:
        return self.epoch == self.config.epochs or bool(every and self.epoch % every == 0)

    def _evaluate(self) -> None:
        """Judge the evaluation weights on the same held-out prompts and noise as ever; `_log` tells of it."""
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
        diversity = group_diversity(rollout.images, config.images_per_prompt) if config.images_per_prompt > 1 else None
        with uninterrupted():
            self.lock.check()
            self.unlogged |= evaluations.save_evaluation(
                self.folder, self.epoch, prompts, config.images_per_prompt, rollout.rewards, rollout.sub_scores, shown
            )
            if diversity is not None:
                self.unlogged["eval/diversity"] = diversity
            self.unlogged["time/evaluate"] = time.monotonic() - start
            firsts = slice(0, len(shown), config.images_per_prompt)
            self.trackers.images("heldout", shown[firsts], list(prompts.texts[:grid]), self.epoch)

    @contextlib.contextmanager
    def _finished_epochs_kept(self) -> Iterator[None]:
        """Save the finished epochs when something fails, or the run is to end, and the learner is as they left it."""
        try:
            yield
        except BaseException as error:
            with uninterrupted():
                self._keep(error)
            raise

    def _updates_begun(self) -> int:
        """Updates of this epoch that are done: more than none when the run is ended in it, or was."""
        return self.learner.version - self.epoch * self.config.updates_per_epoch

    def _keep(self, error: BaseException) -> None:
        try:
            if self.unlogged:
                with contextlib.suppress(OSError):  # a checkpoint keeps the line
                    self._log()
            if self.learner.version > self.saved_version:
                self._save()
        except (OSError, LockLostError) as second:
            # The error on its way matters more.
            _log.warning("epoch %d could not be saved: %s", self.epoch, second)
        error.add_note(last_words(error, self.folder, self.saved_epoch))

    def _save(self) -> None:
        self.lock.check()
        tensors, scalars = self.learner.state()
        published, queue = self.rollouts.state(self.epoch, begun=self._updates_begun() > 0)
        state: dict[str, Any] = {
            "learner": scalars,
            **queue,
            "prompts_fingerprint": self.prompts_fingerprint,
            "heldout_fingerprint": self.heldout_fingerprint,
            "wall_seconds": self.wall_seconds,
            "reward": self.reward_identity,
            "config": self.plain,
            "unlogged": self.unlogged,
            "drawn": self.drawn,
        }
        mirror, keep, logs = self.config.checkpoint.mirror, self.config.checkpoint.keep, {}
        if mirror is not None:
            state["evaluations"] = evaluation_names(self.folder)
            logs[LOGS_FILE] = pack_logs(self.folder)
        saved = save_checkpoint(self.folder, self.epoch, {**tensors, **published}, state, keep, logs)
        self.saved_version, self.saved_epoch = self.learner.version, self.epoch
        if mirror is not None:
            push(saved, mirror, keep, self.lock.owner)

    def _checkpoint(self) -> Checkpoint | None:
        """The checkpoint that the configuration asks for, if it is of such a run; None for a fresh run."""
        if self.config.checkpoint.mirror is not None and self.config.checkpoint.resume == "auto":
            fetch_latest(self.config.checkpoint.mirror, self.folder)
        path = resolve_resume(self.config.checkpoint.resume, self.folder)
        if path is None:
            return None
        checkpoint = load_checkpoint(path)
        check_state(checkpoint)
        check_compatible(checkpoint.state["config"], self.plain)
        check_length(checkpoint.epoch, self.config.epochs)
        check_same_prompts(checkpoint.state.get("prompts_fingerprint") or "", self.prompts_fingerprint)
        check_same_prompts(checkpoint.state.get("heldout_fingerprint") or "", self.heldout_fingerprint, "heldout")
        self.learner.load_state(checkpoint.tensors, checkpoint.state["learner"])
        return checkpoint

    def _resume(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        self.rollouts.load_state(checkpoint.tensors, state)
        self.wall_seconds = float(state["wall_seconds"])
        self.reward_identity = state.get("reward") or {}
        self.unlogged, self.drawn = dict(state.get("unlogged") or {}), state.get("drawn")
        self.epoch, self.saved_version = checkpoint.epoch, self.learner.version
        self.saved_epoch = checkpoint.epoch

    def _export(self) -> None:
        """Write the evaluation weights in diffusers format, for `StableDiffusionPipeline` to load."""
        self.lock.check()
        self.policy.weights.bind(self.learner.evaluation_weights())
        with atomic_directory(self.folder / WEIGHTS) as temporary:
            self.policy.save(temporary)
            usage = self._usage()
            if usage:
                (temporary / USAGE_FILE).write_text(usage, encoding="utf-8")
        if usage:
            self.progress.message(usage)

    def _usage(self) -> str:
        """How to use the weights in diffusers; empty for a model that is none of its pipelines."""
        config = self.config
        if config.model.family != "stable_diffusion":
            return ""
        scheduler, prompt = self.policy.scheduler_config, self.heldout.texts[0]
        return usage_text(
            config.model, config.sampler, scheduler, config.learner.mode, self.folder / WEIGHTS, prompt
        )


def _spoken_for(config: TrainConfig) -> contextlib.AbstractContextManager[None]:
    """A last word for a process that is ended at once: by SIGKILL, by native code, or by Ray when its node is lost."""
    lost = "its Ray node, or the head, is lost, or it" if config.cluster.kind == "ray" else "it"
    return told_when_silent(
        f"prdp train: the process was ended without a word: {lost} was killed by SIGKILL, or something in it called "
        "os._exit; the checkpoints are whole, go on by the same command with checkpoint.resume=auto "
        f"output_dir={config.output_dir}"
    )


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
