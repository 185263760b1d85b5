"""`prdp calibrate`: a student and its teacher become one model, which asks the teacher where the student scores low."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prdp.checkpoints.run_folder import check_writable
from prdp.checkpoints.run_lock import hold
from prdp.cluster.process_threads import apply_threads
from prdp.collaboration.calibrate_settings import CalibrateConfig, check_calibrate
from prdp.configuration.compose import Composer
from prdp.configuration.key_help import topics_among, topics_help
from prdp.configuration.override_words import OverrideParser
from prdp.configuration.preconditions import refuse
from prdp.configuration.secret_values import check_no_secrets
from prdp.configuration.typed import Root, conf_folder, groups, schema_keys
from prdp.evaluation.cascades import check_reward_of
from prdp.evaluation.command_line import FROM_RUN, Command, read_command_line
from prdp.evaluation.models import EvaluatedModel, find_models, split_name
from prdp.evaluation.preconditions import check_drawing
from prdp.evaluation.samplers import network_passes, own_samplers, sampler_of
from prdp.support.errors import ConfigError, start_up_checks
from prdp.support.storage import remove_leftovers
from prdp.tracking.console import Progress

if TYPE_CHECKING:
    from prdp.collaboration.cascade_files import Part
    from prdp.evaluation.work import Say, Work
    from prdp.types import Float64, PromptBatch

CALIBRATE = Root(
    name="calibrate",
    schema=CalibrateConfig,
    groups=("cluster", "model", "sampler", "strategy"),
    check=check_calibrate,
    nodes={FROM_RUN: {}},
)
CALIBRATION = Command(CALIBRATE, ("models", "prompts", "rewards"), all_columns=True)
_ALL_GROUPS = dataclasses.replace(CALIBRATE, groups=(*CALIBRATE.groups, "prompts", "reward"))
_HELP = """\
The first model draws; the second is asked where the estimator scores low.
  prdp calibrate models=[runs/student,base] model=shapes prompts=[shapes.train] rewards=[shapes_judge] rate=0.25 \\
    strategy=refine output_dir=runs/cascade
  prdp evaluate models=[base,runs/student,runs/cascade] model=shapes prompts=[shapes] rewards=[...]

OVERRIDES
  rewards=[imagereward]              the estimator; the judge of an evaluation is to be another one
  rate=0.25                          share of images that are drawn once more
  strategy=refine                    strategy.rollback_strength=0.5, or strategy.rollback_variance=0.72 instead
  strategy=regenerate                the teacher draws from noise
  strategy=redraw                    the student draws once more, and the better image is kept
  strategy=skip                      the teacher draws instead of the student, where the prompt alone tells a low score
  strategy.router=random             as many images by chance, to compare with
  sampler.steps=4                    of the teacher; of refine, those from the student's image on
  output_dir=runs/cascade            the same folder again makes another threshold of the same images
"""
_MORE = """\
More of a key, a section, a group or one of its options:
  prdp calibrate --help strategy        prdp calibrate --help reward.imagereward"""


def main(arguments: Sequence[str]) -> int:
    """The command."""
    if topics := topics_among(arguments):
        print(topics_help(topics, _ALL_GROUPS))
        return 0
    options = _parser().parse_intermixed_args(arguments)
    line = read_command_line(options.overrides, [conf_folder(), *options.config_dir], CALIBRATION)
    with Composer(line.words, folders=options.config_dir, root=line.root, additions=line.additions) as composer:
        [job] = composer.jobs()
        apply_threads(job.config.cluster.threads or 1)
        found = check_start(job.config, line.model_is_given, line.sizes)
        composer.run(lambda config: calibrate(config, found, line.notes))
    return 0


@dataclass(frozen=True)
class Found:
    """What a cascade is to be made of.

    Attributes:
        student, teacher: the models.
        parts: of them, as they draw.
        first: step that the teacher begins at.
        prompts: name of each prompt set -> its prompts.
    """

    student: EvaluatedModel
    teacher: EvaluatedModel
    parts: tuple[Part, Part]
    first: int
    prompts: Mapping[str, PromptBatch]


def check_start(config: CalibrateConfig, model_is_given: bool = True, sizes: Sequence[str] = ()) -> Found:
    """Find models and prompts, and check everything that can be checked without computing.

    Raises:
        ConfigError, StartError: naming the key and what is wrong.
    """
    from prdp.collaboration.cascade import teacher_steps
    from prdp.collaboration.cascade_files import Part
    from prdp.diffusion import family_of
    from prdp.prompts import build_prompts
    from prdp.prompts.stream import fixed_prompts, pass_length

    check_no_secrets(dataclasses.asdict(config))
    folder = Path(config.output_dir)
    check_writable(folder)
    size = {name: getattr(config.model, name) for name in sizes}
    models = find_models(config.models, config.model if model_is_given else None, size)
    if len(models) != 2:
        raise ConfigError(f"models={config.models}: hold {len(models)} models; expected the student and the teacher")
    student, teacher = models
    for model in models:
        if model.kind == "cascade":
            raise ConfigError(f"models: {model.name} is a cascade itself")
    for section in config.rewards.values():
        check_reward_of(folder, section)
    check_drawing(config, models, {"rewards": config.rewards})
    if config.strategy.name != "redraw":
        refuse(_space_problems(config.strategy.name, student, teacher))
    sampler = sampler_of(config, teacher)
    total, first = teacher_steps(config.strategy, sampler.steps, family_of(teacher.model).process_of(teacher.model))
    rolled = f"strategy: sampler.steps={sampler.steps} of refine are the last of a chain of {total}: "
    sampler = dataclasses.replace(sampler, steps=total)
    with start_up_checks("sampler" if not first else rolled + "sampler"):
        family_of(teacher.model).process_of(teacher.model).transitions(sampler)
    parts = (
        Part(_absolute(config.models[0]), student.model, sampler_of(config, student)),
        Part(_absolute(config.models[1]), teacher.model, sampler),
    )
    prompts = {}
    for name, section in config.prompts.items():
        source = build_prompts(f"prompts.{name}", section)
        prompts[name] = fixed_prompts(source, config.prompts_per_set or pass_length(source), config.prompt_seed)
    return Found(student, teacher, parts, first, prompts)


def calibrate(config: CalibrateConfig, found: Found, notes: Sequence[str] = ()) -> None:
    """Draw and score the student's images that are missing, fit the threshold, and write the cascade."""
    from prdp.calibration import fit, save
    from prdp.collaboration.cascade_files import THRESHOLD_FILE, Cascade, write_cascade
    from prdp.evaluation.models import model_digest
    from prdp.evaluation.work import Work, sample_missing, score_missing

    folder = Path(config.output_dir)
    [(name, section)] = config.rewards.items()
    with hold(folder), Progress(1, run_dir=folder, interactive=False) as progress:
        say = progress.message
        remove_leftovers(folder, deep=True)
        drawing = own_samplers(config, [found.student, found.teacher])
        for note in (str(folder), *notes, *drawing, *_order(config, found), _told(config, found)):
            say(note)
        with start_up_checks():
            work = Work.of(config, [found.student], found.prompts, timed=False)
        sample_missing(work, say)
        identity = score_missing(work, name, section, say)
        scores = _scores(work, name, {"identity": identity, "section": dict(section)})
        expected = None
        if config.strategy.name == "skip":
            scores, expected = _from_prompts(config, found, scores, say)
        threshold = fit(scores, config.rate, "below")
        student, teacher = found.parts
        cascade = Cascade(
            base=config.model,
            student=student,
            teacher=teacher,
            first=found.first,
            reward=dict(section),
            scorer=dict(identity),
            strategy=config.strategy,
            prompts=_digest(found.prompts),
            expected=expected,
        )
        save(folder / THRESHOLD_FILE, threshold, cascade.digests(model_digest(found.student)))
        write_cascade(folder, cascade)
        say(f"threshold of {name} {threshold}")
        say(f"{folder}  (prdp evaluate models=[base,{folder}] ...)")


def _scores(work: Work[Any], reward: str, key: Mapping[str, Any]) -> Float64:
    import numpy as np

    found = [chunk.scores(reward, key) for _, chunk in work.all_chunks()]
    return np.concatenate([one.rewards for one in found if one is not None])


def _from_prompts(config: CalibrateConfig, found: Found, scores: Float64, say: Say) -> tuple[Float64, str]:
    """Scores that are told from prompts which were left out, and the digest of what tells them."""
    import numpy as np

    from prdp.collaboration.cascade_files import ESTIMATOR_FILE
    from prdp.collaboration.prompt_estimator import fit_estimator, prompt_features
    from prdp.evaluation.loading import loaded_policy

    with start_up_checks():
        policy = loaded_policy(found.student, config.model.dtype)
    size = config.sampler.microbatch
    texts = [text for batch in found.prompts.values() for text in batch.texts]
    features = [prompt_features(policy.encode(texts[begin : begin + size])) for begin in range(0, len(texts), size)]
    with start_up_checks("prompts"):
        estimator, told = fit_estimator(np.concatenate(features), scores)
    constant = min(float(np.std(told)), float(np.std(scores))) == 0.0
    alike = 0.0 if constant else float(np.corrcoef(told, scores)[0, 1])
    say(f"scores from prompts that were left out: correlation {alike:.2f} with those of the images")
    return told, estimator.save(Path(config.output_dir) / ESTIMATOR_FILE)


def _space_problems(strategy: str, student: EvaluatedModel, teacher: EvaluatedModel) -> list[str]:
    """Images of student and teacher that cannot stand in one set; latents that the teacher cannot go on from."""
    from prdp.diffusion import family_of
    from prdp.diffusion.latent_space import is_vae_of, vae_digest

    shapes = [tuple(family_of(one.model).latent_shape_of(one.model)) for one in (student, teacher)]
    if shapes[0] != shapes[1]:
        return [f"strategy={strategy}: latents of {student.name} are {shapes[0]}, those of {teacher.name} {shapes[1]}"]
    digests = [vae_digest(one.model) for one in (student, teacher)]
    if strategy == "refine" and not is_vae_of(digests[0], teacher.model):
        return [
            f"strategy=refine: {student.name} has another VAE than {teacher.name} (digests {digests[0]} and "
            f"{digests[1]}), so that its latents mean other pictures; set strategy=regenerate"
        ]
    return []


def _order(config: CalibrateConfig, found: Found) -> list[str]:
    """A warning where the teacher is cheaper than the student."""
    student, teacher = (part.sampler for part in found.parts)
    own = network_passes(student)
    asked = network_passes(dataclasses.replace(teacher, steps=teacher.steps - found.first))
    if config.strategy.name == "redraw" or asked >= own:
        return []
    return [
        f"warning: {found.student.name} draws in {own} passes, and {found.teacher.name} is asked for {asked}: the "
        "student is the first of models, the teacher the second"
    ]


def _told(config: CalibrateConfig, found: Found) -> str:
    """What an image will take."""
    from prdp.diffusion import family_of

    student, teacher = (part.sampler for part in found.parts)
    own = network_passes(student)
    if config.strategy.name == "skip":
        whole = network_passes(teacher)
        return (
            f"{own} passes an image of the student, and {whole} of the teacher for {config.rate:.0%} of them: "
            f"{own + config.rate * (whole - own):g} on average"
        )
    if config.strategy.name == "redraw":
        more, how = own, "by the student"
    else:
        more, how = network_passes(dataclasses.replace(teacher, steps=teacher.steps - found.first)), "by the teacher"
    if config.strategy.name == "refine":
        process = family_of(found.teacher.model).process_of(found.teacher.model)
        time = process.transitions(teacher).times[found.first : found.first + 1]
        variance = float(process.noise_level(time)[0] ** 2)
        how += (
            f" from t = {time[0]:g} on, step {found.first} of {teacher.steps}: strength "
            f"{1 - found.first / teacher.steps:.2f}, variance of the noise {variance:.2f}"
        )
    return (
        f"{own} passes an image, and {more} more for {config.rate:.0%} of them {how}: {own + config.rate * more:g} on "
        "average"
    )


def _absolute(entry: str) -> str:
    path = split_name(entry)[1]
    place = Path(path).expanduser()
    return str(place.resolve()) if place.exists() else path


def _digest(prompts: Mapping[str, PromptBatch]) -> str:
    texts = {name: list(batch.texts) for name, batch in prompts.items()}
    return hashlib.blake2b(json.dumps(texts, sort_keys=True).encode(), digest_size=12).hexdigest()


def _parser() -> argparse.ArgumentParser:
    available = groups([conf_folder()], _ALL_GROUPS)
    options = "\n".join(f"  {group}  {', '.join(names)}" for group, names in available.items())
    return OverrideParser(
        keys=[*CALIBRATE.groups, *schema_keys(CalibrateConfig)],
        prog="prdp calibrate",
        usage="prdp calibrate models=[student,teacher] prompts=[...] rewards=[...] [OVERRIDES] [options]",
        description="Make a student ask its teacher where its images score low.",
        epilog=f"{_HELP}\ngroups:\n{options}\n{_MORE}",
    )
