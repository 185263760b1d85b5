"""A run on a prompt file: its log of prompts, the prompts it will cut, and its refusal of other data."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from prdp.cli import main as prdp
from prdp.configuration.typed import typed
from prdp.prompts.usage import check_usage, read_prompt_log
from prdp.support.errors import UserError
from prdp.train import main


def config(small_pipeline: Path, folder: Path, **changes: Any) -> Any:
    source = {
        "_target_": "prdp.prompts.csv_file.CsvFilePrompts",
        "path": str(folder / "train.csv"),
        "category_column": "style",
    }
    return typed(
        {
            "epochs": 2,
            "prompts_per_epoch": 3,
            "images_per_prompt": 2,
            "output_dir": str(folder / "run"),
            "model": {"path": str(small_pipeline)},
            "sampler": {"steps": 2, "guidance_scale": 1.0, "prompts_per_chunk": 2},
            "reward": {"_target_": "prdp.rewards.redness.Redness"},
            "prompts": {
                "train": source,
                "heldout": {**source, "path": str(folder / "heldout.csv")},
            },
            "learner": {"lora_rank": 2},
            "evaluation": {"every": 0, "prompts": 1, "images_per_prompt": 1, "final_prompts": 1, "grid_prompts": 1},
            "tracking": {"console": False, "report": False},
            "checkpoint": {"every": 1},
            **changes,
        }
    )


def test_every_prompt_once_over_an_interruption_and_no_other_data(small_pipeline: Path, tmp_path: Path) -> None:
    texts = ["a red circle", "a blue star", "large " * 40, "a fox", "a bear", "a dog"]
    file = tmp_path / "train.csv"
    file.write_text("prompt,style\n" + "".join(f"{text},s\n" for text in texts))
    heldout = tmp_path / "heldout.csv"
    heldout.write_text("prompt,style\nA red circle!,s\na lake,s\n")
    main(config(small_pipeline, tmp_path, epochs=1))
    main(config(small_pipeline, tmp_path, checkpoint={"every": 1, "resume": "auto"}))
    usage = check_usage(tmp_path / "run")
    assert (usage.epochs, usage.whole_passes, usage.faults) == (2, 1, ())
    assert usage.counts.tolist() == [1] * 6
    assert read_prompt_log(tmp_path / "run")[0]["fingerprint"]
    log = (tmp_path / "run" / "progress.log").read_text()
    assert "1 of the next 6 prompts are longer than the text encoder's 32 tokens and will be cut: 10 of" in log
    assert "0 of the 1 held-out prompts that evaluations use, and 1 of all 2 are training prompts too, such as" in log
    heldout.write_text("prompt,style\na red square,s\na lake,s\n")
    with pytest.raises(UserError, match=r"prompts\.heldout holds other prompts than when the checkpoint was written"):
        main(config(small_pipeline, tmp_path, epochs=3, checkpoint={"every": 1, "resume": "auto"}))
    heldout.write_text("prompt,style\nA red circle!,s\na lake,s\n")
    file.write_text(file.read_text().replace("a fox", "a cat"))
    os.utime(file, ns=(0, 1))
    with pytest.raises(UserError, match=r"prompts\.train holds other prompts than when the checkpoint was written"):
        main(config(small_pipeline, tmp_path, epochs=3, checkpoint={"every": 1, "resume": "auto"}))


def test_prompts_without_the_questions_that_a_reward_asks_are_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("prdp.rewards.vqa.VQAAlignment.check", lambda **_: None)
    question = [{"id": 1, "question": "red?", "parents": []}]
    rows = [{"prompt": f"prompt {i}", "questions": question} for i in range(4)]
    for name, some in (("train", rows[:2]), ("heldout", rows[2:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    words = ["validate", "experiment=shapes_smoke", "prompts=file", "reward=vqa", f"output_dir={tmp_path}/run"]
    words += [f"prompts.{name}.path={tmp_path}/{name}.jsonl" for name in ("train", "heldout")]
    columns = [f"prompts.{name}.metadata_columns=[questions]" for name in ("train", "heldout")]
    for given, prompt in ((columns[1:], "prompt 0"), (columns[:1], "prompt [23]"), ([], "prompt 0")):
        assert prdp([*words, *given]) == 2
        message = rf"reward: prompt '{prompt}' has no questions in its metadata, .*metadata_columns=\[questions\] of a"
        assert re.search(message, capsys.readouterr().err)
    assert prdp([*words, *columns]) == 0
