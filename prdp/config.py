"""The schema of a run: every key, its type, its default and its bounds. YAML under `conf/` may only use these keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class ModelConfig:
    """The base model that is fine-tuned, and its frozen reference."""

    family: str = "stable_diffusion"
    """'stable_diffusion', or 'gaussian_mixtures', a world in the plane whose optimum is known."""
    path: str = "shapes"
    """'shapes' for the embedded tiny pipeline, a folder in diffusers format, or a hub id."""
    revision: str | None = None
    """Branch, tag or commit on the hub; null takes its newest."""
    variant: str | None = None
    """File variant in the folder, such as 'fp16'."""
    height: int | None = None
    """Of images, in pixels; null takes the checkpoint's. Not of Stable Diffusion 1.x and 2.x yet."""
    width: int | None = None
    """Likewise."""
    max_sequence_length: int | None = None
    """Tokens of T5, of families that have it; null takes the number of diffusers' pipeline: 256 of Stable Diffusion
    3."""
    dtype: str = "float32"
    """Precision that weights are stored in: float32, bfloat16 or float16. Weights that learn, log-probs and their
    evidence are float32 in any case."""
    device: str = "auto"
    """'auto' takes CUDA when there is one."""


@dataclass
class SamplerConfig:
    """How trajectories are drawn; the same transitions are scored by the learner."""

    kind: str = "ddim"
    """'ddim' (with eta) or 'ddpm' (ancestral posterior); for flows 'flow_sde', 'dance_sde', 'cps', 'edm_churn', or
    'euler' without noise."""
    steps: int = 50
    """T of the paper: denoising steps of each image."""
    eta: float = 1.0
    """Noise level of a step, above 0, since a step without noise has no log-prob. DDIM: as a part of the DDPM
    posterior's; flow_sde and cps: their a; dance_sde: its eta; edm_churn: its gamma."""
    guidance_scale: float = 5.0
    """Classifier-free guidance, in sampling, learning and the reference alike; up to 1 it is off, as in diffusers."""
    timestep_spacing: str | None = None
    """leading, trailing or linspace; for flows scheduler or linspace; null keeps the checkpoint's. With linspace, or
    trailing and steps that do not divide the schedule, DDIM differs from diffusers' DDIMScheduler, which there steps
    beside its list of timesteps."""
    deterministic_final_steps: int = 0
    """Number of last steps taken without noise (DDIM with eta = 0, a flow's ODE): no log-prob."""
    shift: float | None = None
    """Of a flow's noise levels: a static shift instead of the checkpoint's; null keeps it."""
    window: str = "all"
    """Which steps draw noise and are learned from: 'all' that can; a 'fixed' window of them; one 'sliding' over the
    epochs; or one drawn at 'random' for every prompt and epoch. The others are taken without noise."""
    window_size: int = 2
    """Steps of the window."""
    window_start: int = 0
    """First step of the window; of sliding and random ones the lowest."""
    window_end: int | None = None
    """Step that sliding and random windows end before; null: the last that can draw noise."""
    window_every: int = 1
    """Epochs after which a sliding window moves on by one step."""
    trained_share: float = 1.0
    """Share of the steps with noise that are stored and learned from, drawn for every prompt and epoch."""
    shared_start_noise: bool = False
    """One start noise for all images of a prompt, which then differ by the noise of the steps alone."""
    microbatch: int = 64
    """Images per network call; changes speed and memory, not results beyond rounding."""
    prompts_per_chunk: int = 4
    """Whole prompt groups per unit of work; the unit that actors share out."""


@dataclass
class LearnerConfig:
    """Which weights learn, and how."""

    framework: str = "torch"
    """'torch', or 'jax' for Stable Diffusion 1.x and 2.x; same numbers, interchangeable checkpoints."""
    mode: str = "lora"
    """'lora': adapters on the UNet; 'full': all its weights."""
    lora_rank: int = 16
    """Inner dimension of each adapter."""
    lora_alpha: float = 16.0
    """An adapter's output is scaled by lora_alpha / lora_rank."""
    lora_targets: list[str] = field(default_factory=lambda: ["to_q", "to_k", "to_v", "to_out.0"])
    """Layers of the UNet that get adapters, by the ends of their names."""
    learning_rate: float = 3e-4
    """Of AdamW, after the warm-up."""
    warmup_updates: int = 0
    """Updates over which the learning rate rises linearly from 0."""
    adam_beta1: float = 0.9
    """Decay of AdamW's mean of gradients."""
    adam_beta2: float = 0.999
    """Decay of AdamW's mean of squared gradients."""
    adam_epsilon: float = 1e-8
    """Added to AdamW's denominator."""
    weight_decay: float = 1e-4
    """AdamW's, decoupled from the gradient."""
    max_grad_norm: float = 1.0
    """Gradients of a larger norm are scaled down to it; .inf clips none."""
    ema_decay: float = 0.0
    """0 keeps no moving average; otherwise evaluation and export use the averaged weights."""
    autocast: str | None = None
    """bfloat16 or float16 for the network's pass with gradient and for pictures of evaluations; null for that of
    model.dtype. Trajectories and other passes without gradient are float32."""
    microbatch: int = 64
    """(image, step) cells per network call; changes speed and memory, not results beyond rounding."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more time."""
    ratio_tolerance: float = 1e-4
    """Largest allowed |stored - recomputed| log-ratio at the first update after an on-policy rollout."""


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
class EvaluationConfig:
    """Held-out prompts judge the run: the same prompts and the same noise every time."""

    every: int = 10
    """Epochs between evaluations; the first and the last always happen. 0 for only these two."""
    prompts: int = 64
    """Held-out prompts of an evaluation between the first and the last."""
    images_per_prompt: int = 2
    """Images of each held-out prompt; diversity needs at least 2."""
    final_prompts: int = 256
    """Prompts of the first and the last evaluation, which the report's intervals come from."""
    grid_prompts: int = 12
    """Prompts in the report's grid of pictures."""
    seed: int = 1234
    """Of the noise, and of which held-out prompts are taken."""


@dataclass
class ClusterConfig:
    """Where the work runs."""

    kind: str = "inline"
    """'inline': one process; 'ray': actors."""
    samplers: int = 2
    """Actors that sample."""
    reward_actors: int = 1
    """Actors that score."""
    threads: int = 1
    """CPU threads of every actor and of the learner; set before torch is imported. 0: plan from the cores."""
    address: str = "local"
    """Ray address; 'local' starts a private cluster, 'auto' joins a running one."""
    sampler_gpus: float = 0.0
    """GPUs of each sampler; a fraction shares one."""
    reward_gpus: float = 0.0
    """GPUs of each reward actor; 0 hides them from it."""
    learner_gpus: float = 0.0
    """GPUs of this process's node that Ray keeps free for the learner; 0 claims none."""
    sampler_resources: dict[str, float] = field(default_factory=dict)
    """Further resources of Ray's that each sampler claims, such as a node type: {"a100_node": 0.01}."""
    reward_resources: dict[str, float] = field(default_factory=dict)
    """Likewise of each reward actor."""
    placement: str = "pack"
    """'pack' the actors on few nodes, or 'spread' them over many."""
    autoscaling: bool = False
    """Whether the cluster adds nodes for what it cannot hold."""
    start_timeout_seconds: float = 900.0
    """How long all actors may take to start."""
    host: str = "127.0.0.1"
    """Address that Ray's ports and dashboard bind to."""
    dashboard: bool = False
    """Start Ray's dashboard with a private cluster; needs the dashboard extra."""
    max_staleness: int = 0
    """Epochs by which sampling runs ahead of learning: 0 takes turns; 1 or 2 overlap, under weights that much older."""
    retries: int = 9
    """Deaths borne in a row beyond the first, of one actor or on one chunk, before the run stops."""
    reward_retries: int = 3
    """How often a reward that raised is asked again, with growing pauses."""
    sample_timeout_seconds: float | None = None
    """How long a sampler may take for one chunk, or for binding weights, before it counts as hung and is replaced;
    null: 10 times the longest of the earlier ones, by images, and at least 60 s; 0: no limit."""
    reward_timeout_seconds: float | None = None
    """How long a reward actor may score one chunk; null and 0 as for sample_timeout_seconds."""
    weight_transport: str = "object_store"
    """How weights get to the samplers: 'object_store', or straight from the learner by 'gloo' (CPU) or 'nccl' (GPU)."""
    weight_timeout_seconds: float = 120.0
    """How long a sampler may take no weights that are sent straight to it before it counts as hung and is replaced."""
    reward_environment: str | None = None
    """Own environment of the reward actors: a requirements file, a virtual environment or a Python interpreter."""


@dataclass
class TrackingConfig:
    """Who watches; the JSONL log is always written."""

    console: bool = True
    """Progress on the terminal."""
    tensorboard: bool = False
    """Events for TensorBoard in the run's folder; needs the tensorboard extra."""
    wandb: str = "disabled"
    """disabled, offline, online, or auto: online when a key is there, else offline. WANDB_MODE wins over the last
    three."""
    wandb_project: str | None = None
    """null takes WANDB_PROJECT, else 'prdp'."""
    wandb_entity: str | None = None
    """User or team; null takes WANDB_ENTITY, else the account's default."""
    wandb_group: str | None = None
    """Name shared by runs that belong together; null takes WANDB_RUN_GROUP, else the name of the sweep."""
    report: bool = True
    """Write report.html at the end."""


@dataclass
class CheckpointConfig:
    """Atomic checkpoints, and what to resume from."""

    every: int = 10
    """Epochs between checkpoints; the last epoch always has one."""
    keep: int = 2
    """How many of the newest stay."""
    resume: str = "never"
    """never, auto (newest whole checkpoint in output_dir, or in the mirror), or the path of a checkpoint."""
    mirror: str | None = None
    """URL that each checkpoint is copied to, such as s3://bucket/run or file:///shared/run; of this run alone."""


@dataclass
class TrainConfig:
    """One run of `prdp train`. N, B and K are global: microbatches, chunks, actors and devices never change results."""

    seed: int = 0
    """Prompts, noise and fresh weights all follow from it."""
    epochs: int = 100
    """E of the paper: rounds of sampling, scoring and learning."""
    prompts_per_epoch: int = 64
    """N of the paper."""
    images_per_prompt: int = 8
    """B of the paper; all pairs within a prompt's group are compared."""
    updates_per_epoch: int = 1
    """K of the paper: gradient updates on the full batch of N * B images."""
    rollout_policy: str = "current"
    """Who samples what is learned from: `current`, the policy being trained, or `reference`, its frozen start: offline
    training."""
    output_dir: str = MISSING
    """The run's folder: give it to name the folder, or to resume in it."""
    model: ModelConfig = field(default_factory=ModelConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    reward: dict[str, Any] = MISSING
    """What is optimised: `_target_` and its arguments."""
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    objective: dict[str, Any] = field(default_factory=lambda: {"name": "prdp"})
    """A name of prdp/objectives, and the knobs of that objective and of its evidence, as conf/objective/ lists them."""
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
