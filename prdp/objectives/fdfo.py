"""Finite Difference Flow Optimization (2026, arXiv 2603.12893): pairs of images that started alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prdp.objectives._groups import by_group
from prdp.objectives._knobs import NotNegative, Positive

if TYPE_CHECKING:
    import torch


def fdfo(
    score: torch.Tensor,
    kl_ref: torch.Tensor | None,
    rewards: torch.Tensor,
    group_ids: torch.Tensor,
    *,
    trust_region: Positive = 0.03,
    kl: NotNegative = 0.0,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Every step of a pair's trajectories moves towards the better of its final images, as far as the penalty lets it.

    With rho = exp(score) and dR half the reward difference of an image to its partner, the mean over images and steps
    of -dR rho + |dR| / (2 c) (rho - 1)^2. It is least at rho = 1 + c for the better image and 1 - c for the worse.

    Args:
        score: how far the output of each step has moved towards the image and away from its partner, see
            `prdp.evidence.FiniteDifference`, [n, T].
        kl_ref: squared distance of outputs to the reference's, mean over latent dims, [n, T]; None, and not computed,
            where kl is 0.
        rewards: raw, [n].
        group_ids: int64 [n], equal for images of one prompt; its images (1, 2), (3, 4), ... are pairs.
        trust_region: c.
        kl: of the mean of kl_ref, which is added.

    Returns:
        the loss, and {"pairs_tied": number of pairs of equal reward, which teach nothing, "trust_region_used": mean
        over the others of (rho - 1) / c of the better image and (1 - rho) / c of the worse: 0 at the policy that
        sampled, 1 at the optimum; 0 where all are tied}.

    Raises:
        ValueError: groups of an odd size.
    """
    pairs = by_group(rewards, group_ids)
    if pairs.shape[1] % 2:
        raise ValueError(f"groups of {pairs.shape[1]} images, expected an even number: their images are taken in pairs")
    pairs = pairs.unflatten(1, (-1, 2))
    gain = (0.5 * (pairs - pairs.flip(2))).flatten(1)[..., None]
    change = by_group(score, group_ids).expm1()
    loss = (gain.abs() / (2.0 * trust_region) * change.square() - gain * (1.0 + change)).mean()
    if kl_ref is not None:
        loss = loss + kl * kl_ref.mean()
    used = (gain.sign() * change / trust_region).mean(2)[gain[..., 0] != 0]
    return loss, {
        "pairs_tied": float((gain == 0).sum().item() // 2),
        "trust_region_used": used.mean().item() if len(used) else 0.0,
    }
