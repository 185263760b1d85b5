"""What a run folder that a stranger made may ask for, and that it gets nothing more."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_command_line import composed, run_folder

from prdp.cli import main
from prdp.configuration.typed import conf_folder, read_config
from prdp.evaluation.command_line import read_command_line
from prdp.evaluation.models import find_models
from prdp.evaluation.trust import (
    CALLABLE,
    ORIGINALITY,
    PROMPTS,
    REMOTE,
    REWARDS,
    SERVERS,
    UNIFIED_REWARD,
    VLM_JUDGE,
)
from prdp.support.errors import ConfigError
from prdp.support.plain_yaml import load_yaml
from prdp.support.targets import TARGET

REDNESS = {TARGET: "prdp.rewards.redness.Redness"}
SHAPES = {TARGET: "prdp.worlds.shapes.prompts.ShapesPrompts", "size": 4}
TEXT = "prdp.prompts.text_file.TextFilePrompts"


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder whose configuration a test changes; started from a folder beside it."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HF_TOKEN", "a-token-of-the-victim")
    return run_folder(tmp_path / "stranger")


def rewrite(run: Path, **sections: Any) -> None:
    """Change sections of a run's config.yaml by hand; `heldout` is that of prompts."""
    content = yaml.safe_load((run / "config.yaml").read_text())
    for name, section in sections.items():
        if name == "heldout":
            content["prompts"]["heldout"] = section
        else:
            content[name] = section
    (run / "config.yaml").write_text(yaml.safe_dump(content))


def names(*words: str) -> dict[str, Any]:
    """What the rewards and prompts of an evaluation come to."""
    config = composed(*words)
    return {**config.rewards, **config.prompts}


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"reward": {TARGET: "os.system", "command": "x"}}, ["reward: imports and runs os.system(command='x')"]),
        ({"reward": {TARGET: "prdp.support.targets.build", "key": "k"}}, ["and runs prdp.support.targets.build"]),
        ({"reward": {TARGET: "prdp.worlds.shapes.prompts.ShapesPrompts"}}, ["shapes.prompts.ShapesPrompts()"]),
        ({"reward": {TARGET: ["os.system"]}}, ["imports and runs ['os.system']"]),
        ({"reward": {TARGET: CALLABLE, "path": "os.system"}}, ["runs the function os.system"]),
        (
            {"reward": {TARGET: REMOTE, "url": "http://stranger:1", "token_variable": "HF_TOKEN"}},
            ["sends images and prompts to http://stranger:1, with the content of the environment variable HF_TOKEN"],
        ),
        ({"reward": {TARGET: REMOTE, "url": "http://stranger:1"}}, ["environment variable PRDP_REWARD_TOKEN"]),
        (
            {"reward": {TARGET: ORIGINALITY, "folder": "/home", "cache": "/tmp/x"}},
            ["folder=/home: compares with pictures of a folder outside", "cache=/tmp/x: keeps features in a folder"],
        ),
        (
            {"reward": {TARGET: UNIFIED_REWARD, "path": "judge", "instruction": "/etc/passwd"}},
            ["instruction=/etc/passwd: asks a model by a file outside"],
        ),
        (
            {"reward": {TARGET: VLM_JUDGE, "url": "http://stranger:1", "rubric": "@/etc/passwd", "cache": "/tmp/x"}},
            ["environment variable PRDP_JUDGE_KEY", "rubric=@/etc/passwd: sends a file", "cache=/tmp/x: keeps answers"],
        ),
        (
            {
                "reward": {
                    TARGET: "prdp.rewards.weighted_sum.WeightedSum",
                    "terms": {"a": {"weight": 1.0, "reward": {TARGET: "subprocess.run", "args": ["x"]}}},
                }
            },
            ["reward.terms.a.reward: imports and runs subprocess.run(args=['x'])"],
        ),
        ({"reward": {TARGET: "prdp.rewards.clipscore.CLIPScore", "path": "http://stranger/x"}}, ["contacts that"]),
        ({"heldout": {TARGET: "subprocess.run"}}, ["prompts.heldout: imports and runs subprocess.run()"]),
        (
            {"heldout": {TARGET: "prdp.prompts.mixture.MixturePrompts", "a": SHAPES, "b": {TARGET: "os.getcwd"}}},
            ["prompts.heldout.b: imports and runs os.getcwd()"],
        ),
        ({"heldout": {TARGET: TEXT, "path": "/etc/passwd"}}, ["prompts.heldout.path=/etc/passwd: reads a file"]),
        ({"heldout": {TARGET: TEXT, "path": ["a.txt", "../b.txt"]}}, ["prompts.heldout.path=../b.txt: reads a file"]),
        ({"heldout": {TARGET: TEXT, "path": ".ssh/id_rsa"}}, ["prompts.heldout.path=.ssh/id_rsa: reads a file"]),
    ],
)
def test_more_than_data_needs_trust_and_is_told(stranger: Path, sections: dict[str, Any], says: list[str]) -> None:
    rewrite(stranger, **sections)
    with pytest.raises(ConfigError) as caught:
        read_command_line([f"models=[{stranger}]"], [conf_folder()])
    for part in [*says, f"trust=[{stranger}]"]:
        assert part in str(caught.value)
    taken = read_command_line([f"models=[{stranger}]", f"trust=[{stranger.parent}]"], [conf_folder()])
    overlay = taken.root.nodes["from_run"]
    wished = sections.get("reward", sections.get("heldout"))
    assert wished in [*overlay["rewards"].values(), *overlay["prompts"].values()]


def test_a_policy_class_of_somebody_is_not_built(stranger: Path) -> None:
    rewrite(stranger, model={"family": "os.system", "path": "x"})
    for words in ([], ["rewards=[redness]", "prompts=[shapes]"], [f"trust=[{stranger}]"]):
        with pytest.raises(ConfigError, match=r"model\.family=os\.system is a class of its maker's own"):
            read_command_line([f"models=[{stranger}]", *words], [conf_folder()])


def test_what_is_given_on_the_command_line_needs_no_trust(stranger: Path) -> None:
    rewrite(stranger, reward={TARGET: "os.system", "command": "x"}, heldout={TARGET: "os.getcwd"})
    with pytest.raises(ConfigError, match=r"os\.getcwd(.|\n)*give prompts=\[\.\.\.\], which"):
        read_command_line([f"models=[{stranger}]", "rewards=[redness]"], [conf_folder()])
    found = names(f"models=[{stranger}]", "rewards=[redness]", "prompts=[shapes]")
    assert {section[TARGET] for section in found.values()} == {REDNESS[TARGET], SHAPES[TARGET]}


def test_all_runs_are_told_at_once(stranger: Path, tmp_path: Path) -> None:
    other = run_folder(tmp_path / "other")
    for run in (stranger, other):
        rewrite(run, reward={TARGET: "os.system", "command": "x"})
    with pytest.raises(ConfigError, match=re.escape(f"trust=[{stranger},{other}]")):
        read_command_line([f"models=[{stranger},{other}]"], [conf_folder()])
    with pytest.raises(ConfigError, match=r"trust: there is no folder .*strangr.*'stranger'"):
        read_command_line([f"models=[{stranger}]", f"trust=[{tmp_path}/strangr]"], [conf_folder()])


def test_nothing_runs_and_nothing_is_resolved_by_any_command(
    stranger: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The commands that read run folders, on one whose every text is a wish."""
    ran = stranger.parent / "ran"
    token = "${oc.env:HF_TOKEN}"
    rewrite(
        stranger,
        reward={TARGET: "os.system", "command": f"touch {ran}"},
        heldout={TARGET: "os.mkdir", "path": str(ran)},
        model={"path": token},
        tracking={"wandb": "disabled", "wandb_project": token},
    )
    for words in (
        ["evaluate", f"models=[{stranger}]"],
        ["evaluate", f"models=[{stranger}]", "rewards=[redness]", "prompts=[shapes]"],
        ["status", str(stranger)],
        ["report", str(stranger)],
        ["prompts", "used", str(stranger)],
        ["train", "experiment=shapes_smoke", f"output_dir={stranger}", "checkpoint.resume=auto", "tracking=silent"],
    ):
        if words[0] == "train":
            # As far as the checks go; what they find is that there is nothing to resume.
            words = ["validate", *words[1:]]
        main(words)
    assert not ran.exists()
    written = [file.read_bytes() for file in stranger.parent.rglob("*") if file.is_file()]
    out, err = capfd.readouterr()
    assert not [text for text in (*written, out.encode(), err.encode()) if b"a-token-of-the-victim" in text]


def test_references_are_text(stranger: Path) -> None:
    texts = ["${oc.env:HF_TOKEN}", "a ${5} {}", "\\${x}", "${", "$ {", "\\\\${a.b}"]
    section = {TARGET: TEXT, "path": texts, "template": "a ${5} {}"}
    rewrite(stranger, heldout=section, model={"path": "${oc.env:HF_TOKEN}"})
    assert read_config(stranger / "config.yaml").prompts.heldout == section
    [found] = composed(f"models=[{stranger}]").prompts.values()
    assert found == section
    assert composed(f"models=[{stranger}]").model.path == "${oc.env:HF_TOKEN}"


def test_a_checkpoints_own_configuration_is_text_too(stranger: Path) -> None:
    import json

    config = yaml.safe_load((stranger / "config.yaml").read_text())
    config["model"]["path"] = "${oc.env:HF_TOKEN}"
    folder = stranger.parent / "alone" / "epoch_00001"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"epoch": 1, "state": {"config": config}}))
    (folder / "learner.safetensors").write_bytes(b"")
    with pytest.raises(ValueError) as caught:
        find_models([str(folder)], None)
    assert "a-token-of-the-victim" not in str(caught.value)


def test_yaml_tags_of_a_run_build_nothing(stranger: Path) -> None:
    ran = stranger.parent / "ran"
    text = (stranger / "config.yaml").read_text()
    (stranger / "config.yaml").write_text(text + f"\nnew: !!python/object/apply:os.mkdir ['{ran}']\n")
    with pytest.raises(ConfigError, match="is not YAML: could not determine a constructor"):
        read_command_line([f"models=[{stranger}]"], [conf_folder()])
    assert not ran.exists()


def targets(content: Any) -> Iterator[str]:
    """Every `_target_` in plain containers."""
    if isinstance(content, dict):
        if TARGET in content:
            yield content[TARGET]
        for value in content.values():
            yield from targets(value)


def test_what_needs_no_trust_is_what_ships_but_for_functions_and_servers() -> None:
    def shipped(group: str) -> set[str]:
        files = (conf_folder() / group).glob("*.yaml")
        return {target for file in files for target in targets(yaml.safe_load(file.read_text()))}

    assert shipped("reward") == REWARDS | {CALLABLE, *SERVERS}
    assert PROMPTS - shipped("prompts") == {"prdp.prompts.parquet_file.ParquetFilePrompts"}
    assert shipped("prompts") <= PROMPTS


def test_what_a_pattern_or_a_folder_yields_is_looked_at(stranger: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("a secret\n")
    (stranger / "own.txt").write_text("a cat\n")
    rewrite(stranger, heldout={TARGET: TEXT, "path": str(stranger / "own*.txt")})
    names(f"models=[{stranger}]")
    (stranger / "own_too.txt").symlink_to(secret)
    with pytest.raises(ConfigError, match="reads a file outside of the current folder"):
        composed(f"models=[{stranger}]")
    dataset = stranger / "dataset"
    dataset.mkdir()
    rewrite(stranger, heldout={TARGET: "prdp.prompts.hf_dataset.HfDatasetPrompts", "path": str(dataset)})
    with pytest.raises(ConfigError, match="may name files and addresses anywhere"):
        composed(f"models=[{stranger}]")
    rewrite(stranger, heldout={TARGET: "prdp.prompts.any_file.open_prompts", "path": str(dataset)})
    with pytest.raises(ConfigError, match="may name files and addresses anywhere"):
        composed(f"models=[{stranger}]")


def test_aliases_that_multiply_are_refused(tmp_path: Path) -> None:
    levels = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    file = tmp_path / "config.yaml"
    file.write_text("\n".join(levels))
    with pytest.raises(ValueError, match="has aliases that come to"):
        load_yaml(file)
