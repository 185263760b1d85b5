"""Every option that ships starts: one update of the smallest run, or a refusal by `validate` that is really so."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import re
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from chat_judge import judge
from http_rewards import serving
from http_stub import answering
from narrow_flow import narrow_pipeline
from narrow_hpsv3 import write_narrow_hpsv3
from narrow_qwen_judge import write_narrow_judge
from other_reward_servers import flow_grpo, unirl_service
from PIL import Image
from reference_models import imagereward_tensors
from small_checkpoints import (  # noqa: F401
    bert_tokenizer,
    blip_folder,
    clip_folder,
    clip_tokenizer,
    head_tensors,
    open_clip_file,
)

from prdp.cli import main
from prdp.config import ModelConfig
from prdp.configuration.typed import conf_folder, groups
from prdp.diffusion import folder_policy
from prdp.diffusion.pipeline_formats import FORMATS
from prdp.prompts.dsg import DsgPrompts
from prdp.tracking.jsonl import read_metrics

OPTIONS = groups([conf_folder()])
SMALL = [
    *("epochs=1", "prompts_per_epoch=1", "images_per_prompt=2", "updates_per_epoch=1", "sampler.steps=2"),
    *("evaluation.prompts=1", "evaluation.final_prompts=1", "evaluation.images_per_prompt=1"),
]
OF_FLOWS = {"cps": "prdp", "euler": "prdp_denoising", "flow_sde": "prdp", "edm_churn": "fdfo"}
"""Samplers of flow models, and an objective for each."""
WORDS = ("red circle", "blue square", "green star", "two cats")
QWEN_JUDGES = ("hpsv3", "unified_reward")
ON_HUB = {"sd14", "sd15", "sd35_medium", "sdxl", "flux_dev", "flux_schnell", "z_image", "z_image_turbo"}
REFUSED = {"model": ON_HUB, "reward": {"blip_vqa", "image_quality", "geneval", "safety"}, "cluster": {"ray"}}
"""What cannot be started here, or, of Ray, is started by tests/cluster."""


def _combined() -> list[dict[str, str]]:
    """Runs that have every option of the small groups between them, and those together that need each other."""
    judged = ["shapes_judge", "shapes_judge_and_compressibility", "shapes_aspects", "watched_redness", "sub_score"]
    apart = (*judged, *REFUSED["reward"], "vqa", "quadratic_of_point", "ocr", *QWEN_JUDGES)
    rewards = [name for name in OPTIONS["reward"] if name not in apart]
    prompts = [name for name in OPTIONS["prompts"] if not re.match("dsg_1k|shapes|gaussian_mixtures|quoted_text", name)]
    mixtures = {"reward": "quadratic_of_point", "model": "gaussian_mixtures", "learner": "full"}
    pairs = [{"reward": name, "prompts": prompts[number % len(prompts)]} for number, name in enumerate(rewards)]
    pairs += [{"reward": name, "prompts": ("shapes", "shapes_small")[number % 2]} for number, name in enumerate(judged)]
    pairs += [{"reward": "vqa", "prompts": "dsg_1k"}, {"reward": "ocr", "prompts": "quoted_text"}]
    pairs += [{**mixtures, "prompts": name} for name in OPTIONS["prompts"] if name.startswith("gaussian_mixtures")]
    pairs += [{"reward": name, "prompts": "text_file"} for name in QWEN_JUDGES]
    cycled = {group: OPTIONS[group] for group in ("tracking", "learner")}
    cycled["objective"] = [name for name in OPTIONS["objective"] if name != "fdfo"]
    cycled["sampler"] = [name for name in OPTIONS["sampler"] if name not in OF_FLOWS]
    of_flows = {"model": "local", "reward": "redness", "prompts": "text_file"}
    return [
        {"model": "local", **{group: options[number % len(options)] for group, options in cycled.items()}, **pair}
        for number, pair in enumerate(pairs)
    ] + [
        {**of_flows, "sampler": name, "objective": objective, "learner": OPTIONS["learner"][number % 2]}
        for number, (name, objective) in enumerate(OF_FLOWS.items())
    ]


COMBINED = _combined()


@pytest.fixture(scope="session")
def files(
    tmp_path_factory: pytest.TempPathFactory,
    bert_tokenizer: Path,  # noqa: F811
    blip_folder: Path,  # noqa: F811
    clip_folder: Path,  # noqa: F811
    clip_tokenizer: Path,  # noqa: F811
    head_tensors: dict[str, Any],  # noqa: F811
    open_clip_file: Path,  # noqa: F811
) -> dict[str, str]:
    """Small files in place of those that options ask for, by name."""
    import torch

    folder = tmp_path_factory.mktemp("files")
    (folder / "train.txt").write_text("\n".join(f"a {word}" for word in WORDS))
    (folder / "heldout.txt").write_text("\n".join(f"one {word}" for word in WORDS))
    (folder / "geneval.jsonl").write_text(
        "\n".join(json.dumps({"prompt": f"one {word}", "tag": "color", "include": []}) for word in WORDS)
    )
    (folder / "train.json").write_text(json.dumps([{"prompt": f"a {word}"} for word in WORDS]))
    (folder / "anime.json").write_text(json.dumps([f"one {word}" for word in WORDS]))
    (folder / "parti.tsv").write_text(
        "Prompt\tCategory\tChallenge\n" + "".join(f"one {word}\tArt\tBasic\n" for word in WORDS)
    )
    header = "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple"
    for name, article in (("dsg_train", "a"), ("dsg", "one")):
        rows = [f"tifa_{n},{article} {word},k,1,0,entity,whole,t,Is it red?" for n, word in enumerate(WORDS)]
        (folder / f"{name}.csv").write_text("\n".join([f"{header},question_natural_language", *rows]))
    torch.save(head_tensors, folder / "head.pth")
    torch.save(imagereward_tensors(63), folder / "ImageReward.pt")
    write_narrow_hpsv3(folder)
    shutil.copytree(folder / "qwen2_vl", folder / "judge")
    write_narrow_judge(folder / "judge")
    function = "def bright(images, prompts, metadata):\n    return images.mean((1, 2, 3))\n"
    (folder / "known").mkdir()
    Image.new("RGB", (8, 8), (200, 30, 60)).save(folder / "known" / "red.png")
    (folder / "option_rewards.py").write_text(function)
    loss = "def loss(log_ratio, rewards):\n    return -(log_ratio.mean(1) * rewards).mean(), {}\n"
    (folder / "option_losses.py").write_text(loss)
    datasets = pytest.importorskip("datasets")
    captions = {"train": [f"a {word}" for word in WORDS], "test": [f"one {word}" for word in WORDS]}
    splits = {**captions, "test_unique": captions["test"]}
    rows = {name: datasets.Dataset.from_dict({"caption": values}) for name, values in splits.items()}
    datasets.DatasetDict(rows).save_to_disk(folder / "dataset")
    return {
        "folder": str(folder),
        "bert": str(bert_tokenizer),
        "blip": str(blip_folder),
        "clip": str(clip_folder),
        "clip_tokenizer": str(clip_tokenizer),
        "hpsv2": str(open_clip_file),
    }


@pytest.fixture(scope="session")
def flow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flow")
    narrow_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def train(tmp_path: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Trains by a command line, in this process, and looks at what comes out."""
    monkeypatch.chdir(files["folder"])
    load = lambda model, kind, **_: copy.deepcopy(_loaded(model.path, model.dtype, kind.family))  # noqa: E731
    monkeypatch.setattr(folder_policy, "load_pipeline", load)

    def run(*words: str) -> Path:
        folder = tmp_path / "run"
        assert main(["train", *SMALL, *words, f"output_dir={folder}"]) == 0
        lines = read_metrics(folder)
        assert [line["epoch"] for line in lines] == [0, 1]
        assert math.isfinite(lines[1]["loss"])
        assert math.isfinite(lines[1]["eval/score"])
        assert list((folder / "weights").iterdir())
        return folder

    return run


@cache
def _loaded(path: str, dtype: str, family: str) -> Any:
    kind = next(one for one in FORMATS if one.family == family)
    return LOAD(ModelConfig(path=path, dtype=dtype), kind)


LOAD = folder_policy.load_pipeline


def words_for(files: dict[str, str], reward: str, prompts: str) -> list[str]:
    """What a reward and a source of prompts have to be told."""
    clip, tokenizer = f"reward.path={files['clip']}", f"reward.tokenizer={files['clip_tokenizer']}"
    two = ("prompts.train.path=train.txt", "prompts.heldout.path=heldout.txt")
    of_prompts: dict[str, Sequence[str]] = {
        "animals": (),
        **dict.fromkeys(("dsg_1k", "dpg_bench"), (two[0], "prompts.heldout.path=dsg.csv")),
        "geneval": (two[0], "prompts.heldout.path=geneval.jsonl"),
        "hf_dataset": ("prompts.train.path=dataset",),
        "hpdv2": ("prompts.train.path=train.json", "prompts.heldout.path=anime.json"),
        "mixture": ("prompts.train.first.path=train.txt", "prompts.train.second.path=train.json", two[1]),
        "partiprompts": (two[0], "prompts.heldout.path=parti.tsv"),
        "pick_a_pic": ("prompts.train.path=dataset",),
        **dict.fromkeys(("shapes", "shapes_small", "quoted_text"), ("prompts.train.size=4", "prompts.heldout.size=2")),
        **dict.fromkeys(("gaussian_mixtures", "gaussian_mixtures_small"), ("sampler.guidance_scale=1",)),
    }
    of_reward: dict[str, Sequence[str]] = {
        "aesthetic": ("reward.path=head.pth", f"reward.clip={files['clip']}"),
        "callable": ("reward.path=option_rewards.bright",),
        **dict.fromkeys(("clipscore", "pickscore"), (clip,)),
        **dict.fromkeys(("hpsv2", "hpsv2_1"), (f"reward.path={files['hpsv2']}", tokenizer)),
        "pickscore_watched": (f"reward.terms.pickscore.{clip}", f"reward.terms.clipscore.{clip}"),
        "imagereward": ("reward.path=ImageReward.pt", f"reward.tokenizer={files['bert']}"),
        "hpsv3": ("reward.path=qwen2_vl", "reward.weights=.", "reward.instruction=instruction.txt"),
        "unified_reward": (
            *("reward.path=judge", "reward.instruction=judge/ask.txt", "reward.max_new_tokens=3"),
            "reward.unreadable=1",  # weights without training write no marks
        ),
        "originality": ("reward.folder=known",),
        "sub_score": ("reward.name=relation",),
        # Training prompts need questions too, where the reward asks them.
        "vqa": (
            f"reward.path={files['blip']}",
            f"prompts.train._target_={DsgPrompts.__module__}.{DsgPrompts.__qualname__}",
            "prompts.train.path=dsg_train.csv",
        ),
        "weighted_sum": (
            f"reward.terms.pickscore.{clip}",
            f"reward.terms.hpsv2.reward.path={files['hpsv2']}",
            f"reward.terms.hpsv2.{tokenizer}",
            "reward.terms.aesthetic.reward.path=head.pth",
            f"reward.terms.aesthetic.reward.clip={files['clip']}",
        ),
    }
    return [*of_prompts.get(prompts, two), *of_reward.get(reward, ())]


def test_every_option_is_started_below_or_refused() -> None:
    combined = {"sampler", "objective", "learner", "prompts", "reward", "model", "tracking", "cluster"}
    assert set(OPTIONS) == {*combined, "experiment"}
    for group in combined:
        started = {run.get(group, "") for run in COMBINED} | {"inline"}
        started |= {"shapes", "shapes_flow"} if group == "model" else set()  # by the experiments
        assert set(OPTIONS[group]) - started == REFUSED.get(group, set())


@pytest.mark.parametrize("run", COMBINED, ids=lambda run: " ".join(f"{key}={value}" for key, value in run.items()))
def test_options_start(
    train: Callable[..., Path], files: dict[str, str], model_folder: Path, flow_folder: Path, run: dict[str, str]
) -> None:
    words = [f"{group}={option}" for group, option in run.items()] + words_for(files, run["reward"], run["prompts"])
    if run["sampler"] in OF_FLOWS:
        words += ["model.family=stable_diffusion_3", f"model.path={flow_folder}", "model.max_sequence_length=2"]
    elif run["model"] == "local":
        words.append(f"model.path={model_folder}")
    if run["objective"] == "callable":
        words.append("objective._target_=option_losses.loss")
    if run["reward"] == "remote":
        from prdp.rewards.redness import Redness

        with serving(Redness()) as server:
            train(*words, f"reward.url=http://127.0.0.1:{server.server_port}", "cluster=inline")
    elif run["reward"] == "vlm_judge":
        with judge(lambda pictures, text: f'{{"alignment": {1 + pictures[0].mean() / 30}, "quality": 5}}') as (url, _):
            train(*words, f"reward.url={url}", "cluster=inline")
    elif run["reward"] in ("unirl_service", "flow_grpo_server"):
        of_unirl = run["reward"] == "unirl_service"
        with answering(unirl_service if of_unirl else flow_grpo) as (url, _):
            named = "reward.reward=bright" if of_unirl else "reward.key=scores"
            train(*words, f"reward.url={url}", named, "cluster=inline")
    else:
        train(*words, "cluster=inline")


RECIPES = [name for name in OPTIONS["experiment"] if name.endswith(("_lora", "_8gpus"))]
"""Of released models, which tests/configuration/test_memory_plan.py composes and plans."""


@pytest.mark.parametrize("option", [name for name in OPTIONS["experiment"] if name not in RECIPES])
def test_experiments_start(train: Callable[..., Path], files: dict[str, str], option: str) -> None:
    words = ["tracking=silent"]
    if option == "multi_reward":
        words += words_for(files, "weighted_sum", "pick_a_pic")
    elif option.startswith("paper"):
        words += words_for(files, "callable", "text_file")
    elif option == "versat2i":
        words += ["reward=aesthetic", *words_for(files, "aesthetic", "file"), "learner.autocast=null"]
    elif option == "selma":
        drawn = ["models=[base]", "model=shapes", "prompts=[animals]", "prompts_per_set=2", "images_per_prompt=1"]
        assert main(["generate", *drawn, "sampler.steps=2", "output_dir=drawn"]) == 0
        stored = ["rollouts.path=drawn", "prompts.heldout.path=heldout.txt"]
        words += ["reward=redness", *stored, "learner.autocast=null", "images_per_prompt=1"]
    if option.startswith(("multi", "paper", "selma", "versat2i")):
        # In place of a Stable Diffusion, which has to be downloaded.
        words.append("model=shapes")
    else:
        words += ["prompts.train.size=4", "prompts.heldout.size=2"]
    train(f"experiment={option}", *words)


def test_what_cannot_start_here_is_refused_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    from huggingface_hub import try_to_load_from_cache

    def refusal(*words: str) -> str:
        assert main(["validate", *words]) == 2
        return capsys.readouterr().err

    if not isinstance(try_to_load_from_cache("CompVis/stable-diffusion-v1-4", "model_index.json"), str):
        assert "model.path=CompVis/stable-diffusion-v1-4: there is no such folder" in refusal("model=sd14")
    if not isinstance(try_to_load_from_cache("stabilityai/stable-diffusion-3.5-medium", "model_index.json"), str):
        assert "model.path=stabilityai/stable-diffusion-3.5-medium: there is no such folder" in refusal(
            "model=sd35_medium", "sampler=cps"
        )
    if not isinstance(try_to_load_from_cache("stabilityai/stable-diffusion-xl-base-1.0", "model_index.json"), str):
        assert "model.path=stabilityai/stable-diffusion-xl-base-1.0: there is no such folder" in refusal("model=sdxl")
    if importlib.util.find_spec("pyiqa") is None:
        assert "needs pyiqa, which is not installed" in refusal("reward=image_quality")
    if importlib.util.find_spec("nudenet") is None:
        assert "needs nudenet, which is not installed" in refusal("reward=safety")
