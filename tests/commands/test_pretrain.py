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


@pytest.mark.slow
def test_the_flow_model_is_trained_in_parts_as_in_one_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a teacher from the second step on; the state is stored at every step, and the process ends after two."""
    import json

    import torch
    from safetensors.torch import load_file

    from prdp.worlds.shapes import pretrain_flow

    saved = pretrain_flow._save
    trained = []
    words = ["model=shapes_flow", "flow_scenes=24", "flow_steps=3", "flow_decay_steps=1", "flow_batch_size=4"]
    for parts in (1, 2):
        folder = tmp_path / str(parts)
        command = ["pretrain", *words, "flow_teacher_from=1", f"output_dir={folder}"]
        if parts == 2:

            def stopping(file: Path, done: int, *rest: object) -> None:
                saved(file, done, *rest)  # type: ignore[arg-type]
                if done == 2:
                    raise KeyboardInterrupt

            with monkeypatch.context() as patched:
                patched.setattr(pretrain_flow, "SAVE_EVERY", 1)
                patched.setattr(pretrain_flow, "_save", stopping)
                assert main(command) != 0
            assert not (folder / "pipeline").exists()
        assert main(command) == 0
        trained.append(load_file(folder / "pipeline" / "transformer" / "diffusion_pytorch_model.safetensors"))
        index = json.loads((folder / "pipeline" / "model_index.json").read_text(encoding="utf-8"))
        assert index["_class_name"] == "StableDiffusion3Pipeline"
    assert trained[0].keys() == trained[1].keys()
    for name, value in trained[0].items():
        assert value.dtype == torch.float16 and torch.equal(trained[1][name], value), name
