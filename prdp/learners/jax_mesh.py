"""The devices of one process that a learner in JAX works on together."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prdp.support.errors import StartError

DATA, FSDP = "data", "fsdp"


def device_count_problems(data: int, fsdp: int) -> list[str]:
    """That this process has fewer devices than `data` x `fsdp`, in a line that names the keys."""
    try:
        size, devices = data * fsdp, jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter of a platform that this JAX was not made for
        reason = (str(error).splitlines() or ["none of the platforms that JAX_PLATFORMS names"])[0]
        return [f"learner.framework=jax: JAX finds no devices: {reason}"]
    if size <= len(devices):
        return []
    return [
        f"learner.jax_data={data} and learner.jax_fsdp={fsdp}: need {size} devices of JAX, and this process has "
        f"{len(devices)} ({devices[0].platform}); of a CPU XLA_FLAGS=--xla_force_host_platform_device_count={size} "
        "makes so many"
    ]


class JaxMesh:
    """A mesh with two axes. Rows of a microbatch are divided among all devices, tensors among those of the axis `fsdp`.

    A tensor is cut along its longest axis that the devices divide; one without such an axis is whole on each. XLA's
    partitioner adds the exchanges: parts are gathered for a layer, and its gradient is summed into parts.

    Args:
        data: groups of devices that have whole tensors between them.
        fsdp: devices of a group.

    Raises:
        StartError: so many devices are not there.

    References:
        Xu et al. 2021, GSPMD; Rajbhandari et al. 2020, ZeRO.
    """

    def __init__(self, data: int, fsdp: int) -> None:
        self.size, self._fsdp = data * fsdp, fsdp
        if problems := device_count_problems(data, fsdp):
            raise StartError(problems[0])
        self._mesh = Mesh(np.array(jax.devices()[: self.size]).reshape(data, fsdp), (DATA, FSDP))

    def rows(self, array: jax.Array) -> jax.Array:
        """An array whose first axis the devices divide, in equal parts on all of them."""
        return array if self.size == 1 else jax.device_put(array, self._sharding((DATA, FSDP)))

    def tensors(self, tree: Any) -> Any:
        """Tensors, each in parts on the devices of a group; those that lie so already stay."""
        if self.size == 1:
            return tree
        return jax.tree.map(lambda value: jax.device_put(value, self._sharding_of(value.shape)), tree)

    def divided(self, tree: Any) -> Any:
        """As `tensors`, within a program, which may then sum straight into parts."""
        if self.size == 1:
            return tree
        constrained = jax.lax.with_sharding_constraint
        return jax.tree.map(lambda value: constrained(value, self._sharding_of(value.shape)), tree)

    def _sharding_of(self, shape: tuple[int, ...]) -> NamedSharding:
        axes = [axis for axis, length in enumerate(shape) if self._fsdp > 1 and length and length % self._fsdp == 0]
        if not axes:
            return self._sharding()
        longest = max(axes, key=lambda axis: shape[axis])
        return self._sharding(*(FSDP if axis == longest else None for axis in range(longest + 1)))

    def _sharding(self, *axes: Any) -> NamedSharding:
        return NamedSharding(self._mesh, PartitionSpec(*axes))
