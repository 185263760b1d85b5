"""Every objective in the learner: the gradient against full autodiff, resume, and a problem it must solve."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from stub_learners import KNOBS, ON_DENOISING, SEED, STEPS, TERMS, TRANSITIONS, build, moved
from stub_policy import SCHEDULER, StubPolicy, stub_rollout

from prdp.config import LearnerConfig, SamplerConfig
from prdp.diffusion.process import Draws
from prdp.diffusion.sampler import Sampler
from prdp.diffusion.variance_preserving import VariancePreserving, alphas_cumprod, build_transitions
from prdp.evidence import Denoising, FiniteDifference
from prdp.evidence.trajectory import TrajectoryRecorder
from prdp.learners import build_learner
from prdp.learners.learner import Learner
from prdp.objectives import OBJECTIVES, build_objective
from prdp.types import PromptBatch, Rollout

SAMPLER = SamplerConfig(steps=STEPS, guidance_scale=1.0, microbatch=1000)
VARIANTS = [
    *((name, {}) for name in KNOBS),
    ("grpo", {"step_weighting": "inverse_sensitivity"}),
    ("prdp", {"step_reduction": "sum", "pairs": "disjoint"}),
    ("reward_weighted_regression", {"shared_draws": True, "normalise": "group"}),
    ("best_of_n", {"least": 0.5}),
    ("diffusion_dpo", {"pairs": "all", "shared_draws": False}),
    ("fdfo", {"kl": 2.0}),
    *((name, ON_DENOISING) for name in ("prdp", "ddpo", "reinforce", "grpo", "rebel")),
    ("prdp", {**ON_DENOISING, "adaptive_weight": True, "clip_range": None}),
    ("grpo", {"normalise_terms": True, "drop_tied": True}),
    ("reinforce", {"normalise_terms": True}),
    ("nft", {"implicit_step": 0.3, "times": "stratified", "noisiest": 0.5, "adaptive_weight": False}),
    ("dgpo", {"frozen_reference": False, "clip_range": None, "drop_tied": True}),
    ("awm", {"weighting": "t_squared", "times": "stratified", "normalise_terms": True, "adaptive_weight": True}),
]


def trajectory_channels(policy: StubPolicy, rollout: Rollout) -> dict[str, torch.Tensor]:
    """Channels of trajectories [n, T] from torch's own normal distributions, with the graph of every cell kept."""
    states = policy.encode(rollout.image_prompts)
    columns = []
    for step in range(STEPS):
        x, following = (torch.from_numpy(rollout.stored["latents"][:, step + after]) for after in (0, 1))
        timesteps = torch.full((len(x),), float(TRANSITIONS.times[step]), dtype=torch.float64)
        sigma = torch.tensor(float(TRANSITIONS.sigma[step]), dtype=torch.float64)
        now, reference, old = (
            torch.distributions.Normal(TRANSITIONS.mean(step, x, output), sigma)
            for output in (
                policy.output(x, timesteps, states, 1.0),
                torch.from_numpy(rollout.stored["base_output"][:, step]),
                torch.from_numpy(rollout.stored["policy_output"][:, step]),
            )
        )
        ratio, ratio_old = (now.log_prob(following) - other.log_prob(following) for other in (reference, old))
        kl_ref, kl_old = (torch.distributions.kl_divergence(now, other) for other in (reference, old))
        guarded = (ratio_old + kl_old) * sigma
        columns.append([value.flatten(1).mean(1) for value in (ratio, kl_ref, kl_old, guarded)])
    names = ("log_ratio", "kl_ref", "kl_old", "guarded_importance")
    return {name: torch.stack(values, 1) for name, values in zip(names, zip(*columns, strict=True), strict=True)}


def denoising_channels(
    policy: StubPolicy, rollout: Rollout, evidence: Denoising, network: torch.nn.Module
) -> dict[str, torch.Tensor]:
    """Minus denoising errors and the distance to the frozen output, [n, draws] at update 0, cell by cell.

    The old policy is the frozen one.
    """
    states = policy.encode(rollout.prompts.texts)
    process, step = VariancePreserving(SCHEDULER), getattr(evidence, "implicit_step", 1.0)
    drawn = Draws(process, SEED, 0, evidence.draws, evidence.times, evidence.noisiest, TRANSITIONS.times)
    names = ("denoising", "kl_ref", "log_likelihood", "positive", "negative")
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in names}

    def error(found: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        squared = ((found - right) ** 2).mean()
        return squared / (found - right).abs().mean().item() if evidence.adaptive_weight else squared

    for image in range(len(rollout)):
        prompt, number = divmod(image, rollout.images_per_prompt)
        for draw in range(evidence.draws):
            key = (np.array([prompt]), np.array([0 if evidence.shared_draws else number]), np.array([draw]))
            timesteps, noise = drawn.cells(*key, policy.latent_shape)
            latents = torch.from_numpy(rollout.stored["final_latents"][image : image + 1])
            x, target = process.noised(latents, timesteps, torch.from_numpy(noise).double())
            times, state = torch.from_numpy(timesteps), states[np.array([prompt])]
            output = policy.output(x, times, state, 1.0, network)
            frozen = policy.output(x, times, state, 1.0, policy.weights.frozen).detach()
            signal = alphas_cumprod(SCHEDULER)[int(timesteps[0])] ** 0.5
            rows["denoising"].append(-error(output, target))
            level = (1 - signal**2) ** 0.5
            if getattr(evidence, "weighting", "ghuber") == "ghuber":
                rows["log_likelihood"].append(-4 * level * ((error(output, target) + 1e-10) ** 0.25 - 1e-10**0.25))
            else:
                rows["log_likelihood"].append(-(level**2) * error(output, target))
            rows["kl_ref"].append(((output - frozen) ** 2).mean())
            for name, side in (("positive", step), ("negative", -step)):
                epsilon = (1 - side) * frozen + side * output
                clean = (x - (1 - signal**2) ** 0.5 * epsilon) / signal
                rows[name].append(-error(clean, latents) / step)
    return {name: torch.stack(values).view(len(rollout), evidence.draws) for name, values in rows.items()}


def step_channels(policy: StubPolicy, rollout: Rollout) -> tuple[torch.Tensor, torch.Tensor]:
    """Score and kl_ref [n, STEPS], the score as a difference of squared distances."""
    states, final = policy.encode(rollout.image_prompts), torch.from_numpy(rollout.stored["final_latents"])
    half = (final - final.view(-1, 2, *final.shape[1:]).flip(1).view_as(final)) / 2
    direction = half / (half.square().mean((1, 2, 3), keepdim=True) + 1e-6)
    scores, distances = [], []
    for step in range(STEPS):
        x, old = (torch.from_numpy(rollout.stored[name][:, step]) for name in ("step_latents", "step_outputs"))
        times = torch.full((len(x),), float(TRANSITIONS.times[step]), dtype=torch.float64)
        output = policy.output(x, times, states, 1.0)
        scores.append((direction.square() - (output - (old - direction)).square()).mean((1, 2, 3)))
        frozen = policy.output(x, times, states, 1.0, policy.weights.frozen).detach()
        distances.append((output - frozen).square().mean((1, 2, 3)))
    return torch.stack(scores, 1), torch.stack(distances, 1)


def rollout_of(policy: StubPolicy) -> Rollout:
    """Sampled from the policy, in float64, with evidence of a policy and a reference that are near it."""
    sampler = Sampler(policy, SAMPLER, TRANSITIONS, TrajectoryRecorder())
    rollout = sampler.sample(PromptBatch(0, 0, ("x", "xx", "xxx"), ({}, {}, {})), 4, SEED)
    rng = np.random.default_rng(1)
    output = rollout.stored["base_output"].astype(np.float64)
    rollout = rollout.storing(
        latents=rollout.stored["latents"].astype(np.float64),
        base_output=output + 0.02 * rng.normal(size=output.shape),
        policy_output=output,
        log_ratio=0.02 * rng.normal(size=rollout.stored["log_ratio"].shape),
    )
    terms = {name: rng.normal(size=len(rollout)) for name in (*TERMS, "watch/third")}
    rewards = sum(weight * terms[name] for name, weight in TERMS.items())
    rollout = rollout.storing(
        final_latents=rng.normal(size=(len(rollout), *policy.latent_shape)),
        step_latents=rollout.stored["latents"][:, :-1],
        step_outputs=rollout.stored["base_output"],
    )
    return dataclasses.replace(
        rollout,
        rewards=rewards,
        sub_scores=terms,
        # Not the learner's version, so nothing that the sampler stored may be taken for the policy's own.
        weights_version=1,
    )


@pytest.mark.parametrize("microbatch", [5, 33])  # below a group's cells; above those of two groups
@pytest.mark.parametrize(("name", "knobs"), VARIANTS)
def test_the_gradient_equals_full_autodiff(name: str, knobs: dict[str, Any], microbatch: int) -> None:
    policy = StubPolicy()
    rollout = rollout_of(policy)
    learner = build(policy, name, knobs, microbatch=microbatch)
    moved(policy)
    objective = build_objective({"name": name, **KNOBS[name], **knobs})
    arrays: dict[str, Any] = {
        "log_ratio_old": torch.from_numpy(rollout.stored["log_ratio"]),
        "rewards": torch.from_numpy(rollout.rewards),
        "group_ids": torch.from_numpy(rollout.group_ids),
        "history": torch.from_numpy(rollout.rewards).view(3, 4).repeat_interleave(4, 0),
        "reward_terms": torch.from_numpy(np.stack([rollout.sub_scores[term] for term in TERMS], 1)),
        "reward_weights": torch.tensor(list(TERMS.values()), dtype=torch.float64),
    }
    if objective.knobs.get("normalise_terms"):
        arrays["history"] = arrays["reward_terms"].view(3, 4, 2).repeat_interleave(4, 0)
    else:
        arrays |= {"reward_terms": None, "reward_weights": None}
    if isinstance(objective.evidence, Denoising):
        arrays |= denoising_channels(policy, rollout, objective.evidence, policy.network)
        of_frozen = denoising_channels(policy, rollout, objective.evidence, policy.weights.frozen)
        arrays["denoising_ref"] = of_frozen["denoising"].detach()
        # At the first update of an epoch it starts from the very weights that learn.
        likelihood = arrays["log_likelihood" if name == "awm" else "denoising"]
        arrays["log_importance"] = likelihood - likelihood.detach()
        arrays["kl_old_policy"], arrays["denoising_old"] = arrays["kl_ref"], arrays["denoising_ref"]
        # The old policy and the reference are those that the learner was built with.
        arrays["log_ratio"] = arrays["log_ratio_old_policy"] = arrays["denoising"] - arrays["denoising_ref"]
        arrays["log_ratio_old"] = arrays["log_ratio"].detach()
    elif isinstance(objective.evidence, FiniteDifference):
        arrays["score"], arrays["kl_ref"] = step_channels(policy, rollout)
    else:
        channels = trajectory_channels(policy, rollout)
        weights = torch.ones(STEPS, dtype=torch.float64)
        if objective.evidence.step_weighting == "inverse_sensitivity":
            inverse = torch.from_numpy(1 / TRANSITIONS.sensitivity)
            weights = inverse / inverse.mean()
        channels["log_importance"] = channels["log_ratio"] - arrays["log_ratio_old"]
        arrays |= {name: values * weights for name, values in channels.items()}
        arrays["log_ratio_old"] = arrays["log_ratio_old"] * weights
        sigma = torch.from_numpy(TRANSITIONS.sigma)
        arrays["noise_weight"] = (sigma / sigma.mean()).expand(12, STEPS)
        arrays["step_size"] = torch.from_numpy(TRANSITIONS.quiet_output_coef).abs().expand(12, STEPS)
    taken = {key: arrays[key] if key in objective.takes else None for key in objective.method.arrays}
    loss, counts = objective.method.loss(**taken, **objective.knobs)
    expected = torch.autograd.grad(loss, list(policy.weights.parameters.values()))

    metrics = learner.update(rollout)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-9)
    for key, value in counts.items():
        assert metrics[key] == pytest.approx(value)
    active = {"clipfrac", "masked"} if objective.evidence.kind == "trajectory" else set()
    for name in active & counts.keys():
        assert 0.1 < counts[name] < 1.0, "the clip must be active for this test to say anything"
    for value, gradient in zip(policy.weights.parameters.values(), expected, strict=True):
        assert value.grad is not None
        assert gradient.abs().max() > 0
        assert (value.grad - gradient).abs().max() / gradient.abs().max() < 1e-9


def test_what_the_rollout_must_hold() -> None:
    policy = StubPolicy()
    rollout = stub_rollout(policy, TRANSITIONS)
    with pytest.raises(ValueError, match="no final latents"):
        build(policy, "best_of_n").update(dataclasses.replace(rollout, stored={}))
    lonely = stub_rollout(policy, TRANSITIONS, prompts=12, size=1)
    with pytest.raises(ValueError, match="makes no pair"):
        build(policy, "grpo").update(lonely)
    metrics = build(StubPolicy(), "ddpo").update(lonely)
    assert metrics["batch_normalised"] == 1.0
    unscored = dataclasses.replace(lonely, rewards=None)
    assert "rewards_constant" not in build(StubPolicy(), "denoising").update(unscored)
    with pytest.raises(ValueError, match="the rollout has no rewards"):
        build(StubPolicy(), "best_of_n").update(unscored)


def test_further_updates_of_an_epoch_compare_with_the_policy_that_it_starts_from() -> None:
    """REBEL's gain is 0 at the first update of each epoch alone, and a resume between two changes nothing."""
    rollout = dataclasses.replace(stub_rollout(StubPolicy(), TRANSITIONS), rewards=np.arange(12.0))
    knobs = {"name": "rebel", **ON_DENOISING}
    config = LearnerConfig(mode="full", learning_rate=1e-3)

    def made() -> Learner:
        return build_learner(StubPolicy(), TRANSITIONS, 1.0, config, knobs, SEED, updates_per_epoch=3)

    learner, resumed = made(), made()
    gains = [learner.update(rollout)["logratio"] for _ in range(5)]
    resumed.load_state(*learner.state())
    gains += [learner.update(rollout)["logratio"] for _ in range(3)]
    assert [gain == 0.0 for gain in gains] == [True, False, False] * 2 + [True, False]
    assert [resumed.update(rollout)["logratio"] for _ in range(3)] == gains[5:]
    assert resumed.weights().checksum == learner.weights().checksum


SOLVABLE = {**SCHEDULER, "prediction_type": "sample"}


def mean_reward(rollout: Rollout) -> np.ndarray:
    """Mean of the first latent channel, which stands for the image."""
    final = rollout.stored["final_latents"] if "final_latents" in rollout.stored else rollout.stored["latents"][:, -1]
    return final[:, 0].mean((1, 2)).astype(np.float64)


@pytest.mark.parametrize(
    ("name", "choice"),
    [
        *((name, {}) for name in sorted(OBJECTIVES) if OBJECTIVES[name].takes_rewards),
        *((name, ON_DENOISING) for name in ("prdp", "grpo", "rebel")),
    ],
)
def test_the_expected_reward_rises(name: str, choice: dict[str, Any]) -> None:
    transitions = build_transitions(SOLVABLE, steps=STEPS)
    policies = [StubPolicy(scheduler=SOLVABLE) for _ in range(2)]
    config = LearnerConfig(mode="full", learning_rate=1e-2, microbatch=1000)
    weaker = {
        "diffusion_dpo": {"beta": 500.0},
        "grpo": {"beta": 0.01},
        "crd": {"kl": 0.0, "kl_least": 1e-4},
        "nft": {"kl": 1e-4},
        "awm": {"beta": 1e-3},
        "dgpo": {"kl": 1e-3, "beta": 100.0, "clip_range": 0.05},
    }  # of a KL that would hold it at the start
    knobs = {**KNOBS[name], **choice, **weaker.get(name, {})}
    learner = build_learner(policies[0], transitions, 1.0, config, {"name": name, **knobs}, SEED)
    settings = dataclasses.replace(SAMPLER, shared_start_noise=name == "fdfo")
    sampler = Sampler(policies[1], settings, transitions, learner.recorder)
    texts = ("x", "xx", "xxx")

    def sampled(epoch: int) -> Rollout:
        sampler.load_weights(learner.weights())
        rollout = sampler.sample(PromptBatch(epoch, 0, texts, ({},) * len(texts)), 8, SEED)
        return rollout.scored(mean_reward(rollout), {})

    before = sampled(1000).rewards
    for epoch in range(12):
        learner.update(sampled(epoch))
    after = sampled(1000).rewards
    assert before is not None
    assert after is not None
    gain = after - before
    assert gain.mean() > 5 * gain.std() / len(gain) ** 0.5
    assert gain.mean() > 0.1


@pytest.mark.parametrize("name", ["ddpo", "diffusion_dpo"])
def test_resume_continues_the_same_curve(name: str) -> None:
    def rollout(epoch: int) -> Rollout:
        plain = stub_rollout(StubPolicy(), TRANSITIONS, seed=epoch)
        return dataclasses.replace(plain, prompts=dataclasses.replace(plain.prompts, epoch=epoch), weights_version=99)

    straight, first = build(StubPolicy(), name), build(StubPolicy(), name)
    for epoch in range(3):
        straight.update(rollout(epoch))
        straight.update(rollout(epoch))
        if epoch < 2:
            first.update(rollout(epoch))
            first.update(rollout(epoch))
    second = build(StubPolicy(), name)
    second.load_state(*first.state())
    second.update(rollout(2))
    metrics = second.update(rollout(2))
    assert second.weights().checksum == straight.weights().checksum
    assert metrics.keys() >= {"loss", "grad_norm"}
    if name == "ddpo":
        tensors, scalars = first.state()
        assert tensors["history/rewards"].shape == (3, 32)
        assert (~np.isnan(tensors["history/rewards"])).sum(1).tolist() == [8, 8, 8], "K updates count once"
        with pytest.raises(ValueError, match="no tensor 'history/keys'"):
            second.load_state({key: value for key, value in tensors.items() if "history" not in key}, scalars)
