"""Weights & Biases, without ever asking or waiting for a person."""

from __future__ import annotations

import importlib.util
import logging
import math
import netrc
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from prdp.support.storage import write_atomically
from prdp.tracking.jsonl import METRICS_FILE, read_metrics
from prdp.tracking.wandb_environment import chosen_mode, unless_set
from prdp.types import Float64, UInt8

if TYPE_CHECKING:
    from prdp.config import TrackingConfig

log = logging.getLogger(__name__)

START_SECONDS = 30.0
"""How long W&B's server may take to accept the run before it is recorded offline."""
MAX_TAG = 64
JOB_TYPE = "train"
PROJECT = "prdp"
"""Where neither `tracking.wandb_project` nor WANDB_PROJECT names one."""
LOST_SECONDS = 60.0
"""How much of a run's log is sent again after a resume; W&B writes to its file, and to its server, every 15 seconds.
All of it is sent where neither this disk nor the server knows the run: it was recorded offline on another machine."""
FINISH_SECONDS = 120.0
"""How long the last upload may take; the rest stays on disk for `wandb sync`."""


class WandbTracker:
    """Sends metrics and pictures to a W&B run whose x-axis is the epoch.

    One run per job: a resumed job continues the run of its id. W&B's own steps count calls and only ever rise, also
    over sessions that were recorded offline, so that nothing is dropped or overwritten; epochs that are run again after
    a resume are logged again, at the same place of the x-axis. So are the numbers of the last epochs before the resume,
    from the run's own log: W&B keeps its last seconds in memory, which a killed process takes along.

    Online without credentials, or with a server that doesn't answer, falls back to offline with a warning: the data
    then lie in `run_dir/wandb` and `wandb sync` uploads them later.
    """

    def __init__(
        self,
        config: TrackingConfig,
        run_dir: Path,
        run_config: Mapping[str, Any],
        run_id: str,
        resumed_epoch: int | None = None,
    ) -> None:
        """Start the run, or continue the one of the same id. Arguments as in `build_trackers`."""
        import wandb

        self._wandb = wandb
        wanted, variable = chosen_mode(config.wandb)
        mode = resolve_mode(wanted, os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url)
        if mode == "offline" and wanted == "online":
            log.warning("W&B: no key found (WANDB_API_KEY or a netrc entry), so the run is recorded offline")
        elif variable is not None and wanted != config.wandb:
            log.warning("W&B: %s of the environment makes it %s, not tracking.wandb=%s", variable, mode, config.wandb)
        run_dir.mkdir(parents=True, exist_ok=True)
        place = Path(os.environ.get("WANDB_DIR") or run_dir)

        def start(mode: Literal["online", "offline"]) -> Any:
            return wandb.init(
                project=config.wandb_project or unless_set("WANDB_PROJECT", PROJECT),
                entity=config.wandb_entity,
                group=config.wandb_group or unless_set("WANDB_RUN_GROUP", sweep_name(run_dir)),
                job_type=unless_set("WANDB_JOB_TYPE", JOB_TYPE),
                tags=[*run_tags(run_config), *filter(None, os.environ.get("WANDB_TAGS", "").split(","))],
                name=unless_set("WANDB_NAME", run_dir.name),
                id=run_id,
                resume="allow" if mode == "online" else None,
                dir=str(place),
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

        known = any((place / "wandb").glob(f"*run-*-{run_id}"))
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
        self._step_file = step_file(run_dir, run_id)
        self._step = max(self._run.starting_step, read_step(self._step_file))
        self._run.define_metric("epoch")
        self._run.define_metric("*", step_metric="epoch")
        if resumed_epoch is not None:
            for row in _last_rows(run_dir, LOST_SECONDS if known or self._run.starting_step else math.inf):
                self._log(row)

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Record numbers of one epoch."""
        self._log({**metrics, "epoch": epoch})

    def images(self, name: str, images: UInt8, captions: Sequence[str], epoch: int) -> None:
        """Record uint8 images [n, H, W, 3] with their captions."""
        pictures = [self._wandb.Image(image, caption=caption) for image, caption in zip(images, captions, strict=True)]
        self._log({name: pictures, "epoch": epoch})

    def histogram(self, name: str, values: Float64, epoch: int) -> None:
        """Record how numbers [n] are spread."""
        self._log({name: self._wandb.Histogram(values.tolist()), "epoch": epoch})

    def finish(self, status: str) -> None:
        """Close the run; its exit code is 0 only for 'finished'."""
        self._run.summary["status"] = status
        self._run.finish(exit_code=0 if status == "finished" else 1)

    def _log(self, row: Mapping[str, Any]) -> None:
        step, self._step = self._step, self._step + 1
        # Noted before it is used: whenever the process dies, the next session begins beyond all steps of this one.
        write_atomically(self._step_file, str(self._step).encode())
        self._run.log(dict(row), step=step, commit=True)


def sweep_name(run_dir: Path) -> str | None:
    """What the runs of a sweep are grouped by: the last two parts of the sweep's folder, which is known by the
    `multirun.yaml` that Hydra leaves there. None for a run that is part of no sweep.
    """
    sweep = run_dir.absolute().parent
    return f"{sweep.parent.name} {sweep.name}"[-128:] if (sweep / "multirun.yaml").is_file() else None


def run_tags(run_config: Mapping[str, Any]) -> list[str]:
    """Tags to find runs by: 'reward:...', one per term of a sum, 'prompts:...' and 'objective:...'.

    Args:
        run_config: the configuration with the fact 'reward_identity', as `build_trackers` gives it.
    """
    identity = run_config.get("reward_identity") or {}
    rewards = list(identity.get("terms") or [identity.get("name") or _source(run_config.get("reward"))])
    prompts = _source((run_config.get("prompts") or {}).get("train"))
    objective = (run_config.get("objective") or {}).get("name")
    named = [*(("reward", reward) for reward in rewards), ("prompts", prompts), ("objective", objective)]
    return [f"{kind}:{name}"[:MAX_TAG] for kind, name in named if name]


def _source(section: Any) -> str:
    """The file that a target lies in: 'text_file' for prdp.prompts.text_file.TextFilePrompts."""
    target = str((section or {}).get("_target_", ""))
    return target.rpartition(".")[0].rpartition(".")[2]


def _last_rows(run_dir: Path, seconds: float) -> list[dict[str, float]]:
    """The numbers that the run's log ends with, as far back as so many seconds of work."""
    rows = read_metrics(run_dir) if (run_dir / METRICS_FILE).exists() else []
    since = rows[-1].get("wall_seconds", 0.0) - seconds if rows else 0.0
    recent = [row for row in rows if row.get("wall_seconds", 0.0) >= since]
    return [{name: value for name, value in row.items() if isinstance(value, int | float)} for row in recent]


def step_file(run_dir: Path, run_id: str) -> Path:
    """Where the number of the next step is kept."""
    return run_dir / "wandb" / f"{run_id}.step"


def read_step(path: Path) -> int:
    """The number of the next step; 0 when none is kept."""
    try:
        return int(path.read_text())
    except (FileNotFoundError, ValueError):
        return 0


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
