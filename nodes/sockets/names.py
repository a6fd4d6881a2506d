"""Socket types: an output can be linked to an input of the same type."""

DATASET, CACHE, RUN = "LOOM_DATASET", "LOOM_CACHE", "LOOM_RUN"
CHECKPOINTS, GUIDANCE, SHEET = "LOOM_CHECKPOINTS", "LOOM_GUIDANCE", "LOOM_SHEET"
NETWORK, OPTIMIZER, OBJECTIVE = "LOOM_NETWORK", "LOOM_OPTIMIZER", "LOOM_OBJECTIVE"
MEMORY, VALIDATION = "LOOM_MEMORY", "LOOM_VALIDATION"
BASE_LORA = "LOOM_BASE_LORA"

AUTO, ALONE = "auto", "captions alone"
"""Values of `edit_prompts` besides the names of variants: the text encoder decides, or the text is encoded without the images."""
