"""Stable Diffusion 1.x and 2.x from a folder in diffusers format: the policy whose network learns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from prdp.config import LearnerConfig, ModelConfig
from prdp.diffusion.conditions import Conditions
from prdp.diffusion.guidance import guided
from prdp.diffusion.precision import precision_problem, upcast
from prdp.diffusion.process import Process
from prdp.diffusion.variance_preserving import VariancePreserving
from prdp.diffusion.weights import TrainableWeights
from prdp.types import UInt8

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class StableDiffusionPolicy:
    """Text encoder, UNet and VAE with one learning part, the UNet.

    Attributes:
        scheduler_config: of the DDIM scheduler that diffusers makes of the checkpoint's; the process is built from it.
        process: how noise and data mix.
        latent_shape: (C, h, w).
        weights: the learning tensors and the reference.
        precision: of the network's arithmetic outside `float32`: float32, bfloat16 or float16.

    Raises:
        ValueError: weights stored in one half precision, and autocast to the other.
    """

    def __init__(
        self, pipeline: StableDiffusionPipeline, learner: LearnerConfig, *, seed: int = 0, keep_reference: bool = True
    ) -> None:
        self.pipeline = pipeline
        self.unet = pipeline.unet.eval()
        self.device: torch.device = self.unet.device
        self.scheduler_config: Mapping[str, Any] = pipeline.scheduler.config
        self.process: Process = VariancePreserving(self.scheduler_config)
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        self.latent_shape: tuple[int, ...] = (int(self.unet.config.in_channels), int(height), int(width))
        stored = str(self.unet.dtype).removeprefix("torch.")
        problem = precision_problem("model.dtype", stored, "learner.autocast", learner.autocast)
        if problem is not None:
            raise ValueError(problem)
        self.precision: str = learner.autocast or stored
        self._in_float32 = self.precision == "float32"
        if self.device.type == "cuda":
            # TF32, which convolutions take by default, keeps no more digits than float16.
            torch.backends.cudnn.allow_tf32 = False
        pipeline.vae.eval().requires_grad_(False)
        pipeline.text_encoder.eval().requires_grad_(False)
        self.weights = TrainableWeights(
            self.unet,
            learner.mode,
            rank=learner.lora_rank,
            alpha=learner.lora_alpha,
            targets=list(learner.lora_targets),
            seed=seed,
            keep_reference=keep_reference,
        )
        if learner.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        self._empty: dict[str, torch.Tensor] | None = None

    @classmethod
    def load(
        cls, model: ModelConfig, learner: LearnerConfig, *, seed: int = 0, keep_reference: bool = True
    ) -> StableDiffusionPolicy:
        """Load the pipeline that `model.path` names; the embedded one and Stable Diffusion go the same way."""
        return cls(load_pipeline(model), learner, seed=seed, keep_reference=keep_reference)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditions:
        """`states` [B, tokens, width] and those of the empty prompt; prompts are cut at the text encoder's length."""
        if self._empty is None:
            self._empty = {"states": self._text_states([""])}
        return Conditions({"states": self._text_states(prompts)}, self._empty)

    @staticmethod
    def process_of(model: ModelConfig) -> Process:
        """Of the checkpoint's scheduler, which is read without loading weights."""
        from prdp.diffusion.effective_scheduler import effective_scheduler
        from prdp.diffusion.libraries import quiet
        from prdp.diffusion.model_folder import check_model, read_component

        quiet()
        folder = check_model(model.path, model.variant, model.revision)
        assert folder is not None, "a hub model that is not fetched yet has no scheduler to read"
        return VariancePreserving(effective_scheduler(read_component(folder, "scheduler")).config)

    @torch.no_grad()
    def _text_states(self, prompts: Sequence[str]) -> torch.Tensor:
        tokenizer, text_encoder = self.pipeline.tokenizer, self.pipeline.text_encoder
        tokens = tokenizer(
            list(prompts),
            padding="max_length",
            max_length=_text_length(tokenizer, text_encoder),
            truncation=True,
            return_tensors="pt",
        ).to(self.device)
        masked = getattr(text_encoder.config, "use_attention_mask", False)
        mask = tokens.attention_mask if masked else None
        # Half precision would give a prompt other states in another batch, and so another log-ratio.
        with upcast(text_encoder):
            return text_encoder(tokens.input_ids, attention_mask=mask).last_hidden_state

    def output(
        self,
        latents: torch.Tensor,
        times: torch.Tensor,
        conditions: Conditions,
        guidance_scale: float,
        network: torch.nn.Module | None = None,
    ) -> torch.Tensor:
        """Guided network output u + w (c - u), float32 [B, C, h, w], differentiable in both branches.

        Weights that are stored in half precision, or that learn in float32, compute by autocast to `precision`; in the
        context of `float32` everything computes in float32.

        Args:
            latents: float32 [B, C, h, w].
            times: training timesteps, [B]; images of different steps go through in one call.
            conditions: of `encode`, B rows.
            guidance_scale: w; up to 1 the output is c, and the unconditional branch is not computed; see `guided`.
            network: the reference, when it is not the learning one.
        """
        network = network or self.unet
        with_guidance = guided(guidance_scale)
        if with_guidance:
            latents, times = torch.cat([latents, latents]), torch.cat([times, times])
            conditions = conditions.behind_empty()
        states = conditions.fields["states"]
        with self._arithmetic():
            output = network(latents, times.long(), encoder_hidden_states=states, return_dict=False)[0].float()
        if not with_guidance:
            return output
        unconditional, conditional = output.chunk(2)
        return unconditional + guidance_scale * (conditional - unconditional)

    @contextmanager
    def float32(self) -> Iterator[None]:
        """Let the network and its reference compute in float32: log-ratios are far below half precision."""
        before, self._in_float32 = self._in_float32, True
        try:
            with upcast(*self.weights.networks()):
                yield
        finally:
            self._in_float32 = before

    @contextmanager
    def reference(self) -> Iterator[torch.nn.Module]:
        """The frozen start, to be passed to `output` as `network`."""
        with self.weights.reference() as network:
            yield network

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> UInt8:
        """Clean latents float32 [B, C, h, w] to pixels, uint8 [B, H, W, 3]."""
        vae = self.pipeline.vae
        pixels = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0].float()
        levels = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()

    def save(self, folder: Path) -> None:
        """Write the learning weights in diffusers format: a LoRA file, or a whole pipeline for full weights.

        Raises:
            ValueError: what was written, read back, is not what was learned; names a tensor.
        """
        if self.weights.mode == "lora":
            from prdp.diffusion.lora_file import save_lora

            save_lora(self.unet, folder)
        else:
            from prdp.diffusion.pipeline_files import check_network, save_pipeline

            save_pipeline(self.pipeline, folder)
            check_network(folder / "unet", self.weights.parameters)

    def _arithmetic(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._in_float32 else torch.autocast(self.device.type, DTYPES[self.precision])


def load_pipeline(model: ModelConfig) -> StableDiffusionPipeline:
    """The diffusers pipeline of `model`, on its device and in its precision.

    Its scheduler is the DDIM scheduler that samples it here, whatever class the folder names, so that a folder saved
    from it says all of how it is sampled.

    Raises:
        ValueError: no such folder, files missing in it, or a component that is not computed exactly; names them.
    """
    from prdp.diffusion.libraries import quiet

    quiet()
    from diffusers import StableDiffusionPipeline

    from prdp.diffusion.effective_scheduler import effective_scheduler
    from prdp.diffusion.model_components import check_components
    from prdp.diffusion.model_folder import check_model, fetch_model, read_component

    where = f"model.path={model.path}"
    # What is refused is refused before a download of gigabytes.
    check_model(model.path, model.variant, model.revision)
    folder = fetch_model(model.path, model.variant, model.revision)
    check_model(str(folder), model.variant)
    check_components(where, folder, model.variant)
    device = model.device if model.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        pipeline = StableDiffusionPipeline.from_pretrained(
            folder,
            variant=model.variant,
            dtype=DTYPES[model.dtype],
            scheduler=effective_scheduler(read_component(folder, "scheduler")),
            safety_checker=None,
            requires_safety_checker=False,
            use_safetensors=True,
        )
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ImportError) as error:
        raise ValueError(f"{where}: {folder} cannot be loaded as a Stable Diffusion pipeline: {error}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def _text_length(tokenizer: Any, text_encoder: Any) -> int:
    """Tokens of a prompt: the tokenizer's length, bounded by the text encoder's, as a tokenizer may name none."""
    return min(int(tokenizer.model_max_length), int(text_encoder.config.max_position_embeddings))
