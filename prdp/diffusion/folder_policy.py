"""What the policies of folders in diffusers format have in common, whatever network is in them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Self

from prdp.config import LearnerConfig, ModelConfig
from prdp.diffusion.adapters import EmptyModel, check_adapters, init_adapter_problems
from prdp.diffusion.diffusers_policy import DiffusersPolicy
from prdp.diffusion.guidance import guided
from prdp.diffusion.image_size import picture_size
from prdp.diffusion.model_components import component_config
from prdp.diffusion.model_folder import read_component
from prdp.diffusion.pipeline_formats import PipelineFormat
from prdp.diffusion.pipeline_loading import device_of, load_pipeline, pipeline_class, single_file
from prdp.diffusion.process import Process
from prdp.diffusion.quantization import quantization_problems
from prdp.diffusion.text_adapters import GAIN
from prdp.support.errors import StartError

ON_GPUS = ("_native_efficient", "flex", "xformers")
"""Of `model.attention_backend`."""


class FolderPolicy(DiffusersPolicy, ABC):
    """A folder of `FORMAT`, read by its configurations before anything is loaded. See `DiffusersPolicy`."""

    FORMAT: ClassVar[PipelineFormat]
    FRAMEWORKS: ClassVar[tuple[str, ...]] = ("torch",)
    """Of `learner.framework`."""

    def __init__(
        self,
        pipeline: Any,
        model: ModelConfig,
        learner: LearnerConfig,
        *,
        seed: int = 0,
        keep_reference: bool = True,
    ) -> None:
        super().__init__(
            pipeline,
            model,
            self.process_of(model),
            self.latent_shape_of(model),
            self.picture_size_of(model),
            learner,
            seed=seed,
            keep_reference=keep_reference,
        )

    @classmethod
    def load(
        cls,
        model: ModelConfig,
        learner: LearnerConfig,
        *,
        seed: int = 0,
        keep_reference: bool = True,
        only_network: bool = False,
    ) -> Self:
        """Load the pipeline that `model.path` names; embedded ones and released ones go the same way."""
        keep = cls.ADAPTED_ENCODERS if learner.text_encoders else ()
        pipeline = load_pipeline(model, cls.FORMAT, only_network=only_network, keep=keep)
        return cls(pipeline, model, learner, seed=seed, keep_reference=keep_reference)

    @classmethod
    def check(cls, model: ModelConfig) -> None:
        """The folder is whole, its components are ones that are computed exactly, and size and adapters fit."""
        from prdp.diffusion.pipeline_checks import check_components

        _check_text_tokens(model, cls.FORMAT)
        folder = cls._folder(model)
        _check_attention(model, cls.FORMAT)
        if problems := quantization_problems(model, None):
            raise StartError(problems[0])
        check_components(f"model.path={model.path}", folder, model.variant, cls.FORMAT, single_file(model))
        cls._latent_shape_in(folder, model)
        if model.adapters:
            check_adapters(model, cls.empty_model(model))

    @classmethod
    def empty_model(cls, model: ModelConfig) -> EmptyModel:
        """What files of LoRAs are checked against before anything is loaded."""
        from prdp.diffusion.pipeline_checks import empty_network

        folder = cls._folder(model)
        network, encoders = empty_network(folder, cls.FORMAT), cls._empty_encoders(folder)
        return EmptyModel(network, pipeline_class(cls.FORMAT), cls.NETWORK, encoders)

    @classmethod
    def learner_problems(cls, model: ModelConfig, learner: LearnerConfig) -> list[str]:
        """Layers that take no adapter; the JAX twin computes the first family alone."""
        from prdp.diffusion.lora_targets import lora_target_problems, optimizer_target_problems
        from prdp.diffusion.pipeline_checks import empty_network

        problems = []
        if learner.framework not in cls.FRAMEWORKS:
            expected = " or ".join(cls.FRAMEWORKS)
            problems.append(
                f"learner.framework={learner.framework}: must be {expected} for model.family={model.family}"
            )
        if learner.mode == "lora":
            folder = cls._folder(model)
            network, encoders = empty_network(folder, cls.FORMAT), dict[str, Any]()
            targets = lora_target_problems(network, learner.lora_targets)
            if learner.text_encoders or learner.init_adapter is not None:
                encoders = cls._empty_encoders(folder)
            for encoder in encoders.values() if learner.text_encoders else ():
                key = "learner.text_encoder_targets"
                targets += lora_target_problems(encoder, learner.text_encoder_targets, key)
            if learner.init_adapter is not None and not targets:
                empty = EmptyModel(network, pipeline_class(cls.FORMAT), cls.NETWORK, encoders)
                targets = init_adapter_problems(learner, empty)
            problems += targets or optimizer_target_problems(learner, network)
        return list(dict.fromkeys(problems))

    @classmethod
    def _empty_encoders(cls, folder: Path) -> dict[str, Any]:
        """The text encoders that take adapters, on the meta device."""
        from prdp.diffusion.pipeline_checks import empty_part

        return {name: empty_part(folder, name, cls.FORMAT) for name in cls.ADAPTED_ENCODERS}

    @classmethod
    def branches_of(cls, model: ModelConfig, guidance_scale: float) -> int:
        """Network passes of one output of `output` under a guidance scale."""
        embeds = cls._embeds_guidance(cls._network_config(cls._folder(model)))
        return 2 if guided(guidance_scale) and not embeds else 1

    @property
    def embeds_guidance(self) -> bool:
        """See `DiffusersPolicy.embeds_guidance`."""
        return self._embeds_guidance(self.network.config)

    @staticmethod
    def _embeds_guidance(network: Mapping[str, Any]) -> bool:
        """By the network's configuration."""
        return False

    @classmethod
    @abstractmethod
    def process_of(cls, model: ModelConfig) -> Process:
        """Of the folder's scheduler, which is read without loading weights."""

    @classmethod
    def latent_shape_of(cls, model: ModelConfig) -> tuple[int, ...]:
        """Of the folder's configurations and the size that is asked for."""
        return cls._latent_shape_in(cls._folder(model), model)

    @classmethod
    def picture_size_of(cls, model: ModelConfig) -> tuple[int, int]:
        """Likewise."""
        folder = cls._folder(model)
        return picture_size(cls._latent_shape_in(folder, model), vae_config(folder))

    @classmethod
    @abstractmethod
    def _latent_shape_in(cls, folder: Path, model: ModelConfig) -> tuple[int, int, int]:
        """(C, h, w); a StartError names a size that the network or the VAE cannot take."""

    @classmethod
    def condition_shapes(cls, model: ModelConfig) -> dict[str, tuple[int, ...]]:
        """Of a row of `Conditions.fields`, by configurations alone."""
        folder = cls._folder(model)
        tokens = read_component(folder, "text_encoder").get("max_position_embeddings", 77)
        return cls._condition_shapes(cls._network_config(folder), int(tokens), model)

    @classmethod
    def token_shapes(cls, model: ModelConfig) -> dict[str, tuple[int, ...]]:
        """Likewise where text encoders learn; `token_ids` are whole numbers."""
        shapes = cls.condition_shapes(model)
        tokens = int(read_component(cls._folder(model), "text_encoder").get("max_position_embeddings", 77))
        ids = {f"token_ids{name.removeprefix('text_encoder')}": (tokens,) for name in cls.ADAPTED_ENCODERS}
        beside = {name: shape for name, shape in shapes.items() if name not in ("states", "pooled")}
        rest = shapes["states"][0] - tokens
        t5 = {"t5": (rest, *shapes["states"][1:])} if rest else {}
        return {**ids, **beside, **t5, GAIN: (1,)}

    @staticmethod
    @abstractmethod
    def _condition_shapes(
        network: Mapping[str, Any], clip_tokens: int, model: ModelConfig
    ) -> dict[str, tuple[int, ...]]:
        """Of the network's configuration and the tokens that CLIP reads."""

    @classmethod
    def _network_config(cls, folder: Path) -> dict[str, Any]:
        """Of the network that learns, with defaults."""
        return component_config(folder, cls.NETWORK, cls.FORMAT.components[cls.NETWORK])

    @classmethod
    def _folder(cls, model: ModelConfig) -> Path:
        from prdp.diffusion.model_folder import check_model

        folder = check_model(model.path, model.variant, model.revision, cls.FORMAT, model.config)
        if folder is None:
            raise StartError(f"model.path={model.path}: set model.family={model.path}")
        return folder

    @classmethod
    def folder_of(cls, model: ModelConfig) -> Path:
        """With the configurations of a model."""
        return cls._folder(model)

    def _whole_pipeline(self) -> Any:
        if self.pipeline.vae is not None:
            return self.pipeline
        pipeline = load_pipeline(self._model, self.FORMAT, network=self.network)
        self._adapt_encoders(pipeline)
        return pipeline


def vae_config(folder: Path) -> dict[str, Any]:
    """The configuration of a folder's VAE, with defaults."""
    return component_config(folder, "vae", "AutoencoderKL")


def _check_attention(model: ModelConfig, kind: PipelineFormat) -> None:
    name = model.attention_backend
    if name is None:
        return
    if not kind.attention_backends:
        raise StartError(
            f"model.attention_backend={name}: must be null for model.family={model.family}: diffusers chooses the "
            "attention of its network"
        )
    if name == "xformers" and find_spec("xformers") is None:
        raise StartError(f"model.attention_backend={name}: needs xformers, which is not installed: pip install {name}")
    device = device_of(model)
    if name in ON_GPUS and not device.startswith("cuda"):
        raise StartError(
            f"model.attention_backend={name}: needs a CUDA device, and the model is on {device}: torch does not "
            "compute it there, or has no gradient of it"
        )


def _check_text_tokens(model: ModelConfig, kind: PipelineFormat) -> None:
    length = model.max_sequence_length
    if length is None:
        return
    if kind.text_tokens is None:
        raise StartError(f"model.max_sequence_length={length}: must be null for model.family={model.family}")
    most = kind.text_tokens[1]
    if most is not None and length > most:
        raise StartError(f"model.max_sequence_length={length}: must be at most {most}")
