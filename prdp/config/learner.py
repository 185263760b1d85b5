"""The section `learner`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from prdp.config.choices import EVIDENCE_PRECISIONS, FRAMEWORKS, MODULES, OPTIMIZERS, HalfPrecision
from prdp.support.rules import Count, CountOrZero, Fraction, NotNegative, Positive, PositiveOrInfinite, Text, one_of


@dataclass
class LearnerConfig:
    """Which weights learn, and how."""

    framework: Annotated[str, one_of(*FRAMEWORKS)] = "torch"
    """'torch', or 'jax' for Stable Diffusion 1.x and 2.x; same numbers, interchangeable checkpoints."""
    jax_data: Count = 1
    """Devices of this process among which JAX divides the rows of a microbatch, each with the whole network, or its
    part of it by jax_fsdp."""
    jax_fsdp: Count = 1
    """Devices of this process that hold the network, moments and averages of JAX together, a part each; they divide
    the rows, too. jax_data groups of them."""
    mode: Annotated[str, one_of("lora", "full")] = "lora"
    """'lora': adapters on the UNet; 'full': all its weights."""
    lora_rank: Count = 16
    """Inner dimension of each adapter."""
    lora_alpha: Positive = 16.0
    """An adapter's output is scaled by lora_alpha / lora_rank."""
    lora_targets: Annotated[list[str], MODULES] = field(default_factory=lambda: ["to_q", "to_k", "to_v", "to_out.0"])
    """Layers of the UNet that get adapters, by the ends of their names."""
    text_encoders: bool = False
    """Whether the CLIP text encoders get adapters too, of lora_rank and lora_alpha, which learn with the network's; of
    Stable Diffusion 1.x, 2.x, XL and 3."""
    text_encoder_targets: Annotated[list[str], MODULES] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "out_proj"]
    )
    """Layers of text encoders that get adapters, by the ends of their names."""
    text_encoder_learning_rate: Positive | None = None
    """Of the adapters of text encoders, which rises and decays like learning_rate; null for the same."""
    init_adapter: Text | None = None
    """A LoRA to go on training, like one of model.adapters; null for a new one. lora_rank, lora_alpha and lora_targets
    have to be its own. The reference has a frozen copy of it."""
    optimizer: Annotated[str, one_of(*OPTIMIZERS)] = "adamw"
    """'adamw'; 'adamw_fused', in torch's one kernel; 'adamw_8bit', whose moments have 8 bits, of bitsandbytes;
    'prodigy', which finds its step size, of prodigyopt; or 'muon' for LoRAs of linear layers. Of JAX 'adamw' alone."""
    learning_rate: Positive = 3e-4
    """Of the optimizer, after the warm-up. Of 'prodigy' a factor of the step size that it finds: 1."""
    warmup_updates: CountOrZero = 0
    """Updates over which the learning rate rises linearly from 0."""
    schedule: Annotated[str, one_of("constant", "linear", "cosine")] = "constant"
    """Of the learning rate after the warm-up; those that decay reach 0."""
    decay_updates: Count | None = None
    """Update at which a decaying rate is 0; null for the end of the run, whose length a resume then has to keep."""
    adam_beta1: Fraction = 0.9
    """Decay of the mean of gradients; of 'muon' its momentum, where .95 is usual."""
    adam_beta2: Fraction = 0.999
    """Decay of the mean of squared gradients; 'muon' has none."""
    adam_epsilon: Positive = 1e-8
    """Added to the root of that mean; 'muon' has none."""
    weight_decay: NotNegative = 1e-4
    """Decoupled from the gradient, as AdamW's."""
    max_grad_norm: PositiveOrInfinite = 1.0
    """Gradients of a larger norm are scaled down to it; inf, written .inf in a file, clips none."""
    ema_decay: Fraction = 0.0
    """0 keeps no moving average; otherwise evaluation and export use the averaged weights."""
    autocast: HalfPrecision | None = None
    """Precision of the network's pass with gradient and of pictures of evaluations; null for that of model.dtype.
    Trajectories and other passes without gradient are of evidence_precision."""
    evidence_precision: Annotated[str, one_of(*EVIDENCE_PRECISIONS)] = "float32"
    """Of trajectories and other passes without gradient. 'tf32': on GPUs, products and convolutions keep 10 bits of
    their factors; else as float32. 'half': that of the pass with gradient, for evidence of denoising errors, of which
    it saves passes, too. What this does to the coefficients is measured and logged, see docs/precision.md."""
    microbatch: Count = 64
    """(image, step) cells per network call; changes speed and memory, not results beyond rounding. It is halved where
    memory runs out."""
    least_coefficient: Fraction = 0.0
    """Cells whose coefficient is at most this share of the largest take no pass with gradient; 0 leaves out those that
    have none, which changes nothing. The best and the worst images of a group carry most of the gradient. What is lost
    is logged as coefficients_left_out, the share of the sum of absolute coefficients. No effect where coefficients are
    found in the pass with gradient, which is where a microbatch holds a group."""
    kept_outputs_gib: NotNegative = 2.0
    """Memory on the host of each process that learns for outputs of other policies, such as the reference's, that the
    pass with gradient takes again on denoising errors; what is beyond is computed again. Changes speed alone. No effect
    in half precision, and on a network that is held together (cluster.fsdp_size)."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more time."""
    ratio_tolerance: PositiveOrInfinite = 1e-4
    """Largest allowed |stored - recomputed| log-ratio, or score of fdfo, at the first update after an on-policy
    rollout."""
