"""Nothing is unpickled or evaluated that came from elsewhere; and secrets stay in the environment."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from http_rewards import serving

from prdp.cli import main

PACKAGE = Path(__file__).parent.parent / "prdp"
RUNS_CODE = {
    *("eval", "exec", "compile", "execfile", "__import__"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "_pickle.loads", "dill.load", "dill.loads", "joblib.load"),
    *("marshal.load", "marshal.loads", "shelve.open", "jsonpickle.decode", "pandas.read_pickle", "pd.read_pickle"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen"),
    *("runpy.run_path", "runpy.run_module", "importlib.util.spec_from_file_location", "importlib.machinery.FileFinder"),
    *(f"hydra.utils.{name}" for name in ("instantiate", "call", "get_object", "get_class", "get_method")),
    *(f"omegaconf.OmegaConf.{name}" for name in ("load", "create", "resolve", "register_new_resolver")),
    *("cloudpickle.load", "cloudpickle.loads", "ray.cloudpickle.load", "ray.cloudpickle.loads"),
}
"""Calls that run what they read."""
OUR_OWN = {"pickle.loads", "cloudpickle.loads", "ray.cloudpickle.loads"}
"""Allowed in prdp/cluster: factories that this package's driver sends to its own actors."""


MEANT = {
    ("cli.py", "importlib.import_module"): "a command of this package, by its name",
    ("support/targets.py", "importlib.import_module"): "what a `_target_` names",
    ("configuration/typed.py", "omegaconf.OmegaConf.to_container"): "references that were typed on the command line",
}
"""Calls that import or resolve what they are given, and what that is."""
BUILDERS = {
    "prdp.support.targets.build",
    "prdp.support.targets.locate",
    "prdp.support.targets.check_target",
    "prdp.rewards.build_reward",
    "prdp.rewards.check_reward",
    "prdp.prompts.build_prompts",
}
BUILD = {
    "api.py": "what the caller composes; of runs it takes no sections",
    "commands/train.py": "what the command line composes",
    "commands/evaluate.py": "what the command line composes, runs having passed `prdp.evaluation.trust`",
    "evaluation/preconditions.py": "likewise",
    "configuration/measured_time.py": "what the command line composes, for `prdp validate --measure`",
    "commands/generate.py": "what the command line composes; of runs it takes no sections",
    "commands/calibrate.py": "likewise",
    "language/building.py": "a metric that the command line names; pairs tell none",
    "train.py": "likewise",
    "commands/reward_server.py": "likewise",
    "cluster/base.py": "the reward of the run that starts the actor",
    "rewards/__init__.py": "the builders themselves",
    "rewards/python_callable.py": "a function that the command line names",
    "rewards/sub_score.py": "the reward in a section that was checked as a whole",
    "rewards/weighted_sum.py": "terms of a section that was checked as a whole",
    "prompts/__init__.py": "the builders themselves",
    "prompt_writers/__init__.py": "the writer that the command line names",
    "objectives/__init__.py": "the loss that `objective._target_` of the command line names",
    "diffusion/__init__.py": "the policy class that `model.family` of the command line names",
    "support/targets.py": "the builders themselves",
}
"""Files that build what a section names, and why its section may be trusted. Another one needs a thought first."""


def calls(file: Path) -> Iterator[tuple[str, ast.Call]]:
    """Dotted names of what a file calls, imports by other names resolved."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {
                one.asname or one.name.partition(".")[0]: one.name if one.asname else one.name.partition(".")[0]
                for one in node.names
            }
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, _, rest = ast.unparse(node.func).partition(".")
            yield f"{names.get(first, first)}{'.' if rest else ''}{rest}", node


def constant(call: ast.Call, keyword: str) -> Any:
    """The value of a keyword argument that is a constant; None where it is absent or computed."""
    given = [one.value for one in call.keywords if one.arg == keyword]
    return given[0].value if given and isinstance(given[0], ast.Constant) else None


def faults(file: Path, inside: str) -> list[str]:
    found = []
    for name, call in calls(file):
        where = f"{inside}:{call.lineno}: {name}"
        if name in RUNS_CODE and not (name in OUR_OWN and inside.startswith("cluster/")):
            found.append(where)
        if name == "torch.load" and constant(call, "weights_only") is not True:
            found.append(f"{where} without weights_only=True")
        if name in ("numpy.load", "np.load") and constant(call, "allow_pickle") not in (None, False):
            found.append(f"{where} with allow_pickle")
        if constant(call, "trust_remote_code") or constant(call, "shell"):
            found.append(f"{where} with trust_remote_code or shell")
        if re.search(r"\bAuto[A-Z]\w+\.from_pretrained$", name) and constant(call, "trust_remote_code") is not False:
            found.append(f"{where} without trust_remote_code=False, which asks on the terminal")
        computed = bool(call.args) and not isinstance(call.args[0], ast.Constant)
        resolves = constant(call, "resolve") is True or (name == "importlib.import_module" and computed)
        if resolves and (inside, name) not in MEANT:
            found.append(f"{where} imports or resolves what it is given")
        if name in BUILDERS and inside not in BUILD:
            found.append(f"{where} builds what a section names")
    return found


def test_no_file_of_the_package_runs_what_it_reads() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 100
    assert [fault for file in files for fault in faults(file, str(file.relative_to(PACKAGE)))] == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.loads(x)",
        "from pickle import loads as read\nread(x)",
        "import torch as t\nt.load(f)",
        "import torch\ntorch.load(f, weights_only=False)",
        "import numpy as np\nnp.load(f, allow_pickle=True)",
        "from yaml import load\nload(f)",
        "eval(x)",
        "from ray import cloudpickle\ncloudpickle.loads(x)",
        "import subprocess\nsubprocess.run(x, shell=True)",
        "Model.from_pretrained(x, trust_remote_code=True)",
        "import transformers\ntransformers.AutoTokenizer.from_pretrained(x)",
        "from hydra.utils import instantiate\ninstantiate(x)",
        "import hydra\nhydra.utils.get_object(x)",
        "import importlib\nimportlib.import_module(x)",
        "from omegaconf import OmegaConf\nOmegaConf.load(x)",
        "from omegaconf import OmegaConf as O\nO.to_container(x, resolve=True)",
        "from prdp.rewards import build_reward\nbuild_reward(x)",
        "from prdp.support.targets import locate as find\nfind('reward', x)",
    ],
)
def test_the_search_finds_what_it_looks_for(tmp_path: Path, source: str) -> None:
    (tmp_path / "file.py").write_text(source)
    assert len(faults(tmp_path / "file.py", "rewards/file.py")) == 1


MARKERS = ("a-reward-token-7c1f", "a-wandb-key-" + "9d2e" * 7)


class Counting:
    """Gives the server another token in the middle of the second epoch."""

    name, version = "counting", "1"

    def __init__(self) -> None:
        self.calls = 0
        self.server: Any = None

    def score(self, images: Any, prompts: Any, metadata: Any) -> Any:
        self.calls += 1
        if self.calls == 5:
            self.server.token = "another"
        return images.mean((1, 2, 3)) / 255


def test_secrets_stay_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A run whose reward is remote, with every tracker, that first goes well and then fails by its token."""
    pytest.importorskip("wandb")
    pytest.importorskip("tensorboard")
    for name, marker in zip(("PRDP_REWARD_TOKEN", "WANDB_API_KEY"), MARKERS, strict=True):
        monkeypatch.setenv(name, marker)
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "run"
    reward = Counting()
    with serving(reward, MARKERS[0]) as server:
        reward.server = server
        words = ["experiment=shapes_smoke", "reward=remote", f"reward.url={server.url}", "evaluation.every=0"]
        words += ["evaluation.final_prompts=2", "tracking.wandb=offline", "tracking.tensorboard=true"]
        assert main(["train", *words, f"output_dir={folder}", "cluster.retries=0"]) == 2
    import wandb

    wandb.teardown()
    shown = capfd.readouterr()
    assert "refuses the token: set the environment variable PRDP_REWARD_TOKEN" in shown.err
    assert list((folder / "checkpoints").glob("epoch_00001"))
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"config.yaml", "status.json", "metrics.jsonl", "progress.log"} <= {file.name for file in files}
    assert any(file.suffix == ".wandb" for file in files) and any("tfevents" in file.name for file in files)
    said = f"{shown} {caplog.text}"
    for marker in MARKERS:
        assert marker not in said
        assert not [file for file in files if marker.encode() in file.read_bytes()]
