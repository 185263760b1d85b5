"""The processes of a learner that hold its network together: torch.distributed's default group, and a mesh over it."""

from __future__ import annotations

import dataclasses
import functools
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from prdp.cluster.direct_weights import Rendezvous, gloo_group, join, store_of
from prdp.cluster.gradient_group import GradientGroup, first_line
from prdp.support.errors import StartError
from prdp.support.rank_errors import ReductionError

if TYPE_CHECKING:
    import torch


def join_ranks(rendezvous: Rendezvous, rank: int, size: int, shards: int, host: str) -> GradientGroup | ShardGroup:
    """A process's place in the group of all ranks; it waits for the others to come.

    Args:
        rendezvous: where they meet, and by what they exchange.
        rank, size: its number, and how many there are.
        shards: ranks that hold one network together, those with numbers in a row; 1: each holds a whole one.
        host: address of this node.

    Raises:
        ReductionError: the others did not come in time.
    """
    if shards == 1:
        return GradientGroup(rendezvous, rank, size, host)
    return ShardGroup(rendezvous, rank, size, shards, host)


class ShardGroup:
    """See `prdp.learners.sharded_network.ShardGroup`, and `join_ranks`; a process has one at a time.

    FSDP wants a mesh over torch.distributed's default group, and asks that one for numbers alone. What is exchanged
    goes by groups that nobody but this object holds: gloo ends its connections, on which others wait, with the last
    reference.
    """

    def __init__(self, rendezvous: Rendezvous, rank: int, size: int, shards: int, host: str) -> None:
        import torch.distributed as dist
        from torch.distributed.device_mesh import init_device_mesh

        if dist.is_initialized():
            raise StartError(
                f"cluster.fsdp_size={shards}: this process has joined a group of torch.distributed already, and has to "
                "leave it first"
            )
        copies, timeout = size // shards, timedelta(seconds=rendezvous.timeout)
        copy, shard = divmod(rank, shards)
        self._count = shards
        self._copies: GradientGroup | None = None
        try:
            store = store_of(rendezvous)
            dist.init_process_group(_gloo_on(host), store=store, rank=rank, world_size=size, timeout=timeout)
            kind = "cuda" if rendezvous.backend == "nccl" else "cpu"
            mesh = init_device_mesh(kind, (copies, shards), mesh_dim_names=("copies", "shards"))
            self.mesh: Any = mesh["shards"]
            self._shards: Any = join(_within(rendezvous, f"copy {copy}"), shard, host, shards)
            if copies > 1:
                self._copies = GradientGroup(_within(rendezvous, f"shard {shard}"), copy, copies, host)
        except RuntimeError as error:
            self.close()
            raise ReductionError(f"the learner's ranks did not meet: {first_line(error)}") from error

    def total(self, tensors: list[torch.Tensor]) -> None:
        if self._copies is not None:
            self._copies.total(tensors)

    def of_each(self, tensor: torch.Tensor) -> torch.Tensor:
        output = tensor.new_empty((self._count * tensor.numel(),))
        self.all_gather(output, tensor.reshape(-1))
        return output.view(self._count, *tensor.shape)

    def all_gather(self, output: torch.Tensor, own: torch.Tensor) -> None:
        self._exchange("_allgather_base", output, own)

    def reduce_scatter(self, output: torch.Tensor, own: torch.Tensor) -> None:
        self._exchange("_reduce_scatter_base", output, own)

    def close(self) -> None:
        import torch.distributed as dist

        self._shards = self._copies = None
        if dist.is_initialized():
            dist.destroy_process_group()

    def _exchange(self, method: str, output: torch.Tensor, own: torch.Tensor) -> None:
        if self._shards is None:
            raise ReductionError("this process left those that hold the network together")
        try:
            getattr(self._shards, method)(output, own).wait()
        except RuntimeError as error:
            self._shards = self._copies = None  # whoever waits for this process is to find out as well
            told = first_line(error)
            raise ReductionError(f"the processes that hold the network lost each other: {told}") from error


def _within(rendezvous: Rendezvous, name: str) -> Rendezvous:
    return dataclasses.replace(rendezvous, key=f"{rendezvous.key}, {name}")


def _gloo_on(host: str) -> str:
    """The name of a gloo that listens on this address alone; torch's own listens where the host's name leads."""
    import torch.distributed as dist

    name = f"gloo_{re.sub('[^0-9a-z]', '_', host.lower())}"
    if not hasattr(dist.Backend, name.upper()):
        dist.Backend.register_backend(name, functools.partial(gloo_group, host=host), devices=["cpu"])
    return name
