"""What the policies of all families have in common: a diffusers pipeline with one network that learns."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, ClassVar

import torch

from prdp.config import LearnerConfig, ModelConfig
from prdp.diffusion.adapter_files import Adapter, model_adapters, read_adapter
from prdp.diffusion.adapters import fuse, start_problems
from prdp.diffusion.clip_layers import last_layer
from prdp.diffusion.compiling import compile_blocks
from prdp.diffusion.conditions import Conditions
from prdp.diffusion.determinism import set_up_arithmetic, tf32_products
from prdp.diffusion.direct_layers import direct
from prdp.diffusion.guidance import guided
from prdp.diffusion.pipeline_loading import DTYPES
from prdp.diffusion.precision import precision_problem, upcast
from prdp.diffusion.process import Process
from prdp.diffusion.prompt_encoder import PromptEncoder, on_device
from prdp.diffusion.saved_policy import SavedPolicy
from prdp.diffusion.text_adapters import GAIN, NetworkWithEncoders, distinct_prompts, network_in
from prdp.diffusion.weights import TrainableWeights
from prdp.support.errors import StartError
from prdp.types import UInt8


class DiffusersPolicy(SavedPolicy):
    """Text encoders, a denoising network and a VAE. The network learns, and text encoders may learn with it.

    A family says what prompts become (`_encode`), how its network is called (`_predict`), and its process. Where text
    encoders learn, prompts become token ids (`_tokenised`), and `output` has them read (`_read`) in every pass, of the
    policy or of its reference.

    Args:
        pipeline: of diffusers, in evaluation mode from here on; one with the network alone encodes and decodes nothing.
        model: that it was loaded from.
        process: how noise and data mix.
        latent_shape: (C, h, w).
        picture_size: (H, W) of decoded images, in pixels.
        learner: which weights learn.
        seed: of the adapter that learns.
        keep_reference: whether the frozen start will be asked for.

    Attributes:
        scheduler_config: of the scheduler that the process was built from.
        weights: the learning tensors and the reference.
        precision: of the network's arithmetic outside `float32`: float32, bfloat16 or float16.
        reads_in_passes: whether conditions are token ids, which text encoders read in every pass.

    Raises:
        ValueError: weights stored in one half precision, and autocast to the other.
        StartError: an adapter that does not fit the network.
    """

    FROZEN: ClassVar[tuple[str, ...]]
    """Components whose own weights do not learn; any may be absent."""
    READ_BEFORE_LAST: ClassVar[tuple[str, ...]] = ()
    """Those of them whose last layer plays no part."""

    def __init__(
        self,
        pipeline: Any,
        model: ModelConfig,
        process: Process,
        latent_shape: tuple[int, ...],
        picture_size: tuple[int, int],
        learner: LearnerConfig,
        *,
        seed: int = 0,
        keep_reference: bool = True,
    ) -> None:
        self.pipeline = pipeline
        self.process = process
        self.latent_shape = latent_shape
        self.picture_size = picture_size
        self._model = model
        self.reads_in_passes: bool = learner.text_encoders
        encode = self._tokenised_with_gain if self.reads_in_passes else self._encode
        self._encoder = PromptEncoder(encode, model.cached_prompts, self._without_prompt)
        self.network: Any = getattr(pipeline, self.NETWORK).eval()
        self.device: torch.device = self.network.device
        self.scheduler_config: Mapping[str, Any] = pipeline.scheduler.config
        stored = str(self.network.dtype).removeprefix("torch.")
        problem = precision_problem("model.dtype", stored, "learner.autocast", learner.autocast)
        if problem is not None:
            raise ValueError(problem)
        self.precision: str = learner.autocast or stored
        self._in_float32 = self.precision == "float32"
        self._tf32 = learner.evidence_precision == "tf32"
        set_up_arithmetic(self.device, model.deterministic)
        for name in self.FROZEN:
            if getattr(pipeline, name, None) is not None:
                getattr(pipeline, name).eval().requires_grad_(False)
        self._frozen_adapters = [self.adapter("model.adapters", path, weight) for path, weight in model_adapters(model)]
        self._adapt_encoders(pipeline)
        encoders = self._encoders(pipeline)
        self.weights = TrainableWeights(
            NetworkWithEncoders(self.NETWORK, self.network, encoders) if self.reads_in_passes else self.network,
            learner.mode,
            rank=learner.lora_rank,
            alpha=learner.lora_alpha,
            targets=list(learner.lora_targets),
            text_targets=learner.text_encoder_targets,
            unread=[last_layer(name, encoders[name]) for name in self.READ_BEFORE_LAST if name in encoders],
            # What they have for text encoders is in these by now.
            adapters=[replace(one, text={}) for one in self._frozen_adapters],
            start=self._started(learner),
            seed=seed,
            keep_reference=keep_reference,
        )
        for network in self.weights.networks():
            direct(network)
        self._save_memory(pipeline, model)
        if learner.gradient_checkpointing:
            self.network.enable_gradient_checkpointing()
        if model.compile is not None:
            compile_blocks(self.network, model.compile)

    def _save_memory(self, pipeline: Any, model: ModelConfig) -> None:
        vae = getattr(pipeline, "vae", None)
        if vae is not None and model.vae_slicing:
            vae.enable_slicing()
        if vae is not None and model.vae_tiling:
            vae.enable_tiling()
        if model.attention_backend is not None:
            from diffusers.models.attention_dispatch import attention_backend

            with attention_backend(model.attention_backend):  # else diffusers makes it the process's default
                self.network.set_attention_backend(model.attention_backend)

    def adapter(self, key: str, path: str, weight: float = 1.0) -> Adapter:
        """A LoRA file for this model; see `read_adapter`."""
        encoders: dict[str, Any] | None = self._encoders(self.pipeline)
        if not encoders and self.ADAPTED_ENCODERS:
            encoders = None  # a policy with the network alone has none
        return read_adapter(key, path, self.network, type(self.pipeline), self.NETWORK, weight, encoders)

    def _adapt_encoders(self, pipeline: Any) -> None:
        """Add what frozen adapters have for text encoders to the weights of a pipeline's."""
        for adapter in self._frozen_adapters:
            self.fuse_text(adapter, pipeline)

    def fuse_text(self, adapter: Adapter, pipeline: Any = None) -> None:
        """Add what an adapter has for text encoders to their weights, in this policy's pipeline or another."""
        for component, encoder in self._encoders(pipeline or self.pipeline).items():
            if component in adapter.text:
                fuse(encoder, adapter.of_text(component))

    def _started(self, learner: LearnerConfig) -> Adapter | None:
        """What the adapter that learns starts as; None for a random start."""
        if learner.init_adapter is None:
            return None
        start = self.adapter("learner.init_adapter", learner.init_adapter)
        encoders = self._encoders(self.pipeline)
        if learner.mode == "lora" and (problems := start_problems(start, self.network, learner, encoders)):
            raise StartError("\n".join(problems))
        return start

    def _encode(self, prompts: Sequence[str]) -> Mapping[str, torch.Tensor]:
        """The fields of `Conditions` for prompts, a row each, float32; without gradient."""
        tokens = self._tokenised(prompts)
        # Half precision would give a prompt other states in another batch, and so another log-ratio.
        with upcast(*self._encoders(self.pipeline).values()):
            read = self._read(tokens)
        return {**read, **{name: value for name, value in tokens.items() if value.is_floating_point()}}

    def _tokenised(self, prompts: Sequence[str]) -> Mapping[str, torch.Tensor]:
        """Whole numbers [B, tokens] that `_read` takes, and the fields of `Conditions` that no adapter changes."""
        raise NotImplementedError(f"{type(self).__name__} has no text encoders that take adapters")

    def _read(self, tokens: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """What text encoders make of the whole numbers of `_tokenised`; with gradient, where there is one."""
        raise NotImplementedError(f"{type(self).__name__} has no text encoders that take adapters")

    def _assembled(self, fields: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The fields of `Conditions` of what was read and what came with the token ids."""
        return fields

    def _tokenised_with_gain(self, prompts: Sequence[str]) -> Mapping[str, torch.Tensor]:
        return {**self._tokenised(prompts), GAIN: torch.ones(len(prompts), 1, device=self.device)}

    def _having_read(self, conditions: Conditions) -> Conditions:
        """Conditions whose token ids the text encoders have read, as they are now."""
        tokens = {name: value for name, value in conditions.fields.items() if not value.is_floating_point()}
        others = {name: value for name, value in conditions.fields.items() if name not in tokens}
        gain = others.pop(GAIN)
        distinct, places = self._distinct(tokens)
        read = {name: value.float()[places] for name, value in self._read(distinct).items()}
        scaled = {name: value * gain.view(-1, *[1] * (value.ndim - 1)) for name, value in read.items()}
        return Conditions(self._assembled({**scaled, **others}))

    def _distinct(self, tokens: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        return distinct_prompts(tokens)

    def _without_prompt(self, fields: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """What the branch without prompt is given, of the fields of the empty prompt."""
        return fields

    def _for_vae(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents in the VAE's own scale, as it decodes them."""
        config = self.pipeline.vae.config
        scaled = latents / config.scaling_factor
        shift = getattr(config, "shift_factor", None)
        return scaled + shift if shift else scaled

    def _from_vae(self, latents: torch.Tensor) -> torch.Tensor:
        """The inverse of `_for_vae`."""
        config = self.pipeline.vae.config
        return (latents - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor

    @abstractmethod
    def _predict(
        self, network: torch.nn.Module, latents: torch.Tensor, times: torch.Tensor, conditions: Conditions
    ) -> torch.Tensor:
        """One branch of the network's output, [B, C, h, w]."""

    @property
    def converts_adapters(self) -> torch.dtype | None:
        """What every pass outside of `float32` converts the tensors that learn to, if it only multiplies by them.

        LoRA in half precision. Compiled blocks would need further programs for tensors that come converted.
        """
        learns_lora, compiled = self.weights.mode == "lora", self._model.compile is not None
        return DTYPES[self.precision] if self.precision != "float32" and learns_lora and not compiled else None

    @property
    def embeds_guidance(self) -> bool:
        """Whether the network takes the guidance scale as an input, and draws with it in one pass a step."""
        return False

    def _with_guidance(self, conditions: Conditions, guidance_scale: float) -> Conditions:
        """With what a network that `embeds_guidance` is told of the scale."""
        raise NotImplementedError(f"{type(self).__name__} embeds no guidance")

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], negative_prompt: str | None = None) -> Conditions:
        """What the network is given for prompts, and for the empty or a negative one.

        Raises:
            RuntimeError: the text encoders were left out.
        """
        self._needs("tokenizer" if self.reads_in_passes else "text_encoder")
        encoders = [getattr(self.pipeline, name, None) for name in self.FROZEN if name != "vae"]
        if not self._model.offload_encoders:
            return self._encoder.encode(prompts, negative_prompt)
        with on_device([one for one in encoders if one is not None], self.device):
            return self._encoder.encode(prompts, negative_prompt)

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
            times: in the unit of the process, [B]; images of different steps go through in one call.
            conditions: of `encode`, B rows.
            guidance_scale: w; up to 1 the output is c, and the unconditional branch is not computed; see `guided`. A
                network that `embeds_guidance` is told w in the one pass of c.
            network: the reference, when it is not the learning one.
        """
        network = network or self.network
        with_guidance = guided(guidance_scale) and not self.embeds_guidance
        if with_guidance:
            latents, times = torch.cat([latents, latents]), torch.cat([times, times])
            conditions = conditions.behind_empty()
        if self.embeds_guidance:
            conditions = self._with_guidance(conditions, guidance_scale)
        with self._arithmetic():
            if self.reads_in_passes:
                conditions = self._having_read(conditions)
            output = self._predict(network, latents, times, conditions).float()
        if not with_guidance:
            return output
        unconditional, conditional = output.chunk(2)
        return unconditional + guidance_scale * (conditional - unconditional)

    @contextmanager
    def float32(self) -> Iterator[None]:
        """Let the network and its reference compute in float32: log-ratios are far below half precision.

        By the products of `learner.evidence_precision`.
        """
        before, self._in_float32 = self._in_float32, True
        try:
            with tf32_products(self._tf32), upcast(*self.weights.networks()):
                yield
        finally:
            self._in_float32 = before

    @contextmanager
    def reference(self) -> Iterator[torch.nn.Module]:
        """The frozen start, to be passed to `output` as `network`."""
        with self.weights.reference() as network:
            network = network_in(network)
            if self._model.compile is not None:
                compile_blocks(network, self._model.compile)  # a copy of the network is not
            yield network

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> UInt8:
        """Clean latents float32 [B, C, h, w] to pixels, uint8 [B, H, W, 3].

        Raises:
            RuntimeError: the VAE was left out.
        """
        self._needs("vae")
        with self._vae_at_hand() as vae:
            pixels = vae.decode(self._for_vae(latents.to(vae.dtype)), return_dict=False)[0].float()
        levels = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()

    @torch.no_grad()
    def encode_images(self, images: UInt8) -> torch.Tensor:
        """The inverse of `decode`: pixels uint8 [B, H, W, 3] to clean latents, float32 [B, C, h, w].

        The mean of the VAE's posterior, with its scaling and shift, as diffusers' pipelines take it for pictures that
        nothing is drawn for. In float32 whatever the VAE is stored in: encoders of some VAEs overflow in float16.

        Raises:
            RuntimeError: the VAE was left out.
        """
        self._needs("vae")
        pixels = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        with self._vae_at_hand() as vae, upcast(vae):
            mean = vae.encode(pixels, return_dict=False)[0].mode()
        return self._from_vae(mean)

    @contextmanager
    def _vae_at_hand(self) -> Iterator[Any]:
        """The VAE on the policy's device, brought from the host where it waits there."""
        vae = self.pipeline.vae
        with on_device([vae], self.device) if self._model.offload_vae else nullcontext():
            yield vae

    def _needs(self, part: str) -> None:
        if getattr(self.pipeline, part) is None:
            raise RuntimeError(f"this policy was loaded with only_network=True, and has no {part}")

    def _arithmetic(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._in_float32 else torch.autocast(self.device.type, DTYPES[self.precision])
