"""`python -m lora_loom.trainer` is `lora-loom`."""

from .cli.main import main

main()
