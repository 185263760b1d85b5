"""The memory that a run takes on each device, by the model's configurations alone; an estimate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prdp.config import TrainConfig
from prdp.diffusion import family_of
from prdp.objectives import build_objective

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_STATES = 4 + 8
"""Bytes of a learning weight: itself in float32, and the sum of its gradients in float64."""
_MOMENTS = {"adamw": 8, "adamw_fused": 8, "adamw_8bit": 2 * (1 + 4 / 256), "prodigy": 16, "muon": 4}
"""Of each, what the optimizer keeps: two means; in 8 bits with a scale for each 256 numbers; with the start and a sum
beside them; or one mean."""


@dataclass(frozen=True)
class DevicePlan:
    """Of one process's device.

    Attributes:
        name: who works there.
        held: bytes that stay, by what they are.
        passing: bytes that come on top while something is done, by what it is; one at a time.
        host: bytes that wait on the host: of text encoders, a VAE, and what takes turns with it.
    """

    name: str
    held: Mapping[str, int]
    passing: Mapping[str, int]
    host: int = 0

    @property
    def peak(self) -> int:
        """The most that is taken at once."""
        return sum(self.held.values()) + max(self.passing.values())

    @property
    def rows(self) -> list[tuple[str, str]]:
        """For people: what is held, and what comes on top."""
        held = ", ".join(f"{gib(size)} {what}" for what, size in self.held.items())
        passing = ", ".join(f"{gib(size)} while {what}" for what, size in self.passing.items())
        waiting = f"; {gib(self.host)} waiting on the host" if self.host else ""
        return [(f"memory, {self.name}", f"about {gib(self.peak)}: {held}{waiting}"), ("", f"on top of it {passing}")]


def device_plans(config: TrainConfig) -> list[DevicePlan]:
    """For the learner and a sampler, or for the one process that is both; empty where no pipeline of diffusers learns.

    Weights are counted, and passes are run on tensors that have shapes and no numbers: see `prdp.diffusion.dry_run`.
    Rewards, buffers of libraries and fragments come on top.
    """
    from prdp.diffusion.folder_policy import FolderPolicy

    family: Any = family_of(config.model)
    if not (isinstance(family, type) and issubclass(family, FolderPolicy)) or config.learner.framework != "torch":
        return []
    sizes = _Sizes(family, config)
    learning, drawing = sizes.learning(), sizes.drawing()
    if config.cluster.colocate:
        return _by_turns(config, sizes, learning, drawing)
    if config.cluster.kind == "ray":
        return [
            DevicePlan("learner", sizes.learner_holds(), learning),
            DevicePlan("each sampler", sizes.sampler_holds(), drawing, sizes.host),
        ]
    held = sizes.learner_holds()
    for what, size in sizes.sampler_holds(beside_learner=True).items():
        held[what] = held.get(what, 0) + size
    return [DevicePlan("one process", held, {**learning, **drawing}, sizes.host)]


def _by_turns(
    config: TrainConfig, sizes: _Sizes, learning: Mapping[str, int], drawing: Mapping[str, int]
) -> list[DevicePlan]:
    """Of a device that a sampler and a learner share: what is there while either works, and what waits of the other."""
    apart = config.cluster.kind == "ray"
    learner, sampler = sizes.learner_holds(), sizes.sampler_holds()
    shared = 0 if apart or config.learner.mode == "full" else learner["network"]
    return [
        DevicePlan("while it learns", learner, learning, sizes.host + sum(sampler.values()) - shared),
        DevicePlan("while it draws", sampler, drawing, sizes.host + sum(learner.values()) - shared),
    ]


class _Sizes:
    """What a run holds and passes through; `learner_holds` and the like are bytes by what they are."""

    def __init__(self, family: Any, config: TrainConfig) -> None:
        from prdp.diffusion.dry_run import DryPolicy
        from prdp.diffusion.libraries import quiet
        from prdp.diffusion.model_folder import absent_parts
        from prdp.diffusion.pipeline_checks import empty_part
        from prdp.diffusion.pipeline_loading import DTYPES
        from prdp.diffusion.precision import repeated_blocks
        from prdp.diffusion.quantization import quantize

        quiet()
        self._config, model, self._family = config, config.model, family
        kind, folder = family.FORMAT, family.folder_of(model)
        self._full = config.learner.mode == "full"
        stored = _BYTES[model.dtype]
        absent = absent_parts(folder, kind)
        parts = {name: empty_part(folder, name, kind) for name in kind.components if name not in absent}
        network: Any = parts[kind.network]
        self._vae: Any = parts["vae"].to(DTYPES[model.dtype])
        self._vae_bytes = _numbers(self._vae) * stored
        learning = {name: parts[name] for name in family.ADAPTED_ENCODERS} if config.learner.text_encoders else {}
        for encoder in learning.values():
            encoder.to(DTYPES[model.dtype])
        self._learning_encoders = sum(_numbers(encoder) for encoder in learning.values()) * stored
        encoders = [_numbers(parts[name]) * stored for name in kind.text_encoders if name in parts]
        self._waiting = sum(encoders) if model.offload_encoders else 0
        self._encoders = sum(encoders) - self._waiting
        self.host = self._waiting + (self._vae_bytes if model.offload_vae else 0)
        network.to(DTYPES[model.dtype])
        if model.quantization is not None:
            quantize(network, model.quantization)
        held = sum(value.numel() * value.element_size() for value in network.parameters())
        self._network = 4 * _numbers(network) if self._full else held
        self._blocks = [_numbers(block) for block in repeated_blocks(network)]
        self._outside = _numbers(network) - sum(self._blocks)
        shapes = family.token_shapes(model) if learning else family.condition_shapes(model)
        self._dry = DryPolicy(family, model, config.learner, network, shapes, learning)
        self._branches = family.branches_of(model, config.sampler.guidance_scale)
        objective = build_objective(config.objective)
        self._recorder = objective.evidence.recorder(objective.arrays)
        asked = [of for name, (_, of) in objective.evidence.passes.items() if name in objective.arrays]
        self._kept = len({of for of in asked if of not in ("policy", "reference")})
        self._evidence = bool(asked) or self._recorder.needs_float32
        self._reference = "reference" in asked

    def learner_holds(self) -> dict[str, int]:
        learned, shards = self._dry.learning, self._config.cluster.fsdp_size
        kept = _MOMENTS[self._config.learner.optimizer] + 4 * (self._kept + bool(self._config.learner.ema_decay))
        if self._full:
            frozen = self._network if self._reference else 0
            held = {"network": self._network + frozen, "gradients and moments": int(learned * (_STATES - 4 + kept))}
            part = "" if shards == 1 else f"1/{shards} of "
            return {f"{part}{what}": -(-size // shards) for what, size in held.items()}
        encoders = {"text encoders": self._learning_encoders} if self._learning_encoders else {}
        adapters = int(learned * (_STATES + kept))
        return {"network": self._network, **encoders, "adapters with gradients and moments": adapters}

    def sampler_holds(self, beside_learner: bool = False) -> dict[str, int]:
        """Beside a learner in one process it has no frozen network of its own."""
        held = {} if beside_learner and not self._full else {"network": self._network}
        if self._full and self._recorder.needs_reference:
            held["network"] *= 2
        if not self._config.model.offload_vae:
            held["VAE"] = self._vae_bytes
        if encoders := self._encoders - (self._learning_encoders if beside_learner else 0):
            held["text encoders"] = encoders
        if not self._full:
            held["adapters with gradients and moments" if beside_learner else "adapters"] = 4 * self._dry.learning
        return held

    def learning(self) -> dict[str, int]:
        config = self._config
        cells = config.learner.microbatch
        at_once = min(cells, config.prompts_per_epoch * config.images_per_prompt * self._columns()) * self._branches
        prompts = self._prompts(min(-(-cells // (config.images_per_prompt * self._columns())) + 1, cells))
        found = {f"learning {cells} cells": self._gathered(True) + self._dry.with_gradient(at_once, prompts)}
        if self._evidence:
            # In half precision a few cells are computed in float32 all the same.
            evidence = self._dry.without_gradient(at_once, prompts, float32=True)
            found["computing evidence"] = self._gathered(False) + evidence
        return found

    def _prompts(self, given: int) -> int:
        """Those that a pass reads: with guidance the empty one, too."""
        return given + (self._branches > 1)

    def _gathered(self, learning: bool) -> int:
        """Bytes of whole tensors that a pass of a divided network has for a time.

        Those outside of repeated blocks, and two blocks, one of which comes while the other computes, beside the buffer
        that it comes in. While learning, the gradients of the larger of these, in float32 and float64.
        """
        if self._config.cluster.fsdp_size == 1:
            return 0
        outside, block = self._outside, max(self._blocks, default=0)
        return 4 * (outside + max(outside, 3 * block)) + (4 + 8) * max(outside, block) * learning

    def drawing(self) -> dict[str, int]:
        sampler, model = self._config.sampler, self._config.model
        groups = min(self._config.prompts_per_epoch, sampler.prompts_per_chunk)
        images = min(sampler.microbatch, groups * self._config.images_per_prompt)
        prompts, float32 = self._prompts(min(groups, images)), self._recorder.needs_float32
        passes = self._dry.without_gradient(images * self._branches, prompts, float32=float32)
        brought = self._vae_bytes if model.offload_vae else 0
        found = {f"drawing {images} images": passes, "decoding them": self._decoding(images) + brought}
        return found | ({"encoding prompts": self._waiting} if model.offload_encoders else {})

    def _decoding(self, images: int) -> int:
        from prdp.diffusion.dry_run import decoding

        model, vae = self._config.model, self._vae
        channels, *sides = self._family.latent_shape_of(model)
        if model.vae_tiling:
            own = int(vae.config.sample_size) // 2 ** (len(vae.config.block_out_channels) - 1)
            sides = [min(side, own) for side in sides]
        wide = model.family == "stable_diffusion_xl" and bool(vae.config.force_upcast)
        return decoding(vae, (1 if model.vae_slicing else images, channels, *sides), wide)

    def _columns(self) -> int:
        import numpy as np

        sampler = self._config.sampler
        return build_objective(self._config.objective).evidence.columns(sampler, np.arange(sampler.steps))


def _numbers(network: Any) -> int:
    return sum(value.numel() for value in network.parameters())


def gib(size: int) -> str:
    """Bytes, for people."""
    return f"{size / 2**30:.2f} GiB" if size < 10 * 2**30 else f"{size / 2**30:,.1f} GiB"
