"""The size of a run and the memory of a rollout, told before it starts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from composing import compose

from prdp.commands.train import train, validate
from prdp.config import ClusterConfig, LearnerConfig, ModelConfig, SamplerConfig, TrainConfig
from prdp.configuration import geometry
from prdp.configuration.geometry import geometry_text, memory_warning, rollout_bytes, rollouts_at_once
from prdp.diffusion import build_sampler, family_of
from prdp.objectives import build_objective
from prdp.types import PromptBatch
from prdp.worlds.mixtures.grammar import prompt_at

GIB = 2**30
SD3 = (16, 128, 128)
LARGE = TrainConfig(
    output_dir="x",
    reward={"_target_": "x"},
    prompts_per_epoch=64,
    images_per_prompt=8,
    sampler=SamplerConfig(kind="flow_sde", steps=50, eta=0.7),
)


def test_512_images_of_50_steps_of_stable_diffusion_3() -> None:
    """A latent of 16 x 128 x 128 is 1 MiB: 51 around the steps, 50 of the reference, and 3 MiB of picture."""
    parts = rollout_bytes(LARGE, SD3, (1024, 1024))
    assert parts == {
        "latents around 50 noisy steps": 25.5 * GIB,
        "outputs of the reference": 25.0 * GIB,
        "pictures": 1.5 * GIB,
    }


def test_what_is_not_stored_takes_no_memory() -> None:
    def of(objective: str = "prdp", **sampler: object) -> list[float]:
        changed = dataclasses.replace(
            LARGE, objective={"name": objective}, sampler=dataclasses.replace(LARGE.sampler, **sampler)
        )
        return [value / GIB for value in rollout_bytes(changed, SD3, (1024, 1024)).values()]

    assert of(window="random", window_size=2) == [1.5, 1.0, 1.5]
    assert of(trained_share=0.5) == [25.0, 12.5, 1.5], "no two of them need be neighbours"
    assert of(kind="cps", eta=0.7) == [25.0, 24.5, 1.5], "its last step draws no noise"
    assert of("best_of_n") == [0.5, 1.5]


KEPT = {
    "prdp": ("latents", "base_output"),
    "best_of_n": ("final_latents",),
    "fdfo": ("step_latents", "step_outputs", "final_latents"),
}


@pytest.mark.parametrize("name", list(KEPT))
@pytest.mark.parametrize("sampler", [{}, {"window": "fixed", "window_size": 3}])
def test_the_memory_is_that_of_a_rollout(name: str, sampler: dict[str, object]) -> None:
    model = ModelConfig(family="gaussian_mixtures", path="gaussian_mixtures")
    settings = SamplerConfig(steps=6, guidance_scale=1.0, deterministic_final_steps=1, **sampler)
    objective = {"name": name}
    config = dataclasses.replace(
        LARGE, model=model, sampler=settings, prompts_per_epoch=2, images_per_prompt=3, objective=objective
    )
    built = build_objective(objective)
    recorder = built.evidence.recorder(built.arrays)
    family = family_of(model)
    parts = list(rollout_bytes(config, family.latent_shape_of(model), family.picture_size_of(model)).values())
    texts = (prompt_at("train", 0), prompt_at("train", 1))
    drawn = build_sampler(model, LearnerConfig(mode="full"), settings, seed=0, recorder=recorder).sample(
        PromptBatch(0, 0, texts, ({}, {})), 3, seed=0
    )
    assert parts == [*(drawn.stored[kept].nbytes for kept in KEPT[name]), drawn.images.nbytes]


def test_rollouts_that_are_sampled_ahead_are_held_too() -> None:
    def of(epochs: int = 9, **cluster: object) -> int:
        return rollouts_at_once(dataclasses.replace(LARGE, epochs=epochs, cluster=ClusterConfig(**cluster)))

    assert of() == 1
    assert of(kind="ray") == 1
    assert of(kind="ray", max_staleness=2) == 3
    assert of(epochs=2, kind="ray", max_staleness=2) == 2
    assert of(kind="inline", max_staleness=2) == 1, "one process samples an epoch when it is asked for"


def test_among_actors_the_object_store_is_what_a_rollout_has_to_fit_into(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry, "_parts", lambda config: {"latents around 50 noisy steps": 3 * GIB})

    def told(**cluster: object) -> str:
        return memory_warning(dataclasses.replace(LARGE, cluster=ClusterConfig(kind="ray", **cluster)))

    assert told(object_store_gib=3.8) == ""
    warning = told(object_store_gib=2.0)
    assert "a rollout takes 3.00 GiB; the object store holds 1.60 GiB before it writes to disk" in warning
    assert "Raise cluster.object_store_gib, or lower prompts_per_epoch" in warning
    assert told(address="auto") == "", "its nodes have stores of their own"


@pytest.mark.slow
def test_too_little_memory_is_told_with_the_keys_that_need_less(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["experiment=shapes_smoke", "prompts_per_epoch=1024", "sampler.steps=4", f"output_dir={tmp_path / 'run'}"]
    # Latents [4, 8, 8], 7 an image: 4 around the steps and 3 of the reference; a picture of 32x32 pixels.
    size = 2048 * (7 * 4 * 8 * 8 * 4 + 3 * 32 * 32)
    monkeypatch.setattr(geometry, "available_memory", lambda: size - 1)
    assert validate(words) == 0
    shown = capsys.readouterr().out
    assert "memory of a rollout       0.02 GiB = 0.01 GiB latents around 3 noisy steps + 0.01 GiB outputs" in shown
    [told] = [line for line in shown.splitlines() if line.startswith("warning: memory")]
    for key in ("prompts_per_epoch", "sampler.window", "sampler.trained_share", "best_of_n"):
        assert key in told

    def refuse(config: TrainConfig) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("prdp.train.main", refuse)
    with pytest.raises(KeyboardInterrupt):
        train(words)
    assert told in capsys.readouterr().out


def test_the_warning_counts_what_is_held_at_once() -> None:
    config = dataclasses.replace(
        LARGE,
        model=ModelConfig(family="gaussian_mixtures"),
        objective={"name": "diffusion_dpo"},
        cluster=ClusterConfig(kind="ray", max_staleness=1),
    )
    size = 512 * (8 + 6)
    assert memory_warning(config, 2 * size) == ""
    told = memory_warning(config, 2 * size - 1)
    assert "2 are held at once (cluster.max_staleness=1)" in told
    assert "sampler.window" not in told, "no trajectories are stored"
    assert "up to 2 at once" in geometry_text(config)


@pytest.mark.slow
def test_the_numbers_of_a_run() -> None:
    config = compose(
        *["prompts_per_epoch=6", "images_per_prompt=4", "updates_per_epoch=3", "epochs=10"],
        *["sampler.steps=5", "sampler.deterministic_final_steps=1", "sampler.prompts_per_chunk=4"],
        *["sampler.guidance_scale=2", "evaluation.every=5", "evaluation.prompts=3", "evaluation.final_prompts=7"],
        *["evaluation.images_per_prompt=2", "cluster=ray", "cluster.samplers=3", "cluster.threads=2", "objective=prdp"],
        "learner.microbatch=15",  # below a group's cells
    )
    size = geometry.geometry(config)
    assert size["images_per_epoch"] == 24
    assert size["pairs_per_epoch"] == 6 * 6
    assert (size["updates"], size["images"]) == (30, 240)
    assert (size["chunks_per_epoch"], size["images_per_chunk"]) == (2, 16)
    assert size["cells_per_update"] == 24 * 4
    assert size["sampling_passes_per_epoch"] == 24 * (5 + 4) * 2
    assert size["learning_passes_per_epoch"] == 24 * 4 * 2 * (3 + 2)
    assert size["learning_backwards_per_epoch"] == 24 * 4 * 2 * 3
    assert (size["evaluations"], size["evaluation_images"]) == (3, (7 + 3 + 7) * 2)
    assert (size["samplers"], size["threads"]) == (3, 2)
    whole = dataclasses.replace(config, learner=dataclasses.replace(config.learner, microbatch=16))
    assert geometry.geometry(whole)["learning_passes_per_epoch"] == 24 * 4 * 2 * 3, "a microbatch holds a group"
    for scale in ("1", "0.5", "0"):
        unguided = geometry.geometry(compose("objective=prdp", f"sampler.guidance_scale={scale}"))
        assert unguided["sampling_passes_per_epoch"] == unguided["images_per_epoch"] * (8 + 7)
    ancestral = geometry.geometry(compose("objective=prdp", "sampler.kind=ddpm", "sampler.deterministic_final_steps=0"))
    assert ancestral["cells_per_update"] == ancestral["images_per_epoch"] * 7, "its last step draws no noise"
    part = ("sampler.window=random", "sampler.window_size=2", "sampler.guidance_scale=1")
    window = geometry.geometry(compose("objective=prdp", *part))
    assert window["cells_per_update"] == window["images_per_epoch"] * 2
    assert window["sampling_passes_per_epoch"] == window["images_per_epoch"] * (8 + 2)
    share = geometry.geometry(compose("objective=prdp", "sampler.trained_share=0.5", "sampler.guidance_scale=1"))
    assert share["cells_per_update"] == share["images_per_epoch"] * 4
    for name, columns, passes, of_reference in (
        ("reinforce", 4, 3, 0),
        ("rebel", 4, 5, 0),
        ("grpo", 4, 5, 4),
        ("best_of_n", 5, 3, 0),
        ("diffusion_dpo", 5, 9, 0),
        ("crd", 5, 12, 0),
        ("nft", 5, 9, 0),
        ("fdfo", 5, 5, 0),  # of the step without noise, too
        ("awm", 5, 13, 0),
        ("dgpo", 5, 12, 0),
    ):
        draws = {} if columns == 4 or name == "fdfo" else {"draws": columns}
        other = geometry.geometry(dataclasses.replace(config, objective={"name": name, **draws}))
        assert other["cells_per_update"] == 24 * columns
        assert other["learning_passes_per_epoch"] == 24 * columns * 2 * passes
        assert other["sampling_passes_per_epoch"] == 24 * (5 + of_reference) * 2
    anchored = dataclasses.replace(config, sampler=dataclasses.replace(config.sampler, guidance_scale=1.0))
    for guidance, passes in ((None, 12), (4.5, 15), (1.0, 12)):
        objective = {"name": "crd", "draws": 5, "kl_guidance": guidance}
        other = geometry.geometry(dataclasses.replace(anchored, objective=objective))
        assert other["learning_passes_per_epoch"] == 24 * 5 * passes, "both branches of the reference, alone"
    half = dataclasses.replace(config, learner=dataclasses.replace(config.learner, autocast="float16", microbatch=20))
    for objective, passes in (("prdp", 5), ("reinforce", 5), ("grpo", 5)):
        other = geometry.geometry(dataclasses.replace(half, objective={"name": objective}))
        assert other["learning_passes_per_epoch"] == (24 * 4 * passes + 2 * 20) * 2
    drawn = {"name": "best_of_n", "draws": 5}
    assert geometry.geometry(dataclasses.replace(half, objective=drawn)) == geometry.geometry(
        dataclasses.replace(config, objective=drawn)
    )
    text = geometry_text(config)
    assert "24 = 6 prompts x 4 images" in text
    assert "3 samplers" in text


@pytest.mark.parametrize(
    ("changes", "objective", "told"),
    [
        ({}, "prdp_denoising", ""),
        (
            {"autocast": "bfloat16"},
            "prdp_denoising",
            "bfloat16 with gradient, evidence in float32; learner.evidence_precision=half saves most of the latter's "
            "time on a GPU",
        ),
        (
            {"autocast": "bfloat16", "evidence_precision": "half"},
            "prdp_denoising",
            "bfloat16 with gradient, evidence in bfloat16",
        ),
        ({"autocast": "float16"}, "prdp", "float16 with gradient, evidence in float32"),
        ({"autocast": "bfloat16"}, "denoising", "bfloat16 with gradient, evidence in float32"),  # which takes no pass
        ({"evidence_precision": "tf32"}, "prdp_denoising", "float32 with gradient, evidence in tf32"),
    ],
)
def test_precision_is_told_where_it_is_not_float32(changes: dict[str, str], objective: str, told: str) -> None:
    words = [f"learner.{key}={value}" for key, value in changes.items()]
    shown = geometry_text(compose("experiment=shapes_demo", f"objective={objective}", "output_dir=x", *words))
    lines = [line.split(maxsplit=1) for line in shown.splitlines()]
    assert [line[1] for line in lines if line[0] == "precision"] == [told] * bool(told)
