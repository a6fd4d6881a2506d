"""Keeps other libraries from writing between our lines: their progress bars and warnings concern nobody who trains."""

import logging
import os

BARS = ("HF_HUB_DISABLE_PROGRESS_BARS",)
"""Read by huggingface_hub and transformers when they are imported. Whoever sets one has the last word."""
TALKATIVE = ("bitsandbytes", "diffusers", "transformers", "torchao")
"""What goes wrong in them reaches us as an exception, not as a line of their log."""


def silence_libraries() -> None:
    """Call it before they are imported."""
    for name in BARS:
        os.environ.setdefault(name, "1")
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
