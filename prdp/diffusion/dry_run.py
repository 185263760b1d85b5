"""Passes of a network that has shapes and no numbers: what memory they take beyond its weights."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from prdp.config import LearnerConfig, ModelConfig
from prdp.diffusion.conditions import Conditions
from prdp.diffusion.precision import repeated_blocks


class DryPolicy:
    """A policy whose network is made of its configuration alone, on a device that computes shapes.

    Blocks that a network repeats run once for each shape, and count as often as they are called.

    Args:
        family: policy class of a folder.
        model, learner: sections of the configuration.
        network: on the meta device, with weights as they are stored.
        fields: name -> shape of what a prompt becomes, without the number of prompts.
        encoders: component -> text encoder that learns, likewise.
    """

    def __init__(
        self,
        family: Callable[..., Any],
        model: ModelConfig,
        learner: LearnerConfig,
        network: Any,
        fields: Mapping[str, tuple[int, ...]],
        encoders: Mapping[str, Any] | None = None,
    ) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode

        self._mode = FakeTensorMode()
        name = getattr(family, "NETWORK", "")
        encoders = encoders or {}
        pipeline = SimpleNamespace(**{name: network, "vae": None, "scheduler": SimpleNamespace(config={}), **encoders})
        learner = replace(learner, init_adapter=None)
        model = replace(model, adapters=[], adapter_weights=[], vae_slicing=False, vae_tiling=False)
        model = replace(model, attention_backend=None, compile=None)  # those of GPUs do not compute shapes of a CPU
        self.policy = family(pipeline, model, learner, keep_reference=False)
        self.learning = sum(value.numel() for value in self.policy.weights.parameters.values())
        self._checkpointing = learner.gradient_checkpointing
        self._fields = fields
        for part in (network, *encoders.values()):
            _materialise(part, self._mode)
        self.policy.device = torch.device("cpu")
        self._prompts = 1
        if encoders:  # which row is which prompt depends on numbers
            self.policy._distinct = self._distinct

    def _distinct(self, tokens: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        rows = {name: value[: self._prompts] for name, value in tokens.items()}
        return rows, torch.zeros(len(next(iter(tokens.values()))), dtype=torch.int64)

    def with_gradient(self, images: int, prompts: int = 1) -> int:
        """Bytes at the peak of a pass forward and backward over so many latents.

        Args:
            prompts: how many different ones they are of, the empty one among them, which text encoders that learn read.
        """
        self._prompts = prompts
        with self._mode, _Live() as live, _once(self.policy.network, live, self._checkpointing) as blocks:
            output = self._output(images)
            kept = live.now
            del output
        # In half precision the pass counts the copies that autocast makes: without checkpointing of all adapters.
        converted = 2 * self.learning if self._checkpointing and self.policy.converts_adapters is not None else 0
        return max(live.peak, kept + blocks.backward) + converted

    @torch.no_grad()
    def without_gradient(self, images: int, prompts: int = 1, *, float32: bool) -> int:
        """Likewise of a pass forward, with what the weights are widened by where it computes in float32."""
        self._prompts = prompts
        network = self.policy.network
        wide = _wide(network, self._mode) if float32 else nullcontext(0)
        with wide as widened, self._mode, _Live() as live, _once(network, live), self._precision(float32):
            self._output(images)
        return live.peak + widened

    def _precision(self, float32: bool) -> AbstractContextManager[None]:
        return self.policy.float32() if float32 else nullcontext()

    def _output(self, images: int) -> torch.Tensor:
        latents, times = torch.zeros(images, *self.policy.latent_shape), torch.full((images,), 0.5)
        fields: dict[str, Any] = {name: torch.zeros(images, *shape) for name, shape in self._fields.items()}
        fields |= {name: value.long() for name, value in fields.items() if name.startswith("token_ids")}
        if "tokens" in fields:  # numbers, of which lengths are made: those of the longest prompts
            longest = self._fields["states"][0]
            fields["tokens"] = SimpleNamespace(tolist=lambda: [longest] * images)
        output: torch.Tensor = self.policy.output(latents, times, Conditions(fields), 1.0)
        return output


@torch.no_grad()
def decoding(vae: Any, latents: tuple[int, ...], float32: bool) -> int:
    """Bytes at the peak of decoding latents [B, C, h, w], beyond the VAE's weights.

    Args:
        vae: on the meta device, in the precision that it is stored in.
        float32: whether it computes in float32 whatever that is.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode()
    _materialise(vae, mode)
    with _wide(vae, mode) if float32 else nullcontext(0) as widened, mode, _Live() as live:
        vae.decode(torch.zeros(latents, dtype=vae.dtype), return_dict=False)
    return live.peak + widened


class _Live(TorchDispatchMode):
    """Counts the bytes of storages that operations make, for as long as they are held."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self._see(value.untyped_storage())
        if func is torch.ops.aten.convolution.default and args[0].dtype in (torch.bfloat16, torch.float16):
            # cuDNN takes channels last there, and makes itself a copy.
            self.most(args[0].nbytes)
        return result

    def most(self, more: int) -> None:
        """Take note of so many bytes beyond those of now."""
        self.peak = max(self.peak, self.now + more)

    def _see(self, storage: Any) -> None:
        if storage not in self._seen:
            size = self._seen[storage] = storage.nbytes()
            self.now += size
            self.most(0)
            weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.now -= size


@dataclass(frozen=True)
class _Block:
    """What one call of a block came to.

    Attributes:
        result: its shapes.
        kept: bytes that it keeps for the backward pass, its results not among them.
        forward: bytes at the peak of the call.
        backward: bytes at the peak of its backward pass, beyond what all blocks keep.
    """

    result: Any
    kept: int
    forward: int
    backward: int


class _Blocks:
    """The blocks of a network, each run once for each kind and shapes."""

    def __init__(self, live: _Live, checkpointing: bool) -> None:
        self._live, self._checkpointing = live, checkpointing
        self._known: dict[Any, _Block] = {}
        self._held: list[Any] = []
        self.backward = 0

    def call(self, block: torch.nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """The results of a block, made of shapes where it has been seen."""
        key = (_kind(block), *(_shape(value) for value in tree_leaves((args, kwargs))))
        grad = torch.is_grad_enabled()
        if key not in self._known:
            self._known[key] = self._measured(forward, args, kwargs, grad)
        found = self._known[key]
        self._live.most(found.forward)
        self.backward = max(self.backward, found.backward)
        result = tree_map(lambda value: _like(value, grad), found.result)
        if grad:
            self._held.append((args, kwargs))
            self._held.append(torch.empty(found.kept, dtype=torch.uint8))
        return result

    def _measured(self, forward: Any, args: Any, kwargs: Any, grad: bool) -> _Block:
        live = self._live
        before, highest, live.peak = live.now, live.peak, live.now
        args, kwargs = tree_map(lambda value: _leaf(value, grad), (args, kwargs))
        result = forward(*args, **kwargs)
        outputs = [value for value in tree_leaves(result) if isinstance(value, torch.Tensor)]
        shapes = tree_map(_shape, result)
        results = sum({id(one.untyped_storage()): one.untyped_storage().nbytes() for one in outputs}.values())
        kept, top = max(live.now - before - results, 0), live.peak - before
        backward = 0
        if grad:
            inputs = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
            inputs = [value for value in inputs if value.requires_grad]
            wanted = [*inputs, *(value for value in self._parameters(forward) if value.requires_grad)]
            outputs = [value for value in outputs if value.requires_grad]
            if wanted and outputs:
                ahead = [torch.empty_like(one) for one in outputs]
                gradients = torch.autograd.grad(outputs, wanted, ahead, allow_unused=True)
                backward = live.peak - before - (0 if self._checkpointing else kept)
                del gradients
        if self._checkpointing and grad:
            kept = 0
        del result, outputs
        live.peak = highest
        return _Block(shapes, kept, top, backward)

    @staticmethod
    def _parameters(forward: Any) -> Iterator[torch.Tensor]:
        owner: torch.nn.Module = forward.__self__
        return owner.parameters()


@contextmanager
def _once(network: torch.nn.Module, live: _Live, checkpointing: bool = False) -> Iterator[_Blocks]:
    """Let repeated blocks run once for each shape."""
    blocks, repeated = _Blocks(live, checkpointing), repeated_blocks(network)
    for block in repeated:
        own = block.forward

        def forward(*args: Any, _block: torch.nn.Module = block, _own: Any = own, **kwargs: Any) -> Any:
            return blocks.call(_block, _own, args, kwargs)

        block.forward = forward
    # Blocks alone are computed again in a backward pass, and `_Blocks` counts that; the rest is as it is.
    set_ = getattr(network, "enable_gradient_checkpointing", None)
    if checkpointing and set_ is not None:
        set_(lambda function, *args: function(*args))
    try:
        yield blocks
    finally:
        for block in repeated:
            del block.forward


@contextmanager
def _wide(network: torch.nn.Module, mode: Any) -> Iterator[int]:
    """Weights in half precision as float32 ones; the bytes that `upcast` takes for them at a time.

    A tensor without numbers keeps what `upcast` gave it.
    """
    from torch._subclasses.fake_tensor import FakeTensor

    blocks = [{id(value) for value in block.parameters()} for block in repeated_blocks(network)]
    inside, sizes = set().union(*blocks), {}
    before = []
    for module in network.modules():
        for name, value in list(module._parameters.items()):
            if value is None or value.dtype not in (torch.bfloat16, torch.float16):
                continue
            wide = FakeTensor(mode, torch.empty(value.shape, device="meta"), torch.device("cpu"))
            module._parameters[name] = torch.nn.Parameter(wide, requires_grad=value.requires_grad)
            sizes[id(value)] = 4 * value.numel()
            before.append((module, name, value))
    try:
        outer = sum(size for one, size in sizes.items() if one not in inside)
        yield outer + max((sum(sizes.get(one, 0) for one in block) for block in blocks), default=0)
    finally:
        for module, name, value in before:
            module._parameters[name] = value


def _kind(block: torch.nn.Module) -> tuple[Any, ...]:
    return type(block), *((name, tuple(value.shape), value.dtype) for name, value in block.named_parameters())


def _shape(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return _Shape(tuple(value.shape), value.dtype, value.requires_grad)
    return value if isinstance(value, bool | int | float | str | None) else type(value)


@dataclass(frozen=True)
class _Shape:
    """Of a tensor, its precision, and whether it has a gradient; before the first layer that learns there is none."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    gradient: bool


def _like(value: Any, grad: bool) -> Any:
    if not isinstance(value, _Shape):
        return value
    return torch.empty(value.shape, dtype=value.dtype).requires_grad_(grad and value.gradient)


def _leaf(value: Any, grad: bool) -> Any:
    if not isinstance(value, torch.Tensor) or not grad:
        return value
    return value.detach().requires_grad_(value.requires_grad)


def _materialise(network: torch.nn.Module, mode: Any) -> None:
    """Let tensors of the meta device stand for ones on a device that computes."""
    from torch._subclasses.fake_tensor import FakeTensor

    device = torch.device("cpu")
    for module in network.modules():
        for name, value in list(module._parameters.items()):
            if value is not None:
                fake = FakeTensor(mode, value.data, device)
                module._parameters[name] = torch.nn.Parameter(fake, requires_grad=value.requires_grad)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = FakeTensor(mode, buffer.to("meta"), device)

