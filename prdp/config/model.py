"""The sections `model` and `sampler`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from prdp.config.choices import (
    ATTENTION_BACKENDS,
    COMPILERS,
    DEVICE,
    DIFFUSION_KINDS,
    FAMILY,
    FLOW_KINDS,
    MODEL,
    QUANTIZATIONS,
    SPACINGS,
    WINDOWS,
    Finite,
    Precision,
)
from prdp.support.rules import AnyText, Count, CountOrZero, NotNegative, Positive, Share, Text, one_of


@dataclass
class ModelConfig:
    """The base model that is fine-tuned, and its frozen reference."""

    family: Annotated[str, FAMILY] = "stable_diffusion"
    """'stable_diffusion' for 1.x and 2.x, 'stable_diffusion_xl', 'stable_diffusion_3' for 3 and 3.5, 'flux' for FLUX.1,
    'z_image', 'gaussian_mixtures' for a world in the plane whose optimum is known, or a policy class of one's own."""
    path: Annotated[str, MODEL] = "shapes"
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
    offload_vae: bool = False
    """Keep the VAE on the host, and on the device only while it makes pictures, or latents of them."""
    vae_slicing: bool = False
    """Let the VAE take one picture at a time: less memory for large pictures, and the same pictures."""
    vae_tiling: bool = False
    """Let the VAE take a picture larger than its own size in overlapping tiles, as diffusers does: less memory, and
    pictures that differ a little at the seams."""
    attention_backend: Annotated[str, one_of(*ATTENTION_BACKENDS)] | None = None
    """By which the network computes its attention, a name of diffusers; null for torch's own choice. Of FLUX.1 and
    Z-Image: in diffusers the other networks take none."""
    compile: Annotated[str, one_of(*COMPILERS)] | None = None
    """By which torch.compile makes programs of the blocks that the network repeats, in sampling and learning alike:
    'inductor'; 'aot_eager' traces them alone, to find faults. null computes them as they are."""
    dtype: Precision = "float32"
    """Precision that weights are stored in. Weights that learn, log-probs and their evidence are float32 in any
    case."""
    quantization: Annotated[str, one_of(*QUANTIZATIONS)] | None = None
    """Bits that a frozen network under LoRA keeps the linear layers of its blocks in: 'int8', or 'nf4', 4 bits as in
    QLoRA, of bitsandbytes; null for none. They are widened to model.dtype while a layer computes."""
    deterministic: bool = False
    """Have a GPU repeat its bits: a run again, or one that resumes, is then the same run to the bit, as it is on a CPU
    in any case. Backward passes may take longer."""
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
    negative_prompt: AnyText | None = None
    """What the branch without prompt of guidance is given instead of the empty prompt, in sampling, learning and the
    reference alike; null for the empty prompt, or for zeros where Stable Diffusion XL says so."""
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
    """Images per network call; changes speed and memory, not results beyond rounding. It is halved where memory runs
    out."""
    prompts_per_chunk: Count = 4
    """Whole prompt groups per unit of work; the unit that actors share out."""
