"""Experts and what is made of them: merges, gates, skills, one model that teaches another (docs/results/experts.md).

    python benchmarks/experts.py run FOLDER [--seeds 0,1,2] [--parts aspects,rounds,skills,weak_to_strong,...]
    python benchmarks/experts.py plan FOLDER
    python benchmarks/experts.py report FOLDER docs/results

Every step is a command of prdp in FOLDER/<seed>, whose words `plan` prints. Started again, `run` goes on where it was,
inside a training as well. Two processes may run different seeds or parts at a time. `report` takes what is finished,
and what OUT has of other seeds and parts.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from study_tables import interval, number, table

from prdp.support.storage import write_atomically

ASPECTS = ("color", "shape", "count", "fill")
PAIR = ASPECTS[:2]
WELL_DRAWN = "sampler.steps=40"
"""Of images that are learned from: those of few steps teach the errors of the few steps."""
LONGER = ("color", "count")
ROUNDS = 3
SKILLS = ("color", "count", "relation", "size", "fill")
UPDATES = 12
"""Of one expert; the run on the sum of all aspects gets as many for each of them."""
RENDER = "render"
SIDE = 32
"""Of the embedded model's pictures, in pixels."""
RESULTS, PAGE = "experts.jsonl", "experts.md"
_HEAD = """# Experts

`python benchmarks/experts.py run FOLDER`, then `python benchmarks/experts.py report FOLDER docs/results`; `plan` prints
the commands. What it means stands in [experts.md](../experts.md).

The base's row has scores. The others have differences to it, paired by prompt and noise, on held-out prompts that
differ by seed. Intervals are 95%: Student's over three seeds or more; of fewer they are over prompts, and say nothing
of seeds."""
JUDGE = "rewards=[shapes_judge]"
JUDGED_LATER = ("evaluation.every=0", "evaluation.final_prompts=16")
UNGUIDED = ("sampler=few_step", "sampler.guidance_scale=1")
GUIDED = ("sampler=few_step", "sampler.guidance_scale=3")
FLOW = ("model=shapes_flow", "sampler=cps", "sampler.steps=8", "sampler.shift=2", "sampler.microbatch=64")
PLAIN = ("rollouts.source=stored", "objective=denoising", "images_per_prompt=1")
"""Denoising of stored images, one a prompt."""


@dataclass(frozen=True)
class Step:
    """A command of prdp, or `render`, whose outputs lie in the seed's folder."""

    name: str
    words: tuple[str, ...]


def lora(rate: str) -> tuple[str, ...]:
    """The demo's recipe but for its rate and on attention alone, judged by `prdp evaluate` afterwards."""
    targets = "learner.lora_targets=[to_q,to_k,to_v,to_out.0]"
    return "experiment=shapes_demo", targets, f"learner.learning_rate={rate}", *JUDGED_LATER


def plain_lora() -> tuple[str, ...]:
    """A LoRA of the embedded UNet by denoising of stored images."""
    return *lora("3e-4"), *PLAIN, "prompts_per_epoch=64", "objective.draws=2"


def train(name: str, seed: int, *words: str) -> Step:
    """A training run in the folder `name`."""
    return Step(name, ("train", *words, f"seed={seed}", "checkpoint.resume=auto", f"output_dir={name}"))


def aspects(seed: int) -> Iterator[Step]:
    """One expert an aspect by PRDP and by best-of-N, their merges and gates, and one run on the sum of the aspects."""
    expert = ("experiment=shapes_expert", *JUDGED_LATER)
    for aspect in ASPECTS:
        yield train(f"prdp_{aspect}", seed, *expert, "objective.kl=0", f"reward.name={aspect}", f"epochs={UPDATES}")
    source = ("models=[base]", "model=shapes", "prompts=[shapes.train]", JUDGE, *UNGUIDED, WELL_DRAWN)
    count = ("prompts_per_set=128", "images_per_prompt=12", f"seed={seed}", f"prompt_seed={seed}")
    yield Step("candidates", ("generate", *source, *count, "output_dir=candidates"))
    slow = (*expert, "rollouts.path=candidates", "learner.learning_rate=1e-3", "objective.draws=8", "epochs=16")
    best = (*slow, "rollouts.source=stored", "objective=best_of_n", "images_per_prompt=12")
    for aspect in PAIR:
        yield train(f"best_{aspect}", seed, *best, f"reward.name={aspect}")
    yield train("unselected", seed, *slow, *PLAIN, "reward.name=color")
    summed = (*lora("3e-3"), "objective.kl=0", "reward=shapes_aspects", f"epochs={UPDATES * len(ASPECTS)}")
    yield train("weighted_sum", seed, *summed)
    for name, chosen in (("pair", PAIR), ("four", ASPECTS)):
        models = f"models=[{','.join(f'prdp_{one}' for one in chosen)}]"
        learned = f"aspects=[{','.join(f'shapes_judge.{one}' for one in chosen)}]"
        yield Step(f"merged_{name}", ("merge", models, f"output_dir=merged_{name}"))
        yield Step(f"summed_{name}", ("merge", models, f"scale={len(chosen)}", f"output_dir=summed_{name}"))
        gate = ("gate", models, learned, "rollouts.path=candidates", "gate.steps=200", f"seed={seed}")
        yield Step(f"gated_{name}", (*gate, f"output_dir=gated_{name}"))
    names = [f"prdp_{one}" for one in ASPECTS] + [f"best_{one}" for one in PAIR] + ["unselected", "weighted_sum"]
    names += [f"{how}_{which}" for which in ("pair", "four") for how in ("merged", "summed", "gated")]
    yield evaluation("aspects", names, ("model=shapes", "prompts=[shapes]", *UNGUIDED), seed)


def rounds(seed: int) -> Iterator[Step]:
    """Best-of-N on color in three rounds, each from images of the model before, and the same without selection; and
    experts of 36 updates."""
    expert = ("experiment=shapes_expert", *JUDGED_LATER, "rollouts.source=stored", "reward.name=color")
    slow = (*expert, "learner.learning_rate=1e-3", "objective.draws=8", "epochs=12")
    best, unselected = ("objective=best_of_n", "images_per_prompt=12"), ("objective=denoising", "images_per_prompt=1")
    kinds = {"best": best, "unselected": unselected}
    count = ("prompts_per_set=96", "images_per_prompt=12", f"seed={seed}", *UNGUIDED, WELL_DRAWN)
    for kind, words in kinds.items():
        before, started = "base", tuple[str, ...]()
        for turn in range(1, ROUNDS + 1):
            drawn, learned = f"{before}_images", f"{kind}_round_{turn}"
            if before != "base" or kind == "best":
                source = (f"models=[{before}]", "model=shapes", "prompts=[shapes.train]", JUDGE)
                chosen = (f"prompt_seed={10 * seed + turn}", f"output_dir={drawn}")
                yield Step(drawn, ("generate", *source, *count, *chosen))
            yield train(learned, seed, *slow, *words, f"rollouts.path={drawn}", *started)
            before, started = learned, (f"learner.init_adapter={learned}/weights",)
    for aspect in LONGER:
        long = ("experiment=shapes_expert", *JUDGED_LATER, f"reward.name={aspect}", f"epochs={3 * UPDATES}")
        yield train(f"longer_{aspect}", seed, *long)
    names = [f"{kind}_round_{turn}" for kind in kinds for turn in range(1, ROUNDS + 1)]
    names += [f"longer_{aspect}" for aspect in LONGER]
    yield evaluation("rounds", names, ("model=shapes", "prompts=[shapes]", *UNGUIDED), seed)


def skills(seed: int) -> Iterator[Step]:
    """SELMA: prompts, images and a LoRA for each skill, merged; beside rendered truth, and one LoRA for all skills."""
    for skill in SKILLS:
        written = ("prompts", "write", f"skill=shapes_{skill}", "writer=grammar", f"seed={seed}")
        yield Step(f"prompts_{skill}", (*written, "count=256", f"output=prompts/{skill}.jsonl"))
        heldout = (*written, "skill.scenes.split=heldout", "count=64", f"output=prompts/heldout_{skill}.jsonl")
        yield Step(f"heldout_{skill}", heldout)
    files = ",".join(f"prompts/{skill}.jsonl" for skill in SKILLS)
    drawn = ("models=[base]", "model=shapes", f"prompts=[{files}]", "prompts_per_set=null", "images_per_prompt=1")
    yield Step("set_drawn", ("generate", *drawn, *GUIDED, "sampler.steps=25", f"seed={seed}", "output_dir=set_drawn"))
    yield Step("pictures", (RENDER, "pictures", str(seed)))
    yield Step("set_rendered", ("generate", "pictures=pictures", "model=shapes", "output_dir=set_rendered"))
    recipe = plain_lora()
    for source in ("drawn", "rendered"):
        for skill in SKILLS:
            chosen = (f"rollouts.path=set_{source}", f"rollouts.skill=shapes_{skill}", "epochs=32")
            yield train(f"{source}_{skill}", seed, *recipe, *chosen)
        models = f"models=[{','.join(f'{source}_{skill}' for skill in SKILLS)}]"
        yield Step(f"{source}_merged", ("merge", models, f"output_dir={source}_merged"))
        yield train(f"{source}_all", seed, *recipe, f"rollouts.path=set_{source}", f"epochs={32 * len(SKILLS)}")
    names = [f"{source}_{which}" for source in ("drawn", "rendered") for which in (*SKILLS, "merged", "all")]
    yield evaluation("skills", names, ("model=shapes", heldout_skills(), *GUIDED), seed, images=1)


def heldout_skills() -> str:
    """Held-out prompts of each skill."""
    return f"prompts=[{','.join(f'{skill}:prompts/heldout_{skill}.jsonl' for skill in SKILLS)}]"


def flow_images(seed: int) -> Step:
    """One image of the embedded flow model for each prompt of the skills."""
    files = ",".join(f"prompts/{skill}.jsonl" for skill in SKILLS)
    own = ("models=[base]", *FLOW, "sampler.guidance_scale=3", f"prompts=[{files}]", "prompts_per_set=null")
    drawn = ("images_per_prompt=1", "sampler.steps=25", f"seed={seed}", "output_dir=set_flow")
    return Step("set_flow", ("generate", *own, *drawn))


def weak_to_strong(seed: int) -> Iterator[Step]:
    """Images of the embedded UNet train the embedded flow model, beside the flow model's own images."""
    yield flow_images(seed)
    recipe = ("experiment=shapes_flow", *PLAIN, "prompts_per_epoch=64", "objective.draws=2", *JUDGED_LATER)
    recipe = (*recipe, "learner.learning_rate=3e-4", "rollouts.encode=true", "epochs=120")
    for name, path in (("flow_own", "set_flow"), ("flow_taught", "set_drawn"), ("flow_rendered", "set_rendered")):
        yield train(name, seed, *recipe, f"rollouts.path={path}")
    models = ["flow_own", "flow_taught", "flow_rendered"]
    yield evaluation("weak_to_strong", models, ("prompts=[shapes]", *FLOW, "sampler.guidance_scale=3"), seed)


def weak_teacher(seed: int) -> Iterator[Step]:
    """Images of the embedded flow model train the embedded UNet, which is the better one; beside `drawn_all` above."""
    yield flow_images(seed)
    source = ("rollouts.path=set_flow", "rollouts.encode=true", f"epochs={32 * len(SKILLS)}")
    yield train("taught_all", seed, *plain_lora(), *source)
    yield evaluation("weak_teacher", ["taught_all"], ("model=shapes", heldout_skills(), *GUIDED), seed, images=1)


def evaluation(name: str, models: Sequence[str], words: Sequence[str], seed: int, images: int = 2) -> Step:
    """All models beside the base on held-out prompts, which differ by seed."""
    count = (JUDGE, "prompts_per_set=256", f"images_per_prompt={images}", f"prompt_seed={seed}", f"seeds=[{seed}]")
    named = f"models=[base,{','.join(f'{one}:{one}' for one in models)}]"
    return Step(f"evaluation_{name}", ("evaluate", named, *words, *count, f"output_dir=evaluation_{name}"))


PARTS = {
    "aspects": aspects,
    "rounds": rounds,
    "skills": skills,
    "weak_to_strong": weak_to_strong,
    "weak_teacher": weak_teacher,
}


def render(folder: Path, out: Path) -> None:
    """Truth for every prompt of the skills: pictures as the world's renderer draws them, with captions."""
    import numpy as np
    from PIL import Image

    from prdp.worlds.shapes.grammar import parse
    from prdp.worlds.shapes.render import render as draw

    out.mkdir(parents=True, exist_ok=True)
    lines = []
    for skill in SKILLS:
        for row, line in enumerate((folder / "prompts" / f"{skill}.jsonl").read_text(encoding="utf-8").splitlines()):
            prompt = json.loads(line)["prompt"]
            rng = np.random.default_rng([row, SKILLS.index(skill)])
            name = f"{skill}_{row:04}.png"
            Image.fromarray(draw(parse(prompt), rng, SIDE)).save(out / name)
            lines.append(json.dumps({"file_name": name, "text": prompt, "skill": f"shapes_{skill}"}))
    write_atomically(out / "metadata.jsonl", ("\n".join(lines) + "\n").encode())


def run(
    folder: Path,
    seeds: Sequence[int],
    parts: Sequence[str],
    steps_of: Mapping[str, Callable[[int], Iterator[Step]]] = PARTS,
) -> None:
    """Do what is left. A step that fails ends it, with the end of its log."""
    for seed in seeds:
        place = folder / str(seed)
        place.mkdir(parents=True, exist_ok=True)
        for part in parts:
            for step in steps_of[part](seed):
                done, log = place / f"{step.name}.done", place / f"{step.name}.log"
                if done.exists():
                    continue
                start, used = time.monotonic(), os.times()
                if step.words[0] == RENDER:
                    render(place, place / step.words[1])
                else:
                    with log.open("a", encoding="utf-8") as output:
                        command = [sys.executable, "-m", "prdp", *step.words]
                        ended = subprocess.run(command, cwd=place, stdout=output, stderr=output, check=False)
                    if ended.returncode:
                        told = "\n".join(log.read_text(encoding="utf-8").splitlines()[-12:])
                        raise SystemExit(f"seed {seed}, {step.name}: exit code {ended.returncode}\n{told}")
                spent = os.times()
                cpu = spent.children_user + spent.children_system - used.children_user - used.children_system
                write_atomically(
                    done, (json.dumps({"seconds": time.monotonic() - start, "cpu_seconds": cpu}) + "\n").encode()
                )
                print(f"seed {seed}  {step.name}  {cpu:.0f} CPU seconds", flush=True)


def collect(folder: Path) -> list[dict[str, Any]]:
    """A line for each seed, part, model, prompt set and aspect: scores and the paired differences to the base."""
    lines = []
    for place in sorted(one for one in folder.iterdir() if one.name.isdigit()):
        for part in PARTS:
            file = place / f"evaluation_{part}" / "results.json"
            if not (place / f"evaluation_{part}.done").exists():
                continue
            results = json.loads(file.read_text(encoding="utf-8"))
            for one in results["scores"]:
                aspect = one["part"].removeprefix("sub-score: ")
                if one["part"] == "all" or aspect != one["part"]:
                    kept = {key: one[key] for key in ("model", "prompts", "score", "difference")}
                    half = None if one["model"] == "base" else one["difference_high"] - one["difference"]
                    kept |= {"difference": None if one["model"] == "base" else one["difference"], "half_width": half}
                    lines.append({"part": part, "seed": int(place.name), "aspect": aspect, **kept})
    return lines


def cells(lines: Sequence[dict[str, Any]], part: str, columns: Sequence[tuple[str, str]]) -> list[list[str]]:
    """Rows of models; columns (prompt set, aspect): the base's score, the others' mean difference over seeds."""
    own = [line for line in lines if line["part"] == part]
    rows = []
    for model in dict.fromkeys(line["model"] for line in own):
        row = [model]
        for prompts, aspect in columns:
            chosen = [one for one in own if (one["model"], one["prompts"], one["aspect"]) == (model, prompts, aspect)]
            row.append(_told(chosen, model == "base"))
        rows.append(row)
    return rows


def _told(lines: Sequence[dict[str, Any]], is_base: bool) -> str:
    """Mean with its interval over seeds; of fewer than three seeds that over prompts, which knows no seeds."""
    values = [line["score" if is_base else "difference"] for line in lines]
    if not values:
        return ""
    if len(values) > 2:
        text = interval(values)
    else:
        text = number(sum(values) / len(values), 3)
        if not is_base:
            half = math.sqrt(sum(line["half_width"] ** 2 for line in lines)) / len(lines)
            text += f" ± {number(half, 3)}"
    return text if is_base or text.startswith("-") else f"+{text}"


def collect_costs(folder: Path) -> list[dict[str, Any]]:
    """A line for each step of finished parts: its CPU seconds."""
    lines = []
    for place in sorted(one for one in folder.iterdir() if one.name.isdigit()):
        for part, steps in PARTS.items():
            if (place / f"evaluation_{part}.done").exists():
                for step in steps(int(place.name)):
                    done = place / f"{step.name}.done"
                    if done.exists():
                        spent = json.loads(done.read_text())["cpu_seconds"]
                        lines.append({"part": part, "seed": int(place.name), "step": step.name, "cpu_seconds": spent})
    return lines


def costs(lines: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Median CPU seconds of each step over the seeds."""
    spent: dict[str, list[float]] = {}
    for line in lines:
        spent.setdefault(line["step"], []).append(line["cpu_seconds"])
    return [["step", "CPU seconds"], *([name, f"{statistics.median(all_):.0f}"] for name, all_ in spent.items())]


def report(folder: Path, out: Path) -> str:
    """Write OUT/experts.jsonl and OUT/experts.md; the page."""
    lines = collect(folder) + collect_costs(folder)
    known = {(line["part"], line["seed"]) for line in lines}
    if (out / RESULTS).exists():
        before = [json.loads(line) for line in (out / RESULTS).read_text(encoding="utf-8").splitlines()]
        lines += [line for line in before if (line["part"], line["seed"]) not in known]
    lines.sort(key=lambda line: (list(PARTS).index(line["part"]), line["seed"]))
    spent, lines = ([line for line in lines if ("step" in line) is told] for told in (True, False))
    seeds = {part: sorted({line["seed"] for line in lines if line["part"] == part}) for part in PARTS}
    aspects_told = [("shapes", "all"), *(("shapes", one) for one in (*ASPECTS, "size", "relation"))]
    skills_told = [(skill, "all") for skill in SKILLS]
    page = [_HEAD]
    for part in PARTS:
        by_skill = part in ("skills", "weak_teacher")
        columns = skills_told if by_skill else aspects_told
        if seeds[part]:
            names = [prompts if by_skill else aspect for prompts, aspect in columns]
            page += [f"## {part.replace('_', ' ').capitalize()}", " ".join((PARTS[part].__doc__ or "").split())]
            page.append(f"Seeds {', '.join(map(str, seeds[part]))}.")
            page.append(table([["model", *names], *cells(lines, part, columns)]))
    page += ["## What the steps cost", table(costs(spent))]
    text = "\n\n".join(page) + "\n"
    write_atomically(out / RESULTS, "".join(json.dumps(line) + "\n" for line in (*lines, *spent)).encode())
    write_atomically(out / PAGE, text.encode())
    return text


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "plan", "report"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--seeds", default="0,1,2", help="separated by commas")
    parser.add_argument("--parts", default=",".join(PARTS), help="separated by commas")
    given = parser.parse_args()
    seeds, parts = [int(one) for one in given.seeds.split(",")], given.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--parts has {', '.join(sorted(unknown))}, expected some of {', '.join(PARTS)}")
    if given.what == "run":
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        run(given.folder, seeds, parts)
    elif given.what == "plan":
        for seed in seeds:
            for part in parts:
                for step in PARTS[part](seed):
                    left = " " if (given.folder / str(seed) / f"{step.name}.done").exists() else "*"
                    print(f"{left} {seed} prdp {' '.join(step.words)}")
    elif given.out is None:
        parser.error("report needs the folder of the results")
    else:
        print(report(given.folder, given.out))


if __name__ == "__main__":
    main()
