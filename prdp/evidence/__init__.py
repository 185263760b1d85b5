"""Evidence: the scalars of images and steps that objectives are functions of; one file a kind."""

from prdp.evidence.base import Evidence
from prdp.evidence.denoising import Denoising
from prdp.evidence.denoising_likelihood import DenoisingLikelihood
from prdp.evidence.finite_difference import FiniteDifference
from prdp.evidence.guided_reference import GuidedReference
from prdp.evidence.implicit_policies import ImplicitPolicies
from prdp.evidence.old_policy import OldPolicy
from prdp.evidence.trajectory import Trajectory

__all__ = [
    "Denoising",
    "DenoisingLikelihood",
    "Evidence",
    "FiniteDifference",
    "GuidedReference",
    "ImplicitPolicies",
    "OldPolicy",
    "Trajectory",
]
