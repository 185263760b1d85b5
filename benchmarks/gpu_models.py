"""Released models in true size with random weights, and the same layouts narrowed for a CPU; no text encoders."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from released_configs import write

from prdp.config import LearnerConfig, ModelConfig
from prdp.diffusion import family_of
from prdp.diffusion.conditions import Conditions
from prdp.diffusion.effective_scheduler import effective_scheduler
from prdp.diffusion.libraries import quiet
from prdp.diffusion.model_folder import read_component, weights_path
from prdp.diffusion.pipeline_formats import FORMATS, PipelineFormat
from prdp.diffusion.pipeline_loading import DTYPES, pipeline_class

_NARROW_VAE = {"block_out_channels": [8, 8, 8, 8], "norm_num_groups": 4, "layers_per_block": 1}
_SCALE = 0.02
"""Of the factors of adapters that start at 0, so that the policy is not its reference."""


@dataclass(frozen=True)
class Layout:
    """A released model and how it is measured.

    Attributes:
        hub: its id, of `released_configs`.
        family: `model.family`.
        side: of the pictures, in pixels; `small` where float32 numbers are compared.
        images, steps: that are sampled at a time.
        checkpointing: whether activations are computed again in the backward pass, as its recipe has it.
        narrow: part -> what is otherwise in its configuration where it is narrowed.
        targets: `learner.lora_targets`.
    """

    hub: str
    family: str
    side: int
    small: int
    images: int
    steps: int
    checkpointing: bool
    narrow: dict[str, dict[str, Any]]
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    narrow_model: dict[str, Any] = field(default_factory=dict)


LAYOUTS = {
    "sd15": Layout(
        "stable-diffusion-v1-5/stable-diffusion-v1-5", "stable_diffusion", 512, 256, 8, 10, False,
        {
            "unet": {
                "sample_size": 8, "block_out_channels": [8, 16, 16, 16], "norm_num_groups": 4, "layers_per_block": 1,
                "cross_attention_dim": 16, "attention_head_dim": 2,
            },
            "vae": _NARROW_VAE,
        },
    ),
    "sdxl": Layout(
        "stabilityai/stable-diffusion-xl-base-1.0", "stable_diffusion_xl", 1024, 512, 4, 6, True,
        {
            "unet": {
                "sample_size": 8, "block_out_channels": [8, 16, 16], "norm_num_groups": 4, "layers_per_block": 1,
                "cross_attention_dim": 24, "attention_head_dim": [1, 2, 2], "transformer_layers_per_block": [1, 1, 2],
                "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 32,
            },
            "vae": _NARROW_VAE,
        },
    ),
    "sd35_medium": Layout(
        "stabilityai/stable-diffusion-3.5-medium", "stable_diffusion_3", 512, 256, 8, 10, True,
        {
            "transformer": {
                "sample_size": 8, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2,
                "joint_attention_dim": 32, "caption_projection_dim": 16, "pooled_projection_dim": 24,
                "pos_embed_max_size": 16, "dual_attention_layers": [0],
            },
            "vae": _NARROW_VAE,
        },
        narrow_model={"max_sequence_length": 5},
    ),
    "flux_dev": Layout(
        "black-forest-labs/FLUX.1-dev", "flux", 512, 256, 4, 4, True,
        {
            "transformer": {
                "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
                "joint_attention_dim": 24, "pooled_projection_dim": 8, "axes_dims_rope": [4, 6, 6],
            },
            "vae": _NARROW_VAE,
        },
        narrow_model={"max_sequence_length": 5},
    ),
}  # fmt: skip
"""By the names of the groups of `conf/model`."""


@dataclass(frozen=True)
class Place:
    """Where and how a layout is built.

    Attributes:
        layout: which.
        folder: with its configurations.
        device: of torch.
        narrow: whether it is narrowed.
    """

    layout: Layout
    folder: Path
    device: str
    narrow: bool

    @classmethod
    def of(cls, name: str, folder: Path, device: str, narrow: bool) -> Place:
        """Write the configurations of a layout."""
        layout = LAYOUTS[name]
        written = write(folder / name, layout.hub, layout.narrow if narrow else {})
        kind: PipelineFormat = next(one for one in FORMATS if one.family == layout.family)
        for component in kind.components:
            # A folder must have files of weights; these hold no tensor.
            save_file({}, weights_path(written, component))
        return cls(layout, written, device, narrow)

    def model(self, dtype: str, side: int | None = None) -> ModelConfig:
        """The section `model`; encoders would wait on the host."""
        layout = self.layout
        side = 64 if self.narrow else side or layout.side
        more = layout.narrow_model if self.narrow else {}
        return ModelConfig(
            family=layout.family, path=str(self.folder), height=side, width=side, dtype=dtype, device=self.device,
            offload_encoders=True, **more,
        )  # fmt: skip

    def learner(self, **changes: Any) -> LearnerConfig:
        """The section `learner`: LoRA of rank 32, and a step that changes next to nothing."""
        settings = {"lora_rank": 32, "lora_alpha": 64.0, "learning_rate": 1e-6, "max_grad_norm": float("inf")}
        settings |= {"lora_targets": list(self.layout.targets), "gradient_checkpointing": self.layout.checkpointing}
        return LearnerConfig(**{**settings, **changes})

    def policy(self, dtype: str, side: int | None = None) -> Any:
        """A policy whose adapters differ from 0, and whose prompts become random numbers."""
        model, learner = self.model(dtype, side), self.learner()
        family: Any = family_of(model)
        policy = family(self._pipeline(family.FORMAT, dtype), model, learner, keep_reference=True)
        shapes = family.condition_shapes(model)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, value in policy.weights.parameters.items():
                if ".lora_B." in name:
                    value.copy_(_SCALE * torch.randn(value.shape, generator=generator))
        policy.encode = lambda prompts: random_conditions(shapes, len(prompts), policy)
        return policy

    def _pipeline(self, kind: PipelineFormat, dtype: str) -> Any:
        quiet()
        parts = dict.fromkeys((*kind.components, *kind.tokenizers))
        parts |= {name: self._random(kind, name, dtype) for name in (kind.network, "vae")}
        arguments = {**kind.arguments, **({"requires_safety_checker": False} if kind.network == "unet" else {})}
        if "safety_checker" in kind.arguments:
            arguments["feature_extractor"] = None
        else:
            arguments.pop("requires_safety_checker", None)
        scheduler: Any = read_component(self.folder, "scheduler")
        if kind.network == "unet":
            parts["scheduler"] = effective_scheduler(scheduler, kind)
        else:
            from diffusers import FlowMatchEulerDiscreteScheduler

            parts["scheduler"] = FlowMatchEulerDiscreteScheduler.from_config(scheduler)
        pipeline = pipeline_class(kind)(**parts, **arguments)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _random(self, kind: PipelineFormat, name: str, dtype: str) -> Any:
        """A part as it is before it has learned anything, made where it stays: billions of weights in seconds."""
        import diffusers

        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(DTYPES[dtype])
        try:
            with torch.device(self.device):
                part = getattr(diffusers, kind.components[name]).from_config(read_component(self.folder, name))
        finally:
            torch.set_default_dtype(before)
        return part.to(self.device, DTYPES[dtype])


def random_conditions(shapes: dict[str, tuple[int, ...]], count: int, policy: Any) -> Conditions:
    """Rows of a size that networks are used to; the sizes of SDXL as they are."""
    generator = torch.Generator().manual_seed(2)

    def field(name: str, rows: int, shape: tuple[int, ...]) -> torch.Tensor:
        if name == "time_ids":
            height, width = policy.picture_size
            return torch.tensor([height, width, 0.0, 0.0, height, width]).repeat(rows, 1).to(policy.device)
        return torch.randn(rows, *shape, generator=generator).to(policy.device)

    fields = {name: field(name, count, shape) for name, shape in shapes.items()}
    return Conditions(fields, {name: field(name, 1, shape) for name, shape in shapes.items()})


def prompt_arguments(conditions: Conditions) -> dict[str, torch.Tensor]:
    """What diffusers' pipelines take for conditions, in place of a prompt."""
    fields = conditions.fields
    found = {"prompt_embeds": fields["states"]}
    return found | ({"pooled_prompt_embeds": fields["pooled"]} if "pooled" in fields else {})
