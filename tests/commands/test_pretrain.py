"""`prdp pretrain`: what is refused before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from prdp.cli import main


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["model=shape"], ["model=shape: must be one of shapes, shapes_flow. Did you mean 'shapes'?"]),
        (["batch_size=0", "ema_decay=1"], ["batch_size=0: must be at least 1", "ema_decay=1: must be at least 0 and"]),
        (["clean_steps=[100,0,100]"], ["clean_steps=0: must be at least 1"]),
        (["vae_steps=[5]"], ["vae_learning_rates=[0.002, 0.0015, 0.0015]: must hold 1 numbers", "clean_vae_cycles=1:"]),
        (["clean_vae_cycles=[0,3,0]"], ["clean_vae_cycles=3: must be below 3, the number of vae_steps"]),
        (["batch_sise=1"], ["batch_sise"]),
    ],
)
def test_values_that_cannot_be_trained_with(
    words: list[str], says: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", *words, f"output_dir={tmp_path / 'run'}"]) == 2
    shown = capsys.readouterr().err
    for part in says:
        assert part in shown
    assert not (tmp_path / "run").exists()
