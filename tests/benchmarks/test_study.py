"""What a study runs next: searches first, then the best point with every seed, and nothing twice."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import signal
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from prdp.support.interruption import TerminatedError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

import study  # noqa: E402
import study_report  # noqa: E402
import study_tables  # noqa: E402

TEXT = """
base: experiment=mixtures_large epochs=2
criterion: heldout.objective
search_seed: 100
seeds: [0, 1]
methods:
  prdp: {search: "learner.learning_rate=1e-3,1e-2 objective.clip_range=0.1,null"}
  ddpo: {overrides: objective=ddpo ~objective.beta, seeds: [0]}
  stale: {table: staleness, like: prdp, overrides: cluster.max_staleness=1 objective.clip_range=null}
"""


@pytest.fixture
def small(tmp_path: Path) -> study.Study:
    (tmp_path / "small.yaml").write_text(TEXT)
    return study.read_study(tmp_path / "small.yaml")


def recorded(run: study.Run, objective: float | None) -> dict[str, Any]:
    """A line of results, as it is read back."""
    line: dict[str, Any] = {**vars(run), "seconds": 1.0, "budget": {}, "curve": {"seconds": [1.0]}}
    line |= {"failed": "not finite"} if objective is None else {"heldout": {"objective": objective}}
    return json.loads(json.dumps(line))


def test_a_sweep_becomes_points_and_nothing_is_run_twice(small: study.Study) -> None:
    left, finished = study.plan(small, [])
    assert not finished
    searched = [run.overrides for run in left if run.phase == "search"]
    assert searched == [
        (f"learner.learning_rate={rate}", f"objective.clip_range={clip}")
        for rate in ("0.001", "0.01")
        for clip in ("0.1", "null")
    ]
    finals = [(run.method, run.seed) for run in left if run.phase == "final"]
    assert finals == [("ddpo", 0)], "a method without a search can start, one whose search is open cannot"
    results = [recorded(left[0], 1.0)]
    again, finished = study.plan(small, results)
    assert [run.key for run in finished] == [left[0].key]
    assert left[0].key not in {run.key for run in again}


def test_the_best_point_is_trained_with_every_seed_and_lent_to_methods_that_are_like_it(small: study.Study) -> None:
    left, _ = study.plan(small, [])
    searches = [run for run in left if run.phase == "search"]
    results = [recorded(run, value) for run, value in zip(searches, (0.5, None, 0.75, float("nan")), strict=True)]
    left, finished = study.plan(small, results)
    assert len(finished) == 4
    best = ("learner.learning_rate=0.01", "objective.clip_range=0.1")
    stale = (*best, "cluster.max_staleness=1", "objective.clip_range=null")
    ddpo = ("objective=ddpo", "~objective.beta")
    wanted = [("prdp", 0, best), ("ddpo", 0, ddpo), ("stale", 0, stale), ("prdp", 1, best), ("stale", 1, stale)]
    assert [(run.method, run.seed, run.overrides) for run in left] == wanted


def test_final_runs_of_an_earlier_choice_are_not_reported(small: study.Study) -> None:
    searches = [run for run in study.plan(small, [])[0] if run.phase == "search"]
    tried = [recorded(run, value) for run, value in zip(searches, (0.5, 0.25, 0.75, 0.0), strict=True)]
    chosen = next(run for run in study.plan(small, tried)[0] if (run.method, run.phase) == ("prdp", "final"))
    earlier = dataclasses.replace(chosen, overrides=searches[0].overrides)
    counted = study_report.of_the_plan(small, [*tried, recorded(earlier, 1.0), recorded(chosen, 2.0)])
    finals = [study.score(line, small.criterion) for line in counted if line["phase"] == "final"]
    assert (len(counted), finals) == (5, [2.0])


def test_results_of_another_base_do_not_count(small: study.Study, tmp_path: Path) -> None:
    left, _ = study.plan(small, [])
    (tmp_path / "small.yaml").write_text(TEXT.replace("epochs=2", "epochs=3"))
    changed = study.read_study(tmp_path / "small.yaml")
    assert study.plan(changed, [recorded(run, 1.0) for run in left])[1] == []


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / study.RESULTS
    file.write_text('{"study": "a"}\n{"study": "b"')
    assert study.read_results(file) == [{"study": "a"}]
    assert study.read_results(tmp_path / "absent") == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("criterion: heldout.objective\n", "", r"has the keys .* expected \['base', 'criterion'"),
        ("seeds: [0]}", "seed: [0]}", r"method ddpo has the unknown keys \['seed'\]"),
        ("like: prdp", "like: nobody", "method stale is like nobody: must be a method before it"),
    ],
)
def test_mistakes_in_a_study_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    (tmp_path / "small.yaml").write_text(TEXT.replace(old, new))
    with pytest.raises(SystemExit, match=message):
        study.read_study(tmp_path / "small.yaml")


@pytest.mark.parametrize("file", sorted((BENCHMARKS / "studies").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_studies_compose(file: Path) -> None:
    """One point of each method's search; a run of the study checks them all before it starts."""
    written = study.read_study(file)
    methods = {name: at_one_point(method) for name, method in written.methods.items()}
    study.check(dataclasses.replace(written, methods=methods))
    searched = {(method.table, bool(method.search)) for method in written.methods.values() if method.like is None}
    assert len(searched) == len(dict(searched)), "a method that is searched for beside one that is not"


def at_one_point(method: study.Method) -> study.Method:
    """The method without its search, with the first value of every key that the search has."""
    axes = [axis.partition("=") for sweep in reversed(method.search) for axis in sweep.split()]
    first = {key: values.split(",")[0] for key, _, values in axes}
    fixed = (f"{key}={value}" for key, value in first.items())
    return dataclasses.replace(method, overrides=(*method.overrides, *fixed), search=())


def test_the_runs_end_when_the_study_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "PRELOADED", ())
    with pytest.raises(TerminatedError), study.pool(1) as executor:
        run = executor.submit(signal.pause)
        (worker,) = multiprocessing.active_children()
        raise TerminatedError
    assert not worker.is_alive()
    assert isinstance(run.exception(timeout=60), BrokenProcessPool)


def test_a_method_that_does_not_compose_is_named(small: study.Study) -> None:
    method = dataclasses.replace(small.methods["ddpo"], overrides=("objective=ddpo",))
    with pytest.raises(SystemExit, match=r"study small, method ddpo: .*objective\.beta=19"):
        study.check(dataclasses.replace(small, methods={"ddpo": method}))


def test_a_reward_counts_as_well_where_it_is_only_watched() -> None:
    column = study_tables.Column("judge", "heldout.judge")
    lines = [{"heldout": {"judge": 0.5}}, {"heldout": {"watch/judge": 0.25}}, {"heldout": {"score": 1.0}}, {}]
    assert [column.of(line) for line in lines] == [0.5, 0.25, float("-inf"), float("-inf")]
    assert [column.title for column in study_tables.columns_of(lines)] == ["score"]
    weighted = [{"heldout": {"score": -1.0, "shapes_judge": 0.5, "watch/compressibility": -0.75}}]
    titles = [column.title for column in study_tables.columns_of(weighted)]
    assert titles == ["judge", "compressibility, -kB"], "the sum of several rewards is nothing to compare methods by"


def test_of_a_curve_the_last_quarter_counts_unless_the_run_diverged() -> None:
    line = {"curve": {"reward_mean": [9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 1.0, 2.0]}}
    assert study.score(line, "curve.reward_mean") == 1.5
    assert study.score({"curve": {"reward_mean": [1.0, 4.0]}}, "curve.reward_mean") == 4.0
    assert study.score({**line, "failed": "ValueError"}, "curve.reward_mean") == float("-inf")
    assert study.score({"curve": {"reward_mean": []}}, "curve.reward_mean") == float("-inf")


def test_a_column_may_tell_how_much_of_the_way_is_gone() -> None:
    column = study_tables.Column("way", "heldout.objective", start="start.objective", end="heldout.optimum")
    line = {"heldout": {"objective": -0.9, "optimum": -0.8}, "start": {"objective": -1.3}}
    assert column.of(line) == pytest.approx(0.8)
    assert column.of({"failed": "ValueError"}) == float("-inf")


def test_intervals_over_seeds_are_students() -> None:
    assert study_tables.interval([1.0, 2.0, 3.0]) == "2.000 ± 2.484"  # 4.303 / sqrt(3)
    assert study_tables.interval([1.0]) == "1.000"
    assert study_tables.interval([-2.5e13, -2.5e13]) == "-2.5e+13 ± 0.000"
    assert study_tables.interval([float("-inf")]) == ""


def test_a_figure_leaves_out_what_is_compared_to_and_much_shorter(small: study.Study) -> None:
    long, base = small.methods["stale"], small.methods["prdp"]
    lines = [
        {"method": name, "base": [], "overrides": [], "budget": {"updates": updates}}
        for name, updates in (("stale", 100), ("prdp", 40), ("ddpo", 60))
    ]
    shown = study_report.in_the_figure(lines, [long], [base, small.methods["ddpo"], long])
    assert shown == ["ddpo", "stale"]
    assert study_report.in_the_figure(lines, [long, base], [base, long]) == ["prdp", "stale"]
