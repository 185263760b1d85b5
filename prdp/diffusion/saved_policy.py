"""What a policy of a diffusers pipeline writes: what it has learned, whole pipelines, and how they are used."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from prdp.config import ModelConfig, SamplerConfig
from prdp.diffusion.pipeline_loading import DTYPES
from prdp.diffusion.weights import TrainableWeights


class SavedPolicy(ABC):
    """A pipeline with one network that learns, and text encoders that may.

    Attributes:
        pipeline: of diffusers.
        network: of it, that learns.
        weights: the learning tensors and the reference.
        reads_in_passes: whether text encoders learn.
    """

    NETWORK: ClassVar[str]
    """Component of the pipeline that learns: unet or transformer."""
    ADAPTED_ENCODERS: ClassVar[tuple[str, ...]] = ()
    """Text encoders that take adapters."""

    pipeline: Any
    network: Any
    weights: TrainableWeights
    reads_in_passes: bool

    @abstractmethod
    def _whole_pipeline(self) -> Any:
        """A pipeline with this network and all other parts, which are loaded if they were left out."""

    def _encoders(self, pipeline: Any) -> dict[str, Any]:
        """Component -> text encoder, of those that take adapters and are there."""
        found = {name: getattr(pipeline, name, None) for name in self.ADAPTED_ENCODERS}
        return {name: encoder for name, encoder in found.items() if encoder is not None}

    def save(self, folder: Path) -> None:
        """Write the learning weights in diffusers format: a LoRA file, or a whole pipeline for full weights.

        Raises:
            ValueError: what was written, read back, is not what was learned; names a tensor.
        """
        if self.weights.mode == "lora":
            from prdp.diffusion.lora_file import save_lora

            save_lora(self.network, folder, type(self.pipeline), self.NETWORK, self._learning_encoders())
        else:
            from prdp.diffusion.pipeline_files import check_network, save_pipeline

            save_pipeline(self._whole_pipeline(), folder)
            check_network(folder / self.NETWORK, self.weights.parameters)

    def _learning_encoders(self) -> dict[str, Any]:
        """Component -> text encoder, of those that learn."""
        return self._encoders(self.pipeline) if self.reads_in_passes else {}

    def save_single_file(self, file: Path, precision: str) -> None:
        """Write the whole pipeline, adapters in its weights, as one file with the names of the model's authors.

        Args, Raises: as of `save_merged`; and of `prdp.diffusion.original_names`.
        """
        from prdp.diffusion.merged_adapters import merge_adapters
        from prdp.diffusion.original_names import save_single_file

        for part in (self.network, *self._encoders(self.pipeline).values()):
            merge_adapters(part)
        pipeline = self._whole_pipeline()
        pipeline.to(dtype=DTYPES[precision])
        save_single_file(pipeline, file)

    def save_merged(self, folder: Path, precision: str) -> None:
        """Write the whole pipeline with the adapters in its weights; the policy has none afterwards.

        Args:
            folder: to write into.
            precision: that the pipeline is written in; the policy's is float32, or the sum would be rounded twice.

        Raises:
            ValueError: there are no adapters, or what was written, read back, is not what was merged.
        """
        from prdp.diffusion.merged_adapters import merge_adapters
        from prdp.diffusion.pipeline_files import check_network, save_pipeline

        if not merge_adapters(self.network):
            raise ValueError("the network has no adapters to merge")
        for encoder in self._encoders(self.pipeline).values():
            merge_adapters(encoder)
        pipeline = self._whole_pipeline()
        pipeline.to(dtype=DTYPES[precision])
        save_pipeline(pipeline, folder)
        check_network(folder / self.NETWORK, dict(self.network.named_parameters()))

    @abstractmethod
    def usage(self, model: ModelConfig, sampler: SamplerConfig, mode: str, weights: Path, prompt: str) -> str:
        """How to use exported weights in plain diffusers, in Markdown.

        Args:
            model, sampler, mode: sections of the run, and its learner.mode.
            weights: folder of the exported weights.
            prompt: an example.
        """
