"""`prdp train`, `prdp validate` and `prdp report`, from their arguments to the modules that do the work."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import sys
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from prdp.checkpoints.run_folder import check_unused, check_writable
from prdp.cluster.environment import find_environment
from prdp.cluster.process_threads import apply_threads, plan_threads
from prdp.cluster.sockets import check_socket_paths
from prdp.config import TrainConfig
from prdp.configuration.bounds import check_family
from prdp.configuration.compose import Composer, Job
from prdp.configuration.geometry import geometry_text, memory_warning
from prdp.configuration.key_help import documented, first_comment, topics_among, topics_help
from prdp.configuration.override_words import OverrideParser
from prdp.configuration.preconditions import check_preconditions, refuse, size_problems
from prdp.configuration.secret_values import check_no_secrets
from prdp.configuration.typed import conf_folder, config_yaml, groups, schema_keys
from prdp.diffusion.effective_scheduler import distilled_warning
from prdp.image_sets.source import rollout_source
from prdp.prompts.stream import prompts_at
from prdp.rewards import check_reward, prompt_checks
from prdp.support.errors import ConfigError, StartError, UnfinishedError, UserError, start_up_checks
from prdp.support.printable import printable
from prdp.tracking.jsonl import METRICS_FILE, read_metrics

_ASKED = 256
"""Training prompts that are looked at for what the reward needs of them."""
_OVERRIDES = """\
OVERRIDES are words of three kinds:
  group=option      takes another file of a group:   reward=redness  experiment=shapes_demo
  key=value         sets a key:                      learner.learning_rate=3e-4  epochs=20
  group.key=value   sets an argument of a reward or prompt source:  reward.path=my_module.my_reward
Lists are written key=[a,b], nothing is written null. With -m, commas make a sweep over all combinations:
  prdp train -m experiment=shapes_demo reward=shapes_judge,redness prompts=shapes,shapes_small
Unknown keys are refused. More of a section, a key, a group or one of its options, such as a reward:
  prdp train --help learner        prdp train --help evaluation.every        prdp train --help reward.hpsv2
"""


def train(arguments: Sequence[str]) -> int:
    """Run the jobs of a command line, after all of them have been checked."""
    if topics := topics_among(arguments):
        print(topics_help(topics))
        return 0
    options = _parser("train", "Fine-tune a model on a reward.").parse_intermixed_args(arguments)
    with Composer(options.overrides, options.multirun, options.config_dir) as composer:
        jobs = composer.jobs()
        _check_all(jobs)
        if options.multirun:
            told = None if composer.is_chosen_later else tuple(" ".join(job.overrides) for job in jobs)
            composer.run(partial(_run_in_sweep, told))
        else:
            composer.run(_run)
    return 0


def validate(arguments: Sequence[str]) -> int:
    """Check what can be checked without running: keys, values, targets, prompts, the model's files, what to resume."""
    if topics := topics_among(arguments):
        print(topics_help(topics))
        return 0
    parser = _parser("validate", "Check a configuration and show its size, without running it.")
    parser.add_argument("--print", action="store_true", help="print the whole configuration as YAML")
    parser.add_argument("--measure", action="store_true", help="load the model and measure what an epoch takes here")
    options = parser.parse_intermixed_args(arguments)
    with Composer(options.overrides, options.multirun, options.config_dir) as composer:
        jobs = composer.jobs()
        if options.print:
            print("---\n".join(config_yaml(job.config) for job in jobs))
        notes = _check_all(jobs)
        for number, (job, note) in enumerate(zip(jobs, notes, strict=True), start=1):
            if options.multirun:
                print(f"job {number} of {len(jobs)}: {' '.join(job.overrides)}")
            print(_plan(job.config))
            if note:
                print(note)
            if options.measure:
                print(_measured(job.config))
    print("ok")
    return 0


def report(arguments: Sequence[str]) -> int:
    """Write the report of a finished or running run anew."""
    parser = argparse.ArgumentParser(prog="prdp report", description="Write report.html of a run anew, from its logs.")
    parser.add_argument("run_dir", type=Path, help="the run's folder")
    folder: Path = parser.parse_args(arguments).run_dir
    if not folder.is_dir():
        raise StartError(f"there is no run folder {folder}")
    from prdp.reports.report import main

    with start_up_checks():
        print(main(folder))
    return 0


def check_start(config: TrainConfig) -> str:
    """Checks beyond keys and values: targets, prompts, the model's files, the output folder, the checkpoint to resume.

    Returns:
        What does not stand in the way of a start but ought to be known: held-out prompts that are trained on, what a
        set of images is learned with.

    Raises:
        ConfigError, StartError: naming the key and what is wrong.
    """
    check_no_secrets(dataclasses.asdict(config))
    environment = config.cluster.reward_environment
    if environment is not None:
        find_environment(environment)
    if config.cluster.kind == "ray" and config.cluster.address == "local":
        check_socket_paths()
    check_reward("reward", config.reward, elsewhere=environment is not None)
    source = rollout_source(config)
    train, _, judged, note = source.prompts()
    checks = prompt_checks("reward", config.reward) if environment is None else {}
    for key, check in checks.items():
        with start_up_checks(key):
            for batch in (prompts_at(train, range(min(len(train), _ASKED)), 0), judged):
                for prompt, metadata in zip(batch.texts, batch.metadata, strict=True):
                    check(prompt, metadata)
    check_family(config)
    check_preconditions(config)
    if environment is None:
        refuse(size_problems("reward", config.reward, config.model))
    source.check()
    folder = Path(config.output_dir)
    check_writable(folder)
    _check_mirror(config)
    if config.checkpoint.resume == "never":
        check_unused(folder)
    elif config.checkpoint.mirror is None:  # what lies there may be replaced by the mirror's
        from prdp.checkpoints.checkpoint import resolve_resume

        with start_up_checks():
            resolve_resume(config.checkpoint.resume, folder)
    return "\n".join(filter(None, [note, *source.notes()]))


def options_text() -> str:
    """The experiments with their first line, and the options of every group."""
    folder = conf_folder()
    available = groups([folder])
    experiments = available.pop("experiment")
    width = max(len(name) for name in (*experiments, *available))
    lines = ["experiments:"]
    lines += [f"  {name:<{width}}  {first_comment(folder / 'experiment' / f'{name}.yaml')}" for name in experiments]
    lines += ["groups:", *(f"  {group:<{width}}  {', '.join(names)}" for group, names in available.items())]
    keys = list(documented(TrainConfig))
    plain = [key.name for key in keys if "." not in key.name and not key.is_section and key.name not in available]
    sections = [key.name for key in keys if key.is_section]
    lines += ["sections:", f"  {', '.join(sections)}", "keys of no section:", f"  {', '.join(plain)}"]
    return "\n".join(lines)


def _plan(config: TrainConfig) -> str:
    """The size of a run, and whether its rollouts fit into memory."""
    warnings = [memory_warning(config), distilled_warning(config.model, config.sampler)]
    return "\n".join(filter(None, [geometry_text(config), *warnings]))


def _measured(config: TrainConfig) -> str:
    """What an epoch takes, measured in this process."""
    from prdp.configuration.measured_time import measure_epoch

    if config.learner.framework != "torch":
        raise ConfigError(f"learner.framework={config.learner.framework}: --measure computes by torch")
    apply_threads(plan_threads(config))
    source = rollout_source(config)
    train = source.prompts().train
    prompts = prompts_at(train, range(min(len(train), config.sampler.microbatch)), 0)
    with start_up_checks():
        return measure_epoch(dataclasses.replace(config, reward=dict(source.reward())), prompts).text(config)


def _parser(command: str, description: str) -> argparse.ArgumentParser:
    parser = OverrideParser(
        keys=[*groups([conf_folder()]), *schema_keys()],
        prog=f"prdp {command}",
        usage=f"prdp {command} [OVERRIDES] [options]",
        description=description,
        epilog=f"{_OVERRIDES}\n{options_text()}",
    )
    parser.add_argument(
        "-m", "--multirun", action="store_true", help="a sweep: run all combinations of comma-separated values"
    )
    return parser


def _check_mirror(config: TrainConfig) -> None:
    url = config.checkpoint.mirror
    if url is None:
        return
    from prdp.checkpoints.mirror import check_writable
    from prdp.checkpoints.mirror_url import check_url

    check_url(url)
    check_writable(url, config.checkpoint.resume == "auto" or (Path(config.output_dir) / "checkpoints").exists())


def _check_all(jobs: Sequence[Job]) -> list[str]:
    """The notes of `check_start` on each job."""
    # Targets may import torch, whose thread pool is sized by the environment it finds.
    apply_threads(plan_threads(jobs[0].config))
    mirrors = [job.config.checkpoint.mirror for job in jobs if job.config.checkpoint.mirror is not None]
    if len(set(mirrors)) < len(mirrors):
        raise ConfigError(
            f"checkpoint.mirror={mirrors[0]} is shared by the jobs of the sweep; end it in /${{hydra:job.num}}"
        )
    notes = []
    for number, job in enumerate(jobs, start=1):
        try:
            notes.append(check_start(job.config))
        except UserError as error:
            if len(jobs) == 1:
                raise
            raise ConfigError(f"job {number} ({' '.join(job.overrides)}): {error}") from error
    return notes


def _run(config: TrainConfig, title: str = "") -> float | None:
    """Tell the plan, and run; the last score on held-out prompts, which Hydra gives to its sweeper."""
    apply_threads(plan_threads(config))
    print(f"{title}{config.output_dir}\n{_plan(config)}", flush=True)
    try:
        importlib.import_module("prdp.train").main(config)
    except SystemExit as error:
        unfinished = UnfinishedError(f"sys.exit({error.code!r}) was called before the run was finished")
        for note in getattr(error, "__notes__", []):
            unfinished.add_note(note)
        raise unfinished from error
    return _last_score(Path(config.output_dir))


def _last_score(folder: Path) -> float | None:
    """The newest mean reward of held-out prompts in a run's log; None where there is none."""
    rows = read_metrics(folder) if (folder / METRICS_FILE).is_file() else []
    return next((float(row["eval/score"]) for row in reversed(rows) if "eval/score" in row), None)


def _run_in_sweep(told: Sequence[str] | None, config: TrainConfig) -> float | None:
    """Tell of a failure when it happens: the sweep goes on, and speaks of it only at its end.

    Args:
        told: the overrides of each job; None where they are not known beforehand, and checked only now.
    """
    from hydra.core.hydra_config import HydraConfig

    job = HydraConfig.get().job
    number = job.num + 1
    of_all = f" of {len(told)}" if told else ""
    words = told[job.num] if told else " ".join(HydraConfig.get().overrides.task)
    try:
        if told is None:
            check_start(config)
        return _run(config, f"job {number}{of_all}: {words}\n  ")
    except UserError as error:
        print(printable(f"job {number} failed: {error}", lines=True), file=sys.stderr, flush=True)
        raise
    except Exception:
        shown = printable(f"job {number} failed:\n{traceback.format_exc()}", lines=True)
        print(shown, file=sys.stderr, flush=True)
        raise
