"""Benchmarks by name: what each brings, what is typed beside it, and a whole one that is small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_checkpoints import bert_tokenizer, blip_folder  # noqa: F401
from test_command_line import composed

from prdp.commands.evaluate import main
from prdp.configuration.typed import conf_folder
from prdp.evaluation.results import CATEGORY_MEAN
from prdp.evaluation.suites import suite_words
from prdp.support.errors import ConfigError, UserError

BASE = ("models=[base]", "model=shapes")
SUITES: dict[str, tuple[str, int, int, bool, dict[str, dict[str, Any]]]] = {
    # prompt set, prompts, images of each, whether the categories' mean is what counts, arguments of rewards
    "dpg_bench": ("dpg_bench", 1065, 4, False, {"vqa": {"method": "choice", "cascade": True}}),
    "dsg": ("dsg_1k", 1060, 1, False, {"vqa": {"method": "choice", "cascade": False}}),
    "geneval": ("geneval", 553, 4, True, {"geneval": {"credit": "strict"}}),
    "hpsv2": ("hpdv2", 3200, 1, True, {"hpsv2_1": {}}),
    "parti_prompts": ("partiprompts", 1632, 1, False, {"pickscore": {}, "hpsv2_1": {}, "clipscore": {}}),
    "t2i_compbench": (
        *("t2i_compbench", 2400, 10, False),
        {"blip_vqa": {}, "clipscore": {"path": "openai/clip-vit-base-patch32"}},
    ),
}


@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_brings_prompts_rewards_and_numbers(suite: str) -> None:
    prompts, count, images, by_category, rewards = SUITES[suite]
    config = composed(f"suite={suite}", *BASE, f"prompts.{prompts}.path=list.txt")
    assert (config.suite, list(config.prompts)) == (suite, [prompts])
    assert (config.prompts_per_set, config.images_per_prompt, config.category_mean) == (count, images, by_category)
    assert config.prompts[prompts]["path"] == "list.txt" and "heldout" not in config.prompts[prompts]
    assert list(config.rewards) == list(rewards)
    for name, arguments in rewards.items():
        assert arguments.items() <= config.rewards[name].items()
    assert config.export == (["t2i_compbench"] if suite == "t2i_compbench" else [])


def test_every_suite_is_among_them() -> None:
    assert sorted(SUITES) == sorted(file.stem for file in conf_folder().glob("suite/*.yaml"))


def test_what_is_typed_wins() -> None:
    path = "prompts.geneval.path=list.jsonl"
    config = composed("suite=geneval", *BASE, path, "images_per_prompt=2", "rewards.geneval.credit=partial")
    assert (config.images_per_prompt, config.prompts_per_set) == (2, 553)
    assert config.rewards["geneval"]["credit"] == "partial"
    config = composed("rewards=[redness]", *BASE, "suite=geneval", path, "watch=[compressibility]")
    assert list(config.rewards) == ["redness"] and list(config.watch) == ["compressibility"]


def test_what_is_missing_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"no value for prompts\.partiprompts\.path"):
        main(["suite=parti_prompts", *BASE])
    Path("parti.tsv").write_text("Prompt\tCategory\tChallenge\na cat\tAnimals\tBasic\n")
    with pytest.raises(UserError) as caught:
        main(["suite=parti_prompts", *BASE, "prompts.partiprompts.path=parti.tsv"])
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"rewards.{name}" for name in SUITES["parti_prompts"][4]]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["suite=genevl"], "there is no such suite. Did you mean 'geneval'"),
        (["suite=zzzzzz"], "there are dpg_bench, dsg"),
        (["suite=dsg", "suite=geneval"], "one suite at a time"),
        (["suite=bad"], "bad.yaml: must hold keys"),
        (["suite=worse"], "worse.yaml: rewards: must be a number"),
    ],
)
def test_mistakes_are_refused(words: list[str], says: str, tmp_path: Path) -> None:
    (tmp_path / "suite").mkdir()
    (tmp_path / "suite" / "bad.yaml").write_text("- a\n")
    (tmp_path / "suite" / "worse.yaml").write_text("rewards: {a: b}\n")
    with pytest.raises(ConfigError) as caught:
        suite_words(words, [conf_folder(), tmp_path])
    assert says in str(caught.value)


def test_a_suite_of_ones_own_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    suite = tmp_path / "conf" / "suite" / "tiny.yaml"
    suite.parent.mkdir(parents=True)
    suite.write_text("# Small.\nprompts: [list.jsonl]\nrewards: [redness]\nimages_per_prompt: 1\ncategory_mean: true\n")
    rows = [("one", "red"), ("two", "red"), ("three", "red"), ("four", "blue"), ("five", "blue")]
    Path("list.jsonl").write_text("\n".join(json.dumps({"prompt": text, "category": kind}) for text, kind in rows))
    words = ["suite=tiny", *BASE, "--config-dir", "conf", "sampler.steps=2", "sampler.guidance_scale=1"]
    assert main([*words, "prompts.list.category_column=category", "output_dir=out"]) == 0
    scores = json.loads(Path("out/results.json").read_text())["scores"]
    found = {row["part"]: row for row in scores}
    means = [found[f"category: {kind}"]["score"] for kind in ("red", "blue")]
    assert found[CATEGORY_MEAN]["score"] == pytest.approx(np.mean(means))
    assert found["all"]["score"] == pytest.approx(np.average(means, weights=[3, 2]))
    assert found[CATEGORY_MEAN]["score_low"] < found[CATEGORY_MEAN]["score"]
    assert "| redness | list, mean of categories | base |" in Path("out/results.md").read_text()
    assert CATEGORY_MEAN in Path("out/report.html").read_text()


def test_a_benchmark_with_questions_runs_on_small_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blip_folder: Path  # noqa: F811
) -> None:
    monkeypatch.chdir(tmp_path)
    head = "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple"
    rows = ["vrd1,a red cat,k,1,0,entity,whole,t,Is there a cat?", "vrd1,a red cat,k,2,1,attribute,color,t,Is it red?"]
    rows.append("whoops2,two cats,k,1,0,entity,whole,t,Are there two?")
    Path("dpg.csv").write_text("\n".join([f"{head},question_natural_language", *rows]))
    words = ["suite=dpg_bench", *BASE, "prompts.dpg_bench.path=dpg.csv", f"rewards.vqa.path={blip_folder}"]
    words += ["rewards.vqa.device=cpu", "sampler.steps=2", "sampler.guidance_scale=1"]
    assert main([*words, "output_dir=out"]) == 0
    found = json.loads(Path("out/results.json").read_text())
    assert (found["prompts"], found["images_per_prompt"]) == ({"dpg_bench": 2}, 4)
    assert found["rewards"]["vqa"]["version"].endswith("-choice-cascade")
    [score] = [row["score"] for row in found["scores"] if row["part"] == "all"]
    # Yes or no to each question: quarters of what four images can get, in halves for the prompt with two questions.
    assert score * 16 == pytest.approx(round(score * 16))
