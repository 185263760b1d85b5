"""The two things of Hydra that have no public API still work as the composer needs them."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from prdp.configuration.compose import Composer
from prdp.configuration.hydra_internals import jobs_of_sweep


def test_jobs_of_a_sweep_are_the_product_with_the_last_key_fastest() -> None:
    parsed = OverridesParser.create().parse_overrides(["seed=1,2", "epochs=1", "sampler.steps=range(4,12,4)"])
    jobs = jobs_of_sweep(parsed)
    assert jobs[0] == ["seed=1", "epochs=1", "sampler.steps=4"]
    assert jobs[-1] == ["seed=2", "epochs=1", "sampler.steps=8"] and len(jobs) == 4


def test_a_job_is_run_in_the_folder_that_hydra_makes(tmp_path: Path) -> None:
    seen = []
    with Composer(["experiment=shapes_smoke", f"output_dir={tmp_path}/run", "seed=7"]) as composer:
        composer.run(seen.append)
    assert [config.seed for config in seen] == [7]
    assert (tmp_path / "run").is_dir()


@pytest.mark.slow
def test_the_jobs_that_are_checked_are_those_that_a_sweep_runs(tmp_path: Path) -> None:
    words = ["experiment=shapes_smoke", "seed=3,4", "reward=redness,shapes_judge", f"hydra.sweep.dir={tmp_path}"]
    ran: list[tuple[int, str]] = []
    with Composer(words, sweep=True) as composer:
        checked = [(job.config.seed, job.config.output_dir) for job in composer.jobs()]
        composer.run(lambda config: ran.append((config.seed, config.output_dir)))
    assert ran == checked and len(ran) == 4


def test_options_of_a_further_folder_are_found_by_one_composer_alone(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ndefaults:\n  - /experiment/shapes_smoke\n  - _self_\nseed: 77\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text, encoding="utf-8")
    with Composer(["experiment=mine"], folders=[tmp_path]) as composer:
        assert composer.jobs()[0].config.seed == 77
        assert any(source.provider.startswith("--config-dir") for source in _sources())
    with Composer(["experiment=shapes_smoke"]):
        assert not any(source.provider.startswith("--config-dir") for source in _sources())


def test_what_runs_the_jobs_takes_the_arguments_by_these_names() -> None:
    from hydra.core.global_hydra import GlobalHydra

    with Composer(["experiment=shapes_smoke"]):
        hydra = GlobalHydra.instance().hydra
        for run in (hydra.run, hydra.multirun):
            assert list(inspect.signature(run).parameters)[:3] == ["config_name", "task_function", "overrides"]


def _sources() -> list:
    from hydra.core.global_hydra import GlobalHydra

    return GlobalHydra.instance().config_loader().get_sources()
