"""Models that would not start, or would be computed wrongly, are refused by validate and train, before any work."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from harmed_models import Harm, edit, lacking, of_class, pickled, scheduler, unet, variant
from refused import refusals

from prdp.cli import main
from prdp.config import ModelConfig
from prdp.diffusion.pipeline_loading import load_pipeline

WEIGHTS = "diffusion_pytorch_model.safetensors"
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
