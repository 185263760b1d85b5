"""Environments of reward actors: what they may be, what is refused at the start, and one at work."""

from __future__ import annotations

import functools
import os
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster_stubs import StubSampler, prompts

from prdp.cluster import build_workforce
from prdp.cluster.base import ClusterError, ClusterSetupError, RewardWorker
from prdp.cluster.environment import REQUIREMENTS_FOLDER, find_environment, import_paths, python_path
from prdp.config import ClusterConfig
from prdp.rewards import check_reward
from prdp.support.errors import ConfigError

MODULE = """\
import numpy as np
import only_in_the_environment

class Reader:
    name, version = "reader", only_in_the_environment.__version__

    def score(self, images, prompts, metadata):
        import prdp
        return np.full(len(images), float(self.version)), {"same_prdp": np.full(len(images), prdp.__file__ is not None)}
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment that sees the packages of this one behind its own, which hold one more."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "trainer.pth").write_text(sysconfig.get_path("purelib"))
    (packages / "only_in_the_environment.py").write_text("__version__ = '2.5'\n")
    return folder


def test_requirements_files_become_packages_for_ray(tmp_path: Path) -> None:
    (tmp_path / "local-1.0-py3-none-any.whl").touch()
    file = tmp_path / "mine.txt"
    file.write_text("# why\nfoo==1.2  # pinned\n\nlocal-1.0-py3-none-any.whl\n--extra-index-url https://example.org\n")
    found = find_environment(str(file))
    wheel = str(tmp_path / "local-1.0-py3-none-any.whl")
    assert found.packages == ("foo==1.2", wheel, "--extra-index-url https://example.org")
    assert found.runtime_env()["pip"] == {"packages": list(found.packages)}


def test_shipped_requirements_are_pinned_and_found_by_name() -> None:
    files = [file for file in REQUIREMENTS_FOLDER.glob("*.txt") if not file.stem.startswith("parity_")]
    assert files
    for file in files:
        packages = find_environment(file.stem).packages
        assert all("==" in line for line in packages), file.name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "lists no package"),
        ("foo==1\n-r other.txt\n", "'-r other.txt' refers to other files"),
        ("--constraint=x.txt\n", "'--constraint=x.txt' refers to other files"),
    ],
)
def test_requirements_files_that_cannot_be_used(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "mine.txt"
    file.write_text(content)
    with pytest.raises(ConfigError, match=rf"cluster\.reward_environment={file}: .*{message}"):
        find_environment(str(file))


def test_what_is_no_environment_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file or folder"):
        find_environment(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="no virtual environment, it holds no bin/python"):
        find_environment(str(tmp_path))
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nexit 3\n")
    script.chmod(0o755)
    with pytest.raises(ConfigError, match="does not run as a Python interpreter"):
        find_environment(str(script))
    bare = tmp_path / "bare"
    venv.create(bare, with_pip=False, symlinks=True)
    with pytest.raises(ConfigError, match=r"lacks what every actor needs: .* -m pip install ray==[\d.]+ 'numpy>="):
        find_environment(str(bare))


def test_own_interpreter_gets_no_package_of_the_trainer(environment: Path) -> None:
    found = find_environment(str(environment))
    assert found.python == str(environment / "bin" / "python")
    assert find_environment(found.python).python == found.python
    assert not [path for path in import_paths(found) if path.startswith((sys.prefix, sys.base_prefix))]
    assert os.listdir(python_path(found).split(os.pathsep)[0]) == ["prdp"]


def test_the_current_folder_comes_last_and_only_what_the_user_put_first_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["mine", sys.prefix]))
    assert str(tmp_path) in import_paths(None)
    *package, mine = python_path(None).split(os.pathsep)
    assert mine == str(tmp_path / "mine")
    assert all(os.listdir(folder) == ["prdp"] for folder in package)


def test_workers_find_the_current_folder_behind_the_standard_library_if_at_all(private_ray: Any) -> None:
    """Unless PYTHONPATH names it; an editable installation has the checkout at the end."""
    paths = private_ray.get(private_ray.remote(lambda: __import__("sys").path).remote())
    before = paths[: paths.index(sysconfig.get_path("stdlib"))]
    assert os.getcwd() not in set(before) - set(os.environ.get("PYTHONPATH", "").split(os.pathsep))


def test_reward_actor_imports_what_the_driver_lacks(
    private_ray: object, environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "reads_the_environment.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    section = {"_target_": "reads_the_environment.Reader"}
    with pytest.raises(ConfigError, match="needs 'only_in_the_environment', which is not installed"):
        check_reward("reward", section)
    check_reward("reward", section, elsewhere=True)
    config = ClusterConfig(kind="ray", samplers=1, reward_environment=str(environment))
    workforce = build_workforce(config, StubSampler, functools.partial(RewardWorker, section), 2)
    try:
        rollout = workforce.sample(prompts(2), images_per_prompt=2, seed=1)
        assert workforce.reward_identity == {"name": "reader", "version": "2.5"}
    finally:
        workforce.close()
    assert rollout.rewards is not None
    np.testing.assert_array_equal(rollout.rewards, np.full(4, 2.5))


def test_environment_that_cannot_be_made_is_an_error_at_the_start(private_ray: object, tmp_path: Path) -> None:
    from prdp.cluster.actor_pool import fetch_result

    @private_ray.remote(runtime_env={"py_executable": str(tmp_path / "python"), "working_dir": "gcs://missing.zip"})  # type: ignore[attr-defined]
    class Actor:
        def build(self) -> int:
            return 1

    with pytest.raises(ClusterSetupError, match=r"reward_environment: the environment could not be made"):
        fetch_result(Actor.remote().build.remote())
    assert issubclass(ClusterSetupError, ClusterError)
