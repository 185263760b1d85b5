"""The number of rows of a network call, halved whenever memory runs out."""

from __future__ import annotations

import contextlib
import gc
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from prdp.support.errors import ResumableError, UserError

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")
_WORDS = re.compile(
    "out of memory|RESOURCE_EXHAUSTED|can't allocate memory|not enough memory|STATUS_ALLOC_FAILED", re.IGNORECASE
)


LEARNER_ADVICE = (
    "learner.gradient_checkpointing=true takes less, and so do model.offload_encoders, model.offload_vae and "
    "cluster.colocate, a lower model.dtype or learner.autocast, and learner.optimizer=adamw_8bit; prdp validate plans "
    "the memory"
)
SAMPLER_ADVICE = (
    "model.offload_encoders, model.offload_vae and cluster.colocate take less, and so does a lower model.dtype; "
    "prdp validate plans the memory"
)


class MemoryShortError(UserError, RuntimeError):
    """What cannot be done in smaller parts does not fit into the memory of a device."""


def out_of_memory(error: BaseException) -> bool:
    """Whether torch, on any device, or XLA had no memory for a tensor."""
    if not isinstance(error, RuntimeError) or isinstance(error, (UserError, ResumableError)):
        return False
    torch: Any = sys.modules.get("torch")
    return (torch is not None and isinstance(error, torch.OutOfMemoryError)) or bool(_WORDS.search(str(error)))


def first_words(error: BaseException) -> str:
    """The first line of an error, shortened."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if len(line) <= 160 else f"{line[:157]}..."


@contextlib.contextmanager
def optimizer_memory(update: int) -> Iterator[None]:
    """Around a step, which no smaller microbatch helps.

    Raises:
        MemoryShortError: memory runs out.
    """
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise MemoryShortError(
            f"update {update}: memory ran out in the optimizer's step: {first_words(error)}; "
            "learner.optimizer=adamw_8bit takes less, and so do learner.ema_decay=0 and learner.mode=lora"
        ) from error


def give_back() -> None:
    """What a broken pass held, and the pieces of it that torch keeps for sizes that do not come again."""
    gc.collect()  # tracebacks hold tensors, and may be in cycles
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


class Microbatch:
    """A size that memory may turn out to be too small for.

    Args:
        key: of the configuration, for messages.
        given: its value.
        advice: what else takes less memory.
        use: called with each size that is found.

    Attributes:
        size: rows that go through a network at a time.
    """

    def __init__(self, key: str, given: int, advice: str, use: Callable[[int], None] = lambda size: None) -> None:
        self.size = given
        self._key, self._given, self._advice, self._use = key, given, advice, use

    def fitted(self, work: Callable[[], _Result], rows: Callable[[], int], where: str = "") -> _Result:
        """What work comes to; it is done again from its beginning, at half the size, whenever memory runs out.

        Args:
            work: may break off at any pass, and then has changed nothing that it depends on.
            rows: number of those that it has in all.
            where: a place, for messages.

        Raises:
            MemoryShortError: one row at a time does not fit either.
        """
        place = f"{where}: " if where else ""
        while True:
            try:
                return work()
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                tried, words = min(self.size, rows()), first_words(error)
                if tried <= 1:
                    raise MemoryShortError(
                        f"{place}memory ran out at {self._key}=1, which is as small as it gets: {words}; {self._advice}"
                    ) from error
            # Here, where the error and what its traceback holds are gone.
            self.size = tried // 2
            _log.warning(
                "%smemory ran out at %d rows a network call (%s); done again, and from now on, with %s=%d",
                place, tried, words, self._key, self.size,
            )  # fmt: skip
            self._use(self.size)

    def metrics(self) -> dict[str, float]:
        """The size, where it is not the one given, by the key with an underscore."""
        return {} if self.size == self._given else {self._key.replace(".", "_"): float(self.size)}

    def state(self) -> dict[str, int]:
        """What a new start has to know."""
        return {} if self.size == self._given else {"microbatch": self.size, "microbatch_given": self._given}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on with the size of `state`, unless another one is given now."""
        size = state.get("microbatch", 0)
        if state.get("microbatch_given") == self._given and 0 < size < self._given:
            self.size = size
            _log.warning("goes on with %s=%d: memory ran out at more before", self._key, size)
            self._use(size)
