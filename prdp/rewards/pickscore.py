"""PickScore (Kirstain et al., 2023): which image people pick, as the cosine of a fine-tuned CLIP ViT-H/14."""

from __future__ import annotations

from prdp.rewards.clipscore import CLIPScore


class PickScore(CLIPScore):
    """Cosine of image and prompt, about 0.2 for Stable Diffusion, as in the PRDP paper.

    The authors' own scale is about 100 times this: they multiply by the model's logit scale. Arguments as of
    `CLIPScore`, from which it differs in its weights and in preparing images and prompts as transformers does.
    """

    name = "pickscore"
    hub_id = "yuvalkirstain/PickScore_v1"
    like_openai = False
