"""The learner in JAX: the same numbers as the torch one, compiled by XLA; checkpoints and weights fit both."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from prdp.config import PRECISIONS, LearnerConfig
from prdp.diffusion.guidance import guided
from prdp.diffusion.jax_unet import UNet, check_adapters
from prdp.diffusion.policy import Policy
from prdp.diffusion.transitions import Transitions
from prdp.learners.base import Evidence, Learner, Progress, section
from prdp.learners.guards import gradient_error, unlearned
from prdp.types import Int64, Rollout, Weights

Tensors = dict[str, jax.Array]
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


class Cells(flax.struct.PyTreeNode):
    """One microbatch of (image, step) cells; all of leading size b.

    Attributes:
        latents, following, reference_output: x_t, x_{t-1} and the reference's output, float32 [b, C, h, w].
        timesteps: int32 [b].
        states: text states [b, tokens, width].
        sample_coef, output_coef, sigma: of the transitions, float32 [b].
        coefficients: d loss / d evidence, float32 [channels, b]; 0 for cells that only fill the batch up.
    """

    latents: jax.Array
    following: jax.Array
    reference_output: jax.Array
    timesteps: jax.Array
    states: jax.Array
    sample_coef: jax.Array
    output_coef: jax.Array
    sigma: jax.Array
    coefficients: jax.Array


class JaxLearner(Learner):
    """See `Learner`.

    Args:
        policy: encodes the prompts, gives the start and, at the end, takes the weights; its network is not trained.
        transitions: the table that the rollouts were sampled with.
        guidance_scale: that the rollouts were sampled with; both branches are differentiated.
        config: optimizer, moving average, microbatch.
        objective: name and knobs; its evidence has to be the trajectory's.

    Raises:
        ValueError: an objective on denoising evidence, or a network or an adapter that `prdp.diffusion.jax_unet` does
            not compute.
    """

    def __init__(
        self,
        policy: Policy,
        transitions: Transitions,
        guidance_scale: float,
        config: LearnerConfig,
        objective: Mapping[str, Any],
    ) -> None:
        super().__init__(transitions, config, objective, policy.precision)
        if self.keep != "trajectory":
            raise ValueError(
                f"objective.name={self._objective.name} learns from denoising errors, which learner.framework=jax does "
                "not compute; use learner.framework=torch"
            )
        self._policy = policy
        network: Any = policy.weights.network
        check_adapters(name for name, _ in network.named_parameters())
        learning = policy.weights.parameters
        self._frozen = {
            name: jnp.asarray(value.detach().float().cpu().numpy())
            for name, value in network.named_parameters()
            if name not in learning
        }
        empty = policy.encode([""]).fields["states"]
        self._empty = _array(empty) if guided(guidance_scale) else None
        unet = UNet(
            dict(network.config),
            lora_scale=config.lora_alpha / config.lora_rank,
            dtype=DTYPES[policy.precision],
            remat=config.gradient_checkpointing,
        )
        self._network = (unet, guidance_scale, self._objective.method.channels)
        self._float32_network = (dataclasses.replace(unet, dtype=jnp.float32), *self._network[1:])
        self._adam = optax.scale_by_adam(config.adam_beta1, config.adam_beta2, config.adam_epsilon)
        tensors = {name: jnp.asarray(value.detach().cpu().numpy()) for name, value in learning.items()}
        # JAX never writes into an array, so that the average may start as the tensors themselves.
        average = tensors if config.ema_decay else None
        self._state = LearnerState(tensors=tensors, adam=self._adam.init(tensors), average=average)
        self._apply_gradient = jax.jit(partial(_applied, self._adam, config.weight_decay, config.max_grad_norm))
        self._gradient: Tensors = {}

    def weights(self) -> Weights:
        return Weights.of(self._updates, _host(self._state.tensors))

    def evaluation_weights(self) -> Weights:
        if self._state.average is None:
            return self.weights()
        return Weights.of(self._updates, _host(self._state.average))

    def _tensors(self) -> dict[str, np.ndarray]:
        adam, steps = self._state.adam, np.asarray(self._state.adam.count, np.float32)
        parts: dict[str, Mapping[str, Any]] = {"weights": self._state.tensors, "ema": self._state.average or {}}
        if self._updates:
            parts |= {
                "optimizer/exp_avg": adam.mu,
                "optimizer/exp_avg_sq": adam.nu,
                "optimizer/step": dict.fromkeys(self._state.tensors, steps),
            }
        return {f"{part}/{name}": np.array(value) for part, values in parts.items() for name, value in values.items()}

    def _load_tensors(self, tensors: Mapping[str, np.ndarray], updates: int) -> None:
        def read(prefix: str) -> Tensors:
            found = section(tensors, prefix)
            absent = [name for name in self._state.tensors if name not in found]
            if prefix.startswith("optimizer/") and absent:
                raise ValueError(f"the checkpoint has no tensor '{prefix}{absent[0]}'")
            self._policy.weights.check(found)
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
        self._state, self._updates = LearnerState(tensors=learning, adam=adam, average=average), updates

    def _encode(self, prompts: Sequence[str]) -> jax.Array:
        return _array(self._policy.encode(prompts).fields["states"])

    def _scaled(self, conditions: jax.Array, factor: float) -> jax.Array:
        return conditions * factor

    def _batches(
        self, rollout: Rollout, states: jax.Array, cells: Int64, tables: Evidence | None = None
    ) -> Iterator[tuple[Int64, Int64, Cells]]:
        """Microbatches of one size, so that XLA compiles once: the last one is filled up with cells of no weight."""
        transitions = self._transitions
        size, names = min(self._config.microbatch, len(cells)), self._objective.method.channels
        for images, steps in self._microbatches(cells, self.cells(rollout)[1]):
            rows, columns = (np.concatenate([part, np.zeros(size - len(part), np.int64)]) for part in (images, steps))
            places, chosen = rollout.positions[rows, columns], rollout.steps[rows, columns]
            coefficients = np.zeros((len(names), size), np.float32)
            if tables is not None:
                coefficients[:, : len(images)] = [tables[name][images, steps] for name in names]
            yield (
                images,
                steps,
                Cells(
                    latents=jnp.asarray(rollout.latents[rows, places]),
                    following=jnp.asarray(rollout.latents[rows, places + 1]),
                    reference_output=jnp.asarray(rollout.reference_output[rows, columns]),
                    timesteps=jnp.asarray(transitions.times[chosen], jnp.int32),
                    states=states[rows // rollout.images_per_prompt],
                    sample_coef=jnp.asarray(transitions.sample_coef[chosen], jnp.float32),
                    output_coef=jnp.asarray(transitions.output_coef[chosen], jnp.float32),
                    sigma=jnp.asarray(transitions.sigma[chosen], jnp.float32),
                    coefficients=jnp.asarray(coefficients),
                ),
            )

    def _evidence(
        self, rollout: Rollout, states: jax.Array, cells: Int64, *, reference: bool = False
    ) -> Evidence:
        assert not reference
        evidence = {name: np.zeros(self.cells(rollout)) for name in self._objective.method.channels}
        for images, steps, batch in self._batches(rollout, states, cells):
            values = _evidence(*self._float32_network, self._state.tensors, self._frozen, self._empty, batch)
            _fill(evidence, images, steps, values)
        return evidence

    def _accumulate(
        self, rollout: Rollout, states: jax.Array, cells: Int64, tables: Evidence, progress: Progress | None
    ) -> Evidence:
        evidence = {name: np.zeros(self.cells(rollout)) for name in self._objective.method.channels}
        gradient: Tensors | None = None
        done = 0
        for images, steps, batch in self._batches(rollout, states, cells, tables):
            (_, values), part = _gradient(*self._network, self._state.tensors, self._frozen, self._empty, batch)
            gradient = part if gradient is None else _sum(gradient, part)
            _fill(evidence, images, steps, values)
            done += len(images)
            if progress:
                progress(done)
        assert gradient is not None
        self._gradient = gradient
        return evidence

    def _unscale(self, scale: float) -> bool:
        self._gradient = jax.tree.map(lambda value: value / scale, self._gradient)
        return bool(np.isfinite(float(optax.tree.norm(self._gradient))))

    def _apply(self, learning_rate: float, ema_decay: float) -> dict[str, float]:
        largest = {name: float(value) for name, value in _largest(self._gradient).items()}
        without = unlearned(largest, first=self._updates == 0)
        state, norm = self._apply_gradient(self._state, self._gradient, learning_rate, ema_decay)
        if not np.isfinite(float(norm)):
            raise gradient_error(self._updates, largest)
        self._state, self._gradient = state, {}
        return {"grad_norm": float(norm), "parameters_without_gradient": float(len(without))}


@partial(jax.jit, static_argnames=("unet", "guidance_scale", "channels"))
def _evidence(
    unet: UNet,
    guidance_scale: float,
    channels: tuple[str, ...],
    tensors: Tensors,
    frozen: Tensors,
    empty: jax.Array | None,
    cells: Cells,
) -> jax.Array:
    """The channels at the cells, float32 [channels, b]; see `prdp.diffusion.transitions`."""
    latents, timesteps, states = cells.latents, cells.timesteps, cells.states
    if empty is not None:
        latents, timesteps = jnp.concatenate([latents] * 2), jnp.concatenate([timesteps] * 2)
        states = jnp.concatenate([jnp.broadcast_to(empty, states.shape), states])
    # Accelerators multiply float32 in half precision unless told otherwise.
    with jax.default_matmul_precision("highest") if unet.dtype == jnp.float32 else nullcontext():
        output = unet({**frozen, **tensors}, latents, timesteps, states)
    if empty is not None:
        unconditional, conditional = jnp.split(output, 2)
        output = unconditional + guidance_scale * (conditional - unconditional)

    def column(values: jax.Array) -> jax.Array:
        return values[:, None, None, None]

    output_coef, sigma = column(cells.output_coef), column(cells.sigma)
    reference_mean = column(cells.sample_coef) * cells.latents + output_coef * cells.reference_output
    noise = (cells.following - reference_mean) / sigma
    difference = output_coef / sigma * (output - cells.reference_output)
    values = {"log_ratio": noise * difference - 0.5 * jnp.square(difference), "kl_ref": 0.5 * jnp.square(difference)}
    return jnp.stack([values[name].mean((1, 2, 3)) for name in channels])


@partial(jax.jit, static_argnames=("unet", "guidance_scale", "channels"))
@partial(jax.value_and_grad, argnums=3, has_aux=True)
def _gradient(
    unet: UNet,
    guidance_scale: float,
    channels: tuple[str, ...],
    tensors: Tensors,
    frozen: Tensors,
    empty: jax.Array | None,
    cells: Cells,
) -> tuple[jax.Array, jax.Array]:
    """Value and gradient, with respect to the learning tensors, of sum(coefficient * evidence); and the evidence."""
    evidence = _evidence(unet, guidance_scale, channels, tensors, frozen, empty, cells)
    return (cells.coefficients * evidence).sum(), evidence


@partial(jax.jit, donate_argnums=0)
def _sum(left: Tensors, right: Tensors) -> Tensors:
    return jax.tree.map(jnp.add, left, right)


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


def _fill(evidence: Evidence, images: Int64, steps: Int64, values: jax.Array) -> None:
    """Write [channels, b] where it belongs, without the cells that filled the batch up."""
    for table, row in zip(evidence.values(), np.asarray(values), strict=True):
        table[images, steps] = row[: len(images)]


def _array(tensor: torch.Tensor) -> jax.Array:
    return jnp.asarray(tensor.detach().float().cpu().numpy())


def _host(tensors: Tensors) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in tensors.items()}
