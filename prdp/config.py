"""The schema of a run: every key, its type, its bound, its default and its meaning, in this place alone.

YAML under `conf/` may only use these keys. What they are checked against, and what `prdp train --help` shows, is read
from here.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Annotated, Any

from prdp.support.rules import (
    FILLED,
    AnyText,
    Count,
    CountOrZero,
    Fraction,
    NotNegative,
    Positive,
    PositiveOrInfinite,
    Rule,
    Share,
    Text,
    one_of,
)

MISSING: Any = "???"
"""OmegaConf's mark of a key that must be given; not imported, as environments of reward actors may lack OmegaConf."""
FAMILIES = {
    "stable_diffusion": "prdp.diffusion.stable_diffusion.StableDiffusionPolicy",
    "stable_diffusion_xl": "prdp.diffusion.stable_diffusion_xl.StableDiffusionXLPolicy",
    "stable_diffusion_3": "prdp.diffusion.stable_diffusion_3.StableDiffusion3Policy",
    "flux": "prdp.diffusion.flux.FluxPolicy",
    "z_image": "prdp.diffusion.z_image.ZImagePolicy",
    "gaussian_mixtures": "prdp.worlds.mixtures.policy.GaussianMixturesPolicy",
}
"""Name -> dotted path of the policy class."""
PRECISIONS = ("float32", "bfloat16", "float16")
DIFFUSION_KINDS = ("ddim", "ddpm", "consistency")
"""Samplers of variance-preserving models."""
FLOW_KINDS = ("flow_sde", "dance_sde", "cps", "edm_churn", "euler")
"""Samplers of rectified flows."""
DIFFUSION_SPACINGS = ("leading", "trailing", "linspace")
FLOW_SPACINGS = ("scheduler", "linspace")
SPACINGS = tuple(dict.fromkeys((*DIFFUSION_SPACINGS, *FLOW_SPACINGS)))
WINDOWS = ("all", "fixed", "sliding", "random")
FRAMEWORKS = ("torch", "jax")
DIRECT_TRANSPORTS = ("gloo", "nccl")
"""Backends of torch.distributed by which weights go from the learner to the samplers."""
CLUSTER_KINDS = ("inline", "ray")
WANDB_MODES = ("disabled", "offline", "online", "auto")

Precision = Annotated[str, one_of(*PRECISIONS)]
HalfPrecision = Annotated[str, one_of(*PRECISIONS[1:])]
Amounts = Annotated[
    dict[str, float],
    Rule(lambda value: all(name.strip() and amount > 0 for name, amount in value.items()), "amounts above 0 by name"),
]
_FAMILY = Rule(
    lambda value: value in FAMILIES or "." in value,
    f"one of {', '.join(FAMILIES)}, or the dotted path of a policy class",
    tuple(FAMILIES),
)
_MODEL = Rule(FILLED.allows, "'shapes', a folder in diffusers format, a hub id, or a .safetensors file")
DEVICE = Rule(
    lambda value: bool(re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value)), "auto, cpu, mps, cuda or cuda:<number>"
)
Finite = Annotated[float, Rule(math.isfinite, "a finite number")]
_FOLDERS = Rule(
    lambda value: (
        value is None
        or (isinstance(value, str) and bool(value.strip()))
        or (isinstance(value, list) and bool(value) and all(isinstance(one, str) and one.strip() for one in value))
    ),
    "a folder, a list of folders, or null",
)
_MODULES = Rule(lambda value: bool(value) and all(value), "a list of at least one module name")


@dataclass
class ModelConfig:
    """The base model that is fine-tuned, and its frozen reference."""

    family: Annotated[str, _FAMILY] = "stable_diffusion"
    """'stable_diffusion' for 1.x and 2.x, 'stable_diffusion_xl', 'stable_diffusion_3' for 3 and 3.5, 'flux' for FLUX.1,
    'z_image', 'gaussian_mixtures' for a world in the plane whose optimum is known, or a policy class of one's own."""
    path: Annotated[str, _MODEL] = "shapes"
    """'shapes' for the embedded tiny pipeline, a folder in diffusers format, a hub id, or a checkpoint of Stable
    Diffusion 1.x, 2.x or XL in one .safetensors file, for which model.config is given."""
    config: Text | None = None
    """For a checkpoint in one file: a folder in diffusers format, or a hub id, of a model of the same architecture,
    whose configurations, scheduler and tokenizers are taken. Weights in it are not."""
    revision: AnyText | None = None
    """Branch, tag or commit on the hub; null takes its newest."""
    variant: AnyText | None = None
    """File variant in the folder, such as 'fp16'."""
    adapters: list[Text] = field(default_factory=list)
    """LoRAs that the start consists of: frozen, and active in the policy and its reference alike. Each a .safetensors
    file, or a folder, of diffusers, PEFT or kohya. With learner.mode=full they are added to the weights."""
    adapter_weights: list[Finite] = field(default_factory=list)
    """By which the outputs of model.adapters are scaled, one for each, as in diffusers' set_adapters; none for 1."""
    height: Count | None = None
    """Of images, in pixels; null takes the checkpoint's."""
    width: Count | None = None
    """Likewise."""
    max_sequence_length: Count | None = None
    """Tokens of a prompt for T5, or Qwen3 of Z-Image; null takes the number of diffusers' pipeline: 256 of Stable
    Diffusion 3, 512 of FLUX.1 and Z-Image."""
    cached_prompts: CountOrZero = 0
    """How many prompts' text states a sampler keeps on the host, for prompts that come again; each is then encoded
    alone. 0 keeps none."""
    offload_encoders: bool = False
    """Keep text encoders on the host, and on the device only while they encode: for T5 beside a large network."""
    dtype: Precision = "float32"
    """Precision that weights are stored in. Weights that learn, log-probs and their evidence are float32 in any
    case."""
    device: Annotated[str, DEVICE] = "auto"
    """'auto' takes CUDA when there is one."""


@dataclass
class SamplerConfig:
    """How trajectories are drawn; the same transitions are scored by the learner."""

    kind: Annotated[str, one_of(*DIFFUSION_KINDS, *FLOW_KINDS)] = "ddim"
    """'ddim' (with eta), 'ddpm' (ancestral posterior), or 'consistency' for models distilled to few steps; for flows
    'flow_sde', 'dance_sde', 'cps', 'edm_churn', or 'euler', which draws no noise: for objectives on denoising errors
    and for evaluations."""
    steps: Count = 50
    """T of the paper: denoising steps of each image."""
    eta: NotNegative = 1.0
    """Noise level of a step. DDIM: as a part of the DDPM posterior's, up to 1, and 0 for no noise; flow_sde: its a;
    cps: its a, up to 1; dance_sde: its eta; edm_churn: its gamma. A step without noise has no log-prob, so that only
    objectives on denoising errors learn without."""
    guidance_scale: NotNegative = 5.0
    """Classifier-free guidance, in sampling, learning and the reference alike; up to 1 it is off, as in diffusers."""
    timestep_spacing: Annotated[str, one_of(*SPACINGS)] | None = None
    """Of flows only scheduler and linspace; null keeps the checkpoint's. With linspace, or trailing and steps that do
    not divide the schedule, DDIM differs from diffusers' DDIMScheduler, which there steps beside its list of
    timesteps."""
    original_inference_steps: Count | None = None
    """Of 'consistency': steps of the schedule that a model was distilled on, of which its timesteps are taken, as
    diffusers' LCMScheduler does; null takes the checkpoint's, else 50."""
    deterministic_final_steps: CountOrZero = 0
    """Number of last steps taken without noise (DDIM with eta = 0, a flow's ODE): no log-prob."""
    shift: Positive | None = None
    """Of a flow's noise levels: a static shift instead of the checkpoint's; null keeps it. Of flows alone."""
    window: Annotated[str, one_of(*WINDOWS)] = "all"
    """Which steps draw noise and are learned from: 'all' that can; a 'fixed' window of them; one 'sliding' over the
    epochs; or one drawn at 'random' for every prompt and epoch. The others are taken without noise."""
    window_size: Count = 2
    """Steps of the window."""
    window_start: CountOrZero = 0
    """First step of the window; of sliding and random ones the lowest."""
    window_end: Count | None = None
    """Step that sliding and random windows end before; null: the last that can draw noise."""
    window_every: Count = 1
    """Epochs after which a sliding window moves on by one step."""
    trained_share: Share = 1.0
    """Share of the steps with noise that are stored and learned from, drawn for every prompt and epoch."""
    shared_start_noise: bool = False
    """One start noise for all images of a prompt that are learned from, which then differ by the noise of the steps
    alone. Evaluations draw one for each image."""
    start_churn: NotNegative = 0.0
    """gamma of each image's own part in the start noise that images of a prompt share, x_T = C x + sqrt(1 - C^2) n with
    C = 1 / (1 + gamma); 0: none."""
    microbatch: Count = 64
    """Images per network call; changes speed and memory, not results beyond rounding."""
    prompts_per_chunk: Count = 4
    """Whole prompt groups per unit of work; the unit that actors share out."""


@dataclass
class LearnerConfig:
    """Which weights learn, and how."""

    framework: Annotated[str, one_of(*FRAMEWORKS)] = "torch"
    """'torch', or 'jax' for Stable Diffusion 1.x and 2.x; same numbers, interchangeable checkpoints."""
    mode: Annotated[str, one_of("lora", "full")] = "lora"
    """'lora': adapters on the UNet; 'full': all its weights."""
    lora_rank: Count = 16
    """Inner dimension of each adapter."""
    lora_alpha: Positive = 16.0
    """An adapter's output is scaled by lora_alpha / lora_rank."""
    lora_targets: Annotated[list[str], _MODULES] = field(default_factory=lambda: ["to_q", "to_k", "to_v", "to_out.0"])
    """Layers of the UNet that get adapters, by the ends of their names."""
    init_adapter: Text | None = None
    """A LoRA to go on training, like one of model.adapters; null for a new one. lora_rank, lora_alpha and lora_targets
    have to be its own. The reference has a frozen copy of it."""
    learning_rate: Positive = 3e-4
    """Of AdamW, after the warm-up."""
    warmup_updates: CountOrZero = 0
    """Updates over which the learning rate rises linearly from 0."""
    schedule: Annotated[str, one_of("constant", "linear", "cosine")] = "constant"
    """Of the learning rate after the warm-up; those that decay reach 0."""
    decay_updates: Count | None = None
    """Update at which a decaying rate is 0; null for the end of the run, whose length a resume then has to keep."""
    adam_beta1: Fraction = 0.9
    """Decay of AdamW's mean of gradients."""
    adam_beta2: Fraction = 0.999
    """Decay of AdamW's mean of squared gradients."""
    adam_epsilon: Positive = 1e-8
    """Added to AdamW's denominator."""
    weight_decay: NotNegative = 1e-4
    """AdamW's, decoupled from the gradient."""
    max_grad_norm: PositiveOrInfinite = 1.0
    """Gradients of a larger norm are scaled down to it; inf, written .inf in a file, clips none."""
    ema_decay: Fraction = 0.0
    """0 keeps no moving average; otherwise evaluation and export use the averaged weights."""
    autocast: HalfPrecision | None = None
    """Precision of the network's pass with gradient and of pictures of evaluations; null for that of model.dtype.
    Trajectories and other passes without gradient are float32."""
    microbatch: Count = 64
    """(image, step) cells per network call; changes speed and memory, not results beyond rounding."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more time."""
    ratio_tolerance: PositiveOrInfinite = 1e-4
    """Largest allowed |stored - recomputed| log-ratio, or score of fdfo, at the first update after an on-policy
    rollout."""


@dataclass
class PromptsConfig:
    """Two prompt sources: one to train on, one that is never trained on."""

    train: dict[str, Any] = MISSING
    """The source to train on: `_target_` and its arguments."""
    heldout: dict[str, Any] = MISSING
    """The source to judge on, likewise."""
    heldout_may_overlap: bool = False
    """True for a run that is to be judged on its training prompts: a start refuses it otherwise."""
    shuffle: bool = True
    """A new order of the training prompts on every pass; false keeps the source's."""


@dataclass
class RolloutsConfig:
    """Where the images come from that are learned from: a sampler, or sets that prdp generate has made."""

    source: Annotated[str, one_of("sample", "stored")] = "sample"
    """'sample': drawn in every epoch; 'stored': read from the sets of rollouts.path, with their prompts in place of
    prompts.train. Evaluations sample in any case."""
    path: Annotated[Any, _FOLDERS] = None
    """Folder of a set, or a list of folders whose prompts are put together."""
    skill: AnyText | None = None
    """Only prompts of this skill: `skill` in their metadata, else the name that their prompt set has in the set of
    images; null takes all."""
    encode: bool = False
    """Compute latents from the stored images by the trained model's VAE: for sets of a model with another VAE or of
    another size, whose images are then scaled to cover the model's size and cut around the middle."""

    @property
    def folders(self) -> tuple[str, ...]:
        """Those of `path`."""
        return () if self.path is None else (self.path,) if isinstance(self.path, str) else tuple(self.path)


@dataclass
class EvaluationConfig:
    """Held-out prompts judge the run: the same prompts and the same noise every time."""

    every: CountOrZero = 10
    """Epochs between evaluations; the first and the last always happen. 0 for only these two."""
    prompts: Count = 64
    """Held-out prompts of an evaluation between the first and the last."""
    images_per_prompt: Count = 2
    """Images of each held-out prompt; diversity needs at least 2."""
    final_prompts: Count = 256
    """Prompts of the first and the last evaluation, which the report's intervals come from."""
    grid_prompts: Count = 12
    """Prompts in the report's grid of pictures."""
    seed: CountOrZero = 1234
    """Of the noise, and of which held-out prompts are taken."""


@dataclass
class ClusterConfig:
    """Where the work runs."""

    kind: Annotated[str, one_of(*CLUSTER_KINDS)] = "inline"
    """'inline': one process; 'ray': actors."""
    samplers: Count = 2
    """Actors that sample."""
    reward_actors: Count = 1
    """Actors that score."""
    threads: CountOrZero = 1
    """CPU threads of every actor and of the learner; set before torch is imported. 0: plan from the cores."""
    address: Text = "local"
    """Ray address; 'local' starts a private cluster, 'auto' joins a running one."""
    sampler_gpus: NotNegative = 0.0
    """GPUs of each sampler; a fraction shares one."""
    reward_gpus: NotNegative = 0.0
    """GPUs of each reward actor; 0 hides them from it."""
    learners: Count = 1
    """Processes that learn together, this one included; the update is that of one."""
    learner_gpus: NotNegative = 0.0
    """GPUs of each of them that Ray keeps free, for this process on its own node; 0 claims none."""
    learner_timeout_seconds: NotNegative | None = None
    """How long a process that learns may take for its share of a pass before it counts as hung and is replaced; null:
    10 times the longest of the earlier ones, by cells, and at least 60 s; 0: no limit."""
    sampler_resources: Amounts = field(default_factory=dict)
    """Further resources of Ray's that each sampler claims, such as a node type: {"a100_node": 0.01}."""
    reward_resources: Amounts = field(default_factory=dict)
    """Likewise of each reward actor."""
    placement: Annotated[str, one_of("pack", "spread")] = "pack"
    """'pack' the actors on few nodes, or 'spread' them over many."""
    autoscaling: bool = False
    """Whether the cluster adds nodes for what it cannot hold."""
    start_timeout_seconds: Positive = 900.0
    """How long all actors may take to start."""
    host: Text = "127.0.0.1"
    """Address that Ray's ports and dashboard bind to."""
    dashboard: bool = False
    """Start Ray's dashboard with a private cluster; needs the dashboard extra."""
    max_staleness: CountOrZero = 0
    """Epochs by which sampling runs ahead of learning: 0 takes turns; 1 or 2 overlap, under weights that much older."""
    retries: CountOrZero = 9
    """Deaths borne in a row beyond the first, of one actor or on one chunk, before the run stops."""
    reward_retries: CountOrZero = 3
    """How often a reward that raised is asked again, with growing pauses."""
    sample_timeout_seconds: NotNegative | None = None
    """How long a sampler may take for one chunk, or for binding weights, before it counts as hung and is replaced;
    null: 10 times the longest of the earlier ones, by images, and at least 60 s; 0: no limit."""
    reward_timeout_seconds: NotNegative | None = None
    """How long a reward actor may score one chunk; null and 0 as for sample_timeout_seconds."""
    weight_transport: Annotated[str, one_of("object_store", *DIRECT_TRANSPORTS)] = "object_store"
    """How weights get to the samplers: 'object_store', or straight from the learner by 'gloo' (CPU) or 'nccl' (GPU)."""
    weight_timeout_seconds: Positive = 120.0
    """How long a sampler may take no weights that are sent straight to it before it counts as hung and is replaced."""
    reward_environment: Text | None = None
    """Own environment of the reward actors: a requirements file, a virtual environment or a Python interpreter."""


@dataclass
class TrackingConfig:
    """Who watches; the JSONL log is always written."""

    console: bool = True
    """Progress on the terminal."""
    tensorboard: bool = False
    """Events for TensorBoard in the run's folder; needs the tensorboard extra."""
    wandb: Annotated[str, one_of(*WANDB_MODES)] = "disabled"
    """disabled, offline, online, or auto: online when a key is there, else offline. WANDB_MODE wins over the last
    three."""
    wandb_project: Text | None = None
    """null takes WANDB_PROJECT, else 'prdp'."""
    wandb_entity: AnyText | None = None
    """User or team; null takes WANDB_ENTITY, else the account's default."""
    wandb_group: AnyText | None = None
    """Name shared by runs that belong together; null takes WANDB_RUN_GROUP, else the name of the sweep."""
    report: bool = True
    """Write report.html at the end."""


@dataclass
class CheckpointConfig:
    """Atomic checkpoints, and what to resume from."""

    every: Count = 10
    """Epochs between checkpoints; the last epoch always has one."""
    keep: Count = 2
    """How many of the newest stay."""
    keep_best: Text | None = None
    """A metric of evaluations, eval/score or eval/<sub-score>: the checkpoint with the largest stays as well."""
    resume: Text = "never"
    """never, auto (newest whole checkpoint in output_dir, or in the mirror), or the path of a checkpoint."""
    mirror: Text | None = None
    """URL that each checkpoint is copied to, such as s3://bucket/run or file:///shared/run; of this run alone."""
    change: list[Text] = field(default_factory=list)
    """Keys of learner and objective that a resumed run may have other values of, such as [learner.learning_rate]: the
    curve goes on from there as another one."""


@dataclass
class TrainConfig:
    """One run of `prdp train`. N, B and K are global: microbatches, chunks, actors and devices never change results."""

    seed: CountOrZero = 0
    """Prompts, noise and fresh weights all follow from it."""
    epochs: Count = 100
    """E of the paper: rounds of sampling, scoring and learning."""
    prompts_per_epoch: Count = 64
    """N of the paper."""
    images_per_prompt: Count = 8
    """B of the paper; all pairs within a prompt's group are compared."""
    updates_per_epoch: Count = 1
    """K of the paper: gradient updates on the full batch of N * B images."""
    rollout_policy: Annotated[str, one_of("current", "reference")] = "current"
    """Who samples what is learned from: `current`, the policy being trained, or `reference`, its frozen start: offline
    training."""
    output_dir: Text = MISSING
    """The run's folder: give it to name the folder, or to resume in it."""
    model: ModelConfig = field(default_factory=ModelConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    reward: dict[str, Any] = MISSING
    """What is optimised: `_target_` and its arguments."""
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    rollouts: RolloutsConfig = field(default_factory=RolloutsConfig)
    objective: dict[str, Any] = field(default_factory=lambda: {"name": "prdp"})
    """A name of prdp/objectives, and the knobs of that objective and of its evidence, as conf/objective/ lists them."""
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
