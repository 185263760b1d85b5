"""Rollouts that are under way while the learner updates: a bounded queue, with nothing left to chance.

With `max_staleness` s, epoch e is sampled under the weights that the learner had at epoch max(0, e - s). Which weights
an epoch gets depends on the configuration alone, never on how fast sampling, scoring and learning are, so a run gives
the same weights on any cluster, and a resumed run asks again, under the same weights, for what was under way.

Offline, every epoch is sampled under the weights that the run started from. Images that are stored need none.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from prdp.cluster.base import OnChunk, Pending, Workforce
from prdp.prompts.stream import PromptStream
from prdp.types import Rollout, Weights

_TENSORS = "published/"


class RolloutQueue:
    """Asks for rollouts ahead of time and hands them out in order.

    Args:
        workforce: does the work.
        stream: prompts, taken when a rollout is asked for.
        prompts_per_epoch, images_per_prompt, seed: of every rollout.
        epochs: nothing is asked for beyond them.
        max_staleness: epochs by which sampling runs ahead; 0 waits for every update.
        online: whether epochs are sampled under the learner's weights, or all under those it had at the start.
        drawn: False for images that are stored: no weights are published, and rollouts count as made by version 0.
    """

    def __init__(
        self,
        workforce: Workforce,
        stream: PromptStream,
        *,
        prompts_per_epoch: int,
        images_per_prompt: int,
        seed: int,
        epochs: int,
        max_staleness: int,
        online: bool = True,
        drawn: bool = True,
    ) -> None:
        self._workforce, self._stream = workforce, stream
        self._prompts_per_epoch, self._images_per_prompt, self._seed = prompts_per_epoch, images_per_prompt, seed
        self._epochs, self._ahead, self._online, self._drawn = epochs, max_staleness, online, drawn
        self._under_way: deque[Pending] = deque()
        self._published: dict[int, Weights] = {}
        self._begins: dict[int, int] = {}

    def fill(self, epoch: int, weights: Weights) -> int:
        """Ask for every rollout up to `epoch + max_staleness` that was not asked for yet.

        Args:
            epoch: number of epochs that the learner has done.
            weights: of the learner now; not looked at when the epoch was begun before a restart.

        Returns:
            bytes of the weights, as they are published; 0 for stored images.
        """
        if self._drawn:
            self._published.setdefault(epoch, weights)
        last = min(epoch + self._ahead, self._epochs - 1)
        for wanted in range(epoch + len(self._under_way), last + 1):
            if self._drawn:
                self._workforce.publish(self._published[self._due(wanted)])
            # Noted before the stream moves on: whenever the run is ended, it knows where its epoch begins.
            self._begins.setdefault(wanted, self._stream.cursor)
            pending = self._workforce.submit(
                self._stream.next(self._prompts_per_epoch, wanted),
                images_per_prompt=self._images_per_prompt,
                seed=self._seed,
            )
            self._under_way.append(pending)
        self._forget(epoch)
        return sum(array.nbytes for array in weights.tensors.values()) if self._drawn else 0

    def next(self, on_chunk: OnChunk | None = None) -> Rollout:
        """Wait for the rollout of the epoch at hand; see `Pending.result`."""
        rollout = self._under_way[0].result(on_chunk)
        self._under_way.popleft()
        return rollout if self._drawn else dataclasses.replace(rollout, weights_version=0)

    def state(self, epoch: int, begun: bool = False) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """What a resumed run needs in `epoch`: weights that rollouts are due which the learner no longer has, and where
        the prompts of this epoch begin.

        Args:
            begun: some updates of the epoch are done, so that the weights at its start are gone too.
        """
        last = epoch if begun else epoch - 1
        earlier = {made: weights for made, weights in self._published.items() if self._due(epoch) <= made <= last}
        tensors = {
            f"{_TENSORS}{made}/{name}": array
            for made, weights in earlier.items()
            for name, array in weights.tensors.items()
        }
        versions = {str(made): weights.version for made, weights in earlier.items()}
        cursor = self._begins.get(epoch, self._stream.cursor)
        return tensors, {"prompt_cursor": cursor, "published": versions}

    def load_state(self, tensors: Mapping[str, np.ndarray], scalars: Mapping[str, Any]) -> None:
        """Continue where `state` was taken."""
        self._stream.cursor = int(scalars["prompt_cursor"])
        for made, version in (scalars.get("published") or {}).items():
            prefix = f"{_TENSORS}{made}/"
            arrays = {name[len(prefix) :]: tensors[name] for name in tensors if name.startswith(prefix)}
            self._published[int(made)] = Weights.of(version, arrays)

    def _forget(self, epoch: int) -> None:
        """Drop the weights that neither a rollout nor a checkpoint can ask for again."""
        self._published = {
            made: weights
            for made, weights in self._published.items()
            if (made >= self._due(epoch) if self._online else made == 0)
        }
        self._begins = {made: cursor for made, cursor in self._begins.items() if made >= epoch}

    def _due(self, epoch: int) -> int:
        """The epoch at whose start the learner had the weights that an epoch is sampled under."""
        return max(0, epoch - self._ahead) if self._online else 0
