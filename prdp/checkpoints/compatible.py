"""What a run that resumes must have in common with the one that wrote its checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prdp.checkpoints.checkpoint import STATE_FILE, Checkpoint, CheckpointError, jsonable
from prdp.config import MISSING, TrainConfig
from prdp.objectives import OBJECTIVES
from prdp.prompts.usage import read_prompt_log
from prdp.rewards.base import FREE_ARGUMENTS
from prdp.support.targets import renamed
from prdp.tracking.jsonl import read_metrics

FREE_KEYS = (
    "epochs",
    "output_dir",
    "cluster",
    "tracking",
    "evaluation",
    "prompts.heldout_may_overlap",
    "checkpoint",
    "model.device",
    "model.offload_encoders",
    "model.offload_vae",
    "model.vae_slicing",
    "model.compile",
    "model.deterministic",
    "sampler.microbatch",
    "sampler.prompts_per_chunk",
    "learner.framework",
    "learner.jax_data",
    "learner.jax_fsdp",
    "learner.microbatch",
    "learner.kept_outputs_gib",
    "learner.gradient_checkpointing",
    "learner.ratio_tolerance",
)
"""Keys, or whole sections, that a resumed run may change: they move its end, its speed or what is shown of it, not its
curve. Every other key has to stay."""

CHANGEABLE = tuple(
    f"learner.{name}"
    for name in (
        "learning_rate", "text_encoder_learning_rate", "warmup_updates", "schedule", "decay_updates", "adam_beta1",
        "adam_beta2", "adam_epsilon", "weight_decay", "max_grad_norm", "evidence_precision",
    )
)  # fmt: skip
"""Keys outside objective that `checkpoint.change` may name."""
_SHAPES_EVIDENCE = ("name", "_target_", "evidence")

BOUND_KEYS = ("cluster.max_staleness",)
"""Keys of free sections that have to stay all the same."""


def check_state(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint whose training state is not of the form that runs save; its checksum tells only that it is
    whole, and anybody can write one.

    Raises:
        CheckpointError: naming the file, the key, what it holds and what was expected.
    """
    for key, (sound, expected) in _STATE.items():
        value = checkpoint.state.get(key)
        if not sound(value):
            shown = f"is {value!r:.80}" if key in checkpoint.state else "is missing"
            raise CheckpointError(f"{checkpoint.path / STATE_FILE}: state.{key} {shown}, expected {expected}")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _is_identity(value: Any) -> bool:
    terms = value.get("terms") or {} if isinstance(value, Mapping) else None
    return isinstance(terms, Mapping) and all(map(_is_identity, terms.values()))


_Check = tuple[Callable[[Any], bool], str]
_TEXT: _Check = (lambda value: value is None or isinstance(value, str), "text")
_STATE: Mapping[str, _Check] = {
    "config": (lambda value: isinstance(value, Mapping), "an object"),
    "learner": (
        lambda value: (
            isinstance(value, Mapping)
            and _is_count(value.get("updates"))
            and all(type(number) is int for number in value.values())
        ),
        "an object of whole numbers with updates",
    ),
    "prompt_cursor": (_is_count, "a whole number from 0"),
    "wall_seconds": (lambda value: type(value) in (int, float) and 0 <= value < 2**53, "a number of seconds"),
    "published": (
        lambda value: (
            value is None
            or (
                isinstance(value, Mapping)
                and all(re.fullmatch("[0-9]{1,9}", made) and _is_count(version) for made, version in value.items())
            )
        ),
        "an object of whole numbers by epoch",
    ),
    "prompts_fingerprint": _TEXT,
    "heldout_fingerprint": _TEXT,
    "reward": (lambda value: value is None or _is_identity(value), "an object with name, version and terms"),
    "unlogged": (
        lambda value: (
            value is None
            or (isinstance(value, Mapping) and all(type(number) in (int, float) for number in value.values()))
        ),
        "an object of numbers",
    ),
    "drawn": (
        lambda value: value is None or (isinstance(value, list) and all(map(_is_count, value))),
        "a list of whole numbers",
    ),
}
"""What a run that resumes reads of a checkpoint's state; keys that an earlier version did not save may be missing."""


def check_compatible(saved_config: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Refuse to continue under a configuration that would break the curve.

    Only `FREE_KEYS` may differ, such as the length of the run, the cluster, tracking, evaluation and microbatches, and
    what `checkpoint.change` names. Keys that the checkpoint's version of prdp did not know have their default there.

    Returns:
        a line for each key of `checkpoint.change` that does differ, with both values.

    Raises:
        CheckpointError: naming every other key that differs, with both values.
    """
    both = [renamed(one) for one in (saved_config, config)]
    bound = (*BOUND_KEYS, "epochs") if all(map(_decays_to_the_end, both)) else BOUND_KEYS
    before, now = ({**_knob_defaults(one), **_binding(one, bound)} for one in both)
    before = {**_defaults(), **before}
    told = {
        key: f"{key}: {_shown(before, key)} in the checkpoint, {_shown(now, key)} now"
        for key in sorted(before.keys() | now.keys())
        if key not in before or key not in now or before[key] != now[key]
    }
    allowed = set((config.get("checkpoint") or {}).get("change") or ())
    changed = [f"  {line}" for key, line in told.items() if key not in allowed]
    if changed:
        could = [key for key in told if key not in allowed and may_change(key)]
        hint = f", name what is meant to change (checkpoint.change=[{','.join(could)}])" if could else ""
        raise CheckpointError(
            "the checkpoint comes from a run whose curve this configuration would break:\n"
            + "\n".join(changed)
            + f"\nrestore these values{hint}, or start a new run in another output_dir"
        )
    return [line for key, line in told.items() if key in allowed]


def may_change(key: str) -> bool:
    """Whether `checkpoint.change` may name a key: nothing that is saved or waits to be learned from depends on it."""
    section, _, name = key.partition(".")
    return key in CHANGEABLE or (section == "objective" and bool(name) and name not in _SHAPES_EVIDENCE)


def is_free(key: str) -> bool:
    """Whether a resumed run may have another value of a key that `checkpoint.change` does not name."""
    return key not in BOUND_KEYS and any(key == free or key.startswith(f"{free}.") for free in FREE_KEYS)


def check_length(done: int, epochs: int) -> None:
    """Refuse a run that would be shorter than it is already.

    Raises:
        CheckpointError: names both numbers.
    """
    if epochs < done:
        raise CheckpointError(f"epochs={epochs}: must be at least {done}, which the checkpoint has finished")


_CHANGED_PROMPTS = {
    "train": "its cursor would repeat some and miss others",
    "heldout": "scores before and after would be of different prompts, and their difference not of training",
}


def check_same_prompts(saved: str, now: str, part: str = "train", key: str | None = None) -> None:
    """Refuse to continue on other prompts than those that the checkpoint's run was trained or judged on.

    Another file by its name is refused by `check_compatible`; this is about another content under the same name.

    Args:
        saved, now: fingerprints; '' is not compared, as of checkpoints and sources that have none.
        part: 'train' or 'heldout'.
        key: where the source stands; None for prompts.<part>.

    Raises:
        CheckpointError: with both fingerprints.
    """
    if saved and now and saved != now:
        raise CheckpointError(
            f"{key or f'prompts.{part}'} holds other prompts than when the checkpoint was written (fingerprint {saved} "
            f"then, {now} now), so {_CHANGED_PROMPTS[part]}; restore the data, or start a new run"
        )


def check_same_reward(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to continue on another reward, or another version of it, than the checkpoint was trained on.

    Args:
        saved, now: identities, as `prdp.rewards.base.identity_of` tells them; an empty one is not compared.

    Raises:
        CheckpointError: naming every reward and term that differs, with both names and versions.
    """
    if not saved or not now:
        return
    before, after = _versions("reward", saved), _versions("reward", now)
    changed = [
        f"  {key}: {before.get(key, 'absent')} in the checkpoint, {after.get(key, 'absent')} now"
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    ]
    if changed:
        raise CheckpointError(
            "the checkpoint was trained on another version of the reward:\n"
            + "\n".join(changed)
            + "\nrestore it, or start a new run in another output_dir"
        )


def check_logs(run_dir: Path) -> None:
    """Refuse to continue logs that cannot be read; those that are not there are begun anew.

    Raises:
        ValueError: a line other than the last is damaged; names the file and the line.
    """
    with contextlib.suppress(FileNotFoundError):
        read_metrics(run_dir)
    with contextlib.suppress(FileNotFoundError):
        read_prompt_log(run_dir)


def _versions(key: str, identity: Mapping[str, Any]) -> dict[str, str]:
    """Key -> name and version, of a reward and of its terms."""
    found = {key: f"'{identity.get('name')}' version '{identity.get('version')}'"}
    for term, part in (identity.get("terms") or {}).items():
        found.update(_versions(f"{key}.terms.{term}", part))
    return found


def _binding(config: Mapping[str, Any], bound: Sequence[str] = BOUND_KEYS) -> dict[str, Any]:
    return {
        key: value
        for key, value in flat(config).items()
        if (key in bound or not any(key == free or key.startswith(f"{free}.") for free in FREE_KEYS))
        and not (key.startswith("reward.") and key.rpartition(".")[2] in FREE_ARGUMENTS)
    }


def _decays_to_the_end(config: Mapping[str, Any]) -> bool:
    """Whether the learning rate follows from the length of the run."""
    learner = config.get("learner") or {}
    return learner.get("schedule", "constant") != "constant" and learner.get("decay_updates") is None


@functools.cache
def _defaults() -> dict[str, Any]:
    """Of the keys that every configuration has: a default is what a run did before there was the key."""
    plain = dataclasses.asdict(TrainConfig())
    del plain["objective"]
    return {key: value for key, value in _binding(plain).items() if value != MISSING}


def _knob_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of an objective of the package: what it did before there was a knob; none of anybody else's, which is not run."""
    method = OBJECTIVES.get(str(config.get("objective", {}).get("name")))
    return {} if method is None else {f"objective.{name}": knob.default for name, knob in method.knobs.items()}


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys -> plain values of nested mappings."""
    result: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            result.update(flat(value, f"{prefix}{key}."))
        else:
            result[f"{prefix}{key}"] = jsonable(value, f"{prefix}{key}")
    return result


def _shown(flat: Mapping[str, Any], key: str) -> str:
    return repr(flat[key]) if key in flat else "absent"
