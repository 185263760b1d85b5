"""Weights & Biases, without ever asking or waiting for a person."""

from __future__ import annotations

import importlib.util
import logging
import netrc
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from prdp.types import UInt8

if TYPE_CHECKING:
    from prdp.config import TrackingConfig

log = logging.getLogger(__name__)

MODES = ("disabled", "offline", "online", "auto")
START_SECONDS = 30.0
"""How long W&B's server may take to accept the run before it is recorded offline."""
FINISH_SECONDS = 120.0
"""How long the last upload may take; the rest stays on disk for `wandb sync`."""


class WandbTracker:
    """Sends metrics and pictures to a W&B run whose x-axis is the epoch.

    Online without credentials, or with a server that doesn't answer, falls back to offline with a warning: the data
    then lie in `run_dir/wandb` and `wandb sync` uploads them later.
    """

    def __init__(self, config: TrackingConfig, run_dir: Path, run_config: Mapping[str, Any], run_id: str) -> None:
        """Start the run, or continue the one of the same id. Arguments as in `build_trackers`."""
        import wandb

        self._wandb = wandb
        mode = resolve_mode(config.wandb, os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url)
        if mode == "offline" and config.wandb == "online":
            log.warning("W&B: no key found (WANDB_API_KEY or a netrc entry), so the run is recorded offline")
        run_dir.mkdir(parents=True, exist_ok=True)

        def start(mode: Literal["online", "offline"]) -> Any:
            return wandb.init(
                project=config.wandb_project,
                entity=config.wandb_entity,
                group=config.wandb_group,
                name=run_dir.name,
                id=run_id,
                resume="allow" if mode == "online" else None,
                dir=str(run_dir),
                config=dict(run_config),
                mode=mode,
                reinit="create_new",
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    init_timeout=START_SECONDS,
                    login_timeout=START_SECONDS,
                    finish_timeout=FINISH_SECONDS,
                ),
            )

        try:
            self._run = start(mode)
        except (wandb.Error, OSError, TimeoutError) as error:
            if mode != "online":
                raise
            log.warning("W&B: cannot go online, so the run is recorded offline: %s", error)
            mode = "offline"
            wandb.teardown()  # W&B's service still holds the id of the attempt
            self._run = start(mode)
        self.mode = mode
        self._run.define_metric("epoch")
        self._run.define_metric("*", step_metric="epoch")

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Record numbers of one epoch."""
        self._run.log({**metrics, "epoch": epoch})

    def images(self, name: str, images: UInt8, captions: Sequence[str], epoch: int) -> None:
        """Record uint8 images [n, H, W, 3] with their captions."""
        pictures = [self._wandb.Image(image, caption=caption) for image, caption in zip(images, captions, strict=True)]
        self._run.log({name: pictures, "epoch": epoch})

    def finish(self, status: str) -> None:
        """Close the run; its exit code is 0 only for 'finished'."""
        self._run.summary["status"] = status
        self._run.finish(exit_code=0 if status == "finished" else 1)


def check_mode(mode: str) -> None:
    """Raise ValueError for an unknown mode."""
    if mode not in MODES:
        raise ValueError(f"tracking.wandb is {mode!r}, expected one of: {', '.join(MODES)}")


def check_installed() -> None:
    """Raise ModuleNotFoundError that tells what to do when wandb is missing."""
    if importlib.util.find_spec("wandb") is None:
        raise ModuleNotFoundError(
            "tracking.wandb asks for W&B, which is not installed: `pip install wandb`, or tracking.wandb=disabled"
        )


def resolve_mode(mode: str, base_url: str) -> Literal["online", "offline"]:
    """How to start W&B: 'online' and 'auto' go online only when a key for the server at `base_url` is there."""
    return "online" if mode in ("online", "auto") and has_credentials(base_url) else "offline"


def has_credentials(base_url: str) -> bool:
    """Whether WANDB_API_KEY is set or the netrc file has an entry for the server; never touches the network."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(base_url).hostname or base_url
    chosen = os.environ.get("NETRC")
    for path in [Path(chosen)] if chosen else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        try:
            if host in netrc.netrc(str(path)).hosts:
                return True
        except FileNotFoundError:
            continue
        except (netrc.NetrcParseError, OSError, UnicodeDecodeError) as error:
            log.warning("W&B: cannot read %s, taken as having no key: %s", path, error)
    return False
