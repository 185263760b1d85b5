"""Names that options may have, and rules that several sections share."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from prdp.support.rules import FILLED, Rule, one_of

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
EVIDENCE_PRECISIONS = ("float32", "tf32", "half")
"""Of passes whose numbers become coefficients; 'half' is the precision of the pass with gradient."""
DIFFUSION_KINDS = ("ddim", "ddpm", "consistency")
"""Samplers of variance-preserving models."""
FLOW_KINDS = ("flow_sde", "dance_sde", "cps", "edm_churn", "euler")
"""Samplers of rectified flows."""
DIFFUSION_SPACINGS = ("leading", "trailing", "linspace")
FLOW_SPACINGS = ("scheduler", "linspace")
SPACINGS = tuple(dict.fromkeys((*DIFFUSION_SPACINGS, *FLOW_SPACINGS)))
WINDOWS = ("all", "fixed", "sliding", "random")
COMPILERS = ("inductor", "aot_eager")
ATTENTION_BACKENDS = ("native", "_native_efficient", "_native_math", "flex", "xformers")
"""Of diffusers, those that compute in float32, as log-ratios want, and have a gradient."""
QUANTIZATIONS = ("int8", "nf4")
FRAMEWORKS = ("torch", "jax")
OPTIMIZERS = ("adamw", "adamw_fused", "adamw_8bit", "prodigy", "muon")
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
FAMILY = Rule(
    lambda value: value in FAMILIES or "." in value,
    f"one of {', '.join(FAMILIES)}, or the dotted path of a policy class",
    tuple(FAMILIES),
)
MODEL = Rule(FILLED.allows, "'shapes', a folder in diffusers format, a hub id, or a .safetensors file")
DEVICE = Rule(
    lambda value: bool(re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value)), "auto, cpu, mps, cuda or cuda:<number>"
)
Finite = Annotated[float, Rule(math.isfinite, "a finite number")]
FOLDERS = Rule(
    lambda value: (
        value is None
        or (isinstance(value, str) and bool(value.strip()))
        or (isinstance(value, list) and bool(value) and all(isinstance(one, str) and one.strip() for one in value))
    ),
    "a folder, a list of folders, or null",
)
MODULES = Rule(lambda value: bool(value) and all(value), "a list of at least one module name")
