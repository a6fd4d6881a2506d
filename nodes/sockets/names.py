"""What the wires are called: sockets of the same name can be linked."""

DATASET, CACHE, RUN = "LOOM_DATASET", "LOOM_CACHE", "LOOM_RUN"
CHECKPOINTS, GUIDANCE, SHEET = "LOOM_CHECKPOINTS", "LOOM_GUIDANCE", "LOOM_SHEET"
NETWORK, OPTIMIZER, OBJECTIVE = "LOOM_NETWORK", "LOOM_OPTIMIZER", "LOOM_OBJECTIVE"
MEMORY, VALIDATION = "LOOM_MEMORY", "LOOM_VALIDATION"

AUTO, ALONE = "auto", "captions alone"
"""Values of `edit_prompts`, beside the names of variants: chosen by the text encoder, or without the reference images."""
