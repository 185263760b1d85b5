"""Methods side by side on equal budgets: the same world, images, reward queries, updates, held-out prompts and noise.

    python benchmarks/study.py run STUDY.yaml RESULTS_FOLDER [--workers 2] [--methods NAME,NAME]
    python benchmarks/study.py plan STUDY.yaml RESULTS_FOLDER

A study (benchmarks/studies/*.yaml) names a base and methods. Base, method and search are lines of overrides as
`prdp train -m` takes them; Hydra expands the sweeps. Every point of a method's search is trained with the search seed
and judged on validation prompts; the point that is best by the study's criterion is trained with every final seed and
judged on test prompts. A point that diverges is a result: it is the worst.

Each finished run is a line of RESULTS_FOLDER/results.jsonl. Started again, the command goes on where it was, inside a
run as well. `plan` says what is done and what is left.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

from prdp.support.interruption import EXIT_CODE, TerminatedError, interruptions_raised
from prdp.support.json_lines import json_line, read_json_lines

RESULTS = "results.jsonl"
VALIDATION_PROMPTS = 99
"""`evaluation.seed` of searches: other held-out prompts and other noise than those of the final runs."""
MAIN_TABLE = "methods"
PRELOADED = ("prdp.train", "prdp.cluster.inline", "torch._dynamo", "study_measures")
"""Modules that every run imports; the runs are forked from a process that has them."""


@dataclass(frozen=True)
class Method:
    """One row of a study.

    Attributes:
        overrides: beside the base, for every run of the method.
        search: sweeps, each a line of overrides; their points are tried in turn. Empty: there is nothing to choose.
        like: another method whose choice is taken over, with `overrides` on top.
        seeds: of the final runs.
        table: that reports it.
    """

    name: str
    overrides: tuple[str, ...]
    search: tuple[str, ...]
    like: str | None
    seeds: tuple[int, ...]
    table: str


@dataclass(frozen=True)
class Study:
    """A study file.

    Attributes:
        base: overrides of every run.
        criterion: dotted path into a run's measures, maximised by the search.
    """

    name: str
    base: tuple[str, ...]
    criterion: str
    search_seed: int
    methods: dict[str, Method]


class RunError(Exception):
    """A run that could not be run, for a reason that is no result: a mistake in the study, a signal."""


@dataclass(frozen=True)
class Run:
    """One training run of a study."""

    study: str
    method: str
    phase: str
    seed: int
    base: tuple[str, ...]
    overrides: tuple[str, ...]

    @property
    def key(self) -> tuple[str, str, str, int, tuple[str, ...], tuple[str, ...]]:
        """What makes it this run: one whose study has changed is another."""
        return self.study, self.method, self.phase, self.seed, self.base, self.overrides

    @property
    def folder_name(self) -> str:
        """Short, and different for every key."""
        digest = hashlib.blake2b(json.dumps(self.key).encode(), digest_size=6).hexdigest()
        return f"{self.method}-{self.phase}-{self.seed}-{digest}"


def read_study(path: Path) -> Study:
    """Read and check a study file.

    Raises:
        SystemExit: a key that is missing or unknown, or a method that is like one that is not there.
    """
    import yaml

    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    expected = {"base", "criterion", "search_seed", "seeds", "methods"}
    if set(given) != expected:
        raise SystemExit(f"{path}: has the keys {sorted(given)}, expected {sorted(expected)}")
    methods = {}
    for name, entry in given["methods"].items():
        entry = entry or {}
        unknown = set(entry) - {"overrides", "search", "like", "seeds", "table"}
        if unknown:
            raise SystemExit(f"{path}: method {name} has the unknown keys {sorted(unknown)}")
        like = entry.get("like")
        if like is not None and (like not in methods or "search" in entry):
            raise SystemExit(f"{path}: method {name} is like {like}: must be a method before it, and without a search")
        search = entry.get("search", [])
        methods[name] = Method(
            name,
            tuple(entry.get("overrides", "").split()),
            tuple([search] if isinstance(search, str) else search),
            like,
            tuple(entry.get("seeds", given["seeds"])),
            entry.get("table", MAIN_TABLE),
        )
    return Study(path.stem, tuple(given["base"].split()), given["criterion"], given["search_seed"], methods)


def read_results(file: Path) -> list[dict[str, Any]]:
    """The finished runs; none without a file. A last line that was cut off by a kill is left out."""
    return read_json_lines(file, dict, cut_off=True) if file.exists() else []


@functools.cache
def expand(overrides: tuple[str, ...], sweep: str) -> list[tuple[str, ...]]:
    """The points of a sweep, as Hydra expands it, checked as `prdp train` checks them."""
    from prdp.configuration.compose import Composer

    axes = sweep.split()
    keys = {axis.partition("=")[0] for axis in axes}
    with Composer([*overrides, *axes, "hydra.sweep.dir=none"], sweep=True) as composer:
        points = [[one.lstrip("+") for one in job.overrides] for job in composer.jobs()]
    return [tuple(one for one in point if one.partition("=")[0] in keys) for point in points]


def check(study: Study) -> None:
    """Compose a run of every method, so that a mistake shows before hours have passed.

    Raises:
        SystemExit: an override that does not compose; names the method.
    """
    from prdp.configuration.compose import Composer
    from prdp.support.errors import ConfigError

    chosen: dict[str, tuple[str, ...]] = {}
    for method in study.methods.values():
        try:
            points = [expand((*study.base, *method.overrides), sweep)[0] for sweep in method.search]
            lent = chosen[method.like] if method.like is not None else ()
            chosen[method.name] = (*lent, *method.overrides, *(points[0] if points else ()))
            if not points:
                with Composer([*study.base, *chosen[method.name], "output_dir=none"]) as composer:
                    composer.jobs()
        except ConfigError as error:
            raise SystemExit(f"study {study.name}, method {method.name}: {error}") from error


def plan(study: Study, results: Sequence[dict[str, Any]]) -> tuple[list[Run], list[Run]]:
    """The runs that can be started now, searches first, and how many of the study's are done.

    Final runs of a method appear once its search is complete.
    """
    done = {run_of(line).key: line for line in results}
    searches, finals, finished = [], [], []
    chosen: dict[str, tuple[str, ...] | None] = {}
    for method in study.methods.values():
        base = (*study.base, *method.overrides)
        points = [point for sweep in method.search for point in expand(base, sweep)]
        tried = [
            Run(study.name, method.name, "search", study.search_seed, study.base, (*method.overrides, *point))
            for point in points
        ]
        finished += [run for run in tried if run.key in done]
        left = [run for run in tried if run.key not in done]
        searches += left
        if method.like is not None:
            of_other = chosen[method.like]
            chosen[method.name] = None if of_other is None else (*of_other, *method.overrides)
        elif left:
            chosen[method.name] = None
        else:
            best = max(tried, key=lambda run: score(done[run.key], study.criterion), default=None)
            chosen[method.name] = method.overrides if best is None else best.overrides
        final = chosen[method.name]
        if final is not None:
            for seed in method.seeds:
                run = Run(study.name, method.name, "final", seed, study.base, final)
                (finished if run.key in done else finals).append(run)
    # One seed of every method before the next, so that what is there at any time compares all methods.
    return [*searches, *sorted(finals, key=lambda run: run.seed)], finished


def run_of(line: dict[str, Any]) -> Run:
    """The run that a recorded line is of."""
    names = [field.name for field in dataclasses.fields(Run)]
    return Run(*(tuple(line[name]) if isinstance(line[name], list) else line[name] for name in names))


def score(line: Mapping[str, Any], path: str) -> float:
    """A value of a finished run by its dotted path, the criterion's for instance; of one that diverged, minus infinity.

    A reward counts as well where it is only watched. Of a curve it is the mean of the last quarter.
    """
    value: Any = None if "failed" in line else line
    for part in path.split("."):
        if not isinstance(value, dict):
            return -math.inf
        value = value.get(part, value.get(f"watch/{part}"))
    if isinstance(value, list) and value:
        last = value[-max(1, len(value) // 4) :]
        value = sum(last) / len(last)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else -math.inf


def execute(run: Run, folder: str) -> dict[str, Any]:
    """Train and measure one run in this process; the line that is recorded."""
    from study_measures import measures

    from prdp.cli import main
    from prdp.learners.guards import RatioError

    where = Path(folder)
    where.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    command = [*run.base, *run.overrides, f"seed={run.seed}", f"output_dir={where}"]
    command += ["checkpoint.resume=auto", "tracking=silent"]
    if run.phase == "search":
        command.append(f"evaluation.seed={VALIDATION_PROMPTS}")
    line: dict[str, Any] = {**dataclasses.asdict(run), "base": list(run.base), "overrides": list(run.overrides)}
    failure = ""
    with (where / "run.log").open("a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        try:
            code = main(["train", *command])
        except (ValueError, RatioError) as error:  # a policy that diverges is a result; its traceback is in the log
            traceback.print_exc()
            code, failure = 1, f"{type(error).__name__}: {error}"
    if code not in (0, 1):
        raise RunError(f"prdp train {' '.join(command)} ended with {code}, see {where / 'run.log'}")
    line |= {"failed": failure[:300]} if failure else {}
    line |= measures(where, finished=not failure)
    line["seconds"] = round(time.monotonic() - start, 1)
    return line


@contextlib.contextmanager
def pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that are each forked afresh for one run, and told to end when something ends the block early."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    executor = ProcessPoolExecutor(workers, mp_context=context, max_tasks_per_child=1)
    try:
        yield executor
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()  # a run saves itself
        raise
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def run_study(study: Study, folder: Path, workers: int) -> None:
    """Run what is left, several at a time.

    Raises:
        SystemExit: at the end, when runs could not be run; the others are recorded all the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results = read_results(folder / RESULTS)
    broken: dict[Any, str] = {}
    with pool(workers) as executor:
        under_way: dict[Future[dict[str, Any]], Run] = {}
        while True:
            left, finished = plan(study, results)
            started = {run.key for run in under_way.values()} | broken.keys()
            for run in [run for run in left if run.key not in started][: workers - len(under_way)]:
                where = folder / "runs" / run.study / run.folder_name
                under_way[executor.submit(execute, run, str(where))] = run
            if not under_way:
                break
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                run = under_way.pop(future)
                try:
                    line = future.result()
                except RunError as error:
                    broken[run.key] = str(error)
                    print(error, flush=True)
                    continue
                with (folder / RESULTS).open("a", encoding="utf-8") as file:
                    file.write(json_line(line, allow_nan=True))
                results.append(line)
                told = line.get("failed") or f"{study.criterion} {score(line, study.criterion):.4f}"
                print(
                    f"{len(finished) + 1} done, {len(left) - 1} left: {run.method} {run.phase} {run.seed} "
                    f"{' '.join(run.overrides)}: {told} ({line['seconds']:.0f} s)",
                    flush=True,
                )
    if broken:
        raise SystemExit(f"{len(broken)} runs could not be run:\n" + "\n".join(broken.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "plan"])
    parser.add_argument("study", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, a thread each")
    parser.add_argument("--methods", help="only these, separated by commas")
    asked = parser.parse_args()
    study = read_study(asked.study)
    if asked.methods:
        wanted = asked.methods.split(",")
        absent = [name for name in wanted if name not in study.methods]
        if absent:
            raise SystemExit(f"--methods: {', '.join(absent)}: {asked.study} has {', '.join(study.methods)}")
        study = dataclasses.replace(study, methods={name: study.methods[name] for name in wanted})
    check(study)
    if asked.command == "plan":
        left, finished = plan(study, read_results(asked.folder / RESULTS))
        print(f"{len(finished)} runs done; {len(left)} can be started:")
        for run in left:
            print(f"  {run.method} {run.phase} {run.seed} {' '.join(run.overrides)}")
        return
    try:
        with interruptions_raised():
            run_study(study, asked.folder, asked.workers)
    except TerminatedError:
        sys.exit(EXIT_CODE)


if __name__ == "__main__":
    main()
