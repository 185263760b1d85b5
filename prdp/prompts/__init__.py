"""Prompts: sources, and the stream that training draws from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from prdp.prompts.overlap import check_overlap
from prdp.prompts.stream import PromptSource, fixed_prompts
from prdp.support.errors import ConfigError, start_up_checks
from prdp.support.targets import build, check_target

if TYPE_CHECKING:
    from prdp.config import EvaluationConfig, PromptsConfig
    from prdp.types import PromptBatch


class RunPrompts(NamedTuple):
    """The prompts of a run.

    Attributes:
        train, heldout: the sources.
        judged: the held-out prompts that evaluations use, the largest of them all of these.
        note: a sentence about held-out prompts that are trained on; '' where there are none.
    """

    train: PromptSource
    heldout: PromptSource
    judged: PromptBatch
    note: str


def prompts_of_run(
    prompts: PromptsConfig, evaluation: EvaluationConfig, train: PromptSource | None = None
) -> RunPrompts:
    """Build both sources of a run and compare them.

    Args:
        train: what is trained on in place of `prompts.train`.

    Raises:
        ConfigError, StartError: as `build_prompts`, and when evaluations would use training prompts alone.
    """
    train = train or build_prompts("prompts.train", prompts.train)
    heldout = build_prompts("prompts.heldout", prompts.heldout)
    judged = fixed_prompts(heldout, max(evaluation.prompts, evaluation.final_prompts), evaluation.seed)
    note = check_overlap(train, heldout, judged.texts, prompts.heldout_may_overlap)
    return RunPrompts(train, heldout, judged, note)


def build_prompts(key: str, config: Mapping[str, Any]) -> PromptSource:
    """Build the source of a configuration section {"_target_": dotted path, argument: value, ...}.

    Raises:
        ConfigError, StartError: a target that does not exist or takes other arguments, an empty source, and whatever
            the reader refuses; by key.
    """
    check_target(key, config)
    with start_up_checks(key):
        source: PromptSource = build(key, config)
        if len(source) == 0:
            raise ConfigError("the source holds no prompt")
    return source
