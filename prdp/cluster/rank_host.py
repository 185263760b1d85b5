"""The process of a learner's rank: what is around the plain class, whatever carries the calls."""

from __future__ import annotations

import logging
import os
import pickle
import platform
from collections.abc import Sequence
from typing import Any

from prdp.cluster.actor_process import errors_of, hold_torch_to, import_from
from prdp.cluster.direct_weights import Rendezvous
from prdp.cluster.shard_group import join_ranks
from prdp.cluster.warning_collector import WarningCollector


class RankHost:
    """Builds a rank, has it meet the others, and calls its methods.

    Args:
        name: for messages.
        threads: CPU threads of the process.
        host: address of this node.
    """

    def __init__(self, name: str, threads: int, host: str) -> None:
        self._name, self._threads, self._host = name, threads, host
        self._rank: Any = None
        # Rank 0 says the same of the same gradients.
        logging.getLogger("prdp.learners.guards").setLevel(logging.ERROR)

    def call(self, method: str, *arguments: Any) -> Any:
        """One of this class's own methods, or of the rank's."""
        with errors_of(self._name):
            if method == "build":
                return self.build(*arguments)
            if method == "meet":
                return self.meet(*arguments)
            assert self._rank is not None, "build comes first"
            try:
                return getattr(self._rank, method)(*arguments)
            except BaseException:
                self._rank.leave()  # those that make the same passes would wait for it
                raise

    def build(self, factory: bytes, paths: Sequence[str]) -> tuple[int, str, tuple[str, ...]]:
        """Build the rank from its pickled factory, which may import from the folders `paths` too.

        Returns:
            process id, node, and the warnings on the way.
        """
        import_from(paths)
        with WarningCollector() as messages:
            self._rank = pickle.loads(factory)()
            hold_torch_to(self._threads)
        return os.getpid(), platform.node(), messages.texts

    def meet(self, rendezvous: Rendezvous, number: int, size: int, shards: int) -> None:
        """Join the group of all ranks, which waits for the others; see `join_ranks`."""
        self._rank.join(join_ranks(rendezvous, number, size, shards, self._host))
