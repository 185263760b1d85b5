"""Keeps diffusers and transformers from talking about what does not matter here."""

from __future__ import annotations


def quiet() -> None:
    """Silence advice on parts that are not used, and progress bars; errors are still raised."""
    import logging

    from transformers.utils import logging as transformers_logging

    # Where it is installed, peft imports it, and it tells of kernels that it did not find.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # Its advice on image processors would come once per actor.
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
