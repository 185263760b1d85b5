"""The engine in torch: the policy's own network, trained in place.

Gradients of microbatches are float32, and their sum is float64. Of n microbatches it is exact for every entry whose
parts differ by a factor below 2^29 / n; where they differ by more, rounding the sum to float32 hides the error, but for
a chance of about n / 2^28. So the gradient does not depend on the order of the microbatches, nor on how many processes
share them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial

import numpy as np
import torch

from prdp.config import LearnerConfig
from prdp.diffusion.determinism import tf32_products
from prdp.diffusion.policy import Policy
from prdp.diffusion.transitions import Transitions
from prdp.diffusion.turns import WaitingRoom, tensors_in, tensors_of
from prdp.evidence.base import Evidence, Of
from prdp.learners.block_inputs import added_inside_first
from prdp.learners.device_engine import DeviceEngine, Total
from prdp.learners.engine import Arrays, section
from prdp.learners.guards import gradient_error, unlearned
from prdp.learners.optimizers import build_optimizer
from prdp.learners.precision import evidence_precision
from prdp.support.interruption import uninterrupted
from prdp.types import Weights

Tensors = dict[str, torch.Tensor]


class TorchEngine(DeviceEngine):
    """See `DeviceEngine`.

    Args:
        config: optimizer, moving average, microbatch.
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
        size, precision = config.microbatch, evidence_precision(config.evidence_precision, policy.precision)
        kept_bytes = config.kept_outputs_gib * 2**30 * (precision == policy.precision)
        super().__init__(policy, transitions, guidance_scale, evidence, channels, size, seed, kept_bytes)
        self.evidence_precision = precision
        self._parameters = policy.weights.parameters
        self._max_grad_norm = config.max_grad_norm
        self._divisible = config.mode == "full"  # an `FsdpEngine` may go on from here
        self._optimizer = build_optimizer(config, self._parameters)
        self._average = self._copy() if config.ema_decay else None
        self._kept: dict[str, Tensors] = {}
        self._sums: Tensors = {}
        self._room = WaitingRoom()
        # Apple's GPUs have no float64.
        self._sum_dtype = torch.float32 if policy.device.type == "mps" else torch.float64

    def weights(self, of: Of, version: int) -> Weights:
        return self.policy.weights.export(version) if of == "policy" else _weights(self._of(of), version)

    def average(self, version: int) -> Weights | None:
        return None if self._average is None else _weights(self._average, version)

    def keep_reference(self) -> None:
        self.policy.weights.keep_reference()

    def keep(self, of: Of) -> None:
        self._kept[of] = self._copy()

    def unmoved(self, of: Of) -> bool:
        kept = self._of(of)
        return all(torch.equal(value, kept[name]) for name, value in self._parameters.items())

    @torch.no_grad()
    def move(self, of: Of, decay: float) -> None:
        for name, value in self._of(of).items():
            value.lerp_(self._parameters[name].detach(), 1.0 - decay)

    def unscale(self, scale: float) -> bool:
        gradients = [value.grad for value in self._parameters.values() if value.grad is not None]
        torch._foreach_mul_(gradients, 1.0 / scale)
        _, squares = self._sizes()
        return bool(squares.float().isfinite())

    def apply(self, learning_rate: float, ema_decay: float, update: int) -> dict[str, float]:
        largest, squares = self._sizes()
        without = unlearned({name: largest.get(name) for name in self._parameters}, first=update == 0)
        if not torch.isfinite(squares.float()):
            raise gradient_error(update, largest)
        norm = squares.sqrt().float()
        torch.nn.utils.clip_grads_with_norm_(self._parameters.values(), self._max_grad_norm, norm)
        self._optimizer.step(learning_rate)
        if self._average is not None:
            with torch.no_grad():
                for name, value in self._average.items():
                    value.lerp_(self._parameters[name].detach(), 1.0 - ema_decay)
        return {"grad_norm": norm.item(), "parameters_without_gradient": float(len(without))}

    def state(self) -> Arrays:
        tensors = {f"weights/{name}": value for name, value in self._parameters.items()}
        tensors |= {f"optimizer/{name}": value for name, value in self._optimizer.state().items()}
        tensors |= {f"ema/{name}": value for name, value in (self._average or {}).items()}
        for of, kept in self._saved().items():
            tensors |= {f"{of}/{name}": value for name, value in kept.items()}
        return {name: value.detach().to("cpu", copy=True).numpy() for name, value in tensors.items()}

    def load_state(self, tensors: Mapping[str, np.ndarray], updates: int) -> None:
        self._bind(section(tensors, "weights/"), updates)
        if updates:
            self._optimizer.load(section(tensors, "optimizer/"))
        if self._average is not None:
            self._average = self._read(tensors, "ema/")
        for of in self._saved():
            self._kept[of] = self._read(tensors, f"{of}/")

    def rest(self, fixed: bool) -> None:
        self._zero_gradient()
        policy, kept = self.policy, [self._average or {}, *self._kept.values(), self._optimizer.state()]
        others = tensors_of(policy) if fixed else tensors_in(policy.weights.networks()[1:])
        learning = [*self._parameters.values(), *(tensor for tensors in kept for tensor in tensors.values())]
        self._room.rest([*learning, *others], policy.device)

    def wake(self) -> None:
        self._room.wake()

    @contextmanager
    def _network_of(self, of: Of) -> Iterator[torch.nn.Module | None]:
        if of == "policy":
            yield None
        elif of == "reference":
            with self.policy.reference() as network:
                yield network
        else:
            with self._exchanged(self._of(of)):
                yield None

    @contextmanager
    def _arithmetic(self, exact: bool) -> Iterator[None]:
        half = self.evidence_precision not in ("float32", "tf32")
        if half and not exact:
            with self._converted():
                yield
            return
        with self.policy.float32(), tf32_products(half) if exact else nullcontext():
            yield

    def tensors(self) -> Tensors:
        return {name: value.detach() for name, value in self._parameters.items()}

    @torch.no_grad()
    def settle(self, total: Total | None = None) -> None:
        if total is not None:
            # All processes have to hand over the same tensors, also those that no cell of theirs has a gradient for.
            device = self.policy.device
            present = torch.tensor([name in self._sums for name in self._parameters], device=device)
            present = present.to(self._sum_dtype)
            for name, value in self._parameters.items():
                if name not in self._sums:
                    self._sums[name] = torch.zeros_like(value, dtype=self._sum_dtype)
            total([*(self._sums[name] for name in self._parameters), present])
            self._sums = {
                name: self._sums[name]
                for name, count in zip(self._parameters, present.tolist(), strict=True)
                if count
            }
        for name, value in self._parameters.items():
            gradient = self._sums.pop(name, None)
            value.grad = None if gradient is None else gradient.to(value.dtype)

    @contextmanager
    def _gathering(self) -> Iterator[None]:
        """Add each gradient to its sum as soon as it is there, and let go of it."""
        order = added_inside_first(self.policy.weights.network) if self._divisible else nullcontext()
        with self._converted(), order, ExitStack() as hooks:
            for name, value in self._parameters.items():
                hooks.callback(value.register_post_accumulate_grad_hook(partial(self._add, name)).remove)
            yield

    @contextmanager
    def _converted(self) -> Iterator[None]:
        """Adapters are in the precision of the passes for the time of the context.

        Autocast would convert them to the same bits in each pass, and each gradient back.
        """
        dtype = getattr(self.policy, "converts_adapters", None)
        if dtype is None:
            yield
            return
        with self._exchanged({name: value.detach().to(dtype) for name, value in self._parameters.items()}):
            yield

    def _add(self, name: str, value: torch.Tensor) -> None:
        assert value.grad is not None
        if name in self._sums:
            self._sums[name].add_(value.grad)
        else:
            self._sums[name] = value.grad.to(self._sum_dtype, copy=True)
        value.grad = None

    def _sizes(self) -> tuple[dict[str, float], torch.Tensor]:
        """Largest absolute entry of each tensor's gradient, and the sum of all squares, on the host.

        Squares are summed in float64, so that their sum in float32 does not depend on how tensors are divided.
        """
        gradients = {name: value.grad for name, value in self._parameters.items() if value.grad is not None}
        table = torch.zeros(2, len(gradients), dtype=self._sum_dtype, device=self.policy.device)
        for column, gradient in enumerate(gradients.values()):
            if gradient.numel():
                table[0, column] = torch.linalg.vector_norm(gradient, math.inf)
                table[1, column] = torch.linalg.vector_norm(gradient, dtype=self._sum_dtype).square()
        largest, squares = self._of_whole_tensors(table).cpu()
        return dict(zip(gradients, largest.tolist(), strict=True)), squares.sum()

    def _of_whole_tensors(self, table: torch.Tensor) -> torch.Tensor:
        """Largest entries and sums of squares, [2, tensors], of whole tensors where only rows of them are here."""
        return table

    def _zero_gradient(self) -> None:
        self._sums = {}
        for value in self._parameters.values():
            value.grad = None

    def _copy(self) -> Tensors:
        return {name: value.detach().clone() for name, value in self._parameters.items()}

    def _saved(self) -> dict[str, Tensors]:
        """Kept policies that change, and so belong into a state."""
        return {of: kept for of, kept in self._kept.items() if of != "reference"}

    def _of(self, of: Of) -> Tensors:
        assert of in self._kept, f"the policy '{of}' is not kept: call keep first"
        return self._kept[of]

    @contextmanager
    def _exchanged(self, others: Tensors) -> Iterator[None]:
        """Others stand in the place of the learning tensors for the time of the context, never some of them alone."""
        there = False
        try:
            with uninterrupted():
                self._swap(others)
                there = True
            yield
        finally:
            if there:
                with uninterrupted():
                    self._swap(others)

    def _swap(self, others: Tensors) -> None:
        """Exchange the learning tensors with others, in place and without a copy."""
        for name, value in self._parameters.items():
            value.data, others[name] = others[name], value.data

    def _bind(self, tensors: Mapping[str, np.ndarray], updates: int) -> None:
        self.policy.weights.bind(Weights.of(updates, tensors))

    def _check(self, tensors: Mapping[str, np.ndarray]) -> None:
        self.policy.weights.check(tensors)

    def _read(self, tensors: Mapping[str, np.ndarray], prefix: str) -> Tensors:
        kept = section(tensors, prefix)
        self._check(kept)
        return {
            name: torch.from_numpy(np.array(kept[name])).to(value.device) for name, value in self._parameters.items()
        }


def _weights(tensors: Tensors, version: int) -> Weights:
    return Weights.of(version, {name: value.to("cpu", copy=True).numpy() for name, value in tensors.items()})
