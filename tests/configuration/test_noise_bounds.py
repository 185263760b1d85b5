"""What samplers with and without noise may be told, and what is learned from them."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from prdp.config import SamplerConfig
from prdp.configuration.sampler_bounds import noise_problems
from prdp.configuration.typed import typed
from prdp.objectives import OBJECTIVES
from prdp.support.errors import ConfigError

TARGET = {"_target_": "package.name"}
MINIMAL = {"output_dir": "x", "reward": TARGET, "prompts": {"train": TARGET, "heldout": TARGET}}


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("sampler.eta=0.5", "must be 1 for sampler.kind=ddpm"),
        ("sampler.deterministic_final_steps=2", "must be 0 or 1 for sampler.kind=ddpm"),
    ],
)
def test_the_noise_of_ddpm_is_fixed(override: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        typed(OmegaConf.merge(MINIMAL, OmegaConf.from_dotlist(["sampler.kind=ddpm", override])))
    assert str(caught.value).startswith(f"{override}: {says}")


@pytest.mark.parametrize("kind", ["flow_sde", "dance_sde", "edm_churn"])
def test_the_noise_of_flows_may_exceed_one(kind: str) -> None:
    sampler = {"kind": kind, "eta": 3.0, "timestep_spacing": "scheduler"}
    assert typed({**MINIMAL, "sampler": sampler}).sampler.eta == 3.0
    with pytest.raises(ConfigError, match=f"^sampler.eta=0: must be above 0 for sampler.kind={kind}"):
        typed({**MINIMAL, "sampler": {"kind": kind, "eta": 0}})


def test_the_noise_of_cps_is_a_part() -> None:
    assert typed({**MINIMAL, "sampler": {"kind": "cps", "eta": 0.8}}).sampler.kind == "cps"
    for eta, says in ((1.5, "from 0 to 1 for sampler.kind=cps"), (0, "above 0 for sampler.kind=cps")):
        with pytest.raises(ConfigError, match=f"^sampler.eta={eta:g}: must be {says}"):
            typed({**MINIMAL, "sampler": {"kind": "cps", "eta": eta}})


def test_a_noise_level_is_refused_where_nothing_reads_it() -> None:
    learned = {"objective": {"name": "nft"}}
    for eta in (0.0, 1.0):  # 1 is what stands there where nobody set it
        assert typed({**MINIMAL, **learned, "sampler": {"kind": "euler", "eta": eta}}).sampler.kind == "euler"
    with pytest.raises(ConfigError, match=r"^sampler.eta=0.8: must be 0 for sampler.kind=euler, which draws no noise$"):
        typed({**MINIMAL, **learned, "sampler": {"kind": "euler", "eta": 0.8}})


WITHOUT_NOISE = [{"kind": "euler"}, {"kind": "ddim", "eta": 0.0}]
DENOISING = ("reward_weighted_regression", "best_of_n", "denoising", "diffusion_dpo", "crd", "nft", "awm", "dgpo")


@pytest.mark.parametrize("sampler", WITHOUT_NOISE)
def test_without_noise_only_denoising_errors_are_learned_from(sampler: dict[str, Any]) -> None:
    either = [name for name, method in OBJECTIVES.items() if len(method.kinds) > 1]
    assert "prdp" in either
    objectives = [{"name": name} for name in DENOISING] + [{"name": name, "evidence": "denoising"} for name in either]
    for objective in objectives:
        assert typed({**MINIMAL, "objective": objective, "sampler": sampler}).sampler.kind == sampler["kind"]
    for name in OBJECTIVES.keys() - {*DENOISING, "fdfo"}:
        with pytest.raises(ConfigError) as caught:
            typed({**MINIMAL, "objective": {"name": name}, "sampler": sampler})
        told = str(caught.value)
        assert told.startswith("sampler.kind=euler: " if sampler["kind"] == "euler" else "sampler.eta=0: ")
        advice = "or set objective.evidence=denoising, which" if name in either else ", ".join(DENOISING)
        for part in ("no log-prob", f"objective.name={name} is", "; set sampler.", advice):
            assert part in told


def test_a_share_of_the_steps_has_no_effect_on_final_images() -> None:
    for objective in ({"name": "best_of_n"}, {"name": "prdp", "evidence": "denoising"}):
        with pytest.raises(ConfigError, match=r"^sampler\.trained_share=0\.5: has no effect on objective\.name="):
            typed({**MINIMAL, "objective": objective, "sampler": {"trained_share": 0.5}})
    assert typed({**MINIMAL, "sampler": {"trained_share": 0.5}}).sampler.trained_share == 0.5


@pytest.mark.parametrize("sampler", WITHOUT_NOISE)
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"window": "random"}, "sampler.window=random: must be all where no step draws noise (sampler."),
        ({"shared_start_noise": True}, "sampler.shared_start_noise=true: must be false where no step draws noise"),
    ],
)
def test_what_means_nothing_without_noise_is_refused(
    sampler: dict[str, Any], change: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        typed({**MINIMAL, "objective": {"name": "diffusion_dpo"}, "sampler": {**sampler, **change}})
    assert str(caught.value).startswith(says)
    with_noise = {**sampler, **change, "kind": "ddim", "eta": 1.0}
    assert typed({**MINIMAL, "objective": {"name": "diffusion_dpo"}, "sampler": with_noise}).sampler.eta == 1.0


def test_what_kinds_of_samplers_ask_of_their_noise() -> None:
    def problems(images: int = 1, **sampler: Any) -> list[str]:
        return noise_problems(SamplerConfig(**sampler), images)

    assert problems(kind="ddim", eta=0.0) == problems(kind="euler", eta=0.0) == []
    assert problems(kind="euler", shared_start_noise=True) == [], "of one image a prompt"
    [told] = problems(2, kind="euler", shared_start_noise=True)
    assert told.endswith("or set sampler.start_churn above 0")
    assert problems(2, kind="euler", shared_start_noise=True, start_churn=0.01) == []
    [told] = problems(start_churn=0.01)
    assert told.startswith("sampler.start_churn=0.01: needs sampler.shared_start_noise=true")
    for wrong in ({"kind": "ddpm", "eta": 0.5}, {"kind": "ddim", "eta": 2.0}, {"kind": "cps", "eta": 0.0}):
        assert len(problems(**wrong)) == 1


def test_what_consistency_sampling_is_not_to_be_told() -> None:
    def problems(**sampler: Any) -> list[str]:
        return noise_problems(SamplerConfig(**{"kind": "consistency", "steps": 4, **sampler}))

    assert problems() == problems(original_inference_steps=8) == problems(steps=1) == []
    for wrong, says in (
        ({"eta": 0.5}, "sampler.eta=0.5: must be 1 for sampler.kind=consistency"),
        ({"timestep_spacing": "trailing"}, "sampler.timestep_spacing=trailing: must be null for sampler.kind=consist"),
        ({"steps": 9, "original_inference_steps": 8}, "sampler.steps=9: must be at most sampler.original_inference_st"),
        ({"kind": "ddim", "original_inference_steps": 8}, "sampler.original_inference_steps=8: needs sampler.kind=con"),
        ({"steps": 1, "window": "fixed"}, "sampler.window=fixed: must be all where no step draws noise (sampler.steps"),
    ):
        [told] = problems(**wrong)
        assert told.startswith(says)
    one_step = {"kind": "consistency", "steps": 1}
    assert typed({**MINIMAL, "objective": {"name": "denoising"}, "sampler": one_step}).sampler.steps == 1
    with pytest.raises(ConfigError, match=r"^sampler.steps=1: draws no noise.*set sampler.steps to at least 2, or set"):
        typed({**MINIMAL, "objective": {"name": "prdp"}, "sampler": one_step})
