"""Short names on the command line, what a run brings along, and mistakes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from prdp.compose import Composer
from prdp.configure import conf_folder, typed, write_config
from prdp.errors import ConfigError, UserError
from prdp.evaluate import check_start, main
from prdp.evaluation.command_line import CommandLine, read_command_line
from prdp.evaluation.models import find_models, sweep_labels
from prdp.evaluation.runs import TrainedRun, read_trained_run, section_name


def run_folder(folder: Path, overrides: Sequence[str] = (), reward: str = "redness.Redness", **changes: Any) -> Path:
    """A finished run, with an empty LoRA file."""
    config = typed(
        {
            "seed": 5,
            "output_dir": str(folder),
            "reward": {"_target_": f"prdp.rewards.{reward}"},
            "prompts": {
                part: {"_target_": "prdp.prompts.shapes.ShapesPrompts", "split": part, "size": 9}
                for part in ("train", "heldout")
            },
            "sampler": {"steps": 7, "guidance_scale": 2.5, "timestep_spacing": "trailing"},
            "evaluation": {"final_prompts": 6, "images_per_prompt": 3, "seed": 77},
            **changes,
        }
    )
    write_config(config, folder / "config.yaml")
    (folder / "weights").mkdir()
    (folder / "weights" / "pytorch_lora_weights.safetensors").write_bytes(b"")
    (folder / "metrics.jsonl").write_text('{"epoch": 4, "wall_seconds": 12.5}\n')
    if overrides:
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {word}\n" for word in overrides))
    return folder


def composed(*words: str, line: CommandLine | None = None) -> Any:
    line = line or read_command_line(words, [conf_folder()])
    with Composer(line.words, root=line.root, additions=line.additions) as composer:
        return composer.jobs()[0].config


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return run_folder(tmp_path / "run")


def test_a_run_brings_sampler_prompts_rewards_and_seed(run: Path) -> None:
    line = read_command_line([f"models=[{run}]"], [conf_folder()])
    config = composed(line=line)
    sampler = config.sampler
    assert (sampler.steps, sampler.guidance_scale, sampler.timestep_spacing) == (7, 2.5, "trailing")
    assert (config.seeds, config.prompt_seed, config.prompts_per_set, config.images_per_prompt) == ([77], 77, 6, 3)
    assert config.rewards == {"redness": {"_target_": "prdp.rewards.redness.Redness"}}
    assert config.prompts["shapes_prompts"]["split"] == "heldout"
    assert line.model_is_given
    assert any("7 steps, guidance 2.5, trailing spacing" in note for note in line.notes)
    models, prompts = check_start(config)
    assert [model.name for model in models] == ["base", "run"]
    assert (models[1].kind, models[1].epoch, models[1].run and models[1].run.seconds) == ("lora", 4, 12.5)
    assert len(prompts["shapes_prompts"]) == 6


def test_what_is_typed_wins(run: Path) -> None:
    config = composed(
        f"models=[base,mine:{run}]", "sampler.steps=3", "seeds=[1,2]", "rewards=[shapes_judge]", "watch=[redness]"
    )
    assert (config.sampler.steps, config.sampler.guidance_scale, config.seeds) == (3, 2.5, [1, 2])
    assert (list(config.rewards), list(config.watch)) == (["shapes_judge"], ["redness"])
    assert config.models == ["base", f"mine:{run}"]
    assert composed(f"models=[{run}]", "sampler=ddim50").sampler.steps == 50


def test_options_files_and_functions(tmp_path: Path) -> None:
    file = tmp_path / "my list.txt"
    file.write_text("a cat\na dog\n")
    config = composed(
        "models=[base]", "model=shapes", f"prompts=[shapes,small:shapes_small.train,{file}]",
        "rewards=[shapes_judge,my_rewards.bright]", "prompts.small.size=11", "images_per_prompt=2",
    )  # fmt: skip
    assert set(config.prompts) == {"my_list", "shapes", "small"}
    assert (config.prompts["small"]["split"], config.prompts["small"]["size"]) == ("train", 11)
    assert config.prompts["my_list"]["path"] == str(file)
    assert config.rewards["bright"]["path"] == "my_rewards.bright"


def test_argument_of_a_source_whose_other_half_is_missing(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\n")
    config = composed(
        "models=[base]", "model=shapes", "rewards=[redness]", "prompts=[text_file]",
        f"prompts.text_file.path={tmp_path / 'p.txt'}",
    )  # fmt: skip
    assert config.prompts["text_file"]["path"] == str(tmp_path / "p.txt")
    words = ("models=[base]", "model=shapes", "rewards=[redness]", "prompts=[pick_a_pic]")
    # Its held-out half takes the path of the other where it has none of its own.
    for word in ("prompts.pick_a_pic.path=owner/name", "prompts.pick_a_pic.train.path=owner/name"):
        source = composed(*words, word).prompts["pick_a_pic"]
        assert (source["path"], source["split"]) == ("owner/name", "test_unique")


def test_a_sweep_is_one_folder_and_its_rewards_and_prompts_come_together(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    for number, (reward, prompts) in enumerate(
        [("redness", "shapes"), ("shapes_judge", "shapes"), ("redness", "shapes_small")]
    ):
        target = {"redness": "redness.Redness", "shapes_judge": "shapes_judge.ShapesJudge"}[reward]
        words = ["experiment=shapes_smoke", f"reward={reward}", f"prompts={prompts}"]
        run_folder(sweep / str(number), words, target)
    (sweep / "multirun.yaml").write_text("{}")
    config = composed(f"models=[{sweep}]")
    assert list(config.rewards) == ["redness", "shapes_judge"]
    assert list(config.prompts) == ["shapes_prompts"]
    names = [model.name for model in check_start(config)[0]]
    assert names == ["base", "redness,shapes", "shapes_judge,shapes", "redness,shapes_small"]
    assert next(model.name for model in find_models([f"s:{sweep}"], None)) == "s/redness,shapes"


def test_runs_of_a_sweep_without_notes_are_called_by_their_numbers(run: Path) -> None:
    plain = read_trained_run(run)
    assert sweep_labels([plain, TrainedRun(run / "b", plain.config, (), {}, None, 0.0)]) == ["run", "b"]


def test_runs_that_differ_are_told(tmp_path: Path, run: Path) -> None:
    other = run_folder(tmp_path / "other", sampler={"steps": 9}, model={"path": "/models/other"})
    notes = read_command_line([f"models=[{run},{other}]"], [conf_folder()]).notes
    assert any("other was trained with another sampler" in note for note in notes)
    assert any("other was trained from /models/other, not from base" in note for note in notes)


def test_section_names() -> None:
    assert section_name({"_target_": "prdp.rewards.shapes_judge.ShapesJudge"}) == "shapes_judge"
    assert section_name({"_target_": "prdp.rewards.python_callable.PythonCallable", "path": "m.bright"}) == "bright"
    assert section_name({"_target_": "prdp.prompts.text_file.TextFilePrompts", "path": "/a/my list.txt"}) == "my_list"


SHAPES = ["models=[base]", "model=shapes", "prompts=[shapes]", "rewards=[redness]"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "which models?"),
        (["models=[base]"], "no prompts: give prompts"),
        ([*SHAPES, "rewards=[rednes]"], "there is no reward 'rednes'. Did you mean 'redness'?"),
        ([*SHAPES, "prompts=[shape]"], "Did you mean 'shapes'"),
        ([*SHAPES, "watch=[redness]"], "'redness' is among rewards already"),
        ([*SHAPES, "reward=redness"], "Did you mean 'rewards'?"),
        ([*SHAPES, "rewards.redness.colour=blue"], "takes no argument 'colour'"),
        ([*SHAPES, "rewards.rednes.colour=blue"], "'rednes' is not among rewards (redness). Did you mean 'redness'?"),
        ([*SHAPES, "sampler.step=5"], "Did you mean 'sampler.steps'?"),
        ([*SHAPES, "zzzz=5"], "`prdp evaluate --help` tells where the keys are listed"),
        ([*SHAPES, "models=[Red one:base,red_one:base]"], "two are called alike (Red one: shapes, red_one: shapes)"),
        ([*SHAPES, "features=clip", "features.path=nowhere"], "features: path=nowhere: there is no such folder"),
        ([*SHAPES, "images_per_promt=5"], "Did you mean 'images_per_prompt'?"),
        ([*SHAPES, "collapse_below=2", "seeds=[1,1]"], "collapse_below=2: must be from 0 to 1"),
        ([*SHAPES, "export=[genevl]"], "export=genevl: must be one of"),
        ([*SHAPES, "export=[geneval]"], "has no tag and no include"),
        ([*SHAPES, "against=other"], "must be one of the models base"),
        ([*SHAPES, "models=[base,nowhere.safetensors]"], "there is no nowhere.safetensors"),
    ],
)
def test_mistakes_are_refused_before_anything_is_computed(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        main(words)
    assert says in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_actors_in_the_drivers_environment_need_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_more.py").write_text("import a_package_not_installed\n")
    monkeypatch.chdir(tmp_path)
    words = [*SHAPES, "rewards=[needs_more.f]", "cluster=ray"]
    with pytest.raises(UserError, match=r"rewards\.f: reward 'f' needs a_package_not_installed, which is not"):
        check_start(composed(*words))
    check_start(composed(*words, f"cluster.reward_environment={sys.prefix}"))


def test_folder_of_a_run_is_no_place_for_an_evaluation(run: Path) -> None:
    (run / "checkpoints").mkdir()
    with pytest.raises(ConfigError, match="holds a run"):
        check_start(composed(f"models=[{run}]", f"output_dir={run}"))


def test_what_is_none_of_the_kinds_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither the folder of a run or sweep"):
        find_models([str(tmp_path)], None)


def test_help_names_what_models_may_be(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for text in ("MODELS are", "runs/sweep", "shapes_judge", "sampler", "features", "output_dir=runs/compare"):
        assert text in shown
