"""The tables of docs/results/experts.md, from evaluations of several seeds."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "benchmarks"))


@pytest.fixture(scope="module")
def experts() -> ModuleType:
    import experts

    return experts


def one_score(model: str, part: str, score: float, difference: float | str) -> dict[str, object]:
    told = {"model": model, "prompts": "shapes", "part": part, "score": score, "difference": difference}
    return told | {"difference_high": difference if isinstance(difference, str) else difference + 0.03}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Evaluations of seeds 0 and 1; seed 2 has not finished its own."""
    for seed, gain in ((0, 0.10), (1, 0.14), (2, 0.9)):
        place = tmp_path / str(seed) / "evaluation_aspects"
        place.mkdir(parents=True)
        scores = [
            one_score("base", "all", 0.5, "NaN"),
            one_score("base", "sub-score: color", 0.6, "NaN"),
            one_score("base", "category: 1 object", 0.7, "NaN"),
            one_score("prdp_color", "all", 0.5, 0.0),
            one_score("prdp_color", "sub-score: color", 0.6 + gain, gain),
        ]
        (place / "results.json").write_text(json.dumps({"scores": scores}))
        if seed < 2:
            (tmp_path / str(seed) / "evaluation_aspects.done").write_text('{"cpu_seconds": 3}')
    return tmp_path


def rows_of(told: str) -> list[list[str]]:
    """Model, all and color of the first table."""
    lines = told.split("Seeds")[1].split("\n\n")[1].splitlines()
    return [[cell.strip() for cell in line.split("|")[1:4]] for line in (lines[0], *lines[2:])]


def test_two_seeds_have_intervals_over_prompts(experts: ModuleType, folder: Path, tmp_path: Path) -> None:
    told = experts.report(folder, tmp_path)
    assert "Seeds 0, 1." in told
    # .03 * sqrt(2) / 2 of two independent seeds.
    assert rows_of(told) == [
        ["model", "all", "color"],
        ["base", "0.500", "0.600"],
        ["prdp_color", "+0.000 ± 0.021", "+0.120 ± 0.021"],
    ]
    assert (tmp_path / "experts.md").read_text() == told
    lines = [json.loads(line) for line in (tmp_path / "experts.jsonl").read_text().splitlines()]
    assert lines[-2:] == [
        {"part": "aspects", "seed": seed, "step": "evaluation_aspects", "cpu_seconds": 3} for seed in (0, 1)
    ]
    lines = [line for line in lines if "aspect" in line]
    assert [line["difference"] for line in lines if line["aspect"] == "color"] == [None, 0.10, None, 0.14]
    assert lines[3]["half_width"] == pytest.approx(0.03)
    assert {line["aspect"] for line in lines} == {"all", "color"}


def test_three_seeds_have_students_interval(experts: ModuleType, folder: Path, tmp_path: Path) -> None:
    results = json.loads((folder / "2" / "evaluation_aspects" / "results.json").read_text())
    results["scores"][-1] |= {"difference": 0.12, "difference_high": 0.15}
    (folder / "2" / "evaluation_aspects" / "results.json").write_text(json.dumps(results))
    (folder / "2" / "evaluation_aspects.done").write_text('{"cpu_seconds": 7}')
    # 4.303 * .02 / sqrt(3)
    assert rows_of(experts.report(folder, tmp_path))[2][2] == "+0.120 ± 0.050"


def test_what_was_recorded_of_other_seeds_stays(experts: ModuleType, folder: Path, tmp_path: Path) -> None:
    told, lines = experts.report(folder, tmp_path), (tmp_path / "experts.jsonl").read_text()
    shutil.rmtree(folder / "0")
    assert experts.report(folder, tmp_path) == told
    assert (tmp_path / "experts.jsonl").read_text() == lines


def test_every_step_is_named_once_and_uses_what_came_before(experts: ModuleType) -> None:
    steps = list(dict.fromkeys(step for part in experts.PARTS.values() for step in part(3)))  # two parts may share one
    names = [step.name for step in steps]
    assert len(names) == len(set(names))
    for number, step in enumerate(steps):
        [models] = [word for word in step.words if word.startswith("models=")] or ["models=[]"]
        used = {one.partition(":")[0] for one in models[8:-1].split(",")} - {"", "base"}
        assert used <= set(names[:number]), step.name
