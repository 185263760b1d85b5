"""Configuration: every mistake is refused at start, by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from composing import compose
from omegaconf import OmegaConf

from prdp.config import TrainConfig
from prdp.configuration.bounds import values
from prdp.configuration.compose import Composer
from prdp.configuration.typed import conf_folder, groups, read_config, typed, write_config
from prdp.support.errors import ConfigError, UserError

TARGET = {"_target_": "package.name"}
MINIMAL = {"output_dir": "x", "reward": TARGET, "prompts": {"train": TARGET, "heldout": TARGET}}


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
        ("reward=beauty", ["reward=beauty", "available: aesthetic, blip_vqa, callable"]),
        ("experiment=null", ["experiment=null", "shapes_demo"]),
        ("epochs=many", ["epochs", "'many'", "an integer"]),
        ("epochs=1.5", ["epochs", "'1.5'", "an integer"]),
        ("learner.learning_rate=fast", ["learner.learning_rate", "'fast'", "a number"]),
        ("tracking.report=perhaps", ["tracking.report", "'perhaps'", "true or false"]),
        ("model.path=null", ["model.path", "text"]),
        ("learner={rank: 4}", ["learner.rank"]),
        ("learner.lora_targets=to_q", ["learner.lora_targets: must be a list, written learner.lora_targets=[a,b]"]),
        ("model.adapter_weights=0.5", ["model.adapter_weights: must be a list, written model.adapter_weights=[a,b]"]),
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
        "flow_grpo_server": ["reward.url=http://127.0.0.1:18085"],
        "unirl_service": ["reward.url=http://127.0.0.1:8000", "reward.reward=pickscore"],
        "originality": ["reward.folder=pictures"],
        "vlm_judge": ["reward.url=http://127.0.0.1:8000/v1"],
        "unified_reward": ["reward.path=/models/unified_reward", "reward.instruction=instruction.txt"],
        "sub_score": ["reward.name=color"],
        "weighted_sum": ["reward.terms.aesthetic.reward.path=head.pth"],
        "fdfo": ["sampler.shared_start_noise=true", "sampler.start_churn=0.01"],
        "hf_dataset": ["prompts.train.path=owner/name"],
        "pick_a_pic": ["prompts.train.path=owner/name"],
        "mixture": [f"prompts.{key}.path=a.txt" for key in ("train.first", "train.second", "heldout")],
    }
    two_files = ["prompts.train.path=a.txt", "prompts.heldout.path=b.txt"]
    lists = {"drawbench", "file", "geneval", "hpdv2", "partiprompts", "t2i_compbench", "text_file"}
    lists |= {"dpg_bench", "dsg_1k"}
    available = groups([conf_folder()])
    assert available.pop("experiment")
    assert set(available) == {"model", "sampler", "reward", "prompts", "objective", "learner", "cluster", "tracking"}
    without_noise = [{"sampler": "euler", "objective": "prdp_denoising"}]
    available["sampler"].remove("euler")
    combined = [
        {group: options[number % len(options)] for group, options in available.items()}
        for number in range(max(map(len, available.values())))
    ]
    for chosen in [*combined, *without_noise]:
        extra = [word for option in chosen.values() for word in needed.get(option, [])]
        extra += two_files if chosen.get("prompts") in lists else []
        compose(*(f"{group}={option}" for group, option in chosen.items()), *extra)


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
        (["seed=0,1", "epochs=2,0"], ["job 2", "seed=0 epochs=0", "at least 1"]),
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


def test_config_error_is_a_value_error_of_the_user() -> None:
    assert issubclass(ConfigError, ValueError)
    assert issubclass(ConfigError, UserError)


def test_values_unfolds_sections() -> None:
    flat = values(TrainConfig(output_dir="x", reward={"_target_": "a.b"}))
    assert flat["learner.mode"] == "lora"
    assert flat["reward"] == {"_target_": "a.b"}
