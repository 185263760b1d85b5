"""A device that samplers and learners share by turns: what one of them holds there waits on the host meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from prdp.diffusion.policy import Policy
from prdp.diffusion.sampler import Sampler
from prdp.types import PromptBatch, Rollout, Weights

Tensors = Iterable[torch.Tensor]


class WaitingRoom:
    """Contents of tensors that wait on the host while their memory on the device is free for others.

    The tensors stay the same objects, and so do their views and whatever else looks at their memory; nobody may read
    them until they are back.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[torch.UntypedStorage, torch.Tensor]] = []

    @property
    def is_empty(self) -> bool:
        """Whether all is on the device."""
        return not self._waiting

    @torch.no_grad()
    def rest(self, tensors: Tensors, device: torch.device, but: Tensors = ()) -> None:
        """Bring tensors to the host, unless some wait already.

        Args:
            tensors: those on `device` go; their memory as a whole.
            but: others that need the same memory, which stays.
        """
        if self._waiting:
            return
        kept = {tensor.untyped_storage()._cdata for tensor in but}
        cuda = device.type == "cuda"
        for tensor in tensors:
            tensor = getattr(tensor, "to_local", lambda own=tensor: own)()  # of a network that is divided
            storage = tensor.untyped_storage()
            here = tensor.device.type == device.type and storage.nbytes() > 0 and storage.resizable()
            if not here or storage._cdata in kept:
                continue
            kept.add(storage._cdata)
            host = torch.empty(storage.nbytes(), dtype=torch.uint8, pin_memory=cuda)
            host.copy_(_bytes(storage, tensor.device), non_blocking=cuda)
            self._waiting.append((storage, host))
        if cuda:
            torch.cuda.synchronize(device)
        for storage, _ in self._waiting:
            storage.resize_(0)
        if cuda:
            torch.cuda.empty_cache()  # for other processes on this device

    @torch.no_grad()
    def wake(self) -> None:
        """Bring back what waits."""
        waiting, self._waiting = self._waiting, []
        device = None
        for storage, host in waiting:
            storage.resize_(host.numel())
            device = storage.device
            _bytes(storage, device).copy_(host, non_blocking=True)
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)  # before the host's copies go


def tensors_of(policy: Policy) -> list[torch.Tensor]:
    """All tensors of a policy: of its networks, and of the text encoders and the VAE where it has them."""
    parts: dict[str, Any] = getattr(getattr(policy, "pipeline", None), "components", {})
    modules = [*policy.weights.networks(), *(part for part in parts.values() if isinstance(part, torch.nn.Module))]
    return tensors_in(modules)


def tensors_in(modules: Iterable[torch.nn.Module]) -> list[torch.Tensor]:
    """Parameters and buffers."""
    return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]


def _bytes(storage: torch.UntypedStorage, device: torch.device) -> torch.Tensor:
    """A tensor that is all of a storage."""
    return torch.empty(0, dtype=torch.uint8, device=device).set_(storage)  # type: ignore[call-overload,no-any-return]


class TurnTakingSampler:
    """A sampler whose policy is on the device while it works, and waits on the host otherwise.

    Args:
        sampler: it has not worked yet.
        beside: the policy of a learner in this process, whose network may share memory with the sampler's.
    """

    def __init__(self, sampler: Sampler, beside: Policy | None = None) -> None:
        self._sampler, self._beside, self._room = sampler, beside, WaitingRoom()
        self._rest()

    @property
    def policy(self) -> Policy:
        """That it samples from."""
        return self._sampler.policy

    def load_weights(self, weights: Weights) -> tuple[int, str]:
        """See `Sampler.load_weights`."""
        self._room.wake()
        try:
            return self._sampler.load_weights(weights)
        finally:
            self._rest()

    def sample(self, prompts: PromptBatch, images_per_prompt: int, seed: int, trajectory: bool = True) -> Rollout:
        """See `Sampler.sample`."""
        self._room.wake()
        try:
            return self._sampler.sample(prompts, images_per_prompt, seed, trajectory)
        finally:
            self._rest()

    def _rest(self) -> None:
        policy = self._sampler.policy
        needed = [] if self._beside is None else list(self._beside.weights.network.parameters())
        self._room.rest(tensors_of(policy), policy.device, needed)


def taking_turns(factory: Callable[[], Any], beside: Policy | None = None) -> TurnTakingSampler:
    """A factory's sampler, as one that takes turns; picklable as a `functools.partial` where there is no learner
    beside it.
    """
    return TurnTakingSampler(factory(), beside)
