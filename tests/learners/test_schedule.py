"""Learning rates of every update, beside transformers' schedules; and of a run that resumes with another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from prdp.cli import main
from prdp.config import LearnerConfig
from prdp.learners.schedule import decaying_over, learning_rate
from prdp.tracking.jsonl import read_metrics

POINTS = [
    *(
        "experiment=mixtures_small",
        "prompts_per_epoch=4",
        "images_per_prompt=4",
        "updates_per_epoch=1",
        "sampler.steps=4",
    ),
    *("evaluation.every=0", "evaluation.final_prompts=2", "tracking=silent", "learner.warmup_updates=0"),
]


@pytest.mark.parametrize(
    ("schedule", "reference"),
    [("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)],
)
def test_decays_are_those_of_transformers(schedule: str, reference: object) -> None:
    config = LearnerConfig(learning_rate=0.5, warmup_updates=3, schedule=schedule, decay_updates=20)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    theirs = reference(optimizer, 3, 20)  # type: ignore[operator]
    for update in range(21):
        if update >= 3:  # theirs has a first update of rate 0
            assert learning_rate(config, update) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()
    assert learning_rate(config, 20) == learning_rate(config, 99) == 0


def test_the_warm_up_ends_at_the_rate_and_a_constant_stays_there() -> None:
    config = LearnerConfig(learning_rate=0.3, warmup_updates=3)
    assert [learning_rate(config, update) for update in (0, 1, 2, 3, 1000)] == pytest.approx([0.1, 0.2, 0.3, 0.3, 0.3])
    assert learning_rate(LearnerConfig(learning_rate=0.3), 0) == 0.3


def test_a_decay_is_as_long_as_the_run_unless_it_is_told() -> None:
    assert decaying_over(LearnerConfig(schedule="linear"), 40).decay_updates == 40
    assert decaying_over(LearnerConfig(schedule="linear", decay_updates=7), 40).decay_updates == 7
    assert decaying_over(LearnerConfig(), 40).decay_updates is None
    with pytest.raises(ValueError, match="schedule=linear needs decay_updates"):
        learning_rate(LearnerConfig(schedule="linear"), 0)


@pytest.mark.slow
def test_a_run_decays_and_goes_on_with_another_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*POINTS, "learner.learning_rate=0.01", f"output_dir={tmp_path / 'run'}"]
    assert main(["train", *words, "epochs=2", "learner.schedule=linear", "learner.decay_updates=4"]) == 0
    longer = [*words[:-2], "learner.learning_rate=0.002", words[-1], "epochs=4", "checkpoint.resume=auto"]
    assert main(["train", *longer]) == 2
    assert "checkpoint.change=[learner.decay_updates,learner.learning_rate,learner.schedule]" in capsys.readouterr().err
    change = "checkpoint.change=[learner.decay_updates,learner.learning_rate,learner.schedule]"
    assert main(["train", *longer, change]) == 0
    rates = [line["learning_rate"] for line in read_metrics(tmp_path / "run") if "learning_rate" in line]
    assert rates == pytest.approx([0.01, 0.0075, 0.002, 0.002])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["learner.decay_updates=5"], "learner.decay_updates=5: has no effect with learner.schedule=constant"),
        (
            ["learner.schedule=cosine", "learner.decay_updates=3", "learner.warmup_updates=3"],
            "learner.decay_updates=3: must be above learner.warmup_updates=3",
        ),
        (["checkpoint.keep_best=reward/mean"], "must be eval/score"),
        (["checkpoint.keep_best=eval/score", "checkpoint.every=20"], "evaluation.every=10 must be a multiple of"),
        (["checkpoint.change=[learner.learning_rate]"], "needs checkpoint.resume=auto"),
        (
            ["checkpoint.resume=auto", "checkpoint.change=[learner.lora_rank]"],
            "checkpoint.change: learner.lora_rank: a resumed run can change knobs of objective and learner.",
        ),
        (["checkpoint.resume=auto", "checkpoint.change=[epochs]"], "epochs: may differ without being named"),
        (["checkpoint.resume=auto", "checkpoint.change=[objective.name]"], "checkpoint.change: objective.name"),
    ],
)
def test_what_has_no_effect_or_cannot_change_is_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", *words]) == 2
    assert message in capsys.readouterr().err
