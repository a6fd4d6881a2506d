"""Keeps other libraries from writing between our lines: their progress bars and warnings concern nobody who trains."""

import logging
import os

READ_ON_IMPORT = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DIFFUSERS_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""{variable of the environment: value}. diffusers and transformers set the levels of their loggers by them when they are imported. Whoever sets one has
the last word."""
TALKATIVE = ("bitsandbytes", "diffusers", "transformers", "torchao")
"""What goes wrong in them reaches us as an exception, not as a line of their log."""


def silence_libraries() -> None:
    """Call it before they are imported."""
    for name, value in READ_ON_IMPORT.items():
        os.environ.setdefault(name, value)
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
