"""Configuration: every mistake is refused at start, by name."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from prdp.config import SamplerConfig, TrainConfig
from prdp.configuration.bounds import noise_problems, values
from prdp.configuration.compose import Composer
from prdp.configuration.geometry import geometry, geometry_text
from prdp.configuration.typed import conf_folder, groups, read_config, typed, write_config
from prdp.objectives import OBJECTIVES
from prdp.support.errors import ConfigError, UserError

TARGET = {"_target_": "package.name"}
MINIMAL = {"output_dir": "x", "reward": TARGET, "prompts": {"train": TARGET, "heldout": TARGET}}
EXPERIMENTS = sorted((conf_folder() / "experiment").glob("*.yaml"))


def compose(*overrides: str, folders: tuple[Path, ...] = ()) -> TrainConfig:
    with Composer(overrides, folders=folders) as composer:
        return composer.jobs()[0].config


def header_commands(file: Path) -> list[list[str]]:
    """The `prdp train` commands in the comments at the top of an experiment file, as words."""
    header = re.match(r"(#.*\n)+", file.read_text())
    assert header
    found = re.findall(r"^#\s+(prdp train .*)$", header[0], re.MULTILINE)
    return [shlex.split(command)[2:] for command in found]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("learner.learning_rat=1e-3", ["learner.learning_rat=1e-3", "'learner.learning_rate'"]),
        ("learning_rate=1e-3", ["'learning_rate'", "'learner.learning_rate'"]),
        ("learner.lr=1e-3", ["'learner.lr'", "'learner.learning_rate'"]),
        ("smapler.steps=4", ["'smapler.steps'", "'sampler.steps'"]),
        ("+learner.momentum=0.9", ["'learner.momentum'", "adam_beta1"]),
        ("prompts.trian.size=4", ["'prompts.trian.size'", "'prompts.train'"]),
        ("rewrd=redness", ["'rewrd'", "'reward'"]),
        ("zzzz=1", ["unknown key 'zzzz'; `prdp train --help` tells how to list the keys"]),
        ("experiment=shapes_dmo", ["experiment=shapes_dmo", "'shapes_demo'", "paper_small_scale"]),
        ("reward=beauty", ["reward=beauty", "available: aesthetic, callable, clipscore"]),
        ("experiment=null", ["experiment=null", "shapes_demo"]),
        ("epochs=many", ["epochs", "'many'", "an integer"]),
        ("epochs=1.5", ["epochs", "'1.5'", "an integer"]),
        ("learner.learning_rate=fast", ["learner.learning_rate", "'fast'", "a number"]),
        ("tracking.report=perhaps", ["tracking.report", "'perhaps'", "true or false"]),
        ("model.path=null", ["model.path", "text"]),
        ("learner={rank: 4}", ["learner.rank"]),
        ("epochs=1,2", ["epochs=1,2", "-m"]),
        ("epochs", ["'epochs'", "key=value"]),
        ("--fast", ["'--fast'", "key=value"]),
        ("epochs=${nowhere}", ["epochs", "nowhere"]),
        ("prompts=text_file", ["prompts.heldout.path", "prompts.train.path"]),
        ("hydra.run.folder=x", ["hydra.run.folder"]),
    ],
)
def test_mistyped_overrides_are_named(override: str, says: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(override)
    for text in says:
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("epochs=0", "at least 1"),
        ("prompts_per_epoch=0", "at least 1"),
        ("images_per_prompt=1", "make no pair"),
        ("updates_per_epoch=0", "at least 1"),
        ("seed=-1", "at least 0"),
        ("model.path=' '", "a folder in diffusers format"),
        ("model.family=stable_difusion", "'stable_diffusion'"),
        ("model.dtype=float64", "float32, bfloat16, float16"),
        ("model.device=gpu", "cuda"),
        ("sampler.kind=dim", "'ddim'"),
        ("sampler.kind=flow_sd", "'flow_sde'"),
        ("sampler.kind=euler", "no log-prob"),
        ("sampler.steps=0", "at least 1"),
        ("sampler.eta=1.5", "from 0 to 1"),
        ("sampler.eta=0", "no log-prob"),
        ("sampler.eta=-1", "at least 0"),
        ("sampler.eta=inf", "at least 0"),
        ("sampler.guidance_scale=-1", "at least 0"),
        ("sampler.guidance_scale=nan", "at least 0"),
        ("sampler.timestep_spacing=trailling", "'trailing'"),
        ("sampler.deterministic_final_steps=50", "sampler.steps=50"),
        ("sampler.deterministic_final_steps=-1", "at least 0"),
        ("sampler.microbatch=0", "at least 1"),
        ("sampler.prompts_per_chunk=0", "at least 1"),
        ("objective.name=prpd", "'prdp'"),
        ("objective.beta=0", "above 0"),
        ("objective.beta=inf", "finite"),
        ("objective.clip_range=-1.5", "above 0, or null"),
        ("objective.step_weighting=invers_sensitivity", "'inverse_sensitivity'"),
        ("learner.mode=adapter", "lora, full"),
        ("learner.lora_rank=0", "at least 1"),
        ("learner.lora_targets=[]", "at least one module"),
        ("learner.learning_rate=0", "above 0"),
        ("learner.warmup_updates=-1", "at least 0"),
        ("learner.adam_beta2=1", "below 1"),
        ("learner.weight_decay=-1", "at least 0"),
        ("learner.max_grad_norm=0", "above 0"),
        ("learner.ema_decay=1", "below 1"),
        ("learner.autocast=bfloat", "'bfloat16'"),
        ("learner.microbatch=0", "at least 1"),
        ("evaluation.every=-1", "at least 0"),
        ("evaluation.final_prompts=0", "at least 1"),
        ("cluster.kind=rays", "'ray'"),
        ("cluster.samplers=0", "at least 1"),
        ("cluster.threads=-1", "at least 0"),
        ("tracking.wandb=ofline", "'offline'"),
        ("checkpoint.every=0", "at least 1"),
        ("checkpoint.keep=0", "at least 1"),
    ],
)
def test_values_out_of_bounds_are_named(override: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        typed(OmegaConf.merge(MINIMAL, OmegaConf.from_dotlist([override])))
    assert str(caught.value).startswith(f"{override}: ")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("sampler.eta=0.5", "must be 1 for sampler.kind=ddpm"),
        ("sampler.deterministic_final_steps=2", "must be 0 or 1 for sampler.kind=ddpm"),
    ],
)
def test_the_noise_of_ddpm_is_fixed(override: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        typed(OmegaConf.merge(MINIMAL, OmegaConf.from_dotlist(["sampler.kind=ddpm", override])))
    assert str(caught.value).startswith(f"{override}: {says}")


@pytest.mark.parametrize("kind", ["flow_sde", "dance_sde", "edm_churn"])
def test_the_noise_of_flows_may_exceed_one(kind: str) -> None:
    sampler = {"kind": kind, "eta": 3.0, "timestep_spacing": "scheduler"}
    assert typed({**MINIMAL, "sampler": sampler}).sampler.eta == 3.0
    with pytest.raises(ConfigError, match=f"^sampler.eta=0: must be above 0 for sampler.kind={kind}"):
        typed({**MINIMAL, "sampler": {"kind": kind, "eta": 0}})


def test_the_noise_of_cps_is_a_part() -> None:
    assert typed({**MINIMAL, "sampler": {"kind": "cps", "eta": 0.8}}).sampler.kind == "cps"
    for eta, says in ((1.5, "from 0 to 1 for sampler.kind=cps"), (0, "above 0 for sampler.kind=cps")):
        with pytest.raises(ConfigError, match=f"^sampler.eta={eta:g}: must be {says}"):
            typed({**MINIMAL, "sampler": {"kind": "cps", "eta": eta}})


WITHOUT_NOISE = [{"kind": "euler"}, {"kind": "ddim", "eta": 0.0}]
DENOISING = ("reward_weighted_regression", "best_of_n", "diffusion_dpo")


@pytest.mark.parametrize("sampler", WITHOUT_NOISE)
def test_without_noise_only_denoising_errors_are_learned_from(sampler: dict[str, Any]) -> None:
    for name in DENOISING:
        assert typed({**MINIMAL, "objective": {"name": name}, "sampler": sampler}).sampler.kind == sampler["kind"]
    for name in OBJECTIVES.keys() - set(DENOISING):
        with pytest.raises(ConfigError) as caught:
            typed({**MINIMAL, "objective": {"name": name}, "sampler": sampler})
        told = str(caught.value)
        assert told.startswith("sampler.kind=euler: " if sampler["kind"] == "euler" else "sampler.eta=0: ")
        for part in ("no log-prob", f"objective.name={name} is", "; set sampler.", ", ".join(DENOISING)):
            assert part in told


@pytest.mark.parametrize("sampler", WITHOUT_NOISE)
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"window": "random"}, "sampler.window=random: must be all where no step draws noise (sampler."),
        ({"shared_start_noise": True}, "sampler.shared_start_noise=true: must be false where no step draws noise"),
    ],
)
def test_what_means_nothing_without_noise_is_refused(
    sampler: dict[str, Any], change: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        typed({**MINIMAL, "objective": {"name": "diffusion_dpo"}, "sampler": {**sampler, **change}})
    assert str(caught.value).startswith(says)
    with_noise = {**sampler, **change, "kind": "ddim", "eta": 1.0}
    assert typed({**MINIMAL, "objective": {"name": "diffusion_dpo"}, "sampler": with_noise}).sampler.eta == 1.0


def test_what_kinds_of_samplers_ask_of_their_noise() -> None:
    def problems(**sampler: Any) -> list[str]:
        return noise_problems(SamplerConfig(**sampler), images_per_prompt=1)

    assert problems(kind="ddim", eta=0.0) == problems(kind="euler", eta=0.0) == []
    assert problems(kind="euler", shared_start_noise=True) == [], "of one image a prompt"
    for wrong in ({"kind": "ddpm", "eta": 0.5}, {"kind": "ddim", "eta": 2.0}, {"kind": "cps", "eta": 0.0}):
        assert len(problems(**wrong)) == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("autocast", ["null", "bfloat16", "float16"])
def test_one_half_precision_at_a_time(dtype: str, autocast: str) -> None:
    """All others start: see tests/learners/test_precision.py."""
    chosen = OmegaConf.merge(MINIMAL, OmegaConf.from_dotlist([f"model.dtype={dtype}", f"learner.autocast={autocast}"]))
    if dtype == "float32" or autocast in ("null", dtype):
        assert typed(chosen).model.dtype == dtype
    else:
        with pytest.raises(ConfigError, match=f"^learner.autocast={autocast}: must be null or {dtype} for model.dtype"):
            typed(chosen)


def test_limits_themselves_are_allowed() -> None:
    limits = OmegaConf.from_dotlist(
        [
            "images_per_prompt=2",
            "objective.clip_range=null",
            "learner.max_grad_norm=inf",
            "sampler.timestep_spacing=null",
            "sampler.steps=8",
            "sampler.deterministic_final_steps=7",
            "learner.ema_decay=0",
            "evaluation.every=0",
        ]
    )
    config = typed(OmegaConf.merge(MINIMAL, limits))
    assert config.objective["clip_range"] is None


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        typed({**MINIMAL, "epochs": 0, "learner": {"mode": "none"}, "sampler": {"eta": 0}})
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("mode: lora\nlearning_rat: 1\n", ["learner/mine.yaml", "learner.learning_rat", "'learner.learning_rate'"]),
        ("lora_rank: big\n", ["learner/mine.yaml", "learner.lora_rank", "big"]),
        ("mode: [\n", ["mine.yaml"]),
    ],
)
def test_mistakes_in_files_are_named(tmp_path: Path, content: str, says: list[str]) -> None:
    (tmp_path / "learner").mkdir()
    (tmp_path / "learner" / "mine.yaml").write_text(content)
    with pytest.raises(ConfigError) as caught:
        compose("learner=mine", folders=(tmp_path,))
    for text in says:
        assert text in str(caught.value)


def test_own_folder_adds_options(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /reward: redness\n"
    )
    config = compose("experiment=mine", "epochs=3", folders=(tmp_path,))
    assert (config.reward["_target_"], config.epochs) == ("prdp.rewards.redness.Redness", 3)
    with pytest.raises(ConfigError, match="no such folder"):
        compose(folders=(tmp_path / "nowhere",))


@pytest.mark.slow
def test_every_option_of_every_group_is_valid() -> None:
    needed = {
        "local": ["model.path=/models/sd"],
        "callable": ["reward.path=my_module.my_reward"],
        "aesthetic": ["reward.path=head.pth"],
        "remote": ["reward.url=http://127.0.0.1:8080"],
        "weighted_sum": ["reward.terms.aesthetic.reward.path=head.pth"],
        "hf_dataset": ["prompts.train.path=owner/name"],
        "pick_a_pic": ["prompts.train.path=owner/name"],
        "mixture": [f"prompts.{key}.path=a.txt" for key in ("train.first", "train.second", "heldout")],
    }
    two_files = ["prompts.train.path=a.txt", "prompts.heldout.path=b.txt"]
    lists = ("drawbench", "dsg_1k", "file", "geneval", "hpdv2", "partiprompts", "t2i_compbench", "text_file")
    needed |= dict.fromkeys(lists, two_files)
    available = groups([conf_folder()])
    assert available.pop("experiment")
    assert set(available) == {"model", "sampler", "reward", "prompts", "objective", "learner", "cluster", "tracking"}
    for number in range(max(map(len, available.values()))):
        chosen = {group: options[number % len(options)] for group, options in available.items()}
        extra = [word for option in chosen.values() for word in needed.get(option, [])]
        compose(*(f"{group}={option}" for group, option in chosen.items()), *extra)


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_experiment_header_tells_commands_that_compose(file: Path) -> None:
    assert file.read_text().startswith("# @package _global_\n")
    commands = header_commands(file)
    assert len(commands) == 2
    for words in commands:
        sweep = "-m" in words
        overrides = [word for word in words if word != "-m"]
        assert overrides[0] == f"experiment={file.stem}"
        with Composer(overrides, sweep=sweep) as composer:
            assert len(composer.jobs()) == (2 if sweep else 1)


PAPER = {  # epochs, K, N, B, beta, clip range, learning rate
    "paper_small_scale": (100, 10, 32, 16, 3e-5, 1e-6, 1e-5),
    "paper_large_scale": (1000, 1, 64, 8, 3e-6, 1e-4, 7e-6),
    "multi_reward": (1000, 1, 64, 8, 3e-5, 1e-4, 1e-5),
}


@pytest.mark.parametrize("name", PAPER)
def test_paper_values_to_the_letter(name: str) -> None:
    [words, *_] = header_commands(conf_folder() / "experiment" / f"{name}.yaml")
    c = compose(*words)
    epochs, updates = c.epochs, c.updates_per_epoch
    sizes = (c.prompts_per_epoch, c.images_per_prompt)
    knobs = (c.objective["beta"], c.objective["clip_range"], c.learner.learning_rate)
    assert (epochs, updates, *sizes, *knobs) == PAPER[name]
    assert (c.sampler.kind, c.sampler.eta, c.sampler.steps, c.sampler.guidance_scale) == ("ddim", 1.0, 50, 5.0)
    assert (c.learner.mode, c.learner.max_grad_norm, c.learner.weight_decay) == ("full", 1.0, 1e-4)
    assert (c.objective["step_weighting"], c.sampler.deterministic_final_steps) == ("uniform", 0)
    assert c.model.path == "CompVis/stable-diffusion-v1-4"
    size = geometry(c)
    assert (size["images_per_epoch"], size["updates"]) == (512, 1000)


def test_sweep_is_the_product_of_its_values() -> None:
    overrides = ["experiment=shapes_smoke", "reward=shapes_judge,redness", "prompts=shapes,shapes_small", "seed=7"]
    with Composer(overrides, sweep=True) as composer:
        jobs = composer.jobs()
    seen = [(job.config.reward["_target_"].rpartition(".")[2], job.config.prompts.train["size"]) for job in jobs]
    assert seen == [("ShapesJudge", 100_000), ("ShapesJudge", 45), ("Redness", 100_000), ("Redness", 45)]
    assert {job.config.seed for job in jobs} == {7}
    assert [Path(job.config.output_dir).name for job in jobs] == ["0", "1", "2", "3"]
    assert {Path(job.config.output_dir).parent.parent.name for job in jobs} == {"shapes_smoke-sweep"}


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["seed=0,1", "epochs=2,0"], ["job 1", "seed=0 epochs=0", "at least 1"]),
        (["reward=redness,beauty"], ["reward=beauty"]),
        (["seed=0,1", "output_dir=x"], ["output_dir", "hydra.sweep.dir"]),
    ],
)
def test_mistakes_in_a_sweep_are_named(overrides: list[str], says: list[str]) -> None:
    with Composer(overrides, sweep=True) as composer, pytest.raises(ConfigError) as caught:
        composer.jobs()
    for text in says:
        assert text in str(caught.value)


def test_output_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(compose("experiment=shapes_smoke").output_dir)
    assert folder.is_relative_to(tmp_path / "runs" / "shapes_smoke")
    assert Path(compose().output_dir).is_relative_to(tmp_path / "runs" / "train")
    assert compose("output_dir=here").output_dir == str(tmp_path / "here")
    assert compose("hydra.run.dir=there").output_dir == str(tmp_path / "there")


def test_arguments_of_targets_need_not_stand_in_the_yaml() -> None:
    config = compose("prompts.train.extra=3", "~prompts.train.size")
    assert config.prompts.train["extra"] == 3
    assert "size" not in config.prompts.train


def test_saved_configuration_reads_back(tmp_path: Path) -> None:
    config = compose("experiment=shapes_smoke", "objective.clip_range=null", f"output_dir={tmp_path}")
    write_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == config
    (tmp_path / "other.yaml").write_text("epochs: 3\nepoch: 4\n")
    with pytest.raises(ConfigError, match="'epochs'"):
        read_config(tmp_path / "other.yaml")
    (tmp_path / "none.yaml").write_text("a: [\n")
    with pytest.raises(ConfigError, match="not YAML"):
        read_config(tmp_path / "none.yaml")


def test_defaults_of_the_schema_are_within_bounds() -> None:
    typed(MINIMAL)


@pytest.mark.slow
def test_geometry() -> None:
    config = compose(
        *["prompts_per_epoch=6", "images_per_prompt=4", "updates_per_epoch=3", "epochs=10"],
        *["sampler.steps=5", "sampler.deterministic_final_steps=1", "sampler.prompts_per_chunk=4"],
        *["sampler.guidance_scale=2", "evaluation.every=5", "evaluation.prompts=3", "evaluation.final_prompts=7"],
        *["evaluation.images_per_prompt=2", "cluster=ray", "cluster.samplers=3", "cluster.threads=2"],
    )
    size = geometry(config)
    assert size["images_per_epoch"] == 24
    assert size["pairs_per_epoch"] == 6 * 6
    assert (size["updates"], size["images"]) == (30, 240)
    assert (size["chunks_per_epoch"], size["images_per_chunk"]) == (2, 16)
    assert size["cells_per_update"] == 24 * 4
    assert size["sampling_passes_per_epoch"] == 24 * (5 + 4) * 2
    assert size["learning_passes_per_epoch"] == 24 * 4 * 2 * (3 + 2)
    assert size["learning_backwards_per_epoch"] == 24 * 4 * 2 * 3
    assert (size["evaluations"], size["evaluation_images"]) == (3, (7 + 3 + 7) * 2)
    assert (size["samplers"], size["threads"]) == (3, 2)
    for scale in ("1", "0.5", "0"):
        unguided = geometry(compose(f"sampler.guidance_scale={scale}"))
        assert unguided["sampling_passes_per_epoch"] == unguided["images_per_epoch"] * (8 + 7)
    ancestral = geometry(compose("sampler.kind=ddpm", "sampler.deterministic_final_steps=0"))
    assert ancestral["cells_per_update"] == ancestral["images_per_epoch"] * 7, "its last step draws no noise"
    window = geometry(compose("sampler.window=random", "sampler.window_size=2", "sampler.guidance_scale=1"))
    assert window["cells_per_update"] == window["images_per_epoch"] * 2
    assert window["sampling_passes_per_epoch"] == window["images_per_epoch"] * (8 + 2)
    share = geometry(compose("sampler.trained_share=0.5", "sampler.guidance_scale=1"))
    assert share["cells_per_update"] == share["images_per_epoch"] * 4
    for name, columns, passes, of_reference in (
        ("reinforce", 4, 3, 0),
        ("rebel", 4, 5, 0),
        ("grpo", 4, 5, 4),
        ("best_of_n", 5, 3, 0),
        ("diffusion_dpo", 5, 9, 0),
    ):
        draws = {} if columns == 4 else {"draws": columns}
        other = geometry(dataclasses.replace(config, objective={"name": name, **draws}))
        assert other["cells_per_update"] == 24 * columns
        assert other["learning_passes_per_epoch"] == 24 * columns * 2 * passes
        assert other["sampling_passes_per_epoch"] == 24 * (5 + of_reference) * 2
    half = dataclasses.replace(config, learner=dataclasses.replace(config.learner, autocast="float16", microbatch=20))
    for objective, passes in (("prdp", 5), ("reinforce", 5), ("grpo", 5)):
        other = geometry(dataclasses.replace(half, objective={"name": objective}))
        assert other["learning_passes_per_epoch"] == (24 * 4 * passes + 2 * 20) * 2
    drawn = {"name": "best_of_n", "draws": 5}
    assert geometry(dataclasses.replace(half, objective=drawn)) == geometry(
        dataclasses.replace(config, objective=drawn)
    )
    text = geometry_text(config)
    assert "24 = 6 prompts x 4 images" in text
    assert "3 samplers" in text


def test_config_error_is_a_value_error_of_the_user() -> None:
    assert issubclass(ConfigError, ValueError)
    assert issubclass(ConfigError, UserError)


def test_values_unfolds_sections() -> None:
    flat = values(TrainConfig(output_dir="x", reward={"_target_": "a.b"}))
    assert flat["learner.mode"] == "lora"
    assert flat["reward"] == {"_target_": "a.b"}
