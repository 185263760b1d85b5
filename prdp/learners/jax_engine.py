"""The engine in JAX: XLA computes and differentiates the network; all around it is the policy's own code.

Checkpoints and weights fit both engines.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from prdp.config import PRECISIONS, LearnerConfig
from prdp.diffusion.jax_unet import UNet, check_adapters
from prdp.diffusion.policy import Policy
from prdp.diffusion.transitions import Transitions
from prdp.evidence.base import Evidence, Of
from prdp.learners.device_engine import DeviceEngine, Total
from prdp.learners.engine import Arrays, section
from prdp.learners.guards import gradient_error, unlearned
from prdp.learners.jax_mesh import JaxMesh
from prdp.learners.jax_network import JaxNetwork, Tensors, array_of
from prdp.types import Weights

DTYPES = {name: getattr(jnp, name) for name in PRECISIONS}


class LearnerState(flax.struct.PyTreeNode):
    """What an update changes.

    Attributes:
        tensors: name -> the learning tensors, float32.
        adam: first and second moments and the number of steps.
        average: the moving average of the tensors, None where none is kept.
    """

    tensors: Tensors
    adam: optax.ScaleByAdamState
    average: Tensors | None


class JaxEngine(DeviceEngine):
    """See `DeviceEngine`.

    Args:
        policy: gives the start and, at the end, takes the weights; its network is not trained.
        config: optimizer, moving average, microbatch.

    Raises:
        StartError: fewer devices than the mesh wants.
        ValueError: a network or an adapter that `prdp.diffusion.jax_unet` does not compute.
    """

    def __init__(
        self,
        policy: Policy,
        transitions: Transitions,
        guidance_scale: float,
        evidence: Evidence,
        channels: Sequence[str],
        config: LearnerConfig,
        seed: int,
    ) -> None:
        size, kept_bytes = config.microbatch, config.kept_outputs_gib * 2**30 * (policy.precision == "float32")
        super().__init__(policy, transitions, guidance_scale, evidence, channels, size, seed, kept_bytes)
        network: Any = policy.weights.network
        fixed, learning = policy.weights.fixed(), policy.weights.parameters
        check_adapters([*fixed, *learning])
        frozen = {name: array_of(value) for name, value in fixed.items()}
        unet = UNet(
            dict(network.config),
            lora_scale=config.lora_alpha / config.lora_rank,
            dtype=DTYPES[policy.precision],
            remat=config.gradient_checkpointing,
        )
        self._network = JaxNetwork(unet, frozen, JaxMesh(config.jax_data, config.jax_fsdp))
        self._adam = optax.scale_by_adam(config.adam_beta1, config.adam_beta2, config.adam_epsilon)
        tensors = {name: array_of(value) for name, value in learning.items()}
        # JAX never writes into an array, so that the average may start as the tensors themselves.
        average = tensors if config.ema_decay else None
        self._state = self._placed(LearnerState(tensors=tensors, adam=self._adam.init(tensors), average=average))
        self._kept: dict[str, Tensors] = {}
        self._apply_gradient = jax.jit(partial(_applied, self._adam, config.weight_decay, config.max_grad_norm))

    def weights(self, of: Of, version: int) -> Weights:
        return Weights.of(version, _host(self._tensors_of(of)))

    def average(self, version: int) -> Weights | None:
        return None if self._state.average is None else Weights.of(version, _host(self._state.average))

    def keep_reference(self) -> None:
        self.keep("reference")

    def keep(self, of: Of) -> None:
        self._kept[of] = self._state.tensors

    def unmoved(self, of: Of) -> bool:
        kept = self._tensors_of(of)
        return all(
            kept[name] is value or bool(jnp.array_equal(kept[name], value))
            for name, value in self._state.tensors.items()
        )

    def move(self, of: Of, decay: float) -> None:
        if not decay:
            self.keep(of)  # the formula below would round
            return
        self._kept[of] = jax.tree.map(
            lambda kept, value: kept + (1.0 - decay) * (value - kept), self._tensors_of(of), self._state.tensors
        )

    def use_microbatch(self, size: int) -> None:
        super().use_microbatch(size)
        self._network.sizes.clear()  # a program of a larger size takes the memory of that

    def unscale(self, scale: float) -> bool:
        self._network.gradient = jax.tree.map(lambda value: value / scale, self._network.gradient)
        return bool(np.isfinite(float(optax.tree.norm(self._network.gradient))))

    def apply(self, learning_rate: float, ema_decay: float, update: int) -> dict[str, float]:
        largest = {name: float(value) for name, value in _largest(self._network.gradient).items()}
        without = unlearned(largest, first=update == 0)
        state, norm = self._apply_gradient(self._state, self._network.gradient, learning_rate, ema_decay)
        if not np.isfinite(float(norm)):
            raise gradient_error(update, largest)
        self._state, self._network.gradient = self._placed(state), {}
        return {"grad_norm": float(norm), "parameters_without_gradient": float(len(without))}

    def state(self) -> Arrays:
        adam, steps = self._state.adam, np.asarray(self._state.adam.count, np.float32)
        parts: dict[str, Mapping[str, Any]] = {
            "weights": self._state.tensors,
            "ema": self._state.average or {},
            **{of: kept for of, kept in self._kept.items() if of != "reference"},
        }
        if adam.count:
            parts |= {
                "optimizer/exp_avg": adam.mu,
                "optimizer/exp_avg_sq": adam.nu,
                "optimizer/step": dict.fromkeys(self._state.tensors, steps),
            }
        return {f"{part}/{name}": np.array(value) for part, values in parts.items() for name, value in values.items()}

    def load_state(self, tensors: Mapping[str, np.ndarray], updates: int) -> None:
        def read(prefix: str) -> Tensors:
            found = section(tensors, prefix)
            absent = [name for name in self._state.tensors if name not in found]
            if prefix.startswith("optimizer/") and absent:
                raise ValueError(f"the checkpoint has no tensor '{prefix}{absent[0]}'")
            self.policy.weights.check(found)
            return {name: jnp.asarray(found[name]) for name in self._state.tensors}

        learning, adam, average = read("weights/"), self._adam.init(self._state.tensors), self._state.average
        if updates:
            first = next(iter(self._state.tensors))
            count = tensors.get(f"optimizer/step/{first}")
            if count is None:
                raise ValueError(f"the checkpoint has no tensor 'optimizer/step/{first}'")
            adam = optax.ScaleByAdamState(
                jnp.asarray(count, jnp.int32), read("optimizer/exp_avg/"), read("optimizer/exp_avg_sq/")
            )
        if average is not None:
            average = read("ema/")
        for of in self._kept.keys() - {"reference"}:
            self._kept[of] = self._network.placed(read(f"{of}/"))
        self._state = self._placed(LearnerState(tensors=learning, adam=adam, average=average))

    @contextmanager
    def _network_of(self, of: Of) -> Iterator[torch.nn.Module | None]:
        before = self._network.tensors
        self._network.tensors = self._tensors_of(of)
        try:
            yield self._network
        finally:
            self._network.tensors = before

    @contextmanager
    def _arithmetic(self, exact: bool) -> Iterator[None]:
        before = self._network.unet
        self._network.unet = dataclasses.replace(before, dtype=jnp.float32)
        try:
            yield
        finally:
            self._network.unet = before

    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(np.array(value)) for name, value in self._state.tensors.items()}

    def settle(self, total: Total | None = None) -> None:
        network, names = self._network, list(self._state.tensors)
        gradient, remainder = network.gradient, network.remainder
        network.remainder = {}
        if total is None:
            network.gradient = jax.tree.map(jnp.add, gradient, remainder)
            return
        sums = [
            torch.from_numpy(np.array(gradient[name], np.float64) + np.array(remainder[name], np.float64))
            if gradient
            else torch.zeros(self._state.tensors[name].shape, dtype=torch.float64)
            for name in names
        ]
        total(sums)
        network.gradient = network.placed(
            {name: jnp.asarray(value.numpy(), jnp.float32) for name, value in zip(names, sums, strict=True)}
        )

    def _placed(self, state: LearnerState) -> LearnerState:
        """The state, each tensor where its part of the network lies."""
        place = self._network.placed
        average = None if state.average is None else place(state.average)
        return LearnerState(tensors=place(state.tensors), adam=place(state.adam), average=average)

    def _zero_gradient(self) -> None:
        self._network.gradient, self._network.remainder = {}, {}

    def _tensors_of(self, of: Of) -> Tensors:
        if of == "policy":
            return self._state.tensors
        assert of in self._kept, f"the policy '{of}' is not kept: call keep first"
        return self._kept[of]


@jax.jit
def _largest(gradient: Tensors) -> Tensors:
    """Largest absolute entry of each tensor's gradient."""
    return jax.tree.map(lambda value: jnp.abs(value).max(), gradient)


def _applied(
    adam: optax.GradientTransformation,
    weight_decay: float,
    max_grad_norm: float,
    state: LearnerState,
    gradient: Tensors,
    learning_rate: jax.Array,
    ema_decay: jax.Array,
) -> tuple[LearnerState, jax.Array]:
    """One step of AdamW on the clipped gradient, as torch takes it; the new state and the norm before clipping."""
    norm = optax.tree.norm(gradient)
    scale = jnp.minimum(1.0, max_grad_norm / (norm + 1e-6))
    step, moments = adam.update(jax.tree.map(lambda value: value * scale, gradient), state.adam)
    tensors = jax.tree.map(
        lambda value, change: value * (1.0 - learning_rate * weight_decay) - learning_rate * change, state.tensors, step
    )
    average = state.average
    if average is not None:
        average = jax.tree.map(lambda kept, value: kept + (1.0 - ema_decay) * (value - kept), average, tensors)
    return LearnerState(tensors=tensors, adam=moments, average=average), norm


def _host(tensors: Tensors) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in tensors.items()}
