"""The table of docs/results/students.md, from evaluations of several seeds."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "benchmarks"))


@pytest.fixture(scope="module")
def students() -> ModuleType:
    import students

    return students


def test_rows_go_by_passes_and_cascades_are_judged_by_what_does_not_route(students: ModuleType, tmp_path: Path) -> None:
    def scored(model: str, part: str, difference: float | str) -> dict[str, object]:
        return {"model": model, "part": part, "score": 0.5, "difference": difference, "win_rate": 0.4}

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
    told = students.report(tmp_path, tmp_path)
    assert "(2 seeds)" in told
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in told.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows] == ["model", "cascade", "base"]
    # Half of the 95% interval of two values that are .1 and .05 apart: 12.706 * their deviation / sqrt(2).
    assert rows[1][1:5] == ["6.00 ± 0.00", "0.500 ± 0.000", "0.150 ± 0.635", "0.075 ± 0.318"]
    assert rows[2][3:] == ["", "", ""]
    lines = [json.loads(line) for line in (tmp_path / students.RESULTS).read_text().splitlines()]
    assert [line["apart"] for line in lines if line["model"] == "cascade"] == [0.05, 0.1]


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
