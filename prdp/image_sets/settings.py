"""The schema of `prdp generate`: every key, its type, its bound, its default and its meaning, in this place alone.

conf/generate.yaml uses these keys.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from prdp.config import MISSING, ClusterConfig, HalfPrecision, ModelConfig, SamplerConfig
from prdp.configuration.bounds import broken_rules
from prdp.configuration.sampler_bounds import noise_problems
from prdp.evaluation.settings import drawing_problems, name_problems
from prdp.support.errors import ConfigError
from prdp.support.rules import Count, CountOrZero, Positive, Rule, Share, Text, one_of

LATENT_DTYPES = ("float32", "float16")
_MODEL = Rule(lambda value: len(value) < 2 and all(value), "a list of one model, which a set is drawn by")


@dataclass
class GenerateConfig:
    """One run of `prdp generate`."""

    models: Annotated[list[str], _MODEL] = field(default_factory=list)
    """The model that draws: 'base', or the path of a run, a checkpoint, exported weights, a diffusers folder, a LoRA
    file, as prdp evaluate takes them."""
    pictures: Text | None = None
    """A folder of your own pictures with captions, in place of models and prompts; see docs/image_sets.md. The section
    model then says whose size they are brought to, and whose VAE makes their latents. With `strength` a model draws
    from them."""
    strength: Share | None = None
    """Image to image: the share of the training timesteps that pictures are noised by, before the model draws in
    `sampler.steps` what their captions ask for; 1 leaves nothing of them."""
    control: Text | None = None
    """Folder of a ControlNet of Stable Diffusion in diffusers format: it reads the pictures, such as edges or depths,
    while the model draws from noise what their captions ask for."""
    control_scale: Positive = 1.0
    """What the ControlNet adds is multiplied by it, as diffusers' controlnet_conditioning_scale."""
    prompts: dict[str, Any] = field(default_factory=dict)
    """Prompt set name -> section with `_target_`."""
    rewards: dict[str, Any] = field(default_factory=dict)
    """Reward name -> section with `_target_`: scores that are kept with the images; none are needed."""
    prompts_per_set: Count | None = 256
    """Prompts taken of each set, the same ones every time; null takes sets whole."""
    images_per_prompt: Count = 8
    """K: of each prompt."""
    seed: CountOrZero = 0
    """Of the noise: the images are those of prdp evaluate with this seed."""
    prompt_seed: CountOrZero = 1234
    """Which prompts of a larger set are taken, and their order."""
    latents: Annotated[str, one_of(*LATENT_DTYPES)] = "float32"
    """Precision that final latents are kept in; float16 takes half the room."""
    autocast: HalfPrecision | None = None
    """Precision of the network's forward under autocast; null for none."""
    output_dir: Text = MISSING
    """The set's folder: the same one again goes on, or adds scores."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The model called 'base', which a LoRA file is applied to; dtype and device hold for every model, and so do height
    and width where the command line gives them."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """How the model draws; what a run among models says unless given. A model distilled to few steps has a sampler of
    its own."""
    samplers: dict[str, Any] = field(default_factory=dict)
    """Model name -> keys of `sampler` with other values: for a model with a sampler of its own."""
    chains: bool = False
    """Also keep the latents of every step, which prdp distill learns from; for samplers that draw no noise."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    @property
    def seeds(self) -> list[int]:
        """As an evaluation has them."""
        return [self.seed]

    @property
    def kl(self) -> bool:
        """No trajectories are measured."""
        return False


def check_generate(config: GenerateConfig) -> None:
    """Check every value alone and those that must fit together.

    Raises:
        ConfigError: all that is wrong, a line each: the key, its value and what is allowed.
    """
    wrong, problems = broken_rules(config)
    if config.strength is not None and not ("strength" in wrong or (config.pictures and config.models)):
        lacking = "models" if config.pictures else "pictures"
        problems.append(f"strength={config.strength:g}: needs {lacking}, as a model draws from pictures")
    if config.control is not None and not (config.pictures and config.models):
        lacking = "models" if config.pictures else "pictures"
        problems.append(f"control={config.control}: needs {lacking}, as a model draws by what it reads of pictures")
    if config.control is not None and config.strength is not None:
        problems.append(f"control={config.control}: must not be given beside strength={config.strength:g}")
    if config.pictures is not None:
        problems += _picture_problems(config)
    elif not config.prompts:
        problems.append("no prompts: give prompts=[...], options of conf/prompts such as shapes.train, or files")
    if not wrong.keys() & {"sampler.kind", "sampler.eta"}:
        problems += noise_problems(config.sampler)
    problems += drawing_problems(config)
    if config.pictures is not None and config.chains:
        problems.append(f"chains=true: must be false beside pictures={config.pictures}, which no chain begins with")
    for key in ("prompts", "rewards"):
        problems += name_problems(key, getattr(config, key))
    if problems:
        raise ConfigError("\n".join(problems))


def _picture_problems(config: GenerateConfig) -> list[str]:
    """Keys that pictures, or pictures which nobody draws, have no use for."""
    beside = f"beside pictures={config.pictures}"
    drawn = config.strength is not None or config.control is not None
    found = [f"prompts: must not be given {beside}, which has its own"] if config.prompts else []
    if config.models and not drawn:
        found.append(f"models: must not be given {beside}, but with strength=... or control=..., as a model draws then")
    if config.images_per_prompt != 1 and not drawn:
        found.append(f"images_per_prompt={config.images_per_prompt}: must be 1 {beside}: each has a caption of its own")
    return found
