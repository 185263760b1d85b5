"""Weights straight from the learner's process to a sampler's: both ends of a torch.distributed group of two.

The learner is rank 0 and the sampler rank 1, on the CPU over gloo or between GPUs over NCCL. The bytes of all tensors
go in buckets, so that neither many small tensors nor large ones cost more than their size; names, shapes and dtypes
travel beside them, as an argument of the actor's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import numpy as np

from prdp.types import UInt8, Weights

BUCKET_BYTES = 64 * 2**20
"""At a time; both ends have to cut alike."""
_LEARNER, _SAMPLER = 0, 1


class TransferError(Exception):
    """The weights did not arrive in full; the group is of no use any more."""


@dataclasses.dataclass(frozen=True)
class Rendezvous:
    """How the ends find each other: a store in the learner's process, and a prefix of their own in it.

    Attributes:
        host, port: of the store.
        key: the prefix.
        backend: 'gloo' or 'nccl'.
        timeout: seconds for each step: to meet, and for each bucket.
    """

    host: str
    port: int
    key: str
    backend: str
    timeout: float


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What is about to arrive: everything of `Weights` but the bytes."""

    version: int
    checksum: str
    layout: tuple[tuple[str, tuple[int, ...], np.dtype], ...]

    @classmethod
    def of(cls, weights: Weights) -> Manifest:
        """Of the weights, in the order in which their tensors travel."""
        layout = tuple((name, np.shape(array), array.dtype) for name, array in weights.tensors.items())
        return cls(weights.version, weights.checksum, layout)


class Receiver:
    """The sampler's end; meets the learner at the first weights and keeps to that group.

    Args:
        host: address of this node, the only one to listen on.
    """

    def __init__(self, host: str) -> None:
        self._host = host
        self._group: tuple[Rendezvous, Any] | None = None

    def receive(self, rendezvous: Rendezvous, manifest: Manifest) -> Weights:
        """Weights with the very bytes that were sent, as arrays on the host.

        Raises:
            TransferError: whatever went wrong; the learner then gives this sampler up.
        """
        try:
            if self._group is None or self._group[0] != rendezvous:
                self._group = (rendezvous, join(rendezvous, _SAMPLER, self._host))
            arrays = {name: np.empty(shape, dtype) for name, shape, dtype in manifest.layout}
            receive(self._group[1], arrays, "cuda" if rendezvous.backend == "nccl" else "cpu")
        except Exception as error:
            raise TransferError(f"the weights did not arrive: {type(error).__name__}: {error}") from error
        return Weights(manifest.version, arrays, manifest.checksum)


def open_store(host: str, timeout: float) -> tuple[Any, int]:
    """The store where learner and samplers meet, and its port, which listens on `host` alone.

    Args:
        timeout: seconds.
    """
    from torch.distributed import TCPStore

    # By itself the store would listen on all addresses of the machine.
    listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    port = listener.getsockname()[1]
    store = TCPStore(
        host,
        port,
        is_master=True,
        timeout=timedelta(seconds=timeout),
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    return store, port


def join(rendezvous: Rendezvous, rank: int, host: str, size: int = 2) -> Any:
    """Make the group, which waits for the other ends.

    Args:
        rank: 0 for the learner; with weights for a sampler, that is 1.
        host: address of this node.
        size: how many meet.

    Raises:
        RuntimeError: an other end did not come in time.
    """
    timeout = timedelta(seconds=rendezvous.timeout)
    store = store_of(rendezvous)
    if rendezvous.backend == "nccl":
        from torch.distributed import ProcessGroupNCCL

        # Without this a time-out does not raise but ends the process, which may be the learner's.
        os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"
        if host.startswith("127.") or host == "::1":
            os.environ.setdefault("NCCL_SOCKET_IFNAME", "=lo")
        options = ProcessGroupNCCL.Options()
        options._timeout = timeout
        return ProcessGroupNCCL(store, rank, size, options)
    return gloo_group(store, rank, size, timeout, host)


def store_of(rendezvous: Rendezvous) -> Any:
    """What an end meets the others by."""
    from torch.distributed import PrefixStore, TCPStore

    timeout = timedelta(seconds=rendezvous.timeout)
    # A connection of its own: one that waits would hold up all others.
    store = TCPStore(rendezvous.host, rendezvous.port, is_master=False, timeout=timeout, wait_for_workers=False)
    return PrefixStore(rendezvous.key, store)


def gloo_group(store: Any, rank: int, size: int, timeout: timedelta, host: str) -> Any:
    """A group that listens on `host` alone."""
    from torch.distributed import ProcessGroupGloo

    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices, options._threads, options._timeout = [_listener(host)], 1, timeout
    return ProcessGroupGloo(store, rank, size, options)


def send(
    group: Any,
    tensors: Mapping[str, np.ndarray],
    device: str,
    progressed: Callable[[], None] = lambda: None,
    bucket_bytes: int = BUCKET_BYTES,
) -> None:
    """Send the bytes of all tensors to the sampler, and wait until it has them.

    Args:
        device: that the group works on, 'cpu' or 'cuda:1'.
        progressed: called after each bucket.

    Raises:
        RuntimeError: the other end is gone, or takes nothing.
    """
    arrays = [np.ascontiguousarray(array) for array in tensors.values()]
    with _StagingBuffer(arrays, device, bucket_bytes) as stage:
        for pieces in _buckets(arrays, bucket_bytes):
            stage.load(pieces)
            group.broadcast(stage.filled, _LEARNER).wait()
            progressed()
        # Small weights would fit into the buffers of a connection whose other end hangs.
        group.broadcast(stage.receipt, _SAMPLER).wait()


def receive(group: Any, tensors: Mapping[str, np.ndarray], device: str, bucket_bytes: int = BUCKET_BYTES) -> None:
    """Fill C-ordered tensors with the bytes that the learner sends; see `send`."""
    arrays = list(tensors.values())
    with _StagingBuffer(arrays, device, bucket_bytes) as stage:
        for pieces in _buckets(arrays, bucket_bytes):
            stage.expect(pieces)
            group.broadcast(stage.filled, _LEARNER).wait()
            stage.unload(pieces)
        group.broadcast(stage.receipt, _SAMPLER).wait()


class _StagingBuffer:
    """One bucket on the host, and on the GPU where the group works there.

    Attributes:
        filled: uint8 tensor on the group's device, as long as the pieces at hand.
        receipt: one byte there.
    """

    def __init__(self, arrays: Iterable[np.ndarray], device: str, bucket_bytes: int) -> None:
        import torch

        size = min(sum(array.nbytes for array in arrays), bucket_bytes)
        gpu = device != "cpu"
        # A stream of its own: on the default one, copies would wait for what the learner computes.
        self._stream: Any = torch.cuda.stream(torch.cuda.Stream(device)) if gpu else contextlib.nullcontext()
        with self._stream:
            self._host = torch.empty(size, dtype=torch.uint8, pin_memory=gpu)
            self._wire = torch.empty(size, dtype=torch.uint8, device=device) if gpu else self._host
            self.receipt = torch.zeros(1, dtype=torch.uint8, device=device)
        self.filled = self._wire

    def __enter__(self) -> Self:
        self._stream.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.__exit__(kind, error, trace)

    def expect(self, pieces: Iterable[UInt8]) -> None:
        """Make `filled` as long as the pieces."""
        self.filled = self._wire[: sum(map(len, pieces))]

    def load(self, pieces: Iterable[UInt8]) -> None:
        """Copy pieces into `filled`."""
        self.expect(pieces)
        for place, piece in zip(self._places(pieces), pieces, strict=True):
            place[:] = piece
        if self._wire is not self._host:
            self.filled.copy_(self._host[: len(self.filled)])

    def unload(self, pieces: Iterable[UInt8]) -> None:
        """Copy `filled` into pieces."""
        if self._wire is not self._host:
            self._host[: len(self.filled)].copy_(self.filled)
        for place, piece in zip(self._places(pieces), pieces, strict=True):
            piece[:] = place

    def _places(self, pieces: Iterable[UInt8]) -> Iterator[UInt8]:
        host, end = self._host.numpy(), 0
        for piece in pieces:
            yield host[end : end + len(piece)]
            end += len(piece)


def _buckets(arrays: Iterable[np.ndarray], size: int) -> Iterator[list[UInt8]]:
    """The bytes of C-ordered arrays as views, cut so that every bucket but the last has `size` bytes."""
    bucket: list[UInt8] = []
    room = size
    for array in arrays:
        rest = array.reshape(-1).view(np.uint8)
        while len(rest):
            piece, rest = rest[:room], rest[room:]
            bucket.append(piece)
            room -= len(piece)
            if not room:
                yield bucket
                bucket, room = [], size
    if bucket:
        yield bucket


@functools.cache
def _listener(host: str) -> Any:
    """The socket by which all gloo groups of this process are reached."""
    from torch.distributed import ProcessGroupGloo

    return ProcessGroupGloo.create_device(hostname=host)
