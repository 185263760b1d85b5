"""The learner: asks an engine for evidence, an objective for coefficients, and the engine for the step."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import numpy as np

from prdp.config import LearnerConfig, SamplerConfig
from prdp.diffusion.recording import Recorder
from prdp.evidence.base import Channels
from prdp.learners.engine import Engine, Progress
from prdp.learners.guards import check_columns, check_rollout
from prdp.learners.history import RewardHistory
from prdp.learners.precision_watch import PrecisionWatch, accumulated
from prdp.learners.reward_terms import TERMS, reward_terms
from prdp.learners.schedule import learning_rate
from prdp.learners.update_plan import Precisions, UpdatePlan, alike_policies, further_passes, plan_update
from prdp.learners.used_cells import filled, strongest, used
from prdp.objectives import Coefficients, Objective
from prdp.support.interruption import uninterrupted
from prdp.support.microbatches import LEARNER_ADVICE, Microbatch, optimizer_memory
from prdp.support.staged import Staged
from prdp.types import Float64, Rollout, Weights

Stepped = Callable[[dict[str, float]], None]


class Learner:
    """Minimises an objective on the evidence of a rollout.

    Args:
        engine: computes that evidence, and steps.
        objective: with its knobs set.
        config: learning rate, moving average, tolerance.
        updates_per_epoch: on every rollout. The old policy moves after the last one.
        reward_terms: name -> weight of the terms of a weighted sum; for an objective that takes them apart.
    """

    def __init__(
        self,
        engine: Engine,
        objective: Objective,
        config: LearnerConfig,
        updates_per_epoch: int = 1,
        reward_terms: Mapping[str, float] | None = None,
    ) -> None:
        self.engine = engine
        self.objective = objective
        self._config = config
        self._updates_per_epoch = updates_per_epoch
        self._updates = 0
        self._awake = True
        self._microbatch = Microbatch("learner.microbatch", config.microbatch, LEARNER_ADVICE, engine.use_microbatch)
        self._watch = PrecisionWatch(engine, objective, config)
        self._terms = dict(reward_terms or {}) if TERMS in objective.arrays else None
        keeps_history, size = "history" in objective.arrays, None if self._terms is None else len(self._terms)
        self._history = RewardHistory(objective.knobs["buffer_size"], size) if keeps_history else None
        self._further_passes = further_passes(objective)
        old = objective.old_policy
        if old is not None:
            engine.keep("old")
        if old is not None and old.old_is_reference:
            engine.use_as_reference("old")
        elif "reference" in objective.others:
            engine.keep_reference()
        self._keeps_sampled = updates_per_epoch > 1 and "sampled" in objective.others
        if self._keeps_sampled:
            engine.keep("sampled")

    @property
    def version(self) -> int:
        """Number of optimizer steps taken."""
        return self._updates

    @property
    def recorder(self) -> Recorder:
        """What samplers have to keep for this learner."""
        return self.objective.evidence.recorder(self.objective.arrays)

    def cells(self, rollout: Rollout) -> tuple[int, int]:
        """Shape of the rollout's evidence: images and columns."""
        return self.objective.evidence.shape(rollout)

    def check(self, rollout: Rollout, sampler: SamplerConfig) -> None:
        """Compare what was sampled with what the size of the run was planned with; see `check_columns`."""
        evidence = self.objective.evidence
        check_columns(rollout, evidence, evidence.columns(sampler, self.engine.transitions.noisy))

    def weights(self) -> Weights:
        """The weights to sample with."""
        old = self.objective.old_policy
        self.wake()
        return self.engine.weights("old" if old is not None and old.old_samples else "policy", self._updates)

    def evaluation_weights(self) -> Weights:
        """The weights to evaluate and export: the moving average where one is kept."""
        self.wake()
        return self.engine.average(self._updates) or self.engine.weights("policy", self._updates)

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Everything that the next update depends on: arrays, and JSON-able scalars; the same for every framework.

        Returns:
            what `Engine.state` and the history of rewards hold, {"updates": count, ...}
        """
        tensors, scalars = self._own_state()
        return self.engine.state() | tensors, scalars

    def stage(self) -> tuple[Staged, dict[str, np.ndarray], dict[str, Any]]:
        """As `state`, for a checkpoint that is written while learning goes on: what the engine holds is copied to the
        hosts of the processes that hold it, and gathered by none; the other tensors and scalars.
        """
        tensors, scalars = self._own_state()
        return self.engine.stage(), tensors, scalars

    def rest(self, fixed: bool) -> None:
        """Bring what lies on the device to the host, until it is needed again.

        Args:
            fixed: also the tensors that do not learn, which a sampler in this process may need.
        """
        self._awake = False  # from the first tensor on
        self.engine.rest(fixed)

    def wake(self) -> None:
        """Have on the device what belongs there; what needs it asks for it."""
        if not self._awake:
            self.engine.wake()
            self._awake = True

    def _own_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """What is not the engine's; it is about to be asked for its own."""
        self.wake()
        tensors, scalars = self._history.state() if self._history is not None else ({}, {})
        return tensors, {"updates": self._updates, **scalars, **self._microbatch.state()}

    def load_state(self, tensors: Mapping[str, np.ndarray], scalars: Mapping[str, Any]) -> None:
        """Continue where `state` was taken, by this framework or another.

        Raises:
            ValueError: tensors missing or of another shape; names them.
        """
        if self._history is not None:
            self._history.load_state(tensors, scalars)
        updates = int(scalars["updates"])
        self.wake()
        self.engine.load_state(tensors, updates)
        self._microbatch.load_state(scalars)
        self._updates = updates

    def update(
        self, rollout: Rollout, progress: Progress | None = None, stepped: Stepped | None = None
    ) -> dict[str, float]:
        """One optimizer step on the full batch.

        Coefficients need the evidence, which takes a pass over the cells, and the gradient takes another. The first
        pass is left out where the coefficients are known without: for the first update after an on-policy rollout,
        whose evidence the sampler has stored, and for channels that the loss is linear in. It is left out, too, where
        the coefficients of a group take the group's evidence alone and a microbatch holds a group.

        Differences to the policy that an epoch's updates start from are known at the first of them, too, and so are
        those to an old policy that has the same weights. Images that the loss does not mention, such as those of a
        group whose rewards are all equal, take no pass, and cells whose coefficient is 0 none with gradient.

        In half precision the gradient alone is computed in it; what coefficients, clips and metrics are computed from
        is evidence of `learner.evidence_precision`. The error of that is measured on a few cells at the first update of
        every rollout.

        Where memory runs out in a pass, the update begins again with half the microbatch.

        Args:
            rollout: scored, and holding what `recorder` keeps.
            progress: called with the number of cells done after each microbatch.
            stepped: called with the metrics once the step is taken, as one with it: no interruption comes between.

        Raises:
            RatioError: on an on-policy rollout the recomputed evidence is not the stored one; nothing is stepped.
            UserError: a clip acts, and its range is below the error of the evidence; memory runs out all the same.
            ValueError: the rollout is not scored, has no group with a pair, or the loss or gradient is not finite.
        """
        start = time.perf_counter()
        self.wake()
        work = partial(self._update, rollout, progress, stepped, start)
        return self._microbatch.fitted(work, lambda: math.prod(self.cells(rollout)), f"update {self._updates}")

    def _update(
        self, rollout: Rollout, progress: Progress | None, stepped: Stepped | None, start: float
    ) -> dict[str, float]:
        watch = copy.copy(self._watch)
        objective, engine, evidence = self.objective, self.engine, self.objective.evidence
        guard, precisions = evidence.guard(objective.channels), Precisions(engine.precision, engine.evidence_precision)
        told = precisions.tell
        compares, takes_rewards = objective.method.compares_images, objective.method.takes_rewards
        metrics = check_rollout(rollout, evidence, compares, guard, takes_rewards)
        shape, sampled = self.cells(rollout), evidence.stored(rollout)
        data = self._data(rollout)
        batch = engine.batch(rollout, self._updates)
        weights = evidence.weights(rollout, engine.transitions)
        on_policy = rollout.weights_version == self._updates
        stored = {name: sampled[name] for name in objective.channels if name in sampled} if on_policy else {}
        cells = np.arange(np.prod(shape))
        if evidence.skips_unused:
            cells = used(objective, (*objective.channels, *self._further_passes), data, sampled, shape)
        plan = self._plan(precisions, rollout.images_per_prompt * shape[1], stored)
        checked: dict[str, float] = {}
        if guard is None:
            checked = watch.measure(batch, shape, plan.rounded)
        elif precisions.evidence != "float32" or not told:
            if on_policy or not watch.measured(rollout.prompts.epoch):
                checked = watch.spot_check(batch, guard, sampled[guard], on_policy, weights)
            if not on_policy:
                watch.check_clip(self._updates)
        for name, (channel, of) in plan.further.items():
            data[name] = engine.evidence(batch, cells, of=of, channels=(channel,))[channel]

        def coefficients_of(found: Channels) -> Coefficients:
            data.update({name: found[name] for name in plan.beside})
            data.update({name: found[self._further_passes[name][0]] for name in plan.own})
            return self._coefficients(found, data, weights)

        known_at, left_out = cells, 0.0
        if plan.at_once:
            recomputed = engine.accumulate(batch, cells, lambda seen: coefficients_of(seen).tables, progress)
            stored, scale = {}, 1.0
        else:
            if plan.before:
                stored = filled(engine.evidence(batch, cells, channels=(*plan.before, *plan.beside)), sampled, cells)
            now = dict.fromkeys(objective.channels, np.zeros(shape)) | stored
            result = coefficients_of(now)
            cells, left_out = strongest(result.tables, cells, self._config.least_coefficient)
            known_at = known_at if stored.keys() >= set(objective.channels) else cells
            recomputed, scale = accumulated(engine, batch, cells, result.tables, progress)
        recomputed = filled(recomputed, sampled, cells)
        if on_policy and told and guard is not None:
            watch.check_ratio(rollout, sampled[guard], recomputed[guard], self._updates)
        if not stored.keys() >= set(objective.channels):
            now = recomputed | stored
            result = coefficients_of(now)
        if guard is None:
            teaches = not metrics.get("rewards_constant")
            checked |= watch.check_coefficients(now, data, weights, self._updates, teaches)
        with uninterrupted():
            metrics |= self._step()
            if self._history is not None:
                self._history.remember(*_remembered(rollout, data))
            metrics |= result.metrics | evidence.describe(now, data, known_at) | {"loss": result.loss}
            metrics |= checked | ({"gradient_scale": scale} if scale != 1.0 else {})
            metrics |= {"coefficients_left_out": left_out} if self._config.least_coefficient else {}
            if stored and told:
                errors = [np.abs(recomputed[name] - stored[name]).ravel()[cells].max() for name in stored]
                metrics["ratio_error"] = float(max(errors))
            metrics |= self._microbatch.metrics()
            self._watch = watch
            metrics["time/learn"] = time.perf_counter() - start
            if stepped is not None:
                stepped(metrics)
        return metrics

    def _data(self, rollout: Rollout) -> dict[str, np.ndarray]:
        """What the loss takes that no pass over the cells is needed for."""
        data: dict[str, np.ndarray] = {"group_ids": rollout.group_ids}
        if rollout.rewards is not None:
            data["rewards"] = rollout.rewards
        if self._terms is not None:
            data |= reward_terms(rollout, self._terms)
        if self._history is not None:
            data["history"] = self._history.including(*_remembered(rollout, data))
        return data | self.objective.evidence.known(rollout, self.engine.transitions)

    def _plan(self, precisions: Precisions, cells_per_group: int, stored: Collection[str]) -> UpdatePlan:
        """The passes of this update; the policy that an epoch's updates start from is kept at the first of them."""
        first, engine = self._updates % self._updates_per_epoch == 0, self.engine
        if first and self._keeps_sampled:
            engine.keep("sampled")
        unmoved = self.objective.old_policy is not None and engine.unmoved("old")
        alike = alike_policies(self.objective, first, unmoved)
        return plan_update(self.objective, precisions, cells_per_group, engine.microbatch, stored, alike)

    def let_go(self) -> None:
        """Hold nothing of a rollout any more."""
        self.engine.let_go()

    def _coefficients(
        self, channels: Channels, data: Mapping[str, np.ndarray], weights: Float64 | None
    ) -> Coefficients:
        result = self.objective.coefficients(channels, data, weights)
        if not np.isfinite(result.loss):
            raise ValueError(f"the loss of update {self._updates} is {result.loss}")
        return result

    def _step(self) -> dict[str, float]:
        rate = learning_rate(self._config, self._updates)
        # A short memory at first, so that the untrained start fades from the average.
        decay = min(self._config.ema_decay, (2 + self._updates) / (11 + self._updates))
        with optimizer_memory(self._updates):
            metrics = self.engine.apply(rate, decay, self._updates)
        self._updates += 1
        old = self.objective.old_policy
        if old is not None and self._updates % self._updates_per_epoch == 0:
            self.engine.move("old", old.decay(self._updates // self._updates_per_epoch))
        return metrics | {"learning_rate": rate}


def _remembered(rollout: Rollout, data: Mapping[str, np.ndarray]) -> tuple[int, list[str], np.ndarray]:
    """What a `RewardHistory` is told of a rollout: its epoch, prompts and rewards."""
    return rollout.prompts.epoch, rollout.image_prompts, data.get(TERMS, data["rewards"])
