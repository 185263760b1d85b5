"""The public lists in their published formats, where a folder with them is at hand: PRDP_PROMPT_DATA names it.

It holds train_115k.tsv.gz and eval/ with drawbench.txt, partiprompts.tsv, geneval.jsonl, dsg_1k.csv and others.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from prdp.configuration.compose import Composer
from prdp.evaluation.exports import check_export
from prdp.prompts import build_prompts
from prdp.prompts.stream import fixed_prompts
from prdp.rewards.vqa_questions import questions_of, with_dependencies

DATA = Path(os.environ.get("PRDP_PROMPT_DATA", "/nonexistent"))
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="PRDP_PROMPT_DATA names no folder with the public lists")


@pytest.mark.parametrize(
    ("option", "file", "prompts", "keys"),
    [
        ("drawbench", "drawbench.txt", 200, set()),
        ("partiprompts", "partiprompts.tsv", 1632, {"category", "Challenge"}),
        ("geneval", "geneval.jsonl", 553, {"category", "tag", "include"}),
        ("hpdv2", "hpsv2_photo.txt", 800, {"category"}),
        ("t2i_compbench", "t2i_compbench_val.txt", 2400, {"category"}),
        ("dsg_1k", "dsg_1k.csv", 1060, {"category", "item_id", "questions"}),
    ],
)
def test_configurations_read_the_published_lists(option: str, file: str, prompts: int, keys: set[str]) -> None:
    words = [f"prompts={option}", "prompts.train.path=train.json", f"prompts.heldout.path={DATA}/eval/{file}"]
    with Composer(words) as composer:
        [job] = composer.jobs()
    source = build_prompts("prompts.heldout", job.config.prompts.heldout)
    assert len(source) == prompts
    assert all(keys <= source[index][1].keys() for index in range(prompts))
    if option == "dsg_1k":
        asked = [questions_of(*source[index]) for index in range(prompts)]
        assert sum(len(questions) for questions in asked) == 8182
        assert all(sum(with_dependencies(questions, [1.0] * len(questions))) == len(questions) for questions in asked)


def test_the_large_training_list() -> None:
    section = {
        "_target_": "prdp.prompts.csv_file.CsvFilePrompts",
        "path": f"{DATA}/train_115k.tsv.gz",
        "columns": ["source", "prompt"],
        "category_column": "source",
    }
    source = build_prompts("prompts.train", section)
    assert len(source) == 115_670
    assert source[115_669][1].keys() == {"category"}


def test_t2i_compbench_goes_to_its_authors_scripts() -> None:
    section = {"_target_": "prdp.prompts.text_file.TextFilePrompts", "path": f"{DATA}/eval/t2i_compbench_val.txt"}
    prompts = fixed_prompts(build_prompts("prompts", section), 2400, 0)
    assert len(prompts) == 2400
    check_export("t2i_compbench", "t2i_compbench", prompts)
