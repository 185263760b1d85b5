"""The foreign half of reward_parity.py: writes random checkpoints and scores with the authors' own code.

    python reward_parity_foreign CASE prepare|score FOLDER [--small]

Runs in an environment without prdp. Its libraries are old; what is done to make them start is said beside it.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

import torch
from clip_judges import (
    prepare_hpsv2,
    prepare_open_clip,
    prepare_openai,
    prepare_pickscore,
    score_clipscore,
    score_hpsv2,
    score_open_clip,
    score_pickscore,
)
from hpsv3_judge import prepare_hpsv3, score_hpsv3, score_hpsv3_bfloat16
from imagereward_judges import prepare_aesthetic, prepare_imagereward, score_aesthetic, score_imagereward

CASES = {
    "hpsv2": (prepare_hpsv2, score_hpsv2),
    "open_clip": (prepare_open_clip, score_open_clip),
    "clipscore": (prepare_openai, score_clipscore),
    "pickscore": (prepare_pickscore, score_pickscore),
    "aesthetic": (prepare_aesthetic, score_aesthetic),
    "imagereward": (prepare_imagereward, score_imagereward),
    "hpsv3": (prepare_hpsv3, score_hpsv3),
    "hpsv3_bfloat16": (prepare_hpsv3, score_hpsv3_bfloat16),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=[*CASES])
    parser.add_argument("step", choices=["prepare", "score"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    define_vision_operators()
    torch.manual_seed(0)
    prepare, score = CASES[options.case]
    if options.step == "prepare":
        prepare(options.folder, options.small)
        return
    rows = json.loads((options.folder / "inputs.json").read_text())
    with torch.no_grad():
        judge, scores = score(options.folder, options.small, rows)
    answer = {"judge": judge, "scores": torch.tensor(scores, dtype=torch.float64).tolist()}
    (options.folder / "answer.json").write_text(json.dumps(answer))


def define_vision_operators() -> None:
    """torchvision's wheels want CUDA; beside a CPU build of torch its operators must exist by name to be imported."""
    if torch.cuda.is_available():
        return
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


if __name__ == "__main__":
    main()
