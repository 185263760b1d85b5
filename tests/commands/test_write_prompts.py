"""`prdp prompts write` from the command line: files, what goes on, skills that ship and skills of one's own, errors."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from stub_endpoint import Reply, chat, endpoint

from prdp.cli import main
from prdp.commands.write_prompts import WRITE
from prdp.configuration.typed import conf_folder, typed
from prdp.prompt_writers.rouge import rouge_l, words_of
from prdp.prompt_writers.settings import scenes_of
from prdp.prompts.any_file import open_prompts
from prdp.support.plain_yaml import load_yaml
from prdp.worlds.shapes.grammar import parse
from prdp.worlds.shapes.split import is_held_out

SKILLS = sorted(file.stem for file in (conf_folder() / "skill").glob("*.yaml"))
KEY = "sk-not-to-be-seen-anywhere"
PAGE = Path(__file__).parents[2] / "docs" / "prompts.md"
OWN = re.findall(r"```yaml\n(# Owls.*?)```", PAGE.read_text(), re.DOTALL)[0]
"""The skill that the page shows."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("prdp.support.http_client.time.sleep", lambda seconds: None)


def lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def of_owls(number: int, body: dict[str, Any]) -> Reply:
    return chat("\n".join(f"{k}. owl{number}x{k} sits on branch{number}x{k}" for k in range(4, 9)))


@pytest.mark.parametrize("skill", SKILLS)
def test_skills_that_ship(skill: str) -> None:
    """Three seeds that are no copies of each other, rules, and, of shapes, seeds that the skill takes."""
    content = load_yaml(conf_folder() / "skill" / f"{skill}.yaml")
    config = typed({"skill": content, "writer": {"_target_": "a.b"}, "output": "x.jsonl"}, WRITE)
    assert (config.skill.name, len(config.skill.seeds)) == (skill, 3)
    assert config.skill.rules
    seeds = [words_of(seed) for seed in config.skill.seeds]
    assert all(rouge_l(a, b) <= 0.8 for a in seeds for b in seeds if a is not b)
    scenes = scenes_of(config.skill)
    assert (scenes is not None) == skill.startswith("shapes_")
    assert scenes is None or [scenes.problem(seed) for seed in config.skill.seeds] == [None] * 3
    least, most = {"localized_narratives": (30, 60), "diffusiondb": (15, 50)}.get(skill, (3, 25))
    assert all(least <= len(seed) <= most for seed in seeds)


def test_the_grammar_writes_prompts_that_the_judge_can_score(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["prompts", "write", "skill=shapes_color", "writer=grammar", "output=new/color.jsonl"]
    assert main([*words, "count=30"]) == 0
    shown = capsys.readouterr().out
    assert "skill shapes_color: 30 prompts of 2 requests (" in shown and shown.endswith("new/color.jsonl\n")
    first = lines("new/color.jsonl")
    for line in first:
        colors = [one.color for one in parse(line["prompt"]).objects]
        assert len(set(colors)) == len(colors) == line["objects"]
        assert [one["color"] for one in line["scene"]["objects"]] == colors
        assert (line["skill"], line["writer"], line["split"]) == ("shapes_color", "grammar", "train")
    assert main([*words, "count=50"]) == 0
    assert lines("new/color.jsonl")[:30] == first
    source = open_prompts("new/color.jsonl", metadata_columns=["skill", "scene"], category_column="skill")
    assert (len(source), source[3][1]["category"]) == (50, "shapes_color")
    held_out = ["skill.scenes.split=heldout", "output=heldout.jsonl", "count=10"]
    assert main([*words, *held_out]) == 0
    assert all(is_held_out(parse(line["prompt"])) for line in lines("heldout.jsonl"))


def test_a_server_writes_and_its_key_is_seen_nowhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    Path("owls.yaml").write_text(OWN)
    with endpoint(of_owls) as stub:
        words = ["prompts", "write", "skill=./owls.yaml", "writer=endpoint", f"writer.url={stub.url}", "output=o.jsonl"]
        assert main([*words, "writer.model=m", "writer.key_variable=MY_KEY", "count=12", "per_request=5"]) == 0
    assert stub.headers[0]["Authorization"] == f"Bearer {KEY}"
    asked = stub.bodies[0]["messages"][0]["content"]
    assert asked.startswith("Write 5 more") and "* At most 20 words." in asked
    assert "An owl looks down from a church tower." in asked
    assert len(lines("o.jsonl")) == 12
    assert {(line["skill"], line["writer"]) for line in lines("o.jsonl")} == {("owls", "endpoint m")}
    written = "".join(file.read_text() for file in Path(".").rglob("*") if file.is_file())
    shown = capsys.readouterr()
    assert KEY not in written + shown.out + shown.err


def test_a_server_that_goes_away_is_come_back_to(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("conf/skill")
    folder.mkdir(parents=True)
    (folder / "owls.yaml").write_text(OWN)
    words = ["prompts", "write", "--config-dir", "conf", "skill=owls", "writer=endpoint", "output=o.jsonl"]
    words += ["count=12", "writer.retries=0", "writer.at_once=1"]
    with endpoint(lambda number, body: of_owls(number, body) if number < 2 else (503, {"error": "busy"})) as stub:
        assert main([*words, f"writer.url={stub.url}"]) == 75
    assert "HTTP 503: busy" in capsys.readouterr().err
    assert not Path("o.jsonl").exists()
    with endpoint(lambda number, body: of_owls(number + 2, body)) as elsewhere:
        assert main([*words, f"writer.url={elsewhere.url}"]) == 0
    assert (len(stub.bodies), len(elsewhere.bodies)) == (3, 1)
    prompts = [line["prompt"] for line in lines("o.jsonl")]
    assert prompts == [f"owl{n}x{k} sits on branch{n}x{k}" for n in range(3) for k in range(4, 9)][:12]


def test_a_server_that_answers_nonsense(capsys: pytest.CaptureFixture[str]) -> None:
    with endpoint(lambda number, body: chat("As a model I like owls.")) as stub:
        words = ["skill=coco", "writer=endpoint", f"writer.url={stub.url}", "output=o.jsonl", "barren=2"]
        assert main(["prompts", "write", *words]) == 2
    shown = capsys.readouterr().err
    assert "writer: 2 requests in a row brought no new prompt" in shown
    assert "The last answer: As a model I like owls." in shown
    assert not Path("o.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["skill=shapes_colour"], "skill=shapes_colour: there is no such skill; available: coco.*Did you mean"),
        (["skill=./none.yaml"], r"skill=\./none\.yaml: there is no such file"),
        (["count=0"], "count=0: must be at least 1"),
        (["output=x.txt"], r"output=x\.txt: must be a file that ends on \.jsonl"),
        (["skill.seeds=[]"], "skill.seeds: has 0 prompts, must have at least 3"),
        (["skill=coco", "skill.seeds=[a fox,A  Fox,a bee]"], "skill.seeds: 'A  Fox' stands there twice"),
        (["skill.seeds=[a fox,a bee,an owl]"], "skill.seeds: 'a fox' is no prompt of the skill: word 'fox'"),
        (["skill.scenes.objects=[5]"], r"skill\.scenes: objects=\[5\]: must be whole numbers from 1 to 3"),
        (["skill=coco"], "writer=GrammarWriter: writes for skills that have scenes"),
        (["writer=endpoint"], "no value for writer.url; give it: writer.url="),
        (["writer.url=x"], "writer.url=x: GrammarWriter takes no argument 'url'"),
        (["writer=transformers", "writer.path=nowhere"], "writer: path=nowhere: must be a folder with config.json"),
        (["cuont=3"], "cuont=3: unknown key 'cuont'. Did you mean 'count'"),
        (["writer=endpoint", "writer.url=http://h/v1", f"+writer.extra.api_key={KEY}"], "writer.extra.api_key"),
    ],
)
def test_what_cannot_be_written(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    plain = ["skill=shapes_color", "writer=grammar", "output=x.jsonl"]
    kept = [one for one in plain if one.partition("=")[0] not in [word.partition("=")[0] for word in words]]
    assert main(["prompts", "write", *kept, *words]) == 2
    shown = capsys.readouterr().err
    assert re.search(message, shown), shown
    assert KEY not in shown
    assert not list(Path(".").glob("x.*"))


def test_a_file_of_a_skill_is_named_as_it_was_given(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["skill=./owls.yaml", "writer=endpoint", "writer.url=http://h/v1", "output=o.jsonl"]
    for text, message in (
        (OWN.replace("rules:", "ruels:"), r"owls\.yaml: unknown key 'skill\.ruels'"),
        ("name: [", r'in "\./owls\.yaml", line 1'),
    ):
        Path("owls.yaml").write_text(text)
        assert main(["prompts", "write", *words]) == 2
        shown = capsys.readouterr().err
        assert re.search(message, shown) and "file_owls" not in shown


def test_a_file_of_others_and_other_settings_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["prompts", "write", "skill=shapes_size", "writer=grammar", "count=5", "output=mine.jsonl"]
    Path("mine.jsonl").write_text('{"prompt": "by hand"}\n')
    assert main(words) == 2
    assert "output=mine.jsonl: is there, and was not written by this command" in capsys.readouterr().err
    assert Path("mine.jsonl").read_text() == '{"prompt": "by hand"}\n'
    words[-1] = "output=other.jsonl"
    assert main(words) == 0
    assert main([*words, "seed=1", "skill.similarity=0.9", "barren=3"]) == 2
    assert "was begun with another skill.similarity, another seed; take" in capsys.readouterr().err


def test_help_tells_skills_writers_and_keys(capsys: pytest.CaptureFixture[str]) -> None:
    for words, parts in (
        (["--help"], ["write", "leakage"]),
        (["write", "--help"], ["skill=./my_skill.yaml", "localized_narratives", "grammar"]),
        (["write", "--help", "barren"], ["Requests in a row that bring no new prompt"]),
        (["write", "--help", "writer.endpoint"], ["PRDP_WRITER_KEY", "environment variable"]),
    ):
        try:
            assert main(["prompts", *words]) == 0
        except SystemExit as end:
            assert end.code == 0
        shown = capsys.readouterr().out
        assert all(part in shown for part in parts), shown
