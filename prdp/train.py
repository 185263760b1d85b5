"""`prdp train`: sample, score, regress on reward differences, publish, judge on held-out prompts."""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import time
from pathlib import Path

from prdp.checkpoints.export import export_weights
from prdp.checkpoints.restarts import Restarts
from prdp.checkpoints.run_folder import words_for_the_silent
from prdp.checkpoints.run_log import RunLog
from prdp.checkpoints.run_state import RunState
from prdp.checkpoints.run_store import RunStore
from prdp.config import FAMILIES, TrainConfig
from prdp.configuration.typed import write_config
from prdp.diffusion.compiling import compile_seconds
from prdp.evaluation.heldout import HeldoutEvaluation
from prdp.image_sets.source import rollout_source
from prdp.prompts.stream import PromptStream
from prdp.prompts.tokens import cut_prompts_report
from prdp.reports.report import write_report
from prdp.run_parts import build_learner, build_workforce_of, rollout_queue
from prdp.support.errors import start_up_checks
from prdp.support.interruption import interruptions_raised
from prdp.support.rank_errors import ShardLostError
from prdp.support.remote_rows import RowsLostError
from prdp.support.silent_end import told_when_silent
from prdp.tracking.base import check_trackers
from prdp.tracking.rollout_metrics import add_update, rollout_metrics
from prdp.types import Rollout

_log = logging.getLogger(__name__)


def main(config: TrainConfig) -> Path:
    """Run or resume a training run; returns its folder with logs, checkpoints, weights and report.

    When a process is lost that held a part of the network (`cluster.fsdp_size`), the run goes on from its last
    checkpoint.
    """
    with interruptions_raised(), told_when_silent(words_for_the_silent(config)):
        restarts, folder = Restarts(config), None
        while folder is None:
            try:
                folder = _trained(restarts.config)
            except ShardLostError as error:
                restarts.lost(error)
            gc.collect()  # the memory of a run that is over
        return folder


def _trained(config: TrainConfig) -> Path:
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
        self._held = contextlib.ExitStack()
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def train(self) -> Path:
        """The loop of Algorithm 1."""
        config, state, progress = self.config, self.state, self.log.progress
        kept = self.store.finished_epochs_kept(self.log, self.learner, self.rollouts)
        with self.log.trackers, progress, kept:
            self._introduce()
            self._catch_up()
            while state.epoch < config.epochs:
                self._learn_epoch()
                if state.due(config.evaluation.every, config.epochs):
                    self._judge()
                self.log.write()
                if state.due(config.checkpoint.every, config.epochs):
                    self.store.save(state, self.learner, self.rollouts)
            self.store.settle()
            self._export()
        if config.tracking.report:
            self._report()
        return self.store.folder

    def close(self) -> None:
        """Let go of actors and of the folder."""
        self._held.close()

    def _build(self) -> None:
        """Build and check everything; the folder is written to when nothing refuses the start any more."""
        config = self.config
        self.store = self._held.enter_context(RunStore(config))
        self.store.check_free()
        check_trackers(config.tracking)
        self.source = rollout_source(config)
        self.prompts = self.source.prompts()
        self.parts = parts = build_learner(config, self._held)
        self.policy, self.learner = parts.policy, parts.learner
        checkpoint = self.store.find(self.prompts.train, self.prompts.heldout)
        if checkpoint is not None:
            self.learner.load_state(checkpoint.tensors, checkpoint.state["learner"])
        parts.rest(config)
        self.workforce = build_workforce_of(config, self.source, parts, self._held)
        self.stream = PromptStream(self.prompts.train, config.seed, config.prompts.shuffle)
        self.rollouts = rollout_queue(config, self.source, self.workforce, self.stream)
        if checkpoint is not None:
            self.rollouts.load_state(checkpoint.tensors, checkpoint.state)
        identity = self.workforce.reward_identity
        self.store.enter(checkpoint, identity)
        write_config(config, self.store.folder / "config.yaml")
        self.state = RunState.of(checkpoint)
        self.log = RunLog(
            config,
            self.prompts.train,
            self.state,
            self.store.lock,
            resumed=None if checkpoint is None else checkpoint.epoch,
            reward_identity=identity,
            watcher=self.workforce.export_metrics,
        )
        self.heldout = HeldoutEvaluation(config, self.prompts.judged, self.workforce, self.log)

    def _introduce(self) -> None:
        """Who works where, and what is to be known of the prompts."""
        progress = self.log.progress
        progress.cluster(lambda: self.parts.status(self.workforce))
        progress.message(self.workforce.plan)
        for line in self.store.changes:
            progress.message(f"changed on the way: {line}")
        for note in filter(None, (self.prompts.note, *self.source.notes())):
            progress.message(note)
        if self.config.model.family in FAMILIES:  # what a family from elsewhere makes of long prompts is its own matter
            model = self.config.model
            progress.message(cut_prompts_report(model.config or model.path, self.stream, self.prompts.judged.texts))

    def _catch_up(self) -> None:
        """Log what a run that was ended did not come to log; judge weights that are due and were not judged yet."""
        config, epoch = self.config, self.state.epoch
        if self.state.unlogged:
            self.log.write()
        elif self._updates_begun():
            return  # the weights at the start of the epoch are gone
        due = self.state.due(config.evaluation.every, config.epochs) and not self.heldout.is_done(epoch)
        if epoch == 0 or due:
            self._judge()
            self.log.write()

    def _judge(self) -> None:
        weights = self.learner.evaluation_weights()
        self.parts.rest(self.config)
        self.heldout.judge(weights)

    def _learn_epoch(self) -> None:
        """Sample, score, update; the memory of the rollout, gigabytes at true size, is free for the next one then."""
        self.log.begin_epoch()
        self._compiled = compile_seconds()
        metrics = self._publish()
        rollout = self._sample(metrics)
        for _ in range(self._updates_begun(), self.config.updates_per_epoch):
            rollout = self._update(rollout, metrics)
        if self._updates_begun():  # all were done before a restart
            self.log.count_epoch(rollout, metrics)
        if self.state.due(self.config.evaluation.every, self.config.epochs):
            pictures = self.config.tracking.training_pictures
            rollout = self.workforce.reading(rollout, lambda whole: self.log.show(whole, pictures))
        self.learner.let_go()
        self.workforce.release(rollout)

    def _publish(self) -> dict[str, float]:
        """Ask for the rollouts that may be under way now, under the weights that they are due."""
        start, weights = time.monotonic(), self.learner.weights()
        self.parts.rest(self.config)
        size = self.rollouts.fill(self.state.epoch, weights)
        return {"time/publish": time.monotonic() - start, "publish_mib": size / 2**20}

    def _sample(self, metrics: dict[str, float]) -> Rollout:
        config, start = self.config, time.monotonic()
        with self.log.progress.stage("sample", config.prompts_per_epoch * config.images_per_prompt) as stage:
            rollout = self.rollouts.next(lambda chunk: stage.advance(len(chunk)))
        self.learner.check(rollout, config.sampler)
        metrics |= rollout_metrics(rollout, waited_seconds=time.monotonic() - start) | self.workforce.storage()
        metrics["staleness"] = self.state.epoch * config.updates_per_epoch - rollout.weights_version
        return rollout

    def _update(self, rollout: Rollout, metrics: dict[str, float]) -> Rollout:
        """One update into `metrics`; the last one of an epoch counts it, as one with its step. Gives the rollout."""
        cells = math.prod(self.learner.cells(rollout))
        with self.log.progress.stage("learn", cells, unit="cells") as stage:

            def advance(total: int) -> None:
                stage.advance(total - stage.done)

            def stepped(update: dict[str, float]) -> None:
                update["images_per_second/learn"] = len(rollout) / update["time/learn"]
                add_update(metrics, update)
                if self.config.model.compile is not None:
                    metrics["time/compile"] = compile_seconds() - self._compiled
                if self._updates_begun() == self.config.updates_per_epoch:
                    self.log.count_epoch(rollout, metrics)

            def learn(whole: Rollout) -> None:
                try:
                    self.learner.update(whole, advance, stepped)
                except RowsLostError:  # samplers make them again
                    self.parts.rest(self.config)
                    raise

            return self.workforce.reading(rollout, learn)

    def _updates_begun(self) -> int:
        return self.state.begun(self.learner.version, self.config.updates_per_epoch)

    def _export(self) -> None:
        """Write the evaluation weights in diffusers format, for `StableDiffusionPipeline` to load."""
        self.store.lock.check()
        weights, policy = self.learner.evaluation_weights(), self.parts.whole_policy(self.config)
        usage = export_weights(self.config, policy, weights, self.prompts.judged.texts[0])
        if usage:
            self.log.progress.message(usage)

    def _report(self) -> None:
        folder = self.store.folder
        self.store.lock.check()
        try:
            self.log.progress.message(f"report: {write_report(folder)}")
        except ValueError as error:
            _log.warning("there is no report: %s; without that file, prdp report %s writes it", error, folder)
