"""Outputs of other policies that one pass over the cells of an update leaves on the host for the next."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from prdp.types import Int64, Rollout

if TYPE_CHECKING:
    import torch

    from prdp.evidence.base import Of


class KeptOutputs:
    """Outputs of microbatches, whole: a network computes other last bits in a batch of other cells.

    Args:
        limit: bytes; what is beyond is not kept, and computed again.
    """

    def __init__(self, limit: float) -> None:
        self._limit, self._bytes = limit, 0
        self._kept: dict[tuple[Of, bytes, bytes], torch.Tensor] = {}
        self._update: tuple[weakref.ref[Rollout], int] | None = None

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        """Keep nothing."""
        self._kept, self._bytes, self._update = {}, 0, None

    def keep(self, rollout: Rollout, update: int, of: Of, images: Int64, columns: Int64, output: torch.Tensor) -> None:
        """Copy an output to the host, where there is room; those of another rollout or update are let go of.

        Args:
            of: whose.
            images, columns: the cells of the microbatch.
            output: [b, C, h, w], without gradient.
        """
        import torch

        if not self._are_of(rollout, update):
            self.clear()
            self._update = weakref.ref(rollout), update
        size = output.numel() * output.element_size()
        if self._bytes + size > self._limit:
            return
        self._bytes += size
        host = torch.empty(output.shape, dtype=output.dtype, pin_memory=output.is_cuda)
        host.copy_(output, non_blocking=output.is_cuda)  # and back in the same stream
        self._kept[of, images.tobytes(), columns.tobytes()] = host

    def find(
        self, rollout: Rollout, update: int, of: Of, images: Int64, columns: Int64, device: torch.device
    ) -> torch.Tensor | None:
        """What was kept of this very microbatch, on a device."""
        if not self._are_of(rollout, update):
            return None
        kept = self._kept.get((of, images.tobytes(), columns.tobytes()))
        return None if kept is None else kept.to(device, non_blocking=kept.is_pinned())

    def _are_of(self, rollout: Rollout, update: int) -> bool:
        return self._update is not None and self._update[0]() is rollout and self._update[1] == update
