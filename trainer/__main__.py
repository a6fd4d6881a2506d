"""python -m lora_loom.trainer"""

from .cli import main

main()
