"""`prdp prompts` from the command line: what it prints, writes and answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prdp.cli import main
from prdp.prompts.usage import PROMPTS_FILE


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a training list and a held-out one."""
    monkeypatch.chdir(tmp_path)
    rows = [("web", "a cat"), ("coco", "A cat!"), ("coco", "two dogs on a beach"), ("web", "a fox"), ("web", "a fox")]
    (tmp_path / "train.tsv").write_text("".join(f"{source}\t{prompt}\n" for source, prompt in rows))
    (tmp_path / "heldout.csv").write_text("Prompt,Category\nA fox.,animals\na bear,animals\n")
    return tmp_path


TRAIN = ["train.tsv", "--option", "columns=[source,prompt]", "--option", "category_column=source"]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_inspect_shows_prompts_and_metadata(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prompts", "inspect", *TRAIN, "--rows", "1"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("5 prompts, fingerprint ")
    assert "0  a cat\n" in shown
    assert "category: web" in shown
    assert "two dogs" not in shown


def test_stats_count_and_say_what_would_be_cut(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prompts", "stats", *TRAIN, "--model", "shapes"]) == 0
    shown = capsys.readouterr().out
    assert "different   4; 3 but for case, punctuation and spaces" in shown
    assert "words       least 2, 50% 2, 90% 2, 99% 2, most 5" in shown
    assert "none of the prompts is longer than the text encoder's 32 tokens" in shown
    assert "category    2 different: web 3, coco 2" in shown
    (folder / "long.txt").write_text("a cat\n" + "large " * 40 + "\n")
    assert main(["prompts", "stats", "long.txt", "--model", "shapes"]) == 0
    assert "1 of the prompts are longer than the text encoder's 32 tokens and will be cut: 10 of " in (
        capsys.readouterr().out
    )


def test_dedupe_writes_what_stays_and_why_the_rest_goes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prompts", "dedupe", *TRAIN, "--output", "kept.jsonl", "--dropped", "dropped.jsonl"]) == 0
    assert lines(folder / "kept.jsonl") == [
        {"prompt": "a cat", "category": "web"},
        {"prompt": "two dogs on a beach", "category": "coco"},
        {"prompt": "a fox", "category": "web"},
    ]
    assert lines(folder / "dropped.jsonl") == [
        {
            "prompt": "A cat!",
            "row": 1,
            "reason": "normalised",
            "similarity": 1.0,
            "repeats_row": 0,
            "repeats": "a cat",
        },
        {"prompt": "a fox", "row": 4, "reason": "exact", "similarity": 1.0, "repeats_row": 3, "repeats": "a fox"},
    ]
    shown = capsys.readouterr().out
    assert "row 1: A cat!\n  normalised 1, row 0: a cat" in shown
    assert "5 prompts: 3 stay, 2 go (1 exact, 1 normalised, 0 near)" in shown


def test_leakage_answers_1_and_writes_clean_prompts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    against = ["--against", "heldout.csv", "category_column=Category"]
    assert main(["prompts", "leakage", *TRAIN, *against, "--output", "clean.txt"]) == 1
    shown = capsys.readouterr().out
    assert "heldout.csv: of its 2 prompts, 2 are repeated and 0 nearly so" in shown
    assert "row 3: a fox\n  normalised 1, row 0: A fox." in shown
    assert (folder / "clean.txt").read_text() == "a cat\nA cat!\ntwo dogs on a beach\n"
    assert main(["prompts", "leakage", "clean.txt", *against]) == 0


def test_split_writes_both_sides(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["prompts", "split", *TRAIN, "--count", "1", "--train", "a.jsonl", "--heldout", "b.jsonl"]
    assert main(words) == 0
    train, held_out = ([line["prompt"] for line in lines(folder / name)] for name in ("a.jsonl", "b.jsonl"))
    assert sorted(train + held_out) == sorted(["a cat", "A cat!", "two dogs on a beach", "a fox", "a fox"])
    assert held_out
    assert not {text.lower().rstrip("!") for text in train} & {text.lower().rstrip("!") for text in held_out}


def test_outputs_keep_all_metadata_unless_columns_are_chosen(folder: Path) -> None:
    rows = [{"prompt": f"{count} owls", "skill": "count", "scene": {"owls": count}} for count in range(3)]
    (folder / "owls.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["prompts", "split", "owls.jsonl", "--count", "1", "--train", "a.jsonl", "--heldout", "b.jsonl"]
    assert main(words) == 0
    both = lines(folder / "a.jsonl") + lines(folder / "b.jsonl")
    assert sorted(both, key=lambda row: str(row["prompt"])) == rows
    assert main(["prompts", "dedupe", "owls.jsonl", "--option", "metadata_columns=[skill]", "--output", "c.jsonl"]) == 0
    assert lines(folder / "c.jsonl")[0].keys() == {"prompt", "skill"}


def test_used_answers_1_for_a_fault(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = {"rows": 2, "pass_length": 2, "every_prompt_once": True}
    for indices, code in (([1, 0], 0), ([1, 1], 1)):
        epoch = {"epoch": 1, "indices": indices}
        (folder / PROMPTS_FILE).write_text(f"{json.dumps(source)}\n{json.dumps(epoch)}\n")
        assert main(["prompts", "used", "."]) == code
    assert "fault: pass 1: 1 prompts were missed, the first is 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["inspect", "nothing.txt"], "nothing.txt cannot be read"),
        (
            ["inspect", "train.tsv", "--option", "prompt_column=prompt"],
            "there is no column 'prompt'; there are web, a cat",
        ),
        (["dedupe", *TRAIN, "--output", "kept.csv"], "output kept.csv: must end on .jsonl or .txt"),
        (["dedupe", *TRAIN, "--near", "2"], "threshold is 2.0"),
        (["split", *TRAIN, "--count", "9", "--train", "a.txt", "--heldout", "b.txt"], "expected 1 to 4"),
        (["stats", *TRAIN, "--model", "nowhere"], "model nowhere: no tokenizer can be loaded"),
        (["used", "nowhere"], "there is no log of prompts"),
    ],
)
def test_mistakes_are_named(folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert main(["prompts", *words]) == 2
    assert message in capsys.readouterr().err
