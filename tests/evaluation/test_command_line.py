"""Short names on the command line, what a run brings along, and mistakes."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from prdp.commands.evaluate import check_start, main
from prdp.configuration.compose import Composer
from prdp.configuration.typed import conf_folder, typed, write_config
from prdp.evaluation.command_line import CommandLine, read_command_line
from prdp.evaluation.models import find_models
from prdp.evaluation.runs import TrainedRun, read_trained_run, section_name, sweep_labels
from prdp.support.errors import ConfigError, UserError


def run_folder(folder: Path, reward: str = "redness.Redness", **changes: Any) -> Path:
    """A finished run, with a LoRA file of zeros."""
    arguments = changes.pop("arguments", {})
    config = typed(
        {
            "seed": 5,
            "output_dir": str(folder),
            "reward": {"_target_": f"prdp.rewards.{reward}", **arguments},
            "prompts": {
                part: {"_target_": "prdp.worlds.shapes.prompts.ShapesPrompts", "split": part, "size": 9}
                for part in ("train", "heldout")
            },
            "sampler": {"steps": 7, "guidance_scale": 2.5, "timestep_spacing": "trailing"},
            "evaluation": {"final_prompts": 6, "images_per_prompt": 3, "seed": 77},
            **changes,
        }
    )
    write_config(config, folder / "config.yaml")
    (folder / "weights").mkdir()
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    shapes = {f"{layer}.lora_A.weight": (2, 64), f"{layer}.lora_B.weight": (64, 2)}
    lora = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    save_file(lora, folder / "weights" / "pytorch_lora_weights.safetensors")
    (folder / "metrics.jsonl").write_text('{"epoch": 4, "wall_seconds": 12.5}\n')
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
    assert config.prompts["shapes"]["split"] == "heldout"
    assert line.model_is_given
    assert any("7 steps, guidance 2.5, trailing spacing" in note for note in line.notes)
    models, prompts = check_start(config)
    assert [model.name for model in models] == ["base", "run"]
    assert (models[1].kind, models[1].epoch, models[1].run and models[1].run.seconds) == ("lora", 4, 12.5)
    assert len(prompts["shapes"]) == 6


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
    for number, (target, steps) in enumerate([("redness.Redness", 7), ("shapes_judge.ShapesJudge", 7)] * 2):
        run_folder(sweep / str(number), target, sampler={"steps": steps + number // 2})
    (sweep / "multirun.yaml").write_text("{}")
    config = composed(f"models=[{sweep}]")
    assert list(config.rewards) == ["redness", "shapes_judge"]
    assert list(config.prompts) == ["shapes"]
    names = [model.name for model in check_start(config)[0]]
    assert names == [
        "base", "redness,sampler.steps=7", "shapes_judge,sampler.steps=7", "redness,sampler.steps=8",
        "shapes_judge,sampler.steps=8",
    ]  # fmt: skip
    assert next(model.name for model in find_models([f"s:{sweep}"], None)) == "s/redness,sampler.steps=7"


def test_runs_of_a_sweep_are_called_by_what_differs_else_by_their_numbers(run: Path, tmp_path: Path) -> None:
    plain = read_trained_run(run)
    assert sweep_labels([plain, TrainedRun(run / "b", plain.config, None, 0.0)]) == ["run", "b"]
    of_prompts = run_folder(
        tmp_path / "of prompts",
        prompts={part: {"_target_": "prdp.prompts.animals.AnimalPrompts"} for part in ("train", "heldout")},
    )
    assert sweep_labels([plain, read_trained_run(of_prompts)]) == ["shapes", "animals"]
    of_name = run_folder(tmp_path / "of objective", objective={"name": "ddpo"})
    assert sweep_labels([plain, read_trained_run(of_name)]) == ["objective=prdp", "objective=ddpo"]
    of_long = run_folder(tmp_path / "of long", model={"path": "/models/" + "x" * 150})
    assert sweep_labels([plain, read_trained_run(of_long)]) == ["run", "of long"]


def test_what_hydra_notes_does_not_name_the_reward(run: Path) -> None:
    (run / ".hydra").mkdir()
    (run / ".hydra" / "hydra.yaml").write_text("hydra: {runtime: {choices: {reward: compressibility}}}")
    (run / ".hydra" / "overrides.yaml").write_text("- reward=compressibility\n")
    assert list(composed(f"models=[{run}]").rewards) == ["redness"]


@pytest.mark.parametrize(
    ("target", "arguments", "name"),
    [
        ("hpsv2.HPSv2", {"path": "xswu/HPSv2", "release": "2.1"}, "hpsv2_1"),
        ("hpsv2.HPSv2", {"path": "/models/v2.pt", "release": "2.0"}, "hpsv2"),
        ("pickscore.PickScore", {"path": "/models/pick"}, "pickscore"),
        ("vqa.VQAAlignment", {"path": "/models/blip"}, "vqa"),
        ("python_callable.PythonCallable", {"path": "mine.bright"}, "bright"),
    ],
)
def test_rewards_are_called_by_their_options(
    tmp_path: Path, target: str, arguments: dict[str, Any], name: str
) -> None:
    assert read_trained_run(run_folder(tmp_path / "run", target, arguments=arguments)).reward_name == name


@pytest.mark.parametrize(
    ("section", "name"),
    [
        ({"_target_": "prdp.prompts.any_file.open_prompts", "path": "/data/my list.txt"}, "my_list"),
        # Of two options, dsg_1k and dpg_bench, so its file tells.
        ({"_target_": "prdp.prompts.dsg.DsgPrompts", "path": "/data/dsg.csv"}, "dsg"),
        (
            {"_target_": "prdp.worlds.shapes.prompts.ShapesPrompts", "split": "heldout", "size": 1024, "seed": 0},
            "shapes",
        ),
    ],
)
def test_prompt_sets_are_called_by_their_options_or_files(tmp_path: Path, section: dict[str, Any], name: str) -> None:
    run = run_folder(tmp_path / "run", prompts={"train": section, "heldout": section})
    assert read_trained_run(run).prompts_name == name


def test_a_watched_reward_leaves_the_trained_one_of_its_name(tmp_path: Path) -> None:
    """Both are the option `pickscore`, of other files; where they are the same, it is scored once."""
    run = run_folder(tmp_path / "run", "pickscore.PickScore", arguments={"path": "/models/mine"})
    config = composed(f"models=[{run}]", "watch=[pickscore]")
    assert config.rewards["pickscore_trained"]["path"] == "/models/mine"
    assert config.watch["pickscore"]["path"] == "yuvalkirstain/PickScore_v1"
    same = run_folder(tmp_path / "same")
    config = composed(f"models=[{same}]", "watch=[redness]")
    assert (list(config.rewards), list(config.watch)) == ([], ["redness"])


def test_runs_that_differ_are_told(tmp_path: Path, run: Path) -> None:
    other = run_folder(tmp_path / "other", sampler={"steps": 9}, model={"path": "/models/other"})
    notes = read_command_line([f"models=[{run},{other}]"], [conf_folder()]).notes
    assert any("other was trained with another sampler" in note for note in notes)
    assert any("other was trained from /models/other, not from base" in note for note in notes)


def test_a_run_is_read_again_when_it_has_changed_or_lies_elsewhere(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    first = read_trained_run(Path(run.name))
    assert read_trained_run(Path(run.name)) is first
    (run / "metrics.jsonl").write_text('{"epoch": 41, "wall_seconds": 2.0}\n')
    assert read_trained_run(Path(run.name)).epoch == 41
    other = tmp_path / "elsewhere" / run.name
    shutil.copytree(run, other)
    (other / "metrics.jsonl").write_text('{"epoch": 7, "wall_seconds": 2.0}\n')
    monkeypatch.chdir(other.parent)
    assert read_trained_run(Path(run.name)).epoch == 7


def test_section_names() -> None:
    assert section_name({"_target_": "prdp.worlds.shapes.reward.ShapesJudge"}) == "shapes_judge"
    assert section_name({"_target_": "prdp.rewards.python_callable.PythonCallable", "path": "m.bright"}) == "bright"
    aspect = {"_target_": "prdp.rewards.sub_score.SubScore", "name": "watch/color", "reward": {}}
    assert section_name(aspect) == "watch_color"
    assert section_name({"_target_": "prdp.prompts.text_file.TextFilePrompts", "path": "/a/my list.txt"}) == "my_list"


SHAPES = ["models=[base]", "model=shapes", "prompts=[shapes]", "rewards=[redness]"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "which models?"),
        (["models=[base]"], "no prompts: give prompts"),
        ([*SHAPES, "rewards=[rednes]"], "there is no reward 'rednes'. Did you mean 'redness'?"),
        ([*SHAPES, "prompts=[shape]"], "Did you mean 'shapes'"),
        ([*SHAPES, "prompts=[animals]", "watch=[shapes_judge]"], "watch.shapes_judge on prompts.animals: prompt '"),
        ([*SHAPES, "watch=[redness]"], "'redness' is among rewards already"),
        ([*SHAPES, "reward=redness"], "Did you mean 'rewards'?"),
        ([*SHAPES, "rewards.redness.colour=blue"], "takes no argument 'colour'"),
        ([*SHAPES, "rewards.rednes.colour=blue"], "'rednes' is not among rewards (redness). Did you mean 'redness'?"),
        ([*SHAPES, "sampler.step=5"], "Did you mean 'sampler.steps'?"),
        ([*SHAPES, "zzzz=5"], "`prdp evaluate --help` tells how to list the keys"),
        ([*SHAPES, "models=[Red one:base,red_one:base]"], "two are called alike (Red one: shapes, red_one: shapes)"),
        ([*SHAPES, "features=clip", "features.path=nowhere"], "features: path=nowhere: there is no such folder"),
        ([*SHAPES, "images_per_promt=5"], "Did you mean 'images_per_prompt'?"),
        ([*SHAPES, "collapse_below=2", "seeds=[1,1]"], "collapse_below=2: must be from 0 to 1"),
        ([*SHAPES, "kl=true", "autocast=bfloat16"], "set autocast=null model.dtype=float32 (given autocast=bfloat16"),
        ([*SHAPES, "model.height=36"], "model.height=36: must be a multiple of 8 pixels, such as 32 or 40"),
        (
            [*SHAPES, "model.height=24", "watch=[shapes_judge]"],
            "watch.shapes_judge: shapes_judge scores square pictures, not 24 x 32 (height x width), as base draws",
        ),
        ([*SHAPES, "kl=true", "sampler.eta=0"], "kl=true is computed from those; set sampler.eta above 0, or kl=false"),
        ([*SHAPES, "sampler.kind=ddpm", "sampler.eta=0.5"], "sampler.eta=0.5: must be 1 for sampler.kind=ddpm"),
        ([*SHAPES, "autocast=bfloat16", "model.dtype=float16"], "autocast=bfloat16: must be null or float16"),
        ([*SHAPES, "export=[genevl]"], "export=genevl: must be one of"),
        ([*SHAPES, "export=[geneval]"], "has no tag and no include"),
        ([*SHAPES, "against=other"], "must be one of the models base"),
        ([*SHAPES, "model=gaussian_mixtures"], "gaussian_mixtures draws no pictures"),
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
