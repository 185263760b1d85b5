"""What a learning rate's schedule, and a change of a run that resumes, ask of other keys."""

from __future__ import annotations

from prdp.checkpoints.compatible import CHANGEABLE, may_change
from prdp.config import CheckpointConfig, LearnerConfig, TrainConfig
from prdp.support.suggest import did_you_mean


def schedule_problems(learner: LearnerConfig) -> list[str]:
    """A decay that ends before it begins, or that nothing follows."""
    updates = learner.decay_updates
    if updates is None:
        return []
    if learner.schedule == "constant":
        return [f"learner.decay_updates={updates}: has no effect with learner.schedule=constant; leave it at null"]
    if updates <= learner.warmup_updates:
        return [f"learner.decay_updates={updates}: must be above learner.warmup_updates={learner.warmup_updates}"]
    return []


def keep_best_problems(config: TrainConfig) -> list[str]:
    """A metric that no evaluation logs, or evaluations of epochs that have no checkpoint."""
    metric, every, saved = config.checkpoint.keep_best, config.evaluation.every, config.checkpoint.every
    if metric is None:
        return []
    if not metric.startswith("eval/"):
        return [f"checkpoint.keep_best={metric}: must be eval/score, or eval/ with the name of a sub-score"]
    if every == 0 or every % saved:
        return [
            f"checkpoint.keep_best={metric}: needs evaluations of epochs that are saved: evaluation.every={every} must "
            f"be a multiple of checkpoint.every={saved}"
        ]
    return []


def change_problems(checkpoint: CheckpointConfig) -> list[str]:
    """Keys that a resumed run may not have other values of, or a run that does not resume."""
    if checkpoint.change and checkpoint.resume == "never":
        keys = ",".join(checkpoint.change)
        return [f"checkpoint.change=[{keys}]: needs checkpoint.resume=auto, or the path of a checkpoint"]
    return [
        f"checkpoint.change: {key}: a resumed run can change knobs of objective and {', '.join(CHANGEABLE)}"
        f"{did_you_mean(key, CHANGEABLE)}"
        for key in checkpoint.change
        if not may_change(key)
    ]
