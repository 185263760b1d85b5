"""What W&B's own environment variables say beside `tracking`: where they say something, they win."""

from __future__ import annotations

import os
from collections.abc import Mapping

from prdp.config import WANDB_MODES

_MODES_OF_WANDB = {
    "disabled": "disabled",
    "offline": "offline",
    "dryrun": "offline",
    "online": "online",
    "run": "online",
    "shared": "online",
}
_TRUE = ("1", "true", "yes", "on")


def chosen_mode(mode: str, environment: Mapping[str, str] = os.environ) -> tuple[str, str | None]:
    """The mode that holds, one of `WANDB_MODES`, and the variable that decided it; None where `tracking.wandb` did.

    WANDB_MODE and WANDB_DISABLED say how W&B is to run where `tracking.wandb` asks for it; they start nothing that it
    does not ask for.

    Raises:
        ValueError: an unknown mode, or WANDB_MODE has a value that W&B does not know.
    """
    if mode not in WANDB_MODES:
        raise ValueError(f"tracking.wandb is {mode!r}, expected one of: {', '.join(WANDB_MODES)}")
    if mode == "disabled":
        return mode, None
    if environment.get("WANDB_DISABLED", "").strip().lower() in _TRUE:
        return "disabled", "WANDB_DISABLED"
    wanted = environment.get("WANDB_MODE", "").strip().lower()
    if not wanted:
        return mode, None
    if wanted not in _MODES_OF_WANDB:
        raise ValueError(f"the environment variable WANDB_MODE is {wanted!r}, expected online, offline or disabled")
    return _MODES_OF_WANDB[wanted], "WANDB_MODE"


def unless_set(variable: str, value: str | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """A value of ours for `wandb.init`; None where W&B's own variable is set, which `wandb.init` then takes."""
    return None if environment.get(variable) else value
