"""Command lines to checked jobs, and jobs to runs: the one place that knows Hydra."""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prdp.configuration.hydra_internals import jobs_of_sweep, run_jobs
from prdp.configuration.override_words import as_typed, home_quoted, how_to_write, quoted
from prdp.configuration.typed import TRAIN, Root, conf_folder, explained, groups, schema_keys, typed, unknown_key
from prdp.support.errors import ConfigError, ResumableError, StartError, UserError
from prdp.support.suggest import did_you_mean


@dataclass(frozen=True)
class Job:
    """One run of a command line: its overrides and what they compose to."""

    overrides: tuple[str, ...]
    config: Any


class Composer:
    """Composes a command line and runs functions on the result.

    A context manager, since Hydra's state is global: one at a time.

    Args:
        overrides: as typed, such as 'experiment=shapes_demo' and 'learner.learning_rate=1e-3'.
        sweep: run every combination of comma-separated values.
        folders: further folders with configuration files; they may add options to the groups.
        root: the command's configuration.
        additions: overrides in Hydra's own words, taken unchecked before those that were typed.

    Raises:
        ConfigError: a folder that does not exist.
    """

    def __init__(
        self,
        overrides: Sequence[str],
        sweep: bool = False,
        folders: Sequence[Path] = (),
        root: Root = TRAIN,
        additions: Sequence[str] = (),
    ) -> None:
        for folder in folders:
            if not folder.is_dir():
                raise ConfigError(f"--config-dir {folder}: there is no such folder")
        self._typed_in = tuple(overrides)
        self._sweep = sweep
        self._root = root
        self._additions = tuple(additions)
        self._folders = (conf_folder(), *(folder.resolve() for folder in folders))
        self._stack = contextlib.ExitStack()
        self._made: dict[tuple[str, ...], str] = {}

    def __enter__(self) -> Composer:
        from hydra import initialize_config_dir
        from hydra.core.config_store import ConfigStore
        from hydra.core.global_hydra import GlobalHydra
        from hydra.core.hydra_config import HydraConfig

        store = ConfigStore.instance()
        if not _is_stored(store, "schema", self._root.schema):
            store.store(name="schema", node=self._root.schema)
        for name, node in self._root.nodes.items():
            store.store(name=name, node=node)
        hydra_config = HydraConfig.instance()
        self._stack.callback(setattr, hydra_config, "cfg", hydra_config.cfg)
        GlobalHydra.instance().clear()
        self._stack.callback(GlobalHydra.instance().clear)
        main, *others = self._folders
        with _searched(others):
            initialize_config_dir(str(main), job_name=self._run_name(), version_base="1.3")
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    @functools.cached_property
    def overrides(self) -> list[str]:
        """The overrides as Hydra gets them.

        Arguments of a `_target_` need not stand in the YAML to be set, since its signature decides; and a given
        `output_dir` is where Hydra's own files go, too.

        Raises:
            ConfigError: an override that cannot be parsed, an unknown key or an unknown option of a group.
        """
        adapted = list(self._additions)
        for override in self._parsed(self._typed_in):
            line, key = str(override.input_line), override.key_or_group
            if not override.is_hydra_override():
                self._check_key(override)
            if override.is_sweep_override() and not self._sweep:
                raise ConfigError(
                    f"{line}: several values are a sweep, which needs -m; a list is written {key}=[a,b], and a name "
                    f"with a comma in it {as_typed(key, line.partition('=')[2])}"
                )
            plain = not (override.is_delete() or override.is_add() or override.is_force_add())
            if key == "output_dir" and str(override.value()).startswith("~"):
                line = f"{key}={quoted(os.path.expanduser(override.value()))}"  # Hydra makes this folder, too.
            adapted.append(f"++{line}" if plain and self._is_argument(key) else line)
            if key == "output_dir" and not self._sweep:
                adapted.append("hydra.run.dir=${output_dir}")
        return adapted

    def jobs(self) -> list[Job]:
        """Compose and check every job of the command line; nothing is run or written.

        Where a sweeper chooses the jobs as it goes, such as Optuna's, one job that it might choose stands for all.

        Raises:
            ConfigError: by key, and by job in a sweep.
        """
        if not self._sweep:
            return [Job(tuple(self.overrides), self._composed(self.overrides, None))]
        jobs = []
        for number, overrides in enumerate(self._combinations()):
            try:
                jobs.append(Job(tuple(overrides), self._composed(overrides, number)))
            except ConfigError as error:
                raise ConfigError(f"job {number + 1} ({' '.join(overrides)}): {error}") from error
        if self.is_chosen_later:
            return jobs
        folders = [job.config.output_dir for job in jobs]
        if len(set(folders)) < len(folders):
            raise ConfigError(
                f"output_dir={folders[0]} is shared by the jobs of the sweep; "
                "leave it out, or name the sweep's folder by hydra.sweep.dir=..."
            )
        return jobs

    @functools.cached_property
    def is_chosen_later(self) -> bool:
        """Whether it is a sweep whose jobs are known only as they come."""
        from hydra.types import RunMode

        if not self._sweep:
            return False
        target = self._compose(self.overrides, RunMode.MULTIRUN).hydra.sweeper.get("_target_")
        return not str(target).endswith(".BasicSweeper")

    def run(self, task: Callable[[Any], Any]) -> None:
        """Run `task` on every job, in folders that Hydra makes; a sweep goes through Hydra's sweeper and launcher.

        Args:
            task: what it returns is the job's result for Hydra, a number that a sweeper such as Optuna's goes by.
                A launcher may run it in another process, and pickle it then.

        Raises:
            what `task` raises; in a sweep the other jobs still run, and the first failure is raised at the end.
        """
        run = _Run(self._root, task, self._sweep)
        try:
            run_jobs(self._root.name, run, self.overrides, self._sweep)
        except OSError as error:
            if getattr(error, "of_a_job", False):
                raise
            raise StartError(f"{error.filename} cannot be made, for Hydra's own files: {error.strerror}") from error
        if run.told is not None:
            raise run.told

    def _run_name(self) -> str:
        """The experiment's name, else that of the root; the folders of the runs are named after it."""
        chosen = [line.partition("=")[2] for line in self._typed_in if line.startswith("experiment=")]
        named = chosen and chosen[-1] != "null" and re.fullmatch(r"\w[\w-]*", chosen[-1])
        return chosen[-1] if named else self._root.name

    def _parsed(self, lines: Sequence[str]) -> list[Any]:
        from hydra.core.override_parser.overrides_parser import OverridesParser
        from hydra.errors import HydraException

        parsed = []
        for line in map(home_quoted, lines):
            try:
                parsed += OverridesParser.create(_loader()).parse_overrides([line])
            except RecursionError:
                raise ConfigError(f"'{line[:80]}...' is nested too deeply") from None
            except HydraException as error:
                reason = " ".join(str(error).split("\nSee ")[0].split()).removeprefix("LexerNoViableAltException: ")
                hint = how_to_write(line, [*groups(self._folders, self._root), *schema_keys(self._root.schema)])
                raise ConfigError(f"cannot read '{line}' as an override, key=value{hint or f': {reason}'}") from None
        return parsed

    def _check_key(self, override: Any) -> None:
        key, known = override.key_or_group, schema_keys(self._root.schema)
        available = groups(self._folders, self._root)
        if key in available and not isinstance(override.value(), dict | list):
            for option in _values(override):
                if option is None:
                    raise ConfigError(f"{key}=null: leave it out, or name one of {', '.join(available[key])}")
                if str(option) not in available[key] and not self._is_made(key, str(option)):
                    raise ConfigError(
                        f"{key}={option}: there is no such {key}; available: {', '.join(available[key])}"
                        f"{did_you_mean(str(option), available[key])}"
                    )
        elif key not in available and key not in known and not self._is_argument(key):
            raise ConfigError(f"{override.input_line}: {unknown_key(key, available, self._root)}")

    def _is_made(self, group: str, name: str) -> bool:
        """Whether a name makes an option of a group, which Hydra then knows."""
        from hydra.core.config_store import ConfigStore

        made = self._root.made.get(group, lambda _: None)(name)
        if made is None:
            return False
        *folders, last = filter(None, f"{group}/{name}".split("/"))
        if self._made.setdefault((*folders, last), name) != name:
            first = self._made[(*folders, last)]
            raise ConfigError(f"{group}={first},{name}: Hydra takes one for the other; begin the relative one with ./")
        ConfigStore.instance().store(name=last, group="/".join(folders), package=group, node=made)
        return True

    def _combinations(self) -> list[list[str]]:
        """The overrides of each job of the sweep, by Hydra's own rules, those of Hydra itself included."""
        from hydra.types import RunMode
        from omegaconf import OmegaConf

        master = self._compose(self.overrides, RunMode.MULTIRUN)
        sweeper = master.hydra.sweeper
        params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
        # Unresolved: an override may hold what only a job knows, such as ${hydra:job.num}.
        typed_in: Any = OmegaConf.to_container(master.hydra.overrides, resolve=False)
        parsed = self._parsed([*params, *typed_in["task"]])
        if self.is_chosen_later:
            return [[*typed_in["hydra"], *(_one_of(override) for override in parsed)]]
        jobs = jobs_of_sweep(parsed)
        return [[*typed_in["hydra"], *overrides] for overrides in jobs]

    def _composed(self, overrides: Sequence[str], number: int | None) -> Any:
        """The checked configuration of one job; `number` is its place in a sweep."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode
        from omegaconf import OmegaConf, open_dict, read_write

        composed = self._compose(overrides, RunMode.RUN)
        HydraConfig.instance().set_config(composed)
        with read_write(composed.hydra), open_dict(composed.hydra):
            hydra = composed.hydra
            hydra.job.num = number or 0
            folder = hydra.run.dir if number is None else os.path.join(hydra.sweep.dir, str(hydra.sweep.subdir))
            hydra.runtime.output_dir = os.path.abspath(folder)
        HydraConfig.instance().set_config(composed)
        return self._typed(OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"]))

    def _compose(self, overrides: Sequence[str], mode: Any) -> Any:
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException
        from yaml import YAMLError

        try:
            return _loader().load_configuration(self._root.name, list(overrides), run_mode=mode)
        except YAMLError as error:
            raise ConfigError(f"not YAML: {error}") from error
        except RecursionError:
            deepest = max(overrides, key=lambda word: word.count("[") + word.count("{"), default="")
            raise ConfigError(f"'{deepest[:80]}...' is nested too deeply") from None
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise ConfigError(explained(error, self._root)) from error

    def _typed(self, composed: Any) -> Any:
        return typed(composed, self._root)

    def _is_argument(self, key: str) -> bool:
        """Whether a key is below a section that takes any, or is, or is below, a mapping of amounts by name."""
        amounts = [name for name, kind in schema_keys(self._root.schema).items() if kind == dict[str, float]]
        return key in amounts or any(key.startswith(f"{section}.") for section in (*self._root.open_sections, *amounts))


class _Run:
    """What Hydra runs for a job; picklable where the task is.

    Attributes:
        told: of a command that is no sweep, the mistake that ended it; Hydra would print its own line about it first.
    """

    def __init__(self, root: Root, task: Callable[[Any], Any], sweep: bool) -> None:
        self._root = root
        self._task = task
        self._sweep = sweep
        self.told: UserError | ResumableError | None = None

    def __call__(self, composed: Any) -> Any:
        try:
            return self._task(typed(composed, self._root))
        except (UserError, ResumableError) as error:
            if self._sweep:
                raise
            self.told = error
        except OSError as error:
            error.of_a_job = True  # type: ignore[attr-defined]
            raise


def _values(override: Any) -> list[Any]:
    """The values that an override names, without quotes."""
    from hydra.core.override_parser.types import Transformer

    if not override.is_sweep_override():
        return [override.value()]
    return [getattr(value, "text", value) for value in override.sweep_iterator(transformer=Transformer.identity)]


def _one_of(override: Any) -> str:
    """An override with one of the values that a sweeper may choose."""
    if not override.is_sweep_override():
        return str(override.input_line)
    if override.is_interval_sweep():
        return f"{override.get_key_element()}={override.value().start}"
    return f"{override.get_key_element()}={next(override.sweep_string_iterator())}"


def _is_stored(store: Any, name: str, schema: type) -> bool:
    from omegaconf import OmegaConf

    kept = store.repo.get(f"{name}.yaml")
    return kept is not None and OmegaConf.get_type(kept.node) is schema


def _loader() -> Any:
    from hydra.core.global_hydra import GlobalHydra

    return GlobalHydra.instance().config_loader()


@contextlib.contextmanager
def _searched(folders: Sequence[Path]) -> Iterator[None]:
    """Have a Hydra that is made within the block look for options in these folders, too, after its own."""
    plugin = _search_path_plugin()
    plugin.folders = tuple(folders)
    try:
        yield
    finally:
        plugin.folders = ()


@functools.cache
def _search_path_plugin() -> Any:
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class FurtherFolders(SearchPathPlugin):
        """Adds folders to the search path of every Hydra that is made."""

        folders: tuple[Path, ...] = ()

        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            """See `SearchPathPlugin`."""
            for folder in self.folders:
                search_path.append(f"--config-dir {folder}", f"file://{folder}")

    Plugins.instance().register(FurtherFolders)
    return FurtherFolders
