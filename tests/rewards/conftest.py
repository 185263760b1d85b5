"""Helpers of this folder can be imported by its tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from small_checkpoints import (  # noqa: F401
    bert_tokenizer,
    blip_folder,
    clip_folder,
    clip_tokenizer,
    head_tensors,
    images,
    open_clip_file,
)
