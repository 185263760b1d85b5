"""The rollout of a request, put together chunk by chunk.

Arrays that are here go into arrays of their final size: every byte is copied once. Of those elsewhere no byte moves.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from prdp.cluster import buffers
from prdp.cluster.base import arrays_of, describe_chunk, with_arrays
from prdp.support.remote_rows import RemoteRows, RowArray
from prdp.types import Float64, PromptBatch, Rollout, UInt8

_FACTS = ("weights_version", "weights_checksum", "images_per_prompt")


class RolloutBuilder:
    """Chunks go in, in any order; the whole comes out in prompt order.

    Args:
        prompts: of the request.
        chunks: its cut.
        images_per_prompt: B.
    """

    def __init__(self, prompts: PromptBatch, chunks: Sequence[PromptBatch], images_per_prompt: int) -> None:
        self._prompts, self._chunks, self._images_per_prompt = prompts, chunks, images_per_prompt
        self._first: Rollout | None = None
        self._arrays: dict[str, np.ndarray] = {}
        self._elsewhere: dict[str, dict[int, RemoteRows]] = {}
        self._rewards = np.empty(len(prompts) * images_per_prompt)
        self._sub_scores: dict[str, Float64] | None = None
        self._passes: Float64 | None = None
        self._seconds: Counter[str] = Counter()

    @classmethod
    def of_images(
        cls, images: UInt8, prompts: PromptBatch, chunks: Sequence[PromptBatch], images_per_prompt: int
    ) -> RolloutBuilder:
        """One whose images are there already, without trajectories: only the rewards are missing.

        Args:
            images: uint8 [n, H, W, 3], of all chunks in order.
        """
        builder = cls(prompts, chunks, images_per_prompt)
        whole = Rollout(prompts, images_per_prompt, images, 0, "")
        builder._first, builder._arrays = whole, {"images": images}
        return builder

    def chunk(self, index: int) -> Rollout:
        """A chunk of `of_images`, as views of the whole."""
        assert self._first is not None
        return with_arrays(dataclasses.replace(self._first, prompts=self._chunks[index]), self._views(index))

    def add_chunk(self, index: int, rollout: Rollout) -> Rollout:
        """Put a sampled chunk where it belongs; the same chunk, as views of the whole.

        Raises:
            ValueError: it was made by other weights than another chunk, or its arrays have another shape.
        """
        arrays = arrays_of(rollout)
        if self._first is None:
            self._first = rollout
            whole = self._rows(slice(0, len(self._prompts)))
            self._arrays = {
                name: buffers.empty((whole[_of_prompts(name)].stop, *value.shape[1:]), value.dtype)
                for name, value in arrays.items()
                if isinstance(value, np.ndarray)
            }
            self._elsewhere = {name: {} for name in arrays if name not in self._arrays}
        self._check_alike(index, rollout, arrays)
        for name, value in arrays.items():
            if isinstance(value, RemoteRows):
                self._elsewhere[name][index] = value
            else:
                self._arrays[name][self._rows(self._place(index))[_of_prompts(name)]] = value
        if rollout.network_passes is not None:
            if self._passes is None:
                self._passes = np.full(len(self._rewards), np.nan)
            self._passes[self._rows(self._place(index))[False]] = rollout.network_passes
        return with_arrays(rollout, self._views(index))

    def add_rewards(self, index: int, chunk: Rollout, rewards: Float64, sub_scores: Mapping[str, Float64]) -> Rollout:
        """Put a chunk's rewards in their place; the chunk with them.

        Raises:
            ValueError: its sub-scores are others than those of another chunk.
        """
        if self._sub_scores is None:
            self._sub_scores = {name: np.empty(len(self._rewards)) for name in sub_scores}
        if self._sub_scores.keys() != sub_scores.keys():
            raise ValueError(
                f"{describe_chunk(self._chunks[index])}: the reward gave the sub-scores {sorted(sub_scores)}, and "
                f"{sorted(self._sub_scores)} for other chunks"
            )
        rows = self._rows(self._place(index))[False]
        self._rewards[rows] = rewards
        for name, values in sub_scores.items():
            self._sub_scores[name][rows] = values
        self._seconds.update(chunk.seconds)
        own = {name: values[rows] for name, values in self._sub_scores.items()}
        return dataclasses.replace(chunk, rewards=self._rewards[rows], sub_scores=own)

    def build(self, wall_seconds: float, sampling_seconds: float) -> Rollout:
        """The rollout, when every chunk is scored.

        Args:
            wall_seconds: from the first chunk begun to the last one scored; "rollout" of the result's seconds.
            sampling_seconds: of these, those in which images were sampled; "sampling".
        """
        assert self._first is not None
        elsewhere = {name: _joined(parts) for name, parts in self._elsewhere.items()}
        return dataclasses.replace(
            with_arrays(self._first, {**self._arrays, **elsewhere}),
            prompts=self._prompts,
            rewards=self._rewards,
            sub_scores=self._sub_scores or {},
            seconds={**self._seconds, "rollout": wall_seconds, "sampling": sampling_seconds},
            network_passes=self._passes,
        )

    def _views(self, index: int) -> dict[str, RowArray]:
        rows = self._rows(self._place(index))
        here: dict[str, RowArray] = {name: whole[rows[_of_prompts(name)]] for name, whole in self._arrays.items()}
        return here | {name: parts[index] for name, parts in self._elsewhere.items()}

    def _place(self, index: int) -> slice:
        """The prompts of a chunk."""
        chunk = self._chunks[index]
        start = chunk.offset - self._prompts.offset
        return slice(start, start + len(chunk))

    def _rows(self, prompts: slice) -> dict[bool, slice]:
        """Rows of some prompts, where there is one for each of them (True), and where there is one for each image."""
        size = self._images_per_prompt
        return {True: prompts, False: slice(prompts.start * size, prompts.stop * size)}

    def _check_alike(self, index: int, rollout: Rollout, arrays: Mapping[str, RowArray]) -> None:
        assert self._first is not None
        where = describe_chunk(self._chunks[index])
        for name in _FACTS:
            if getattr(rollout, name) != getattr(self._first, name):
                raise ValueError(
                    f"{where}: {name} is {getattr(rollout, name)!r}, and {getattr(self._first, name)!r} in other chunks"
                )
        of_first = arrays_of(self._first)
        if arrays.keys() != of_first.keys():
            raise ValueError(f"{where} holds {sorted(arrays)}, other chunks hold {sorted(of_first)}")
        for name, value in arrays.items():
            other = of_first[name]
            if value.shape[1:] != other.shape[1:] or value.dtype != other.dtype:
                raise ValueError(
                    f"{where}: {name} is {value.dtype} {list(value.shape)}, and {other.dtype} "
                    f"[n, {', '.join(map(str, other.shape[1:]))}] in other chunks"
                )


def _joined(parts: Mapping[int, RemoteRows]) -> RemoteRows:
    return RemoteRows.joined([parts[index] for index in sorted(parts)])


def _of_prompts(name: str) -> bool:
    return name.startswith("conditions/")
