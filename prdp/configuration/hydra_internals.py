"""What Hydra has no public API for: running jobs without its command line, and the jobs of a sweep.

tests/configuration/test_hydra_internals.py fails when another version of Hydra computes these otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def run_jobs(root: str, task: Callable[[Any], Any], overrides: Sequence[str], sweep: bool) -> None:
    """Compose with the Hydra that `hydra.initialize_config_dir` has made, and run `task` in the folders it makes.

    Args:
        root: name of the primary configuration.
        task: gets the composed configuration, without Hydra's own section.
        overrides: as on a command line.
        sweep: through Hydra's sweeper and launcher.

    Raises:
        what `task` raises.
    """
    from hydra.core.global_hydra import GlobalHydra

    hydra: Any = GlobalHydra.instance().hydra
    run = hydra.multirun if sweep else hydra.run
    run(config_name=root, task_function=task, overrides=list(overrides))


def jobs_of_sweep(overrides: Sequence[Any]) -> list[list[str]]:
    """The overrides of each job of a sweep, in the order in which Hydra's basic sweeper runs them.

    Args:
        overrides: parsed, `hydra.core.override_parser.types.Override`; a key with several values multiplies the jobs.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    [batch] = BasicSweeper.split_arguments(list(overrides), None)
    return batch
