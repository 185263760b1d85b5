"""A network that XLA computes and differentiates, called by torch code as if it were torch's."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from prdp.diffusion.jax_unet import UNet
from prdp.learners.jax_mesh import JaxMesh

Tensors = dict[str, jax.Array]


class JaxNetwork(torch.nn.Module):
    """A UNet of JAX with the signature of diffusers' own; its gradient gathers in `gradient` and `remainder`.

    Their sum is that of all backward passes to about 48 bits, twice the digits of one float32.

    Args:
        unet: the architecture, in the precision of the pass with gradient.
        frozen: name -> the tensors that do not learn.
        mesh: where the rows and tensors lie.

    Attributes:
        sizes: rows that programs are compiled for.
    """

    def __init__(self, unet: UNet, frozen: Tensors, mesh: JaxMesh) -> None:
        super().__init__()
        self.unet, self.frozen, self._mesh = unet, mesh.tensors(frozen), mesh
        self.tensors: Tensors = {}
        self.gradient: Tensors = {}
        self.remainder: Tensors = {}
        self.sizes: set[int] = set()
        self._pulled_back = jax.jit(lambda pull_back, gradient: mesh.divided(pull_back(gradient)[0]))
        # What makes autograd call the backward pass, as no tensor of torch learns.
        self._anchor = torch.zeros((), requires_grad=True)

    def forward(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        return_dict: bool = False,
    ) -> tuple[torch.Tensor]:
        """The output [B, C, h, w] for latents, timesteps int64 [B] and text states [B, tokens, width]."""
        size = self._padded_size(len(latents))
        given = (latents, timesteps.int(), encoder_hidden_states)
        inputs = [self._mesh.rows(_padded(value, size)) for value in given]
        if torch.is_grad_enabled():
            output: torch.Tensor = _Differentiable.apply(self._anchor, self, inputs)  # type: ignore[no-untyped-call]
        else:
            with self.matmul_precision():
                output = _tensor(_output(self.unet, self.tensors, self.frozen, *inputs))
        return (output[: len(latents)].to(latents.device),)

    def pulled_back(self, pull_back: Any, gradient: torch.Tensor) -> Tensors:
        """The gradient of the learning tensors, from that of an output."""
        tensors: Tensors = self._pulled_back(pull_back, self._mesh.rows(array_of(gradient)))
        return tensors

    def placed(self, tree: Any) -> Any:
        """Tensors, gradients or moments, each where it belongs."""
        return self._mesh.tensors(tree)

    def matmul_precision(self) -> Any:
        """Accelerators multiply float32 in half precision unless told otherwise."""
        return jax.default_matmul_precision("highest") if self.unet.dtype == jnp.float32 else nullcontext()

    def _padded_size(self, count: int) -> int:
        """Number of rows to compute for so many: one that is compiled already, unless that is twice as many or more.

        The devices divide it.
        """
        fitting = [size for size in self.sizes if count <= size < 2 * count]
        size = min(fitting, default=-(-count // self._mesh.size) * self._mesh.size)
        self.sizes.add(size)
        return size


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: torch.Tensor, network: JaxNetwork, inputs: list[jax.Array]) -> torch.Tensor:
        ctx.network = network
        with network.matmul_precision():
            output, ctx.pull_back = _linearised(network.unet, network.tensors, network.frozen, *inputs)
        return _tensor(output)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, None, None]:  # type: ignore[override]
        network: JaxNetwork = ctx.network
        with network.matmul_precision():
            part = network.pulled_back(ctx.pull_back, gradient)
        if network.gradient:
            network.gradient, network.remainder = _sum(network.gradient, network.remainder, part)
        else:
            network.gradient, network.remainder = part, jax.tree.map(jnp.zeros_like, part)
        return None, None, None


@partial(jax.jit, static_argnames="unet")
def _output(
    unet: UNet, tensors: Tensors, frozen: Tensors, latents: jax.Array, timesteps: jax.Array, states: jax.Array
) -> jax.Array:
    return unet({**frozen, **tensors}, latents, timesteps, states)


@partial(jax.jit, static_argnames="unet")
def _linearised(
    unet: UNet, tensors: Tensors, frozen: Tensors, latents: jax.Array, timesteps: jax.Array, states: jax.Array
) -> tuple[jax.Array, Any]:
    """The output, and the function that pulls a gradient of it back to one of the learning tensors."""
    return jax.vjp(lambda learning: unet({**frozen, **learning}, latents, timesteps, states), tensors)


@partial(jax.jit, donate_argnums=(0, 1))
def _sum(sums: Tensors, remainders: Tensors, parts: Tensors) -> tuple[Tensors, Tensors]:
    """Sums with what their rounding has cost beside them (Knuth's two-sum)."""
    new = jax.tree.map(jnp.add, sums, parts)

    def lost(old: jax.Array, part: jax.Array, total: jax.Array) -> jax.Array:
        taken = total - old
        return (old - (total - taken)) + (part - taken)

    errors = jax.tree.map(lost, sums, parts, new)
    return new, jax.tree.map(jnp.add, remainders, errors)


def _padded(value: torch.Tensor, size: int) -> jax.Array:
    """The rows of a tensor, and zeros up to so many."""
    rows = array_of(value)
    return jnp.pad(rows, [(0, size - len(rows))] + [(0, 0)] * (rows.ndim - 1))


def array_of(tensor: torch.Tensor) -> jax.Array:
    """A tensor as an array of JAX; numbers of any precision as float32."""
    wide = tensor.detach().float() if tensor.is_floating_point() else tensor.detach()
    return jnp.asarray(wide.cpu().numpy())


def _tensor(array: jax.Array) -> torch.Tensor:
    return torch.from_numpy(np.array(array))
