"""What would not start, or would be computed wrongly, is refused by validate and train alike, before any work."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from prdp.cli import main
from prdp.config import ModelConfig, SamplerConfig, TrainConfig
from prdp.configuration.preconditions import evidence_problems, transition_problems
from prdp.diffusion.pipeline_loading import load_pipeline
from prdp.evidence import Denoising
from prdp.objectives import OBJECTIVES

WEIGHTS = "diffusion_pytorch_model.safetensors"
Harm = Callable[[Path], object]


def edit(file: str, **values: Any) -> Harm:
    """Sets keys of a JSON file of the folder."""

    def harm(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**content, **values}))

    return harm


def unet(**values: Any) -> Harm:
    return edit("unet/config.json", **values)


def scheduler(without: str = "", **values: Any) -> Harm:
    def harm(folder: Path) -> None:
        file = folder / "scheduler" / "scheduler_config.json"
        content = {**json.loads(file.read_text()), **values}
        file.write_text(json.dumps({key: value for key, value in content.items() if not without or without not in key}))

    return harm


def variant(folder: Path) -> None:
    for file in folder.glob("*/*.safetensors"):
        file.rename(file.with_name(f"{file.stem}.fp16.safetensors"))


def pickled(folder: Path) -> None:
    for file in folder.glob("*/*.safetensors"):
        file.rename(file.with_suffix(".bin"))


def lacking(file: str, ending: str) -> Harm:
    """Takes a tensor out of a file of weights."""

    def harm(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        kept = {name: value for name, value in load_file(folder / file).items() if not name.endswith(ending)}
        save_file(kept, folder / file, {"format": "pt"})

    return harm


def of_class(name: str | None) -> Harm:
    return edit("model_index.json", _class_name=name)


FAULTS: dict[str, tuple[Harm, list[str]]] = {
    **{
        name: (of_class(name), [f"is of a {name}", "only StableDiffusionPipeline"])
        for name in (
            "StableDiffusionXLPipeline",
            "StableDiffusion3Pipeline",
            "FluxPipeline",
            "StableDiffusionInpaintPipeline",
            "StableDiffusionImg2ImgPipeline",
            "LatentConsistencyModelImg2ImgPipeline",
        )
    },
    "another VAE": (edit("model_index.json", vae=["diffusers", "AutoencoderTiny"]), ["AutoencoderTiny: must be"]),
    "another encoder": (
        edit("model_index.json", text_encoder=["transformers", "CLIPTextModelWithProjection"]),
        ["CLIPTextModelWithProjection: must be CLIPTextModel"],
    ),
    "fp16 alone": (variant, ["set model.variant=fp16"]),
    "pickled": (pickled, ["diffusion_pytorch_model.bin", "never read", "save_pretrained"]),
    "UNet lacks": (lacking(f"unet/{WEIGHTS}", "conv_in.weight"), ["unet: the weights do not fit", "conv_in.weight"]),
    "VAE lacks": (lacking(f"vae/{WEIGHTS}", "decoder.conv_in.bias"), ["vae: the weights do not fit", "conv_in.bias"]),
    "encoder lacks": (
        lacking("text_encoder/model.safetensors", "final_layer_norm.bias"),
        ["text_encoder: the weights do not fit", "final_layer_norm.bias"],
    ),
    "inpainting": (unet(in_channels=9), ["in_channels=9: must be 4"]),
    "variance learned": (unet(out_channels=8), ["out_channels=8: must be 4"]),
    "other latents": (edit("vae/config.json", latent_channels=16), ["in_channels=4: must be 16"]),
    "no size": (unet(sample_size=None), ["sample_size=None"]),
    "another width": (unet(cross_attention_dim=768), ["cross_attention_dim=768: must be 16"]),
    "widths": (unet(cross_attention_dim=[16, 32]), ["cross_attention_dim=", "must be 16"]),
    "unknown block": (unet(down_block_types=["NewBlock2D", "DownBlock2D"]), ["unet", "NewBlock2D"]),
    "LCM untold": (of_class("LatentConsistencyModelPipeline"), ["time_cond_proj_dim=null: must be", "must be LCM"]),
    "no LCM": (unet(time_cond_proj_dim=32), ["unet: the weights do not fit", "time_embedding.cond_proj.weight"]),
    "LCM's width": (unet(time_cond_proj_dim=1), ["time_cond_proj_dim=1: must be null or a whole number of at least 4"]),
    "classes": (unet(class_embed_type="timestep"), ["class_embed_type=timestep: must be null"]),
    "SDXL's condition": (unet(addition_embed_type="text_time"), ["addition_embed_type=text_time: must be null"]),
    "other states": (unet(encoder_hid_dim=64), ["encoder_hid_dim=64: must be null"]),
    "VAE shift": (edit("vae/config.json", shift_factor=0.1), ["shift_factor=0.1: must be null"]),
    "VAE mean": (edit("vae/config.json", latents_mean=[0.1] * 4), ["latents_mean=", "must be null"]),
    "grey VAE": (edit("vae/config.json", out_channels=1), ["out_channels=1: must be 3"]),
    "another vocabulary": (edit("text_encoder/config.json", vocab_size=100), ["number 303: must be below 100"]),
    "flow matching": (
        scheduler("beta", _class_name="FlowMatchEulerDiscreteScheduler"),
        ["_class_name=FlowMatchEulerDiscreteScheduler", "DDIMScheduler"],
    ),
    "EDM": (scheduler("beta", _class_name="EDMEulerScheduler"), ["_class_name=EDMEulerScheduler"]),
    "LCM's steps": (
        scheduler(_class_name="LCMScheduler", original_inference_steps=2000),
        ["original_inference_steps=2000: must be a whole number from 1 to num_train_timesteps=1000"],
    ),
    "LCM's scaling": (scheduler(_class_name="LCMScheduler", timestep_scaling=0), ["timestep_scaling=0: must be a num"]),
    "TCD's scheduler": (scheduler(_class_name="TCDScheduler"), ["_class_name=TCDScheduler"]),
    "no betas": (scheduler("beta", _class_name="EulerDiscreteScheduler"), ["scheduler: beta_start is missing"]),
    "cosine betas": (scheduler(beta_schedule="squaredcos_cap_v2"), ["beta_schedule=squaredcos_cap_v2"]),
    "zero SNR": (scheduler(rescale_betas_zero_snr=True), ["rescale_betas_zero_snr=True: must be false"]),
    "thresholding": (scheduler(thresholding=True), ["thresholding=True: must be false"]),
    "flow prediction": (scheduler(prediction_type="flow_prediction"), ["prediction_type=flow_prediction"]),
    "flow sigmas": (
        scheduler(_class_name="DPMSolverMultistepScheduler", use_flow_sigmas=True),
        ["use_flow_sigmas=true: must be false"],
    ),
    "no pipeline": (of_class(None), ["has no _class_name: must be StableDiffusionPipeline"]),
    "another tokenizer": (edit("model_index.json", tokenizer=["transformers", "T5Tokenizer"]), ["must be CLIP"]),
    "tokenizer settings": (
        edit("tokenizer/tokenizer_config.json", tokenizer_class="T5Tokenizer"),
        ["tokenizer_class=T5Tokenizer: must be"],
    ),
    "tokens as text": (edit("tokenizer/tokenizer_config.json", model_max_length="77"), ["model_max_length='77'"]),
    "no latents": (unet(sample_size=0), ["sample_size=0: must be", "above 0"]),
    "no scale": (edit("vae/config.json", scaling_factor=None), ["scaling_factor=None: must be a number above 0"]),
    "an activation": (edit("text_encoder/config.json", hidden_act="nonsense"), ["text_encoder: no network"]),
    "quantized": (unet(quantization_config={"quant_method": "bitsandbytes"}), ["quantization_config=", "must be null"]),
    "a kernel of the hub": (
        edit("text_encoder/config.json", _attn_implementation="kernels-community/flash-attn"),
        ["_attn_implementation=kernels-community/flash-attn: must be null"],
    ),
    "betas as text": (scheduler(beta_start="0.1"), ["beta_start='0.1': must be numbers"]),
    "negative betas": (scheduler(beta_start=-0.1), ["beta_start=-0.1: must be numbers"]),
    "a negative offset": (scheduler(steps_offset=-5), ["steps_offset=-5: must be a whole number of at least 0"]),
    "an offset of text": (scheduler(steps_offset="1"), ["steps_offset='1': must be a whole number of at least 0"]),
    "no timesteps": (scheduler(num_train_timesteps=0), ["num_train_timesteps=0: must be a whole number"]),
    "few betas": (scheduler(trained_betas=[0.1] * 5), ["trained_betas holds 5 numbers"]),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, where no training starts."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def start(config: object) -> None:
        raise AssertionError("training starts")

    monkeypatch.setitem(sys.modules, "prdp.train", types.SimpleNamespace(main=start))
    return folder


def refusals(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The message of validate, which is train's too; both exit with 2 and leave nothing behind."""
    messages = []
    for command in ("validate", "train"):
        assert main([command, *words]) == 2
        shown = capsys.readouterr().err
        assert "Traceback" not in shown
        messages.append(shown.removeprefix(f"prdp {command}: "))
    assert messages[0] == messages[1]
    assert list(Path.cwd().glob("runs")) == []
    return messages[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_model_that_would_not_be_computed_rightly(
    here: Path, model_folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    harm, says = FAULTS[name]
    harm(model_folder)
    message = refusals(capsys, f"model.path={model_folder}")
    for text in (f"model.path={model_folder}: ", *says):
        assert text in message
    with pytest.raises(ValueError, match=r"model\.path=") as caught:
        load_pipeline(ModelConfig(path=str(model_folder)))
    assert str(caught.value).strip() == message.strip()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["learner.lora_targets=[attn1]"], ["'attn1' matches Attention", "linear layers or convolutions", "to_out.0"]),
        (["learner.lora_targets=[norm1,to_q]"], ["'norm1' matches GroupNorm", "LayerNorm"]),
        (["learner.lora_targets=[to_out]"], ["'to_out' matches ModuleList"]),
        (["learner.lora_targets=[to_qq]"], ["'to_qq' matches no layer"]),
        (["sampler.steps=1001"], ["sampler.steps is 1001, expected 1 to 1000"]),
        (["sampler.steps=1000", "sampler.timestep_spacing=leading"], ["sampler.steps is 1000", "1000, and 999"]),
        (
            ["objective=prdp", "sampler=ddpm50", "sampler.deterministic_final_steps=0", "sampler.steps=1"],
            ["no step would draw noise"],
        ),
        (
            ["sampler.guidance_scale=1", "sampler.negative_prompt=blurry"],
            ["sampler.negative_prompt='blurry': must be null where there is no branch without prompt", "scale=1)"],
        ),
        (["model.height=12"], ["model.height=12: must be a multiple of 8 pixels, such as 8 or 16"]),
        (["model.height=16"], ["reward: shapes_judge scores square pictures, not 16 x 8 (height x width)"]),
        (["reward=quadratic_of_point"], ["quadratic_of_point scores points", "not pictures of 8 x 8"]),
        (["model.device=cuda"], ["model.device=cuda: torch", "no CUDA"]),
        (["model.device=cuda:7"], ["model.device=cuda:7: torch"]),
        (["model.device=mps"], ["model.device=mps: this machine has none"]),
        (["reward=clipscore", "reward.device=cuda", "reward.path={clip}"], ["reward.device=cuda: torch"]),
        (["cluster=ray", "cluster.learner_gpus=1"], ["asks for 1 GPUs", "this machine has none"]),
        (["cluster=ray", "cluster.sampler_gpus=0.5"], ["asks for 1 GPUs", "samplers=2 x sampler_gpus=0.5"]),
        (["cluster=ray", "cluster.sampler_gpus=1", "model.device=cuda:1"], ["cuda:1: an actor sees the 1 GPU"]),
        (["cluster=ray", "cluster.sampler_resources={a100:1}"], ["cluster.sampler_resources", "has no 'a100'"]),
        (["cluster=ray", "cluster.reward_resources.a100=1"], ["cluster.reward_resources", "has no 'a100'"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_what_this_machine_or_this_network_cannot_do(
    here: Path,
    model_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    says: list[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    clip = here / "clip"
    if any("{clip}" in word for word in words):
        monkeypatch.setattr("prdp.rewards.clipscore.CLIPScore.check", lambda **arguments: None)
    message = refusals(capsys, f"model.path={model_folder}", *(word.replace("{clip}", str(clip)) for word in words))
    for text in says:
        assert text in message


def test_a_sampler_whose_only_step_draws_no_noise() -> None:
    model = ModelConfig(family="gaussian_mixtures")
    for kind in ("ddpm", "ddim"):
        sampler = SamplerConfig(kind=kind, steps=1)
        [problem] = transition_problems(model, sampler, needs_log_probs=True)
        assert problem.startswith("sampler.steps=1: no step would draw noise")
        assert transition_problems(model, sampler, needs_log_probs=False) == []


@pytest.mark.slow
def test_what_the_jax_twin_does_not_compute(
    here: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"model.path={model_folder}", "learner.framework=jax"]
    assert main(["validate", *words]) == 0
    unet(sample_size=9)(model_folder)
    assert "sample_size=9: must divide by 2" in refusals(capsys, *words)
    unet(sample_size=8, center_input_sample=True)(model_folder)
    assert "the JAX UNet does not know center_input_sample=True" in refusals(capsys, *words)


@pytest.mark.parametrize(
    ("word", "missing", "says"),
    [
        ("tracking.tensorboard=true", "tensorboard", "pip install 'prdp[tensorboard]'"),
        ("tracking.wandb=offline", "wandb", "pip install 'wandb'"),
        ("learner.framework=jax", "jax", "pip install 'prdp[jax]'"),
        ("learner.framework=jax", "flax", "pip install 'prdp[jax]'"),
        ("learner.framework=jax", "optax", "pip install 'prdp[jax]'"),
        ("cluster=ray", "ray", "pip install 'ray'"),
    ],
)
def test_packages_that_are_not_installed(
    here: Path,
    model_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    word: str,
    missing: str,
    says: str,
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == missing else find(name, *rest))
    message = refusals(capsys, f"model.path={model_folder}", word)
    assert f"needs {missing}, which is not installed: {says}" in message


@pytest.mark.slow
def test_a_mistyped_path_is_told_from_a_hub_id(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "models" / "sdxl").mkdir(parents=True)
    message = refusals(capsys, "model.path=models/sdx")
    assert "there is no such folder" in message
    assert "Did you mean models/sdxl?" in message
    assert "models holds sdxl" in refusals(capsys, "model.path=models/other")
    assert "not in the local cache" in refusals(capsys, "model.path=owner/name")


@pytest.mark.slow
def test_a_hub_repository_is_checked_in_the_cache(
    here: Path, model_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def cached(repository: str, file: str, revision: str | None = None) -> str:
        asked.append((repository, file, revision))
        return str(model_folder / file)

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    words = ["model.path=owner/name", "model.revision=v2"]
    assert main(["validate", *words]) == 0
    assert set(asked) == {("owner/name", "model_index.json", "v2")}
    unet(in_channels=9)(model_folder)
    capsys.readouterr()
    assert "in_channels=9: must be 4" in refusals(capsys, *words)
    unet(in_channels=4)(model_folder)
    variant(model_folder)
    assert "set model.variant=fp16" in refusals(capsys, *words)


@pytest.mark.slow
def test_a_hub_repository_that_may_be_downloaded_is_checked_by_its_small_files(
    here: Path, model_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    patterns = []

    def download(repository: str, revision: str | None = None, allow_patterns: list[str] | None = None) -> str:
        if repository != "owner/name":
            answer = httpx.Response(404, request=httpx.Request("GET", "https://hub"))
            raise HfHubHTTPError("404: no such repository\nand more", response=answer)
        patterns.append(allow_patterns)
        return str(model_folder)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    for file in model_folder.glob("*/*.safetensors"):
        file.unlink()
    assert main(["validate", "model.path=owner/name"]) == 0
    assert patterns
    assert all(pattern == ["*.json", "*.txt"] for pattern in patterns)
    capsys.readouterr()
    of_class("FluxPipeline")(model_folder)
    assert "is of a FluxPipeline" in refusals(capsys, "model.path=owner/name")
    message = refusals(capsys, "model.path=models/sdx")
    assert "the hub does not give a repository of that name: 404: no such repository" in message


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, []),
        ({"columns": lambda self, *of: 0}, ["Own.columns says 0, must be a whole number of at least 1"]),
        ({"columns": lambda self, *of: 2.0}, ["Own.columns says 2.0, must be a whole number of at least 1"]),
        ({"stored_latents": lambda self, *of: 3.0}, ["Own.stored_latents says 3.0, must be a number for each name"]),
    ],
)
def test_evidence_that_does_not_tell_its_size_is_refused(
    members: dict[str, Any], message: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = dataclasses.dataclass(frozen=True)(type("Own", (Denoising,), members))()
    monkeypatch.setitem(OBJECTIVES, "best_of_n", dataclasses.replace(OBJECTIVES["best_of_n"], evidence=own))
    mixtures = ModelConfig(family="gaussian_mixtures", path="gaussian_mixtures")
    config = TrainConfig(output_dir="x", reward={}, model=mixtures, objective={"name": "best_of_n"})
    found = evidence_problems(config)
    assert len(found) == len(message)
    assert all(text in line for text, line in zip(message, found, strict=True))


def test_a_class_that_is_no_policy_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refusals(capsys, "model.family=prdp.config.ModelConfig")
    assert "model.family=prdp.config.ModelConfig: prdp.config.ModelConfig lacks load, check, learner_p" in message
    assert "must be a class that answers prdp.diffusion.policy.Policy" in message


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["sampler.kind=flow_sde"], "sampler.kind is 'flow_sde', expected one of ddim, ddpm"),
        (["sampler.kind=dance_sde", "sampler.eta=3"], "sampler.kind is 'dance_sde', expected one of ddim, ddpm"),
        (["experiment=mixtures_small", "sampler.kind=cps"], "sampler.kind is 'cps', expected one of ddim, ddpm"),
        (["sampler.timestep_spacing=scheduler"], "expected one of leading, trailing, linspace"),
        (["sampler.shift=3"], "sampler.shift is 3, expected null for a model that is no flow"),
        (["model=shapes_flow"], "edm_churn, euler for a flow, such as by sampler=flow_sde or sampler=cps"),
    ],
)
def test_a_sampler_of_another_process_is_named(
    words: list[str], says: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refusals(capsys, *words)
