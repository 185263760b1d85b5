"""Keeping the latents of whole chains: what few-step students are distilled from."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from prdp.diffusion.recording import Chains
from prdp.evaluation.store import CHAIN_LATENTS, FINAL_LATENTS


@dataclass
class _Chain:
    latents: list[np.ndarray] = field(default_factory=list)

    def step(
        self, step: int, latents: torch.Tensor, times: torch.Tensor, following: torch.Tensor, output: torch.Tensor
    ) -> None:
        self.latents.append(latents.float().cpu().numpy())

    def finish(self, latents: torch.Tensor) -> dict[str, np.ndarray]:
        final = latents.float().cpu().numpy()
        return {FINAL_LATENTS: final, CHAIN_LATENTS: np.stack([*self.latents, final], axis=1)}


@dataclass(frozen=True)
class ChainLatents:
    """Keeps `final_latents` [n, C, h, w] and `chain_latents` [n, T + 1, C, h, w], from the start noise to the end."""

    needs_reference: bool = False
    needs_float32: bool = False

    def start(self, chains: Chains) -> _Chain:
        """See `prdp.diffusion.recording.Recorder`."""
        return _Chain()
