"""Lets the tests of this folder import `stub_policy`; a pipeline small enough to learn in a second."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def narrow_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of the embedded layout with a narrow UNet, of weights that both half precisions hold exactly."""
    import torch

    from prdp.worlds.shapes import tiny_pipeline

    folder = tmp_path_factory.mktemp("narrow")
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.setattr(tiny_pipeline, "UNET_CHANNELS", (16,))
        torch.manual_seed(0)
        pipeline = tiny_pipeline.build_pipeline()
    for part in (pipeline.unet, pipeline.text_encoder, pipeline.vae):
        for value in part.parameters():
            value.data = value.data.half().bfloat16().half().float()
    pipeline.save_pretrained(folder)
    return folder
