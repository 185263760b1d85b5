"""Few-step students of the embedded model, fine-tuned and in cascades with their teacher (docs/results/students.md).

    python benchmarks/students.py run FOLDER [--seeds 0,1,2]
    python benchmarks/students.py plan FOLDER
    python benchmarks/students.py report FOLDER docs/results

Every step is a command of prdp in FOLDER/<seed>, whose words `plan` prints. Started again, `run` goes on where it was.
`report` takes what is finished.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from experts import JUDGE, Step, run, train
from students_report import EVALUATION, report

CHUNKS = "sampler.prompts_per_chunk=64"
"""Few images a prompt: more prompts at a time fill a network call."""
TARGETS = ("endpoint", "consistency")
TUNED = {
    "tuned_trajectory": ("objective=prdp", "objective.step_weighting=inverse_sensitivity", "epochs=24"),
    "tuned_denoising": ("objective=prdp_denoising", "objective.kl=0", "objective.times=sampler_stratified", "epochs=8"),
}
"""PRDP by the kind of its evidence, in about as many passes: an update on denoising errors takes three times those."""
CASCADES: dict[str, tuple[str, ...]] = {
    "refine25": ("rate=0.25",),
    "random25": ("rate=0.25", "strategy.router=random"),
    "redraw100": ("rate=1", "strategy=redraw"),
    "refine100": ("rate=1",),
    "skip25": ("rate=0.25", "strategy=skip", "sampler.steps=8"),
}
TEACHERS = {"teacher2": 2, "teacher4": 4, "teacher6": 6}
"""Steps; the base has 8."""
STOCHASTIC = "teacher8_stochastic"
"""As many as the base, with noise in each but the last."""
STUDENTS = {"endpoint2": ("endpoint", 2), "endpoint1": ("endpoint", 1), "consistency2": ("consistency", 2)}
"""Target and steps; students have 4 elsewhere."""


def students(seed: int) -> Iterator[Step]:
    """Chains, a student and its cascades, beside the teacher; then PRDP on the student and a student by the other
    target, which join the same evaluation.
    """
    drawn = ("models=[base]", "model=shapes", "prompts=[shapes.train]", "prompts_per_set=512", "images_per_prompt=1")
    seeded = (f"seed={seed}", f"prompt_seed={seed}")
    quiet = ("sampler.eta=0", "chains=true", CHUNKS)
    yield Step("chains", ("generate", *drawn, *quiet, *seeded, "output_dir=chains"))
    first, *others = TARGETS
    yield distill(first, seed)
    parts = (f"models=[{first},base]", "model=shapes", "prompts=[shapes.train]", "rewards=[shapes_aspects]")
    count = ("prompts_per_set=512", f"seed={seed}", f"prompt_seed={seed + 100}", "sampler.steps=4", "sampler.eta=0")
    for name, words in CASCADES.items():
        yield Step(name, ("calibrate", *parts, *count, CHUNKS, *words, f"output_dir={name}"))
    models = [f"{name}:base" for name in (*TEACHERS, STOCHASTIC)] + [f"{one}:{one}" for one in (first, *CASCADES)]
    few = {name: steps for name, (of, steps) in STUDENTS.items() if of == first}
    yield evaluation(EVALUATION, seed, [*models, *(f"{name}:{first}" for name in few)], {**TEACHERS, **few})
    recipe = ("reward=shapes_judge", "prompts=shapes", "prompts_per_epoch=16", "images_per_prompt=8")
    adapters = ("learner=lora", "learner.learning_rate=3e-3", "learner.warmup_updates=3", "learner.ema_decay=0.8")
    judged = ("evaluation.every=0", "evaluation.final_prompts=16")
    start = (f"model.path={first}/weights", "sampler=consistency")
    for name, objective in TUNED.items():
        yield train(name, seed, *start, *recipe, *adapters, *judged, *objective)
    for target in others:
        yield distill(target, seed)
    models += [f"{one}:{one}" for one in (*others, *TUNED)] + [f"{name}:{of}" for name, (of, _) in STUDENTS.items()]
    steps = {**TEACHERS, **{name: number for name, (_, number) in STUDENTS.items()}}
    yield evaluation(f"{EVALUATION}_of_all", seed, models, steps)


def distill(target: str, seed: int) -> Step:
    """A student by a target."""
    learned = ("model=shapes", "rollouts.path=chains", f"target={target}", f"seed={seed}")
    return Step(target, ("distill", *learned, f"output_dir={target}"))


def evaluation(name: str, seed: int, models: Sequence[str], steps: Mapping[str, int]) -> Step:
    """Models beside the base, some of them in so many steps."""
    words = ("model=shapes", "prompts=[shapes]", JUDGE, "watch=[shapes_aspects]", "sampler=few_step", "sampler.eta=0")
    words = (*words, CHUNKS, f"samplers.{STOCHASTIC}.eta=1")
    words += tuple(f"samplers.{one}.steps={number}" for one, number in steps.items())
    size = ("prompts_per_set=256", "images_per_prompt=1", f"prompt_seed={seed}", f"seeds=[{seed}]")
    return Step(name, ("evaluate", f"models=[base,{','.join(models)}]", *words, *size, f"output_dir={EVALUATION}"))


PARTS = {"students": students}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "plan", "report"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--seeds", default="0,1,2", help="separated by commas")
    given = parser.parse_args()
    seeds = [int(one) for one in given.seeds.split(",")]
    if given.what == "run":
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        run(given.folder, seeds, list(PARTS), PARTS)
    elif given.what == "plan":
        for seed in seeds:
            for step in students(seed):
                left = " " if (given.folder / str(seed) / f"{step.name}.done").exists() else "*"
                print(f"{left} {seed} prdp {' '.join(step.words)}")
    elif given.out is None:
        parser.error("report needs the folder of the results")
    else:
        print(report(given.folder, given.out))


if __name__ == "__main__":
    main()
