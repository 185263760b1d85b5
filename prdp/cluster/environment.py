"""The environment that reward actors run in, when it is not the trainer's: what `cluster.reward_environment` names."""

from __future__ import annotations

import atexit
import importlib.metadata
import importlib.util
import json
import os
import shutil
import site
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import prdp
from prdp.support.errors import ConfigError

KEY = "cluster.reward_environment"
REQUIREMENTS_FOLDER = Path(prdp.__file__).parent / "rewards" / "requirements"
SETUP_SECONDS = 3600
"""How long pip may take to install a requirements file."""

_PROBE_SECONDS = 120
_PROBE = """\
import importlib.metadata, json, sys
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
print(json.dumps({"python": list(sys.version_info[:2]), "ray": version("ray"), "numpy": version("numpy")}))
"""


@dataclass(frozen=True)
class RewardEnvironment:
    """Either packages to install into a copy of the trainer's environment, or an interpreter that is there.

    Attributes:
        source: the file or folder it comes from.
        packages: lines of the requirements file, local files as absolute paths.
        python: the interpreter.
    """

    source: Path
    packages: tuple[str, ...] = ()
    python: str | None = None

    def runtime_env(self) -> dict[str, Any]:
        """The part of Ray's `runtime_env` that makes an actor run in it."""
        if self.python is not None:
            return {"py_executable": self.python}
        return {"pip": {"packages": list(self.packages)}, "config": {"setup_timeout_seconds": SETUP_SECONDS}}


def find_environment(value: str) -> RewardEnvironment:
    """What `cluster.reward_environment` names: a requirements file, a virtual environment's folder, or an interpreter.

    The name of a file in prdp/rewards/requirements, without '.txt', does too.

    Raises:
        ConfigError: there is no such thing, the file lists nothing or what cannot be sent to other machines, pip or
            virtualenv are missing, or the interpreter lacks what an actor needs; with what to do.
    """
    shipped = REQUIREMENTS_FOLDER / f"{value}.txt"
    path = shipped if os.sep not in value and shipped.is_file() else Path(value).expanduser().absolute()
    if path.is_dir():
        candidates = (path / "bin" / "python", path / "Scripts" / "python.exe")
        python = next((file for file in candidates if file.is_file()), None)
        if python is None:
            raise ConfigError(f"{KEY}={value}: the folder is no virtual environment, it holds no bin/python")
        return _of_interpreter(value, path, python)
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in REQUIREMENTS_FOLDER.glob("*.txt")))
        raise ConfigError(
            f"{KEY}={value}: there is no such file or folder; must be a requirements file, a virtual environment, an "
            f"interpreter{f', or one of {names}' if names else ''}"
        )
    if path.suffix != ".txt" and os.access(path, os.X_OK):
        return _of_interpreter(value, path, path)
    return _of_requirements(value, path)


def import_paths(environment: RewardEnvironment | None) -> list[str]:
    """Folders that actors look for modules in, after those of their interpreter.

    What the driver can import, a reward of the user's for instance, an actor can import; but an interpreter of its own
    gets no package of the driver's installation. They come last, so that a `queue.py` or `torch.py` of the user's, or
    of whoever else may write into the folder that one works in, is not taken for the real one.
    """
    return list(dict.fromkeys(path for path in map(os.path.abspath, sys.path) if not _of_driver(path, environment)))


def python_path(environment: RewardEnvironment | None) -> str:
    """The PYTHONPATH of an actor's process: a folder with this package alone, where the process could not find it by
    itself, and what the user has set.
    """
    alone = environment is not None and environment.python is not None
    missing = alone or not _of_driver(os.path.abspath(prdp.__file__), None)
    given = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    paths = [*([_package_alone()] if missing else []), *(path for path in given if not _of_driver(path, environment))]
    return os.pathsep.join(dict.fromkeys(paths))


def _of_driver(path: str, environment: RewardEnvironment | None) -> bool:
    """Whether a path belongs to the installation that the driver runs in."""
    own = [sys.prefix, sys.base_prefix]
    if environment is not None and environment.python is not None:
        own.append(site.getusersitepackages())
    return path.startswith(tuple(own))


@cache
def _package_alone() -> str:
    """A folder that holds this package and nothing else; it goes when the process ends."""
    folder = tempfile.mkdtemp(prefix="prdp-package-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    package = Path(prdp.__file__).resolve().parent
    os.symlink(package, Path(folder) / package.name, target_is_directory=True)
    return folder


def _of_requirements(value: str, path: Path) -> RewardEnvironment:
    lines = (line.split(" #")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    packages = []
    for line in lines:
        if not line or line.startswith("#"):
            continue
        if line.split()[0].partition("=")[0] in ("-r", "--requirement", "-c", "--constraint", "-e", "--editable"):
            raise ConfigError(f"{KEY}={value}: '{line}' refers to other files; list the packages themselves")
        local = path.parent / line
        packages.append(str(local.absolute()) if local.exists() else line)
    if not packages:
        raise ConfigError(f"{KEY}={value}: lists no package")
    for module in ("virtualenv", "pip"):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"{KEY}={value}: Ray needs {module} to install it: pip install {module}")
    return RewardEnvironment(path, packages=tuple(packages))


def _of_interpreter(value: str, source: Path, python: Path) -> RewardEnvironment:
    try:
        done = subprocess.run(
            [python, "-I", "-c", _PROBE], capture_output=True, text=True, timeout=_PROBE_SECONDS, check=True
        )
        found = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise ConfigError(f"{KEY}={value}: {python} does not run as a Python interpreter: {error}") from error
    own, ray = list(sys.version_info[:2]), importlib.metadata.version("ray")
    problems = []
    if found["python"] != own:
        problems.append(f"is Python {_dotted(found['python'])}, and Ray wants the trainer's {_dotted(own)}")
    wanted = [
        *([f"ray=={ray}"] if found["ray"] != ray else []),
        *(["'numpy>=1.26.1'"] if found["numpy"] is None else []),
    ]
    if wanted:
        problems.append(f"lacks what every actor needs: {python} -m pip install {' '.join(wanted)}")
    if problems:
        raise ConfigError(f"{KEY}={value}: {python} {'; and it '.join(problems)}")
    return RewardEnvironment(source, python=str(python))


def _dotted(version: list[int]) -> str:
    return ".".join(map(str, version))
