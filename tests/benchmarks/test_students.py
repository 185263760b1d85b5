"""The table of docs/results/students.md, from evaluations of several seeds."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "benchmarks"))


@pytest.fixture(scope="module")
def students() -> ModuleType:
    import students

    return students


def test_rows_go_by_passes_and_cascades_are_judged_by_what_does_not_route(students: ModuleType, tmp_path: Path) -> None:
    def scored(model: str, part: str, difference: float | str) -> dict[str, object]:
        numbers = {"score": 0.5, "difference": difference, "win_rate": 0.4}
        return {"model": model, "reward": "shapes_judge", "part": part, **numbers}

    for seed, gain in ((0, 0.1), (1, 0.2), (2, 0.9)):
        place = tmp_path / str(seed) / students.EVALUATION
        place.mkdir(parents=True)
        scores = [scored("base", "all", "NaN"), scored("base", "sub-score: size", "NaN")]
        scores += [scored("cascade", "all", gain), scored("cascade", "sub-score: color", 0.7)]
        scores += [scored("cascade", "sub-score: size", gain / 2), scored("cascade", "sub-score: fill", 0.7)]
        spread = [{"model": "base", "network_passes": 16.0}, {"model": "cascade", "network_passes": 6.0}]
        results = {"against": "base", "scores": scores, "spread": spread}
        (place / "results.json").write_text(json.dumps(results))
        if seed < 2:
            (tmp_path / str(seed) / f"{students.EVALUATION}.done").write_text("{}")
            judged = (("endpoint", [0.5, 0.7 + seed]), ("base", [0.25, 0.75]))
            for model, values in judged:
                chunk = place / "samples" / model / "shapes" / f"seed_{seed}" / "00000-00001"
                chunk.mkdir(parents=True)
                subs = {"color": [0, 0], "size": values, "relation": ["NaN", values[1] / 2]}
                found = {"key": {}, "rewards": values, "sub_scores": subs, "seconds": 0}
                (chunk / "scores.shapes_judge.json").write_text(json.dumps(found))
    told = students.report(tmp_path, tmp_path)
    [claim] = [line for line in told.splitlines() if "less its teacher of 16" in line]
    # .25 and -.05, .25 and .95; half of each of the second prompts' sub-scores does not apply to the first.
    assert [cell.strip() for cell in claim.split("|")[2:3]] == ["+0.100 +0.600"]
    assert "+0.106 +0.481" in claim
    assert "(2 seeds)" in told
    lines = told[: told.index("## Differences")].splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    assert [row[0] for row in rows] == ["model", "cascade", "base"]
    # Half of the 95% interval of two values that are .1 and .05 apart: 12.706 * their deviation / sqrt(2).
    assert rows[1][1:5] == ["6.00 ± 0.00", "0.500 ± 0.000", "0.150 ± 0.635", "0.075 ± 0.318"]
    assert rows[2][3:] == ["", "", ""]
    kept = [json.loads(line) for line in (tmp_path / "students.jsonl").read_text().splitlines()]
    assert [line["apart"] for line in kept if line["model"] == "cascade"] == [0.05, 0.1]
    assert told == (tmp_path / "students.md").read_text()


def test_every_step_is_named_once_and_uses_what_came_before(students: ModuleType) -> None:
    steps = list(students.students(3))
    names = [step.name for step in steps]
    assert len(names) == len(set(names))
    for number, step in enumerate(steps):
        [models] = [word for word in step.words if word.startswith("models=")] or ["models=[]"]
        used = {one.rpartition(":")[2] for one in models[8:-1].split(",")} - {"", "base"}
        assert used <= set(names[:number]), step.name
    named = {word.split(".")[1] for word in steps[-1].words if word.startswith("samplers.")}
    assert named == {*students.TEACHERS, *students.STUDENTS, students.STOCHASTIC}


def test_what_routing_gains_over_chance_is_by_the_images_that_it_chooses() -> None:
    """The lowest quarter by the router is one image; chance would replace a quarter of each."""
    import students_judges_table

    first, second = np.array([1.0, 2.0, 3.0, 4.0]), np.array([5.0, 2.0, 3.0, 0.0])
    found = students_judges_table.over_chance(first, second, np.array([-1.0, 0.0, 1.0, 2.0]))
    np.testing.assert_allclose(found, [5 - 2.0, 0.0, 0.0, 4 - 3.0])
    assert found.mean() == pytest.approx(2.0 - 1.0)


def test_the_network_that_judges_is_asked_for_all_that_a_prompt_tells() -> None:
    import students_judges
    import torch

    reader = students_judges.Reader().eval()
    pictures = np.random.default_rng(0).integers(256, size=(2, 32, 32, 3)).astype(np.uint8)
    told = students_judges.object_facts(students_judges.parse("a small hollow red star on a gray background"))
    assert len(told) == len(set(told)) == 3
    with torch.no_grad():
        reader.head[-1].weight.zero_()
        reader.head[-1].bias.fill_(-50.0)
        reader.head[-1].bias[told] = 50.0
    prompts = ["a small hollow red star on a gray background", "a large solid blue cross on a gray background"]
    # Three facts, one count of three and one background of four.
    np.testing.assert_allclose(reader.scores(pictures, prompts), [(3 + 1 / 3 + 1 / 4) / 5, (1 / 3 + 1 / 4) / 5])
