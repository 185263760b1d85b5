"""Optimizers of the torch engine by name; the state of each goes into a checkpoint and comes back exactly."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch.optim.adamw import adamw

from prdp.config import OPTIMIZERS, LearnerConfig

Tensors = dict[str, torch.Tensor]
Parameters = Mapping[str, torch.nn.Parameter]
GROUP = "group"
"""Under which a state stands that is not of one tensor."""


def rate_factors(config: LearnerConfig, parameters: Parameters) -> dict[str, float]:
    """Name -> by what the learning rate of its tensor is multiplied; text encoders may have one of their own."""
    text = config.text_encoder_learning_rate
    own = 1.0 if text is None else text / config.learning_rate
    return {name: own if name.startswith("text_encoder") else 1.0 for name in parameters}


class Optimizer(Protocol):
    """Steps some named tensors, in place, by their gradients; those without a gradient stay as they are."""

    def step(self, learning_rate: float) -> None:
        """Go one step."""
        ...

    def state(self) -> Tensors:
        """'<what>/<name of the tensor>' -> tensor, not to be written to; of tensors that had a gradient."""
        ...

    def load(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Take back a whole `state`.

        Raises:
            ValueError: a tensor is missing or of another shape; names it.
        """
        ...


def build_optimizer(config: LearnerConfig, parameters: Parameters) -> Optimizer:
    """The optimizer that `learner.optimizer` names.

    Args:
        parameters: name -> float32 tensor that learns.

    Raises:
        ValueError: an unknown name, or a package that is not installed.
    """
    if config.optimizer in ("adamw", "adamw_fused"):
        return AdamW(config, parameters)
    maker = {"adamw_8bit": AdamW8bit, "prodigy": Prodigy, "muon": Muon}.get(config.optimizer)
    if maker is None:
        raise ValueError(f"learner.optimizer is {config.optimizer!r}, expected one of {', '.join(OPTIMIZERS)}")
    try:
        return maker(config, parameters)
    except ModuleNotFoundError as error:
        raise ValueError(f"learner.optimizer={config.optimizer} needs {error.name}: pip install {error.name}") from None


class AdamW:
    """By torch's function: its class imports the compiler, a third of the time to start a run.

    Of each tensor, the state of `torch.optim.AdamW`: step, exp_avg and exp_avg_sq, from its first gradient on.
    """

    def __init__(self, config: LearnerConfig, parameters: Parameters) -> None:
        self._config, self._parameters = config, parameters
        self._factors = rate_factors(config, parameters)
        self._fused = config.optimizer == "adamw_fused"
        self._moments: dict[str, Tensors] = {}

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        learned = {name: value for name, value in self._parameters.items() if value.grad is not None}
        for name, value in learned.items():
            if name not in self._moments:
                zeros = {key: torch.zeros_like(value) for key in ("exp_avg", "exp_avg_sq")}
                self._moments[name] = {"step": torch.tensor(0.0, device=self._counts_on(value)), **zeros}
        for factor in dict.fromkeys(self._factors[name] for name in learned):
            part = {name: value for name, value in learned.items() if self._factors[name] == factor}
            self._step(part, learning_rate * factor)

    def _step(self, learned: Mapping[str, torch.nn.Parameter], learning_rate: float) -> None:
        moments = [self._moments[name] for name in learned]
        adamw(
            list(learned.values()),
            [value.grad for value in learned.values() if value.grad is not None],
            exp_avgs=[entry["exp_avg"] for entry in moments],
            exp_avg_sqs=[entry["exp_avg_sq"] for entry in moments],
            max_exp_avg_sqs=[],
            state_steps=[entry["step"] for entry in moments],
            fused=True if self._fused else None,
            amsgrad=False,
            beta1=self._config.adam_beta1,
            beta2=self._config.adam_beta2,
            lr=learning_rate,
            weight_decay=self._config.weight_decay,
            eps=self._config.adam_epsilon,
            maximize=False,
        )

    def state(self) -> Tensors:
        return {
            f"{key}/{name}": entry for name in self._parameters for key, entry in self._moments.get(name, {}).items()
        }

    def load(self, tensors: Mapping[str, np.ndarray]) -> None:
        for name, parameter in self._parameters.items():
            shapes = {"step": (), "exp_avg": tuple(parameter.shape), "exp_avg_sq": tuple(parameter.shape)}
            found = _found(tensors, name, shapes)
            self._moments[name] = {
                key: value.to(self._counts_on(parameter) if key == "step" else parameter.device)
                for key, value in found.items()
            }

    def _counts_on(self, value: torch.Tensor) -> torch.device:
        """Where its steps are counted: the fused kernel reads their number."""
        return value.device if self._fused else torch.device("cpu")


class LibraryOptimizer:
    """One that is a `torch.optim.Optimizer`.

    Args:
        optimizer: of `_grouped` parameters.
    """

    GROUP_STATE: tuple[str, ...] = ()
    """Numbers of the group that steps change."""

    def __init__(self, optimizer: Any, parameters: Parameters) -> None:
        self._optimizer, self._parameters = optimizer, parameters
        self._group = optimizer.param_groups[0]

    def step(self, learning_rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * group.get("factor", 1.0)
        self._optimizer.step()

    def state(self) -> Tensors:
        found = {
            f"{key}/{name}": torch.as_tensor(entry)
            for name, value in self._parameters.items()
            for key, entry in self._optimizer.state.get(value, {}).items()
            if not key.startswith("qmap")  # the same table for all
        }
        numbers = {f"{GROUP}/{key}": self._group[key] for key in self.GROUP_STATE}
        return found | {key: torch.tensor(number, dtype=torch.float64) for key, number in numbers.items()}

    def load(self, tensors: Mapping[str, np.ndarray]) -> None:
        for name, value in self._parameters.items():
            empty = self._empty(value)
            shapes = {key: _shape(entry) for key, entry in empty.items() if not key.startswith("qmap")}
            for key, entry in _found(tensors, name, shapes).items():
                whole = isinstance(empty[key], int)
                empty[key] = int(entry) if whole else entry.to(value.device)
            self._optimizer.state[value] = empty
        for key in self.GROUP_STATE:
            number = tensors.get(f"{GROUP}/{key}")
            if number is None:
                raise ValueError(f"the checkpoint has no tensor 'optimizer/{GROUP}/{key}'")
            self._group[key] = type(self._group[key])(number)

    def _empty(self, value: torch.nn.Parameter) -> dict[str, Any]:
        """The state of a tensor at its first gradient."""
        raise NotImplementedError


class AdamW8bit(LibraryOptimizer):
    """AdamW of bitsandbytes: moments of 8 bits, in blocks of 256; those of tensors below 4096 numbers are float32.

    References:
        Dettmers et al., 8-bit Optimizers via Block-wise Quantization, 2022.
    """

    def __init__(self, config: LearnerConfig, parameters: Parameters) -> None:
        from bitsandbytes.optim import AdamW8bit as Library

        super().__init__(
            Library(
                _grouped(config, parameters),
                betas=(config.adam_beta1, config.adam_beta2),
                eps=config.adam_epsilon,
                weight_decay=config.weight_decay,
            ),
            parameters,
        )

    def _empty(self, value: torch.nn.Parameter) -> dict[str, Any]:
        for place, group in enumerate(self._optimizer.param_groups):
            for at, one in enumerate(group["params"]):
                if one is value:
                    self._optimizer.init_state(group, value, place, at)
        return dict(self._optimizer.state[value])


class Prodigy(LibraryOptimizer):
    """AdamW whose step size is estimated from the gradients; the learning rate multiplies it, and is 1 as a rule.

    References:
        Mishchenko and Defazio, Prodigy: An Expeditiously Adaptive Parameter-Free Learner, 2024.
    """

    GROUP_STATE = ("d", "d_max", "d_numerator", "k")

    def __init__(self, config: LearnerConfig, parameters: Parameters) -> None:
        from prodigyopt import Prodigy as Library

        with contextlib.redirect_stdout(io.StringIO()):  # it prints that weights decay
            library = Library(
                list(parameters.values()),
                betas=(config.adam_beta1, config.adam_beta2),
                eps=config.adam_epsilon,
                weight_decay=config.weight_decay,
            )
        super().__init__(library, parameters)

    def _empty(self, value: torch.nn.Parameter) -> dict[str, Any]:
        # `p0`, its start, is one number where all of it was 0.
        flat = torch.zeros_like(value).flatten()
        moments = {"exp_avg": torch.zeros_like(value)} if self._group["betas"][0] > 0 else {}
        return {"step": 0, "s": flat, "p0": None, **moments, "exp_avg_sq": torch.zeros_like(value)}


class Muon(LibraryOptimizer):
    """Momentum whose matrices are made orthogonal, scaled to AdamW's root mean square.

    References:
        Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024.
        Liu et al., Muon is Scalable for LLM Training, 2025, section 2.2.
    """

    def __init__(self, config: LearnerConfig, parameters: Parameters) -> None:
        library = torch.optim.Muon(
            _grouped(config, parameters),
            momentum=config.adam_beta1,
            weight_decay=config.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        super().__init__(library, parameters)

    def _empty(self, value: torch.nn.Parameter) -> dict[str, Any]:
        return {"momentum_buffer": torch.zeros_like(value)}


def _grouped(config: LearnerConfig, parameters: Parameters) -> list[dict[str, Any]]:
    """Groups of torch's optimizers, one for each factor of the learning rate."""
    factors = rate_factors(config, parameters)
    return [
        {"params": [value for name, value in parameters.items() if factors[name] == factor], "factor": factor}
        for factor in dict.fromkeys(factors.values())
    ]


def _shape(entry: Any) -> tuple[int, ...] | None:
    """Of a state; None for any."""
    return None if entry is None else tuple(torch.as_tensor(entry).shape)


def _found(tensors: Mapping[str, np.ndarray], name: str, shapes: Mapping[str, tuple[int, ...] | None]) -> Tensors:
    """The states of a tensor in a checkpoint."""
    for key, shape in shapes.items():
        value = tensors.get(f"{key}/{name}")
        if value is None:
            raise ValueError(f"the checkpoint has no tensor 'optimizer/{key}/{name}'")
        if shape is not None and tuple(value.shape) != shape:
            raise ValueError(
                f"the checkpoint's tensor 'optimizer/{key}/{name}' has shape {tuple(value.shape)}, expected {shape}"
            )
    return {key: torch.from_numpy(np.array(tensors[f"{key}/{name}"])) for key in shapes}
