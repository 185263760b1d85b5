"""Routing, with stubs and with the small pipeline: who draws what, what it costs, and what a threshold is bound to."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prdp.calibration import Threshold, fit
from prdp.cli import main
from prdp.collaboration.cascade import CascadeSampler, Strategy, strategy_problems, strength_of, teacher_steps
from prdp.collaboration.cascade_files import CASCADE_FILE, ESTIMATOR_FILE, THRESHOLD_FILE, read_cascade
from prdp.config import ModelConfig, SamplerConfig
from prdp.diffusion.rectified_flow import RectifiedFlow
from prdp.diffusion.redrawing import Redrawn
from prdp.diffusion.variance_preserving import VariancePreserving
from prdp.evaluation.cascades import parts_of, passes_of, threshold_of
from prdp.evaluation.loading import build_evaluated_sampler
from prdp.evaluation.models import find_models, model_digest
from prdp.evaluation.samplers import sampler_of
from prdp.evaluation.settings import EvaluateConfig
from prdp.evaluation.store import read_image
from prdp.support.errors import StartError
from prdp.types import PromptBatch, Rollout

PROMPTS = PromptBatch(0, 3, ("a", "b", "c"), ({}, {}, {}))
SD = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


class Model:
    """Pictures whose first level says who drew them, and whose second which image they are."""

    def __init__(self, level: int, passes: float) -> None:
        self.level, self.passes, self.refined = level, passes, None

    def sample(self, prompts: PromptBatch, images_per_prompt: int, seed: int, trajectory: bool) -> Rollout:
        count = len(prompts) * images_per_prompt
        return Rollout(
            prompts, images_per_prompt, self._images(np.arange(count)), 1, "x",
            stored={"final_latents": np.arange(count, dtype=np.float32).reshape(-1, 1, 1, 1)},
            network_passes=np.full(count, self.passes),
        )  # fmt: skip

    def again(
        self,
        prompts: Any,
        images_per_prompt: int,
        seed: int,
        rows: Any,
        refined: Any = None,
        fresh: bool = True,
        control: Any = None,
    ) -> Redrawn:
        self.refined = refined
        return Redrawn(self._images(rows, 100), np.full((len(rows), 1, 1, 1), -1, np.float32), 2 * self.passes)

    def _images(self, rows: Any, more: int = 0) -> Any:
        images = np.zeros((len(rows), 1, 1, 3), np.uint8)
        images[:, 0, 0, 0], images[:, 0, 0, 1] = self.level, rows + more
        return images


class Second:
    """Scores of images 0 to 5; images drawn again score 4."""

    def score(self, images: Any, prompts: Any, metadata: Any, where: str) -> Any:
        assert len(images) == len(prompts) == len(metadata)
        numbers = images[:, 0, 0, 1].astype(int)
        scores = np.array([5.0, 3.0, 3.0, 1.0, 4.0, 9.0])
        return np.where(numbers >= 100, 4.0, scores[numbers % 100]), {}


def drawn(strategy: Strategy, threshold: float, rate: float = 0.5) -> tuple[Rollout, Model]:
    teacher = Model(2, 8.0)
    limit = Threshold(threshold, "below", rate, rate, 6, 1)
    cascade = CascadeSampler(Model(1, 4.0), teacher, Second(), limit, strategy, first=3)  # type: ignore[arg-type]
    return cascade.sample(PROMPTS, 2, 0), teacher


def test_the_teacher_is_asked_below_the_threshold_and_ties_keep_the_student() -> None:
    rollout, teacher = drawn(Strategy("refine", 0.5), 3.0)
    assert rollout.images[:, 0, 0, 0].tolist() == [1, 1, 1, 2, 1, 1]
    assert rollout.network_passes.tolist() == [4, 4, 4, 20, 4, 4]
    latents, first = teacher.refined
    assert latents.ravel().tolist() == [3] and first == 3
    assert rollout.stored["final_latents"].ravel().tolist() == [0, 1, 2, -1, 4, 5]
    everything, teacher = drawn(Strategy("regenerate"), np.inf)
    assert everything.images[:, 0, 0, 0].tolist() == [2] * 6 and teacher.refined is None
    nothing, teacher = drawn(Strategy("refine", 0.5), -np.inf)
    assert nothing.images[:, 0, 0, 0].tolist() == [1] * 6 and nothing.network_passes.tolist() == [4.0] * 6


def test_redrawing_keeps_the_better_image_and_the_first_of_equals() -> None:
    rollout, _ = drawn(Strategy("redraw"), 4.5)
    assert rollout.images[:, 0, 0, 0].tolist() == [1] * 6, "the student alone draws"
    assert rollout.images[:, 0, 0, 1].tolist() == [0, 101, 102, 103, 4, 5]
    assert rollout.network_passes.tolist() == [4, 12, 12, 12, 12, 4]


def test_chance_asks_as_often_and_alike_for_every_cut_into_chunks() -> None:
    prompts = PromptBatch(0, 0, ("x",) * 400, ({},) * 400)

    class Flat(Second):
        def score(self, images: Any, prompts: Any, metadata: Any, where: str) -> Any:
            return np.zeros(len(images)), {}

    def asked(batch: PromptBatch, seed: int) -> Any:
        limit = fit([0.0, 1.0], 0.25, "below")
        parts = (Model(1, 4.0), Model(2, 8.0), Flat(), limit, Strategy("regenerate", router="random"))
        return CascadeSampler(*parts).sample(batch, 1, seed).images[:, 0, 0, 0] == 2  # type: ignore[arg-type]

    whole = asked(prompts, 0)
    assert whole.mean() == pytest.approx(0.25, abs=0.07)
    np.testing.assert_array_equal(np.concatenate([asked(one, 0) for one in prompts.chunks(7)]), whole)
    assert (asked(prompts, 1) != whole).any()


def test_strengths_and_variances_of_a_rollback() -> None:
    """Of Stable Diffusion's schedule: strength .3 is a variance of .41, .5 of .72, .7 of .92."""
    process = VariancePreserving(SD)
    for strength, variance in ((0.3, 0.41), (0.5, 0.72), (0.7, 0.92)):
        assert strength_of(Strategy(rollback_variance=variance), process) == pytest.approx(strength, abs=0.01)
        assert process.noise_level(np.array([1000 * strength - 1]))[0] ** 2 == pytest.approx(variance, abs=0.01)
    assert strength_of(Strategy(rollback_variance=1.0), process) == 1.0
    assert strength_of(Strategy(rollback_variance=0.25), RectifiedFlow({})) == pytest.approx(0.5, abs=0.002)
    assert teacher_steps(Strategy(rollback_strength=0.5), 4, process) == (8, 4)
    assert teacher_steps(Strategy("regenerate"), 4, process) == (4, 0)
    assert strategy_problems(Strategy("redraw")) == strategy_problems(Strategy("refine", 0.5)) == []
    [told] = strategy_problems(Strategy("refine", 0.5, 0.7))
    assert "give one of strategy.rollback_strength and strategy.rollback_variance (given strategy.rollback" in told
    assert "(given neither)" in strategy_problems(Strategy("refine"))[0]
    assert "needs strategy.name=refine (given redraw)" in strategy_problems(Strategy("redraw", 0.5))[0]


WORDS = (
    "models=[student:base,teacher:base]", "prompts=[shapes.train]", "prompts.shapes_train.size=9", "prompts_per_set=6",
    "rewards=[redness]", "sampler.steps=2", "sampler.guidance_scale=2", "sampler.prompts_per_chunk=3",
    "samplers.student.steps=1", "samplers.student.guidance_scale=1", "samplers.student.deterministic_final_steps=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def cascade(small_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "cascade"
    assert main(["calibrate", f"model.path={small_pipeline}", *WORDS, "rate=0.5", f"output_dir={folder}"]) == 0
    return folder


def test_a_cascade_is_one_model_for_evaluations(
    cascade: Path, small_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ModelConfig(path=str(small_pipeline))
    [model] = find_models([str(cascade)], base)
    found = read_cascade(cascade)
    assert model.kind == "cascade" and (found.teacher.sampler.steps, found.first) == (4, 2)
    assert passes_of(found) == (1, 5)
    assert threshold_of(cascade, found).realised == 0.5

    def of(folder: Path, images: int) -> Rollout:
        [one] = find_models([str(folder)], base)
        sampler = build_evaluated_sampler(one, SamplerConfig(microbatch=5), "float32", "cpu", None, kl=False)
        return sampler.sample(PROMPTS, images, 7, trajectory=False)

    student, teacher = parts_of(found)
    alone = {}
    both = (("student", student, found.student.sampler), ("teacher", teacher, found.teacher.sampler))
    for name, one, sampler in both:
        steps = 2 if name == "teacher" else sampler.steps
        settings = dataclasses.replace(sampler, steps=steps)
        built = build_evaluated_sampler(one, settings, "float32", "cpu", None, kl=False)
        alone[name] = built.sample(PROMPTS, 2, 7, trajectory=False).images
    half = of(cascade, 2)
    assert set(half.network_passes.tolist()) <= {1.0, 5.0}
    kept = half.network_passes == 1.0
    np.testing.assert_array_equal(half.images[kept], alone["student"][kept])
    ends = {}
    for rate in (0, 1):
        folder = tmp_path / str(rate)
        words = [f"model.path={small_pipeline}", *WORDS, f"rate={rate}", "strategy=regenerate", f"output_dir={folder}"]
        shutil.copytree(cascade, folder)
        assert main(["calibrate", *words]) == 0
        assert "6 images are there already" in capsys.readouterr().out, "the student's images serve every threshold"
        ends[rate] = of(folder, 1)
    np.testing.assert_array_equal(ends[0].images, alone["student"][::2])
    np.testing.assert_array_equal(ends[1].images, alone["teacher"][1::2], "of noise that the student's image has not")
    words = [f"model.path={small_pipeline}", *WORDS, "strategy=skip", f"output_dir={tmp_path}/skip"]
    for rate, name in ((0, "student"), (1, "teacher"), (0.5, "")):
        assert main(["calibrate", *words, f"rate={rate}"]) == 0
        skipping = of(tmp_path / "skip", 1)
        if name:
            np.testing.assert_array_equal(skipping.images, alone[name][::2], "of the noise of either")
            assert set(skipping.network_passes.tolist()) == {1.0 if name == "student" else 4.0}
    assert "scores from prompts that were left out: correlation" in capsys.readouterr().out
    assert set(skipping.network_passes.tolist()) <= {1.0, 4.0}
    (tmp_path / "skip" / ESTIMATOR_FILE).write_bytes(b"another")
    with pytest.raises(StartError, match=r"has the digest .* was calibrated with"):
        of(tmp_path / "skip", 1)
    settings = EvaluateConfig(models=[str(cascade)], output_dir=str(tmp_path / "x"))
    assert sampler_of(settings, model).steps == 4
    digest = model_digest(model)
    assert digest != model_digest(find_models([str(tmp_path / "0")], base)[0])


def test_a_cascade_that_draws_all_again_tells_of_every_rate(
    cascade: Path, small_pipeline: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(cascade, whole)
    assert main(["calibrate", f"model.path={small_pipeline}", *WORDS, "rate=1", f"output_dir={whole}"]) == 0
    few = ("samplers.student.steps=1", "samplers.student.guidance_scale=1", *WORDS[5:8])
    words = [f"models=[base,student:base,half:{cascade},whole:{whole}]", f"model.path={small_pipeline}", *few]
    words += ["prompts=[shapes]", "prompts.shapes.size=9", "prompts_per_set=8", "images_per_prompt=1"]
    words += ["samplers.student.deterministic_final_steps=0", f"output_dir={tmp_path}/compare"]
    assert main(["evaluate", *words, "rewards=[redness]"]) == 0
    results = json.loads((tmp_path / "compare" / "results.json").read_text())
    [row] = [one for one in results["routed"] if one["rate"] == 0.5]
    assert (row["cascade"], row["student"], row["share"], row["passes"]) == ("whole", "student", 0.5, 3.0)
    assert row["by_chance"] == pytest.approx(np.mean([mean_score(results, one) for one in ("student", "whole")]))
    assert row["oracle"] >= max(row["score"], row["by_chance"])
    assert {one["model"] for one in results["wins"]} == {"student", "half", "whole"}
    pictures = {
        name: np.stack([read_image(file) for file in sorted((tmp_path / "compare/samples" / name).rglob("*.png"))])
        for name in ("student", "half", "whole")
    }
    alike = [(pictures["half"] == pictures[name]).all(axis=(1, 2, 3)) for name in ("student", "whole")]
    assert (alike[0] | alike[1]).all(), "at any rate either of the two images"
    report = (tmp_path / "compare" / "report.html").read_text()
    assert "Quality against passes" in report and "whole, by score" in report and "Where wins lie" in report


def mean_score(results: dict[str, Any], model: str) -> float:
    [found] = [one["score"] for one in results["scores"] if (one["model"], one["part"]) == (model, "all")]
    return float(found)


def test_what_a_cascade_cannot_be_made_of_is_named(
    cascade: Path, small_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*words: str) -> str:
        given = [f"model.path={small_pipeline}", *WORDS, *words, f"output_dir={tmp_path}/cascade"]
        assert main(["calibrate", *given]) == 2
        return capsys.readouterr().err

    assert "rate=1.5: must be" in refused("rate=1.5")
    assert "rewards: must be one" in refused("rewards=[redness,compressibility]")
    assert "strategy: give one of" in refused("strategy.rollback_variance=0.5")
    assert "its estimator must be a reward of this package" in refused("rewards=[test_cascade.Second]")
    told = refused("strategy.rollback_strength=1e-6")
    assert "sampler.steps=2 of refine are the last of a chain of 2000000: sampler: sampler.steps is 2000000" in told
    [model] = find_models([str(cascade)], ModelConfig(path=str(small_pipeline)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prdp.rewards.redness.Redness.version", "another")
        with pytest.raises(StartError, match=r"threshold was calibrated with another scorer \("):
            build_evaluated_sampler(model, SamplerConfig(), "float32", "cpu", None, kl=False)
    another = Path(shutil.copytree(cascade, tmp_path / "another"))
    document = json.loads((another / CASCADE_FILE).read_text())
    document["student"]["sampler"]["steps"] = 2
    (another / CASCADE_FILE).write_text(json.dumps(document))
    with pytest.raises(StartError, match=r"threshold was calibrated with another sampler \("):
        threshold_of(another, read_cascade(another))
    words = [f"models=[{another}]", f"model.path={small_pipeline}", "prompts=[shapes]", "rewards=[redness]"]
    words += ["against=null", f"output_dir={tmp_path}/compare"]
    assert main(["evaluate", *words]) == 2
    assert "models: another: " in (told := capsys.readouterr().err) and "with another sampler (" in told
    (another / THRESHOLD_FILE).unlink()
    assert main(["evaluate", *words]) == 2
    assert "there is no such file; a threshold has to be calibrated first" in capsys.readouterr().err
    assert not (tmp_path / "compare").exists(), "before anything is drawn"
    document["reward"] = {"_target_": "os.system", "command": "true"}
    (another / CASCADE_FILE).write_text(json.dumps(document))
    assert main(["evaluate", *words]) == 2
    assert "imports and runs os.system" in capsys.readouterr().err


def test_a_model_that_has_changed_is_another_in_the_process_that_knew_it(model_folder: Path) -> None:
    [model] = find_models(["base"], ModelConfig(path=str(model_folder)))
    before = model_digest(model)
    assert model_digest(model) == before
    file = model_folder / "unet" / "config.json"
    file.write_text(file.read_text() + "\n")
    assert model_digest(model) != before
