r"""Compare prdp's rewards with the packages they stand in for: same weights, same images, same prompts.

    python benchmarks/reward_parity.py --hpsv2 ENV/bin/python --imagereward ENV/bin/python --hpsv3 ENV/bin/python \
        [--only hpsv2 ...] [--small]

Each foreign package runs in the interpreter given for it (`prdp/rewards/requirements/parity_*.txt` say what it needs)
and never meets prdp's. Weights are random, of the true architecture, and written as the authors write theirs; with
--small the CLIP models and Qwen2-VL are narrow, which takes seconds instead of minutes. The table holds the largest
difference of any score, beside the spread of the scores, without which a difference says nothing.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np

FOREIGN = Path(__file__).with_name("reward_parity_foreign")
TOLERANCE = 1e-5
TOLERANCES = {"hpsv3_bfloat16": 5e-2}
"""Where it is another."""
PROMPTS = (
    "A photo of a cat",
    "two   red cubes, one blue sphere; it's 3 o'clock &amp; late",
    "A crème brûlée on Zoë’s table — “caramelised”",
    "an astronaut riding a horse on the moon, " * 12,
    "¡Olé! 猫と犬, naïve café №5 …",
    "",
)
SIZES = ((512, 512), (64, 64), (512, 384), (300, 455), (301, 700))
"""Height and width; the fourth, made 224 pixels high, is wider by an odd number of pixels."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hpsv2", help="interpreter with hpsv2, open_clip_torch and openai-clip")
    parser.add_argument("--imagereward", help="interpreter with image-reward, transformers 4.30 and openai-clip")
    parser.add_argument("--hpsv3", help="interpreter with hpsv3 and transformers 4.45")
    parser.add_argument("--only", nargs="*", choices=[*CASES])
    parser.add_argument("--small", action="store_true", help="narrow networks")
    parser.add_argument("--sizes", type=int, default=len(SIZES), help="how many image sizes, with 6 prompts each")
    parser.add_argument("--vocabulary", help="bpe_simple_vocab_16e6.txt.gz; by default that of the --hpsv2 interpreter")
    options = parser.parse_args()
    interpreters = {"hpsv2": options.hpsv2, "imagereward": options.imagereward, "hpsv3": options.hpsv3}
    print(f"{'score':34} {'judge':28} {'images':>6} {'largest difference':>18} {'spread':>9}")
    exceeded = []
    for name, (environment, prepare) in CASES.items():
        interpreter = interpreters[environment]
        if interpreter is None or (options.only and name not in options.only):
            continue
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            write_inputs(folder, options.sizes)
            if environment != "hpsv3":
                write_clip_tokenizer(folder / "clip_tokenizer", options.vocabulary or find_vocabulary(options.hpsv2))
            ask(interpreter, name, "prepare", folder, options.small)
            ours = prepare(folder)
            judged = ask(interpreter, name, "score", folder, options.small)
        difference = float(np.abs(ours - np.array(judged["scores"])).max())
        if difference > (allowed := TOLERANCES.get(name, TOLERANCE)):
            exceeded.append(f"{name}: {difference:.2e}, allowed {allowed:.0e}")
        spread = float(np.std(judged["scores"], axis=0).min())
        print(f"{name:34} {judged['judge']:28} {len(ours):6} {difference:18.2e} {spread:9.2e}", flush=True)
    sys.exit("\n".join(exceeded) or 0)


def write_inputs(folder: Path, sizes: int) -> None:
    """inputs.json: image files and prompts, one of each per score."""
    from PIL import Image

    rng = np.random.default_rng(0)
    rows = []
    for number, (height, width) in enumerate(SIZES[:sizes]):
        coarse = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        noisy = np.asarray(picture).astype(np.int16) + rng.integers(-20, 21, (height, width, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
        rows += [{"image": str(folder / f"{number}.png"), "prompt": prompt} for prompt in PROMPTS]
    (folder / "inputs.json").write_text(json.dumps(rows))


def write_clip_tokenizer(folder: Path, vocabulary: str) -> None:
    """CLIP's tokenizer as transformers 4 wrote it, from the merges that openai/CLIP and open_clip ship."""
    merges = gzip.decompress(Path(vocabulary).read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + place) for place in range(len(rest))]
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(merge.split()) for merge in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def find_vocabulary(interpreter: str | None) -> str:
    """The merges inside the open_clip of an interpreter."""
    code = "import importlib.util as u; print(u.find_spec('open_clip').submodule_search_locations[0])"
    if interpreter is None:
        sys.exit("--vocabulary must be given where --hpsv2 is not")
    found = subprocess.run([interpreter, "-P", "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    return str(Path(found) / "bpe_simple_vocab_16e6.txt.gz")


def ask(interpreter: str, name: str, step: str, folder: Path, small: bool) -> dict[str, Any]:
    """Run one step of reward_parity_foreign/ in the foreign interpreter; what it wrote to answer.json."""
    command = [interpreter, str(FOREIGN), name, step, str(folder), *(["--small"] if small else [])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    answer = folder / "answer.json"
    return json.loads(answer.read_text()) if answer.is_file() else {}


def our_scores(folder: Path, reward: Any) -> np.ndarray:
    """Scores in the order of inputs.json; images of one size go through the reward in one batch."""
    from PIL import Image

    rows = json.loads((folder / "inputs.json").read_text())
    scores = []
    for start in range(0, len(rows), len(PROMPTS)):
        group = rows[start : start + len(PROMPTS)]
        images = np.stack([np.asarray(Image.open(row["image"])) for row in group])
        scores.append(reward.score(images, [row["prompt"] for row in group], [{}] * len(group)))
    return np.concatenate(scores)


def our_hpsv2(folder: Path) -> np.ndarray:
    from prdp.rewards.hpsv2 import HPSv2

    arguments = {"path": str(folder), "tokenizer": str(folder / "clip_tokenizer"), "batch_size": 4}
    HPSv2.check(**arguments)
    return our_scores(folder, HPSv2(**arguments))


def our_open_clip(folder: Path) -> np.ndarray:
    from prdp.rewards.hpsv2 import HPSv2

    arguments = {"path": str(folder / "open_clip.pt"), "tokenizer": str(folder / "clip_tokenizer"), "batch_size": 4}
    return our_scores(folder, HPSv2(**arguments))


def as_transformers_folder(folder: Path) -> str:
    """openai.pt, in OpenAI's format, as a folder of transformers."""
    from prdp.rewards.clip_model import weights_from_open_clip

    weights = weights_from_open_clip("openai.pt", str(folder / "openai.pt"), activation="quick_gelu")
    assert weights is not None
    model = weights.model()
    model.config.text_config.eos_token_id = 49407
    model.text_model.eos_token_id = 49407
    model.save_pretrained(folder / "clip")
    for file in (folder / "clip_tokenizer").iterdir():
        (folder / "clip" / file.name).write_bytes(file.read_bytes())
    return str(folder / "clip")


def our_clipscore(folder: Path) -> np.ndarray:
    from prdp.rewards.clipscore import CLIPScore

    path = as_transformers_folder(folder)
    CLIPScore.check(path=path)
    return our_scores(folder, CLIPScore(path=path))


def our_aesthetic(folder: Path) -> np.ndarray:
    from prdp.rewards.aesthetic import Aesthetic

    arguments = {"path": str(folder), "clip": as_transformers_folder(folder)}
    Aesthetic.check(**arguments)
    return our_scores(folder, Aesthetic(**arguments))


def our_pickscore(folder: Path) -> np.ndarray:
    from prdp.rewards.pickscore import PickScore

    PickScore.check(path=str(folder / "pickscore"))
    return our_scores(folder, PickScore(path=str(folder / "pickscore")))


def our_imagereward(folder: Path) -> np.ndarray:
    from prdp.rewards.imagereward import ImageReward

    arguments = {"path": str(folder), "tokenizer": str(folder / "bert-base-uncased")}
    ImageReward.check(**arguments)
    return our_scores(folder, ImageReward(**arguments))


def our_hpsv3(folder: Path, dtype: str = "float32") -> np.ndarray:
    """Both outputs, [images, 2]."""
    from prdp.rewards.hpsv3 import HPSv3

    files = {"path": "qwen2_vl", "weights": "HPSv3.safetensors", "instruction": "instruction.txt"}
    arguments = {key: str(folder / name) for key, name in files.items()} | {"dtype": dtype, "batch_size": 4}
    HPSv3.check(**arguments)
    reward = HPSv3(**arguments)

    def outputs(*batch: Any) -> np.ndarray:
        means, parts = reward.score(*batch)
        return np.stack([means, np.log(parts["sigma"])], axis=1)

    return our_scores(folder, SimpleNamespace(score=outputs))


CASES = {
    "hpsv2": ("hpsv2", our_hpsv2),
    "open_clip": ("hpsv2", our_open_clip),
    "clipscore": ("hpsv2", our_clipscore),
    "pickscore": ("imagereward", our_pickscore),
    "aesthetic": ("imagereward", our_aesthetic),
    "imagereward": ("imagereward", our_imagereward),
    "hpsv3": ("hpsv3", our_hpsv3),
    "hpsv3_bfloat16": ("hpsv3", partial(our_hpsv3, dtype="bfloat16")),
}

if __name__ == "__main__":
    assert importlib.util.find_spec("prdp"), "run this with the interpreter that has prdp"
    main()
