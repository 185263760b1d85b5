"""What the host does to start a pass with LoRA: operations and CPU time, by peft and diffusers and as it is here.

    python benchmarks/host_time.py [--repeats 40]

A UNet of Stable Diffusion 1.5's depth and few channels, so that little is left to compute. LoRA of rank 4 on attention,
two pictures. A pass by peft's and diffusers' own classes and one as prdp makes it take turns in one process; the median
of each, and of the ratios, is printed. Operations are those that compute or copy; views are not counted. Passes are not
the first ones: adapters have been converted, where that is done once for several passes.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from prdp.diffusion.direct_layers import direct
from prdp.diffusion.precision import conversions_kept

CPU = torch.device("cpu")
NARROW = {
    "sample_size": 8, "block_out_channels": (32, 64, 64, 64), "norm_num_groups": 8, "cross_attention_dim": 64,
    "attention_head_dim": 8,
}  # fmt: skip
VIEWS = {
    "view",
    "_unsafe_view",
    "t",
    "transpose",
    "permute",
    "expand",
    "slice",
    "split",
    "unsqueeze",
    "detach",
    "alias",
}


class Operations(TorchDispatchMode):
    """Counts what torch is asked to compute."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        self.count += name not in VIEWS
        return function(*args, **(kwargs or {}))


class Network:
    """A UNet with LoRA, whose layers can be given back to peft and diffusers.

    Args:
        dtype: of its weights; half precision computes by autocast.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        from diffusers import UNet2DConditionModel
        from peft import LoraConfig

        torch.manual_seed(0)
        self.unet: Any = UNet2DConditionModel(**NARROW).eval().requires_grad_(False).to(dtype)
        targets = ["to_q", "to_k", "to_v", "to_out.0"]
        self.unet.add_adapter(LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
        self.learning = [value for value in self.unet.parameters() if value.requires_grad]
        for value in self.learning:
            value.data = value.data.float()
        self.half = dtype is not torch.float32
        self.given = torch.randn(2, 4, 8, 8), torch.tensor([10, 500]), torch.randn(2, 7, 64)
        before = {module: type(module) for module in self.unet.modules()}
        direct(self.unet)
        self._kinds = {module: (kind, type(module)) for module, kind in before.items() if type(module) is not kind}

    def use(self, ours: bool) -> None:
        """Take the classes of prdp, or those of peft and diffusers."""
        for module, kinds in self._kinds.items():
            module.__class__ = kinds[ours]

    def output(self) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16) if self.half else nullcontext():
            return self.unet(*self.given, return_dict=False)[0].float()

    @torch.no_grad()
    def forward(self) -> None:
        self.output()

    def both(self) -> None:
        """Forward and backward."""
        for value in self.learning:
            value.grad = None
        self.output().square().mean().backward()

    @contextmanager
    def converted(self) -> Iterator[None]:
        """What the learner puts around its passes."""
        exact = [value.data for value in self.learning]
        for value in self.learning if self.half else ():
            value.data = value.data.bfloat16()
            value.grad = None
        try:
            yield
        finally:
            for value, data in zip(self.learning, exact, strict=True):
                value.grad, value.data = None, data

    def surroundings(self, ours: bool, learning: bool) -> AbstractContextManager[None]:
        """What is around several passes: of the sampler, or of the learner."""
        if not ours:
            return nullcontext()
        return self.converted() if learning else conversions_kept(CPU)


def milliseconds(work: Callable[[], None]) -> float:
    """CPU time of one call."""
    start = time.process_time()
    work()
    return 1e3 * (time.process_time() - start)


def operations(work: Callable[[], None]) -> int:
    """Of one call, after another one."""
    work()
    with Operations() as seen:
        work()
    return seen.count


def rows(dtype: torch.dtype, repeats: int) -> Iterator[str]:
    """A row for passes without gradient, and one for passes with."""
    network = Network(dtype)
    precision = str(dtype).removeprefix("torch.")
    for name, work in (("without gradient", network.forward), ("with", network.both)):
        times: dict[bool, list[float]] = {False: [], True: []}
        counts = {}
        for _ in range(repeats):
            for ours in (False, True):
                network.use(ours)
                with network.surroundings(ours, learning=work == network.both):
                    counts[ours] = counts.get(ours) or operations(work)
                    work()
                    times[ours].append(milliseconds(work))
        theirs, here = (median(times[ours]) for ours in (False, True))
        ratio = median(one / other for one, other in zip(times[True], times[False], strict=True))
        yield f"| {precision}, {name} | {counts[False]} | {counts[True]} | {theirs:.1f} | {here:.1f} | {ratio:.2f} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| passes | operations, by peft and diffusers | here | CPU-ms | here | ratio |\n|---|---|---|---|---|---|")
    for dtype in (torch.float32, torch.bfloat16):
        for row in rows(dtype, options.repeats):
            print(row, flush=True)


if __name__ == "__main__":
    main()
