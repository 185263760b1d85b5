"""Configurations of command lines."""

from __future__ import annotations

from pathlib import Path

from prdp.config import TrainConfig
from prdp.configuration.compose import Composer


def compose(*overrides: str, folders: tuple[Path, ...] = ()) -> TrainConfig:
    with Composer(overrides, folders=folders) as composer:
        return composer.jobs()[0].config
