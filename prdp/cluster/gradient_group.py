"""Sums of gradients over the processes of a learner, in torch.distributed: gloo on CPUs, NCCL between GPUs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from prdp.cluster.direct_weights import Rendezvous, join
from prdp.support.rank_errors import ReductionError

if TYPE_CHECKING:
    import torch

BUCKET_BYTES = 64 * 2**20
"""Summed at a time; all processes have to cut alike."""


class GradientGroup:
    """A process's place in the group of all ranks; it waits for the others to come.

    Args:
        rendezvous: where they meet, and by what they sum.
        rank, size: its number, and how many there are.
        host: address of this node.

    Raises:
        ReductionError: the others did not come in time.
    """

    def __init__(self, rendezvous: Rendezvous, rank: int, size: int, host: str) -> None:
        self._backend = rendezvous.backend
        try:
            self._group: Any = join(rendezvous, rank, host, size)
        except RuntimeError as error:
            raise ReductionError(f"the learner's ranks did not meet: {first_line(error)}") from error

    def total(self, tensors: list[torch.Tensor]) -> None:
        """Replace tensors, in place, by their sums over all processes, the same bits in each.

        Raises:
            ReductionError: another process is gone, or does not take part in time.
        """
        import torch

        try:
            for pieces in _buckets(tensors, BUCKET_BYTES):
                summed = torch.cat(pieces)
                self._group.allreduce([summed]).wait()
                for piece, value in zip(pieces, summed.split([len(one) for one in pieces]), strict=True):
                    piece.copy_(value)
        except RuntimeError as error:
            raise ReductionError(f"gradients were not summed: {first_line(error)}") from error


def _buckets(tensors: Iterable[torch.Tensor], size: int) -> Iterator[list[torch.Tensor]]:
    """Flat views of contiguous tensors of one dtype, cut so that no bucket has more bytes than `size`."""
    bucket: list[torch.Tensor] = []
    room = size
    for tensor in tensors:
        rest = tensor.view(-1)
        while len(rest):
            count = max(1, room // rest.element_size())
            piece, rest = rest[:count], rest[count:]
            bucket.append(piece)
            room -= len(piece) * piece.element_size()
            if room < piece.element_size():
                yield bucket
                bucket, room = [], size
    if bucket:
        yield bucket


def first_line(error: Exception) -> str:
    """Of a library's message, which goes on with what its authors want to know."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
