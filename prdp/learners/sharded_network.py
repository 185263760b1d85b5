"""A network whose tensors are divided among processes by torch's FSDP2, with gradients that are summed in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch

from prdp.diffusion.precision import repeated_blocks


class ShardGroup(Protocol):
    """The processes that hold one copy of a network together, and those that hold the same rows of other copies.

    Attributes:
        mesh: a DeviceMesh of one dimension, over the first.
    """

    mesh: Any

    def total(self, tensors: list[torch.Tensor]) -> None:
        """Replace tensors, in place, by their sums over the copies.

        Raises:
            ReductionError: the processes lost each other, as for all others.
        """
        ...

    def of_each(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of each process that holds a part of this copy, [shards, ...], in their order."""
        ...

    def all_gather(self, output: torch.Tensor, own: torch.Tensor) -> None:
        """Fill `output` with the flat tensors of these processes."""
        ...

    def reduce_scatter(self, output: torch.Tensor, own: torch.Tensor) -> None:
        """Fill `output` with this process's part of the sum of their flat tensors."""
        ...

    def close(self) -> None:
        """Leave; the others find that out at the next exchange."""
        ...


class ShardedNetwork:
    """Divides the tensors of a network, in place, by rows: dimension 0, in as many parts as there are shards.

    A pass gathers the tensors of one repeated block at a time, forward and backward, and lets go of them; those of no
    such block are gathered for a whole pass. A network is called as ever, and all processes of the group have to call
    it as often.

    Gradients are added up over the processes in float64, where the sum of a few float32 numbers is exact. FSDP hands
    them on in float32; `exact_gradient` is what that was rounded from.

    Args:
        network: with float32 parameters, whole.

    Attributes:
        parameters: by name; what FSDP put in the place of the whole ones, of their shape.
        rows: by name, the part of each that is here; to be written to, and without gradient.
    """

    def __init__(self, network: torch.nn.Module, group: ShardGroup) -> None:
        names = {module: name for name, module in network.named_modules()}
        blocks = repeated_blocks(network)
        self._sums: dict[str, _ReduceScatter] = {}
        for module in (*blocks, network):
            prefix = f"{names[module]}." if names[module] else ""
            reduce_scatter = _divide(module, group)
            for name, _ in module.named_parameters():
                self._sums.setdefault(f"{prefix}{name}", reduce_scatter)
        self.parameters: dict[str, Any] = dict(network.named_parameters())
        with torch.no_grad():
            self.rows = {name: value.to_local() for name, value in self.parameters.items()}

    @contextmanager
    def with_gradients(self, take: Any) -> Iterator[None]:
        """Call `take` with the name of a tensor and the float64 gradient of its rows, as soon as a pass has it."""
        hooks = [
            value.register_post_accumulate_grad_hook(partial(self._taken, take, name))
            for name, value in self.parameters.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _taken(self, take: Any, name: str, value: Any) -> None:
        # FSDP cuts its float32 gradients out of a buffer that lies as the exact one does.
        rounded = value.grad.to_local()
        output = self._sums[name].output
        assert output is not None, "a gradient comes from an exchange"
        take(name, output.as_strided(rounded.shape, rounded.stride(), rounded.storage_offset()))
        value.grad = None


def _divide(module: torch.nn.Module, group: ShardGroup) -> _ReduceScatter:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    exact = MixedPrecisionPolicy(reduce_dtype=torch.float64)
    divided: Any = fully_shard(module, mesh=group.mesh, reshard_after_forward=True, mp_policy=exact)
    reduce_scatter = _ReduceScatter(group)
    divided.set_custom_all_gather(_AllGather(group))
    divided.set_custom_reduce_scatter(reduce_scatter)
    divided.set_gradient_divide_factor(1.0)  # a sum, no mean
    return reduce_scatter


class _Exchange:
    """What FSDP asks of an exchange of its own; see `set_custom_all_gather` of torch.distributed.fsdp.FSDPModule."""

    def __init__(self, group: ShardGroup) -> None:
        self._group = group

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)


class _AllGather(_Exchange):
    def __call__(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: Any, async_op: bool = False
    ) -> None:
        self._group.all_gather(output_tensor, input_tensor)


class _ReduceScatter(_Exchange):
    """Keeps the float64 sum of the last exchange."""

    output: torch.Tensor | None = None

    def __call__(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: Any, op: Any, async_op: bool = False
    ) -> None:
        self._group.reduce_scatter(output_tensor, input_tensor)
        self.output = output_tensor
