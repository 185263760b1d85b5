"""Where the images of a set come from: a model that draws, or a folder of pictures."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any, Protocol

from prdp.cluster.base import SamplerFactory
from prdp.diffusion import family_of
from prdp.diffusion.control import control_digest
from prdp.diffusion.latent_space import vae_digest
from prdp.evaluation.cascades import Given
from prdp.evaluation.loading import build_evaluated_sampler
from prdp.evaluation.models import EvaluatedModel
from prdp.evaluation.samplers import sampler_of
from prdp.evaluation.work import image_key
from prdp.evidence.denoising import FinalLatents
from prdp.image_sets.chains import ChainLatents
from prdp.image_sets.editing import build_editing_sampler
from prdp.image_sets.pictures import PictureFolder, build_picture_sampler
from prdp.image_sets.settings import GenerateConfig

PICTURES = "pictures"


class Origin(Protocol):
    """What makes images, and what a manifest says of it.

    Attributes:
        model: that draws, or whose size and VAE pictures are brought to.
    """

    model: EvaluatedModel

    def key(self) -> dict[str, Any]:
        """What makes the images, besides prompts and seed."""
        ...

    def sampler_factory(self) -> SamplerFactory:
        """What images and latents come from; picklable."""
        ...

    def identity(self) -> dict[str, Any]:
        """`model` of a manifest."""
        ...

    def sampler(self) -> dict[str, Any] | None:
        """`sampler` of a manifest."""
        ...

    def precision(self) -> dict[str, Any]:
        """`precision` of a manifest."""
        ...


class Drawn:
    """A model draws as the section `sampler` says."""

    def __init__(self, config: GenerateConfig, model: EvaluatedModel) -> None:
        self._config, self.model = config, model

    @cached_property
    def _key(self) -> dict[str, Any]:
        return image_key(self._config, self.model)

    def key(self) -> dict[str, Any]:
        return self._key

    def sampler_factory(self) -> SamplerFactory:
        config = self._config
        return partial(
            build_evaluated_sampler,
            self.model,
            sampler_of(config, self.model),
            config.model.dtype,
            config.model.device,
            config.autocast,
            kl=False,
            recorder=ChainLatents() if config.chains else FinalLatents(),
        )

    def identity(self) -> dict[str, Any]:
        model = self.model
        return {
            "name": model.name,
            "kind": model.kind,
            "source": model.source,
            "family": model.model.family,
            "digest": self._key["model"],
            "epoch": model.epoch,
        }

    def sampler(self) -> dict[str, Any]:
        prefix = "sampler."
        return {name.removeprefix(prefix): value for name, value in self._key.items() if name.startswith(prefix)}

    def precision(self) -> dict[str, Any]:
        return {"dtype": self._config.model.dtype, "autocast": self._config.autocast}


class Edited(Drawn):
    """A model draws from somebody's own pictures, or by a ControlNet that reads them.

    Args:
        folder: of the pictures.
        given: what becomes of them.
    """

    def __init__(self, config: GenerateConfig, model: EvaluatedModel, folder: PictureFolder, given: Given) -> None:
        super().__init__(config, model)
        self._folder, self._given = folder, given

    def key(self) -> dict[str, Any]:
        key = {**super().key(), PICTURES: self._folder.fingerprint}
        if self._given.control is None:
            return {**key, "strength": self._given.strength}
        return {**key, "control": control_digest(self._given.control), "control_scale": self._given.scale}

    def sampler_factory(self) -> SamplerFactory:
        config = self._config
        return partial(
            build_editing_sampler,
            str(self._folder.folder.resolve()),
            self._given,
            self.model,
            sampler_of(config, self.model),
            config.model.dtype,
            config.model.device,
            config.autocast,
        )


class Pictures:
    """Somebody's own pictures, at the size of `model` and with latents by its VAE."""

    def __init__(self, config: GenerateConfig, folder: PictureFolder) -> None:
        self._config, self._folder = config, folder
        self.model = EvaluatedModel(PICTURES, PICTURES, config.model)

    def key(self) -> dict[str, Any]:
        size = family_of(self.model.model).picture_size_of(self.model.model)
        return {PICTURES: self._folder.fingerprint, "size": list(size), "vae": vae_digest(self.model.model)}

    def sampler_factory(self) -> SamplerFactory:
        model = self.model.model
        return partial(
            build_picture_sampler,
            str(self._folder.folder.resolve()),
            model,
            family_of(model).picture_size_of(model),
            self._config.sampler.microbatch,
        )

    def identity(self) -> dict[str, Any]:
        return {
            "name": PICTURES,
            "kind": PICTURES,
            "source": str(self._folder.folder),
            "family": self.model.model.family,
            "digest": self._folder.fingerprint,
            "epoch": None,
        }

    def sampler(self) -> None:
        return None

    def precision(self) -> dict[str, Any]:
        return {"dtype": "float32", "autocast": None}
