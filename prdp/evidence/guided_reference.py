"""Denoising evidence with a KL to the reference as guidance makes it, which CRD is anchored by."""

from __future__ import annotations

from dataclasses import dataclass

from prdp.evidence.base import Of
from prdp.evidence.denoising import Denoising
from prdp.support.rules import NotNegative


@dataclass(frozen=True)
class GuidedReference(Denoising):
    """As `Denoising`, but kl_ref is relative to the reference under a guidance of its own.

    A policy that samples without guidance is then held near what its start makes with guidance.

    Attributes:
        kl_guidance: guidance scale of the reference in kl_ref; None for the sampler's.

    References:
        Zhu et al., Diffusion reinforcement learning via centered reward distillation, 2026, arXiv:2603.14128.
    """

    kl_guidance: NotNegative | None = None

    def guidance_of(self, of: Of) -> float | None:
        return self.kl_guidance if of == "reference" else None
