"""What values of the section `sampler` do not fit each other, or what is learned from its steps."""

from __future__ import annotations

from prdp.config import DIFFUSION_KINDS, FLOW_KINDS, SamplerConfig


def noise_problems(sampler: SamplerConfig, images_that_share: int = 1) -> list[str]:
    """What the kind of sampler asks of its noise level, and what a sampler without noise cannot do.

    Args:
        images_that_share: how many images have one start noise, where the sampler says so; evaluations have none.
    """
    kind, eta = f"sampler.kind={sampler.kind}", f"sampler.eta={sampler.eta:g}"
    if sampler.kind in ("ddpm", "consistency") and sampler.eta != 1:
        return [f"{eta}: must be 1 for {kind}, whose noise is fixed"]
    if sampler.kind in (*DIFFUSION_KINDS, "cps") and sampler.eta > 1:
        return [f"{eta}: must be from 0 to 1 for {kind}"]
    if sampler.eta == 0 and sampler.kind in FLOW_KINDS and sampler.kind != "euler":
        return [f"{eta}: must be above 0 for {kind}: of a flow's samplers sampler.kind=euler draws no noise"]
    found = _schedule_problems(sampler)
    if sampler.kind == "euler" and sampler.eta not in (0, SamplerConfig().eta):
        found.append(f"{eta}: must be 0 for {kind}, which draws no noise")
    if sampler.start_churn and not sampler.shared_start_noise:
        found.append(
            f"sampler.start_churn={sampler.start_churn:g}: needs sampler.shared_start_noise=true: each image has a "
            "start noise of its own"
        )
    if not without_noise(sampler):
        return found
    if sampler.window != "all":
        found.append(f"sampler.window={sampler.window}: must be all where no step draws noise ({_cause(sampler)})")
    if sampler.shared_start_noise and not sampler.start_churn and images_that_share > 1:
        found.append(
            f"sampler.shared_start_noise=true: must be false where no step draws noise ({_cause(sampler)}): all images "
            "of a prompt would be the same; or set sampler.start_churn above 0"
        )
    return found


def _schedule_problems(sampler: SamplerConfig) -> list[str]:
    """What a sampler that has timesteps of its own is not to be told, and the others have no use for."""
    kind, original = f"sampler.kind={sampler.kind}", sampler.original_inference_steps
    if sampler.kind != "consistency":
        return [] if original is None else [
            f"sampler.original_inference_steps={original}: needs sampler.kind=consistency (given {kind})"
        ]  # fmt: skip
    found = []
    if sampler.timestep_spacing is not None:
        found.append(
            f"sampler.timestep_spacing={sampler.timestep_spacing}: must be null for {kind}, whose timesteps are taken "
            "of sampler.original_inference_steps; sampler=consistency sets both"
        )
    if original is not None and sampler.steps > original:
        found.append(f"sampler.steps={sampler.steps}: must be at most sampler.original_inference_steps={original}")
    return found


def window_problems(sampler: SamplerConfig) -> list[str]:
    """Keys of windows that the chosen one does not read."""
    idle = {
        "all": ("window_size", "window_start", "window_end", "window_every"),
        "fixed": ("window_end", "window_every"),
        "random": ("window_every",),
    }
    plain = SamplerConfig()
    changed = [name for name in idle.get(sampler.window, ()) if getattr(sampler, name) != getattr(plain, name)]
    return [
        f"sampler.{name}={getattr(sampler, name)}: has no effect with sampler.window={sampler.window}; leave it at "
        f"{'null' if getattr(plain, name) is None else getattr(plain, name)}"
        for name in changed
    ]


def without_noise(sampler: SamplerConfig) -> bool:
    """Whether no step of a sampler draws noise."""
    one_step = sampler.kind == "consistency" and sampler.steps == 1
    return one_step or sampler.kind == "euler" or (sampler.kind == "ddim" and sampler.eta == 0)


def log_prob_problems(sampler: SamplerConfig, label: str) -> list[str]:
    """Why a sampler gives nothing to what is computed of the log-probs of steps.

    Args:
        label: of what asks for them.
    """
    if not without_noise(sampler):
        return []
    reason = f"draws no noise: a step without noise has no log-prob, and {label} is computed from those"
    if sampler.kind == "consistency":
        return [f"{_cause(sampler)}: {reason}; set sampler.steps to at least 2"]
    if sampler.kind != "euler":
        return [f"{_cause(sampler)}: {reason}; set sampler.eta above 0"]
    others = ", ".join(one for one in FLOW_KINDS if one != sampler.kind)
    return [f"{_cause(sampler)}: {reason}; set sampler.kind to one of {others}"]


def _cause(sampler: SamplerConfig) -> str:
    if sampler.kind == "consistency":
        return f"sampler.steps={sampler.steps}"
    return f"sampler.kind={sampler.kind}" if sampler.kind == "euler" else f"sampler.eta={sampler.eta:g}"
